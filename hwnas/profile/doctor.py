"""What `hwnas doctor` says: devices, runtimes and libraries found, and how steadily this machine measures now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

import psutil

from hwnas.core.errors import UnavailableError
from hwnas.profile import nvidia
from hwnas.profile.backends import Settings, backends
from hwnas.profile.device import LOOK_S, by_load, cpu_model, governor, gpus, usable_cores, versions
from hwnas.profile.meters import find_meter
from hwnas.profile.process import worker_environment
from hwnas.profile.stats import CALM, reference_speed
from hwnas.profile.timer import Stopwatch, matrix_sentinel

SENTINEL_S = 2.0
GLIMPSE_S = 0.03
GLIMPSES = 5
NEIGHBOURS = 16
SLOWED = 1.2
BUSY_PERCENT = 50
BUSY = """
import os, sys
from hwnas.profile.timer import matrix_sentinel
once, parent = matrix_sentinel(), int(sys.argv[1])
print(flush=True)
while os.getppid() == parent:
    for _ in range(1000):
        once()
"""

Level = Literal["ok", "info", "warning"]


@dataclass(frozen=True)
class Finding:
    """One line of `hwnas doctor`: what was looked at, what was found, and what to do about it."""

    topic: str
    level: Level
    found: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Devices, runtimes, libraries and how steadily this machine measures now; takes some seconds."""
    return [*_devices(), *_runtimes(), *_libraries(), *_conditions(), *_neighbours(), _steadiness()]


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
    busy = sum(value > BUSY_PERCENT for value in psutil.cpu_percent(LOOK_S, percpu=True))
    cores = os.cpu_count() or 1
    yield Finding("other load", "warning" if busy >= cores else "ok", f"{busy} of {cores} cores are busy",
                  "no core is free: stop other work, or measurements take longer" if busy >= cores else "")
    pinning = hasattr(os, "sched_setaffinity")
    yield Finding("pinning", "ok" if pinning else "info",
                  "workers are pinned to the idlest cores" if pinning else "this system has none; medians are noisier")


def _steadiness() -> Finding:
    """Watch the sentinel for a while."""
    ticks = {time.perf_counter_ns() for _ in range(1000)}
    resolution = min(b - a for a, b in zip(sorted(ticks), sorted(ticks)[1:], strict=False))
    times = _watch(matrix_sentinel(), SENTINEL_S)
    reference = reference_speed(times)
    calm = sum(abs(value / reference - 1) <= CALM for value in times) / len(times)
    found = f"the sentinel is at reference speed {100 * calm:.0f} % of the time (timer resolution {resolution} ns)"
    if calm >= 0.5:
        return Finding("steadiness", "ok", found)
    return Finding("steadiness", "warning", found, "stop other work, plug in the charger, let it cool down; "
                                                   "hwnas corrects for it but measures longer")


def _watch(once: Stopwatch, seconds: float) -> list[float]:
    """How long the sentinel takes, in ms, each the median of a few runs, for some time."""
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(median(once() for _ in range(9)) / 1e6)
    return times


def _neighbours() -> Iterator[Finding]:
    """Whether work on one core slows another, as where both are threads of one core and the system does not say so."""
    if not hasattr(os, "sched_setaffinity") or len(usable_cores()) < 2:
        return
    own, *others = by_load()
    loads = psutil.cpu_percent(LOOK_S, percpu=True)
    if sum(load > BUSY_PERCENT for load in loads):
        yield Finding("neighbours", "info", "not tried, since some cores are busy")
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {own})
    try:
        slowed = [(core, factor) for core, factor in _slowdowns(others[:NEIGHBOURS]) if factor > SLOWED]
    finally:
        os.sched_setaffinity(0, before)
    if slowed:
        cores, worst = ", ".join(str(core) for core, _ in slowed), max(factor for _, factor in slowed)
        yield Finding("neighbours", "warning", f"core {own} takes {worst:.1f} times as long while core {cores} works",
                      "leave that one idle while measuring; as threads of one core they gain little from --threads 2")
    else:
        yield Finding("neighbours", "ok", f"work on other cores does not slow core {own}")


def _slowdowns(cores: list[int]) -> Iterator[tuple[int, float]]:
    """Each core, and how many times as long the sentinel takes here while a process works there."""
    once = matrix_sentinel()
    command = [sys.executable, "-c", BUSY, str(os.getpid())]
    with subprocess.Popen(command, env=worker_environment(1), stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            for core in cores:
                os.sched_setaffinity(busy.pid, {core})
                factors = []
                for _ in range(GLIMPSES):
                    busy.send_signal(signal.SIGCONT)
                    disturbed = median(_watch(once, GLIMPSE_S))
                    busy.send_signal(signal.SIGSTOP)
                    factors.append(disturbed / median(_watch(once, GLIMPSE_S)))
                yield core, median(factors)
        finally:
            busy.kill()
