"""Energy: counters of the device, and how the energy of one inference is read from them.

A counter moves in steps (1 ms on a processor, up to 100 ms on a GPU), so a window of inferences begins and ends at a
step: what lies between two steps belongs to the inferences between them, whatever the rate of the counter. Power is
that of the whole device, other programs' included. The energy of an inference is the window's mean power times the
time that an inference took, without what it waited for a processor; drift is not corrected. Power at rest, read just
before, is subtracted in `above_idle_energy_mj` and left in `energy_mj`.

    @meters.register("my-meter")
    class MyMeter(Meter):
        def joules(self): return my_meter.total_joules()
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hwnas.core.errors import UnavailableError
from hwnas.core.registry import Registry
from hwnas.profile import nvidia
from hwnas.profile.backends import Settings
from hwnas.profile.store import Reading
from hwnas.profile.timer import queue_wait

ENERGY, ABOVE_IDLE = "energy_mj", "above_idle_energy_mj"
WINDOW = "window_s"
"""The metric of a window whose energy stands in an external meter's log: its length."""
POWER_LOG = "power-log"
POLL_S, MOMENT_S = 0.002, 0.1
STUCK_S = 10.0
LEAST_RUNS, LONGEST_S = 50, 30.0
"""So many inferences belong to a window, unless they take too long."""
IDLE_S = 1.0
SETTLE_S = 1.0

Counter = Callable[[], float]


class Meter(ABC):
    """An energy counter of the machine. Made and read inside the worker process."""

    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    window_s: ClassVar[float] = 1.0

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        """Why it cannot be read here, in words that end a sentence; None where it can."""
        if settings.remote:
            return "it counts for this machine, not for boards at a tracker"
        return None if settings.device in cls.devices else f"it counts for {', '.join(cls.devices)}"

    @abstractmethod
    def joules(self) -> float:
        """Energy since some moment, in joules; never falls."""


meters: Registry[type[Meter]] = Registry("meter", ("hwnas.profile.meters",))


@meters.register("nvml")
class Nvml(Meter):
    """The GPU's own counter."""

    devices = ("gpu",)

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        reason = super().unavailable(settings)
        if reason:
            return reason
        gpu = nvidia.gpu()
        if gpu is None:
            return "NVML is not there: install nvidia-ml-py"
        return None if gpu.joules() is not None else f"{gpu.name} has no energy counter"

    def joules(self) -> float:
        gpu = nvidia.gpu()
        joules = gpu.joules() if gpu else None
        if joules is None:
            raise RuntimeError("the GPU's energy counter cannot be read any more")
        return joules


@meters.register("rapl")
class Rapl(Meter):
    """The processor packages' counters and their memory's, as Linux shows them (Documentation/power/powercap)."""

    root: ClassVar[Path] = Path("/sys/class/powercap")
    window_s = 0.25

    def __init__(self) -> None:
        self.zones = {path: int((path.parent / "max_energy_range_uj").read_text()) for path in self.counters()}
        self.last = {path: int(path.read_text()) for path in self.zones}
        self.microjoules = 0

    @classmethod
    def counters(cls) -> list[Path]:
        """Counters of the packages and of memory; cores and the like are parts of a package."""
        zones = [path for path in sorted(cls.root.glob("intel-rapl:*")) if (path / "energy_uj").is_file()]
        return [
            path / "energy_uj" for path in zones if (path / "name").read_text().strip().startswith(("package", "dram"))
        ]

    @classmethod
    def unavailable(cls, settings: Settings) -> str | None:
        reason = super().unavailable(settings)
        if reason:
            return reason
        counters = cls.counters()
        if not counters:
            return f"{cls.root} shows no RAPL counter, as on most virtual machines"
        try:
            cls()
        except OSError:
            return f"{counters[0]} is closed to this user: sudo chmod a+r {cls.root}/intel-rapl:*/energy_uj"
        return None

    def joules(self) -> float:
        for path, limit in self.zones.items():
            now = int(path.read_text())
            self.microjoules += (now - self.last[path]) % (limit + 1)
            self.last[path] = now
        return self.microjoules / 1e6


@dataclass(frozen=True)
class Metering:
    """How energy is read: the meter's name (`power-log` for an external one), windows a subject, seconds of each."""

    meter: str
    window_s: float
    windows: int = 6


def find_meter(settings: Settings) -> Metering:
    """The first meter that can be read here; raises `UnavailableError` with what each of them lacks."""
    reasons = []
    for name in meters:
        meter = meters.get(name)
        reason = meter.unavailable(settings)
        if reason is None:
            return Metering(name, meter.window_s)
        if settings.device in meter.devices:
            reasons.append(f"{name}: {reason}")
    raise UnavailableError(
        f"energy cannot be measured here ({'; '.join(reasons) or 'no meter'}); give an external meter's --power-log"
    )


@dataclass(frozen=True)
class Span:
    """Inferences one after the other, or rest.

    Attributes:
        started: Unix time; seconds: how long it lasted; runs: inferences.
        waited: seconds of it that the process stood in the queue for a processor.
        joules: what the counter counted; None without one.
    """

    started: float
    seconds: float
    runs: int
    waited: float = 0.0
    joules: float | None = None


def take_span(
    run: Callable[[int], int] | None,
    counter: Counter | None,
    least_s: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Span:
    """Run back to back (rest, without `run`) for `least_s` at least, from one step of the counter to another.

    `run` makes as many inferences as it is told, or some more, and returns how many. It is as many as a moment takes,
    short where a counter is to be read between moments. It is read near both ends alone, since reading it takes time in
    which a GPU rests. Without a counter the span is as long as was asked for. Raises `RuntimeError` where the counter
    stands still.
    """
    runs, at_once, queued = 0, 1, queue_wait()
    moment = POLL_S if counter else MOMENT_S

    def work() -> float:
        """Run for a moment; returns when that ended."""
        nonlocal runs, at_once
        if run is None:
            sleep(POLL_S)
            return clock()
        begun = now = clock()
        while now - begun < moment:
            started = now
            runs, now = runs + run(at_once), clock()
            at_once *= 1 + (now - started < moment / 2)
        return now

    def step() -> tuple[float, float]:
        """Work until the counter moves; (when, where it stands)."""
        before, begun = counter() if counter else 0.0, clock()
        while True:
            now = work()
            if counter is None or (value := counter()) != before:
                return now, (value if counter else 0.0)
            if now - begun > STUCK_S:
                raise RuntimeError(f"the energy counter did not move for {STUCK_S:g} s")

    start, first = step()
    started, waited = time.time() - (clock() - start), queued()
    runs = 0
    while (lasted := work() - start) < least_s or (run is not None and runs < LEAST_RUNS and lasted < LONGEST_S):
        pass
    now, last = step()
    return Span(started, now - start, runs, (queued() - waited) / 1e9, last - first if counter else None)


def energy_readings(window: Span, joules: float, idle_w: float, meter: str) -> tuple[Reading, Reading]:
    """Energy of one inference in mJ, as it is and above rest."""
    details: dict[str, Any] = {**asdict(window), "meter": meter, "joules": joules, "idle_w": idle_w}
    watts, own_ms = joules / window.seconds, 1e3 * (window.seconds - window.waited) / window.runs
    return (
        Reading(ENERGY, watts * own_ms, window.started, details),
        Reading(ABOVE_IDLE, (watts - idle_w) * own_ms, window.started, details),
    )


def window_readings(reply: Mapping[str, Any]) -> tuple[Reading, ...]:
    """What a worker's reply about one window amounts to: energies, or a window that waits for an external log."""
    window, idle = Span(**reply["window"]), Span(**reply["idle"])
    if window.joules is not None and idle.joules is not None:
        return energy_readings(window, window.joules, idle.joules / idle.seconds, reply["meter"])
    details = {"runs": window.runs, "waited": window.waited, "idle_started": idle.started, "idle_s": idle.seconds}
    return (Reading(WINDOW, window.seconds, window.started, details),)
