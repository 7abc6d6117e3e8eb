"""Power samples over time: energy of a window, by rail, with the idle power subtracted and not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Record
from hwnas.profile.power import integrate, uncovered

MIN_IDLE_SAMPLES = 10


@dataclass(frozen=True)
class Window:
    """When something ran: seconds on the samples' clock, and how many inferences that were (None where unknown)."""

    subject: str
    start_s: float
    end_s: float
    inferences: int | None = None
    md5: str = ""


@dataclass(frozen=True)
class PowerLog:
    """Samples of a board's supply rails.

    Attributes:
        path: where they stand.
        times_s: (n,) seconds, increasing.
        rails_mw: rail -> (n,) milliwatts.
        windows: the runs whose energy is asked for.
        flags: doubts that hold for every window.
    """

    path: Path
    times_s: NDArray[np.float64]
    rails_mw: Mapping[str, NDArray[np.float64]]
    windows: tuple[Window, ...] = ()
    flags: tuple[str, ...] = field(default=())

    @property
    def total_mw(self) -> NDArray[np.float64]:
        """(n,) sum over the rails."""
        total: NDArray[np.float64] = np.sum(list(self.rails_mw.values()), axis=0)
        return total

    def energy_mj(self, values_mw: NDArray[np.float64], window: Window) -> float:
        """Trapezoidal integral over the window, its ends interpolated; millijoules."""
        return integrate(self.times_s, values_mw, window.start_s, window.end_s)

    def check(self, window: Window) -> None:
        """Raise `ParseError` where the samples do not cover the window."""
        reason = uncovered(self.times_s, window.start_s, window.end_s, f"the run of {window.subject}")
        if reason:
            raise ParseError(self.path, reason)

    def idle(self) -> tuple[float, int]:
        """Median power outside every run, milliwatts, and the number of samples; (NaN, 0) where there are none."""
        outside = np.ones(len(self.times_s), dtype=bool)
        for window in self.windows:
            outside &= (self.times_s < window.start_s) | (self.times_s > window.end_s)
        return (float(np.median(self.total_mw[outside])), int(outside.sum())) if outside.any() else (float("nan"), 0)

    def records(self) -> tuple[Record, ...]:
        """One record a window, or one of the mean power alone where nothing ran."""
        if not self.windows:
            details = {"mean_power_mw": float(self.total_mw.mean()), **self._rail_power()}
            return (Record(self.path.stem, self.path, {}, details=details, flags=(*self.flags, "no_run")),)
        return tuple(self._record(window) for window in self.windows)

    def _rail_power(self) -> dict[str, float]:
        return {f"{rail}_mw": float(values.mean()) for rail, values in self.rails_mw.items()}

    def _record(self, window: Window) -> Record:
        self.check(window)
        seconds = window.end_s - window.start_s
        idle_mw, idle_samples = self.idle()
        energy = self.energy_mj(self.total_mw, window)
        details: dict[str, float] = {
            "run_s": seconds,
            "run_energy_mj": energy,
            "mean_power_mw": energy / seconds,
            **{f"{rail}_mw": self.energy_mj(values, window) / seconds for rail, values in self.rails_mw.items()},
        }
        flags = list(self.flags)
        costs = {}
        if idle_samples >= MIN_IDLE_SAMPLES:
            details |= {"idle_power_mw": idle_mw, "run_energy_above_idle_mj": energy - idle_mw * seconds}
        else:
            flags.append("no_idle_baseline")
        if window.inferences:
            details["inferences"] = window.inferences
            costs["energy_mj"] = Cost(energy / window.inferences, n=window.inferences)
            if "idle_power_mw" in details:
                above = max(details["run_energy_above_idle_mj"], 0.0) / window.inferences
                costs["above_idle_energy_mj"] = Cost(above, n=window.inferences)
        else:
            flags.append("inferences_unknown")
        return Record(window.subject, self.path, costs, details=details, flags=tuple(flags), md5=window.md5)


def increasing(path: Path, times: list[float], first_line: int) -> NDArray[np.float64]:
    """`times` as an array; raises `ParseError` where there are too few or they do not increase."""
    array = np.array(times)
    if len(array) < 2:
        raise ParseError(path, f"{len(array)} power samples: the log is cut short, or the sampler did not run")
    back = np.flatnonzero(np.diff(array) <= 0)
    if len(back):
        line = first_line + int(back[0]) + 1
        raise ParseError(path, f"sample times do not increase ({array[back[0]]:.6f}, {array[back[0] + 1]:.6f})", line)
    return array
