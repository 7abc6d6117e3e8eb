"""What this machine is: the `Target` of a request, the circumstances of a measurement, and what `hwnas doctor` says."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

import hwnas
from hwnas.core.errors import InputError, UnavailableError
from hwnas.core.target import Environment, Target
from hwnas.profile import nvidia
from hwnas.profile.backends import Settings, backends
from hwnas.profile.boards import look_at_boards
from hwnas.profile.meters import find_meter
from hwnas.profile.stats import CALM, reference_speed
from hwnas.profile.timer import matrix_sentinel

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "apache-tvm", "apache-tvm-ffi",
             "nvidia-ml-py")
LOOK_S = 0.1
SENTINEL_S = 2.0

Level = Literal["ok", "info", "warning"]


def cpu_model() -> str:
    """The processor's name as it reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> list[int]:
    """The processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def idlest_cores(count: int) -> list[int]:
    """The `count` cores with the least to do now, to pin a worker to; raises `InputError` where there are fewer."""
    usable = usable_cores()
    if not 1 <= count <= len(usable):
        raise InputError(f"--threads {count} asked for, this machine lets hwnas use 1 to {len(usable)}")
    loads = psutil.cpu_percent(LOOK_S, percpu=True)
    load = {core: loads[core] if core < len(loads) else 0.0 for core in usable}
    return sorted(sorted(usable, key=load.__getitem__)[:count])


def local_target(runtime: str, settings: Settings) -> Target:
    """The target of `runtime` on this machine.

    Raises `UnknownNameError` for a runtime that is not registered, `UnavailableError` where it or the device is absent.
    """
    backend = backends.get(runtime)
    if bool(settings.remote) != bool(settings.key):
        raise InputError("a board is found by both --remote HOST:PORT and --key KEY")
    if settings.device == "gpu" and not settings.remote and not gpus():
        raise UnavailableError("--device gpu: no GPU is found on this machine; use --device cpu")
    if settings.device not in ("cpu", "gpu"):
        raise UnavailableError(f"--device {settings.device}: this machine measures on cpu or gpu")
    if settings.batch < 1:
        raise InputError(f"--batch {settings.batch}: at least one image is measured")
    if not settings.remote and not 1 <= settings.threads <= len(usable_cores()):
        raise InputError(f"--threads {settings.threads}: this machine lets hwnas use 1 to {len(usable_cores())}")
    reason = backend.unavailable(settings)
    if reason:
        raise UnavailableError(f"cannot measure with {runtime}: {reason}")
    if settings.trials < 0:
        raise InputError(f"--trials {settings.trials}: a number of schedules, or 0 for none")
    if settings.remote:
        device = look_at_boards(settings).device
    else:
        device = cpu_model() if settings.device == "cpu" else gpus()[0]
    return Target(device, runtime, ".".join(backend.version().split(".")[:2]), settings.precision, settings.batch,
                  settings.threads, backend.tuned or settings.trials > 0, settings.graphs, settings.cache)


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that the driver knows, the one in use first."""
    return nvidia.names()


def versions() -> dict[str, str]:
    """Versions of the libraries that a measurement depends on, where installed."""
    found = {"hwnas": hwnas.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def governor(core: int = 0) -> str:
    """The frequency governor of a core; empty where the system shows none, as on a virtual machine."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""


def environment(settings: Settings | None = None, cpus: list[int] | None = None) -> Environment:
    """What is recorded beside every session of measurements."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    try:
        clock = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError):
        clock = None
    record: Environment = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(usable_cores()),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "governor": governor(),
        "clock_mhz": clock.current if clock else None,
        "load": [round(value, 2) for value in load],
        "versions": versions(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if settings is not None:
        record["settings"] = asdict(settings)
    if cpus is not None:
        record["pinned_to"] = cpus if hasattr(os, "sched_setaffinity") else []
    return record


@dataclass(frozen=True)
class Finding:
    """One line of `hwnas doctor`: what was looked at, what was found, and what to do about it."""

    topic: str
    level: Level
    found: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Devices, runtimes, libraries and how steadily this machine measures now; takes about two seconds."""
    return [*_devices(), *_runtimes(), *_libraries(), *_conditions(), _steadiness()]


def _devices() -> Iterator[Finding]:
    yield Finding("cpu", "ok", f"{cpu_model()}, {len(usable_cores())} cores usable")
    names = gpus()
    told = "" if nvidia.gpu() or not names else "install nvidia-ml-py to log its clocks and measure its energy"
    yield Finding("gpu", "ok" if names else "info", ", ".join(names) or "none found", told)
    for device in ("cpu", *(("gpu",) if names else ())):
        try:
            yield Finding(f"energy of the {device}", "ok", f"counted by {find_meter(Settings(device)).meter}")
        except UnavailableError as error:
            yield Finding(f"energy of the {device}", "info", str(error))


def _runtimes() -> Iterator[Finding]:
    for name in backends:
        backend = backends.get(name)
        here = [device for device in backend.devices if device == "cpu" or gpus()]
        can = [device for device in here if backend.unavailable(Settings(device)) is None]
        if can:
            skills = [text for text, has in (("tunes kernels (--trials)", backend.can_tune),
                                             ("measures boards (--remote)", backend.can_remote)) if has]
            yield Finding(f"runtime {name}", "ok",
                          "; ".join([f"{backend.version()}: {', '.join(can)}", ", ".join(backend.precisions), *skills]))
        else:
            reason = (backend.unavailable(Settings(device)) for device in backend.devices)
            absent = not backend.version()
            yield Finding(f"runtime {name}", "info", next(filter(None, reason), "it needs a GPU"),
                          f"install {' or '.join(backend.distributions)} to use it" if absent else "")


def _libraries() -> Iterator[Finding]:
    found = versions()
    yield Finding("libraries", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        yield Finding("libraries", "warning", "onnxruntime and onnxruntime-gpu overwrite each other's files",
                      "uninstall both, then install the one you want")


def _conditions() -> Iterator[Finding]:
    name = governor()
    steady = name in ("", "performance")
    yield Finding("governor", "ok" if steady else "warning", name or "not shown by this system",
                  "" if steady else "set it to performance while measuring: cpupower frequency-set -g performance")
    busy = sum(value > 50 for value in psutil.cpu_percent(LOOK_S, percpu=True))
    cores = os.cpu_count() or 1
    yield Finding("other load", "warning" if busy >= cores else "ok", f"{busy} of {cores} cores are busy",
                  "no core is free: stop other work, or measurements take longer" if busy >= cores else "")
    pinning = hasattr(os, "sched_setaffinity")
    yield Finding("pinning", "ok" if pinning else "info",
                  "workers are pinned to the idlest cores" if pinning else "this system has none; medians are noisier")


def _steadiness() -> Finding:
    """Watch the sentinel for a while."""
    once = matrix_sentinel()
    clock = time.perf_counter_ns
    ticks = {clock() for _ in range(1000)}
    resolution = min(b - a for a, b in zip(sorted(ticks), sorted(ticks)[1:], strict=False))
    times, end = [], clock() + int(SENTINEL_S * 1e9)
    while clock() < end:
        times.append(sorted(once() for _ in range(9))[4] / 1e6)
    reference = reference_speed(times)
    calm = sum(abs(value / reference - 1) <= CALM for value in times) / len(times)
    found = f"the sentinel is at reference speed {100 * calm:.0f} % of the time (timer resolution {resolution} ns)"
    if calm >= 0.5:
        return Finding("steadiness", "ok", found)
    return Finding("steadiness", "warning", found, "stop other work, plug in the charger, let it cool down; "
                                                   "hwnas corrects for it but measures longer")
