"""What `hwnas doctor` says: devices, runtimes and libraries found, and how steadily this machine measures now."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Self

from hwnas.core.errors import UnavailableError
from hwnas.profile import nvidia
from hwnas.profile.backends import Backend, Settings, backends
from hwnas.profile.device import core_loads, governor, gpus, usable_cores, versions
from hwnas.profile.drift import CALM, typical_speed
from hwnas.profile.meters import find_meter
from hwnas.profile.process import worker_environment
from hwnas.profile.processor import cpu_model

SENTINEL_S = 2.0
GLIMPSE_S = 0.03
GLIMPSES = 5
SLOWED = 1.2
BUSY_PERCENT = 50
WATCHER = """
import json, sys
from hwnas.profile.timer import watch_sentinel
for seconds in sys.stdin:
    print(json.dumps(watch_sentinel(float(seconds))), flush=True)
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
    found = [*_devices(), *_runtimes(), *_libraries(), *_conditions()]
    try:
        return [*found, *_neighbours(), _steadiness()]
    except (OSError, UnavailableError) as error:
        return [*found, Finding("steadiness", "warning", f"not tried: {error}")]


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
            yield Finding(f"runtime {name}", "ok", "; ".join(_skills(backend, can)))
        else:
            reason = (backend.unavailable(Settings(device)) for device in backend.devices)
            absent = not backend.version()
            yield Finding(
                f"runtime {name}",
                "info",
                next(filter(None, reason), "it needs a GPU"),
                f"install {' or '.join(backend.distributions)} to use it" if absent else "",
            )


def _skills(backend: type[Backend], devices: Sequence[str]) -> Iterator[str]:
    """What `backend` can do on `devices`, on each of which it runs."""
    yield f"{backend.version()}: {', '.join(devices)}"
    works = [p for p in backend.precisions if any(backend.unavailable(Settings(d, p)) is None for d in devices)]
    yield ", ".join(works)
    if backend.can_tune:
        yield "tunes kernels (--trials)"
    if backend.can_remote:
        yield "measures boards (--remote)"


def _libraries() -> Iterator[Finding]:
    found = versions()
    yield Finding("libraries", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))
    if "onnxruntime" in found and "onnxruntime-gpu" in found:
        yield Finding(
            "libraries",
            "warning",
            "onnxruntime and onnxruntime-gpu overwrite each other's files",
            "uninstall both, then install the one you want",
        )


def _conditions() -> Iterator[Finding]:
    name = governor()
    steady = name in ("", "performance")
    yield Finding(
        "governor",
        "ok" if steady else "warning",
        name or "not shown by this system",
        "" if steady else "set it to performance while measuring: cpupower frequency-set -g performance",
    )
    loads = core_loads().values()
    busy, cores = sum(load > BUSY_PERCENT for load in loads), len(loads)
    yield Finding(
        "other load",
        "warning" if busy >= cores else "ok",
        f"{busy} of {cores} usable cores are busy",
        "no core is free: stop other work, or measurements take longer" if busy >= cores else "",
    )
    pinning = hasattr(os, "sched_setaffinity")
    yield Finding(
        "pinning",
        "ok" if pinning else "info",
        "workers are pinned to the idlest cores" if pinning else "this system has none; medians are noisier",
    )


def _steadiness() -> Finding:
    """Watch the sentinel for a while."""
    ticks = {time.perf_counter_ns() for _ in range(1000)}
    resolution = min(b - a for a, b in zip(sorted(ticks), sorted(ticks)[1:], strict=False))
    with _Watcher() as watcher:
        times = watcher.ask(SENTINEL_S).answer()
    typical = typical_speed(times)
    calm = sum(abs(value / typical - 1) <= CALM for value in times) / len(times)
    found = (
        f"the sentinel is within {100 * CALM:g} % of the usual {100 * calm:.0f} % of the time (timer resolution "
        f"{resolution} ns)"
    )
    if calm >= 0.5:
        return Finding("steadiness", "ok", found)
    return Finding(
        "steadiness",
        "warning",
        found,
        "stop other work, plug in the charger, let it cool down; hwnas corrects for it but measures longer",
    )


def _neighbours() -> Iterator[Finding]:
    """Whether work on one core slows another, as where both are threads of one core and the system does not say so."""
    if not hasattr(os, "sched_setaffinity") or len(usable_cores()) < 2:
        return
    loads = core_loads()
    own = min(loads, key=loads.__getitem__)
    others = _likely_siblings(own)
    busy = [str(core) for core in (own, *others) if loads[core] > BUSY_PERCENT]
    if busy:
        yield Finding("neighbours", "info", f"not tried, since core {' and '.join(busy)} is busy")
        return
    slowed = {core: factor for core, factor in _slowdowns(own, others) if factor > SLOWED}
    if slowed:
        cores = " or ".join(map(str, slowed))
        yield Finding(
            "neighbours",
            "warning",
            f"core {own} takes {max(slowed.values()):.1f} times as long while core {cores} works",
            "leave these idle while measuring; more threads may gain little",
        )
    else:
        yield Finding("neighbours", "ok", f"work on core {' or '.join(map(str, others))} does not slow core {own}")


def _likely_siblings(own: int) -> list[int]:
    """The cores that systems number as the other thread of core `own`: the next one, or half of all further."""
    usable = usable_cores()
    half = (os.cpu_count() or len(usable)) // 2
    likely = {own ^ 1, own + half, own - half} & set(usable) - {own}
    return sorted(likely) or [core for core in usable if core != own][:1]


def _slowdowns(own: int, others: list[int]) -> Iterator[tuple[int, float]]:
    """Each of `others`, and how many times as long the sentinel takes on core `own` while it works."""
    with _Watcher() as here, _Watcher() as there:
        here.pin(own)
        for core in others:
            there.pin(core)
            factors = []
            for _ in range(GLIMPSES):
                alone = median(here.ask(GLIMPSE_S).answer())
                there.ask(3 * GLIMPSE_S)
                time.sleep(GLIMPSE_S)
                factors.append(median(here.ask(GLIMPSE_S).answer()) / alone)
                there.answer()
            yield core, median(factors)


class _Watcher:
    """A process of one thread that times the sentinel when asked, and ends with this one."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", WATCHER]
        self._process = subprocess.Popen(
            command, env=worker_environment(1), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def pin(self, core: int) -> None:
        os.sched_setaffinity(self._process.pid, {core})

    def ask(self, seconds: float) -> Self:
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return self

    def answer(self) -> list[float]:
        """The sentinel's times in ms."""
        assert self._process.stdout is not None
        times: list[float] = json.loads(self._process.stdout.readline() or "[]")
        if not times:
            raise UnavailableError("the process that watches the sentinel ended early")
        return times
