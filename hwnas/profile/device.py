"""What this machine is: the `Target` of a request, and the circumstances of a measurement."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import hwnas
from hwnas.core.documents import now
from hwnas.core.errors import InputError, UnavailableError
from hwnas.core.target import Environment, Target
from hwnas.profile import nvidia
from hwnas.profile.backends import Settings, backends
from hwnas.profile.boards import look_at_boards
from hwnas.profile.processor import cpu_model

LIBRARIES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "apache-tvm",
    "apache-tvm-ffi",
    "nvidia-ml-py",
)
LOOK_S = 0.1


def usable_cores() -> list[int]:
    """The processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def idlest_cores(count: int) -> list[int]:
    """The `count` cores with the least to do now, to pin a worker to."""
    loads = core_loads()
    return sorted(sorted(loads, key=loads.__getitem__)[:count])


def core_loads() -> dict[int, float]:
    """How busy each usable core is now, in percent."""
    loads = dict(enumerate(psutil.cpu_percent(LOOK_S, percpu=True)))
    return {core: loads.get(core, 0.0) for core in usable_cores()}


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
        raise UnavailableError(f"--device {settings.device}: cpu and gpu are measured here; fpga and file take --emit")
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
    return Target(
        device,
        runtime,
        ".".join(backend.version().split(".")[:2]),
        settings.precision,
        settings.batch,
        settings.threads,
        backend.tuned or settings.trials > 0,
        settings.graphs,
        settings.cache,
    )


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
        "date": now(),
    }
    if settings is not None:
        record["settings"] = asdict(settings)
    if cpus is not None:
        record["pinned_to"] = cpus if hasattr(os, "sched_setaffinity") else []
    return record
