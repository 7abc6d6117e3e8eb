"""Power samples over time: energy of a window, whether the samples cover it, and the log of an external meter.

A log (`--power-log FILE`) is a CSV of two columns, time and watts, one sample a line, oldest first. Time is Unix
time in seconds, or ISO 8601 with its offset from UTC: the meter has to run on this machine's clock, or on one set by
the same time server. A first line of words is a header. A last line without its end is still being written, and is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import ParseError
from hwnas.core.files import read_text

MIN_SAMPLES = 5
MAX_GAP = 5.0
TIMES = ("time", "time_s", "timestamp", "unix_time")
WATTS = ("watts", "watt", "w", "power", "power_w")

Floats = NDArray[np.float64]


def integrate(times_s: Floats, values: Floats, start_s: float, end_s: float) -> float:
    """Trapezoidal integral of samples over a window, its ends interpolated; the values' unit times seconds."""
    from scipy.integrate import trapezoid  # here, since it would take half of the time in which a worker starts

    inside = (times_s > start_s) & (times_s < end_s)
    ends = np.interp([start_s, end_s], times_s, values)
    times = np.concatenate([[start_s], times_s[inside], [end_s]])
    return float(trapezoid(np.concatenate([ends[:1], values[inside], ends[1:]]), times))


def uncovered(times_s: Floats, start_s: float, end_s: float, what: str, gap_share: float = 0.0) -> str:
    """Why samples at these times do not give the energy of a window, called `what`; empty where they do.

    A gap counts that is over `MAX_GAP` times the usual one and over `gap_share` of the window.
    """
    if end_s <= start_s:
        return f"{what} ends before it starts"
    if not len(times_s) or times_s[0] > start_s or times_s[-1] < end_s:
        missing = end_s - start_s
        if len(times_s):
            missing = min(missing, max(times_s[0] - start_s, 0) + max(end_s - times_s[-1], 0))
        return (
            f"the power samples do not cover {what}: {missing:.3f} s of its {end_s - start_s:.3f} s have none; "
            "sample for longer and run it again"
        )
    around = times_s[np.searchsorted(times_s, start_s, "right") - 1 : np.searchsorted(times_s, end_s) + 1]
    if len(around) - 2 < MIN_SAMPLES:
        return (
            f"{len(around) - 2} power samples in {what}, at least {MIN_SAMPLES} are needed; "
            "repeat the inference for longer"
        )
    usual = float(np.median(np.diff(times_s)))
    if np.diff(around).max() > max(MAX_GAP * usual, gap_share * (end_s - start_s)):
        return f"the samples stop for {np.diff(around).max():.3f} s in {what} (usually {usual:.3f} s apart)"
    return ""


@dataclass(frozen=True)
class MeterLog:
    """An external meter's samples: Unix times in seconds, increasing, and watts, (n,) each."""

    path: Path
    times_s: Floats
    watts: Floats

    @classmethod
    def load(cls, path: str | Path) -> MeterLog:
        """Read a log; raises `InputError` where there is none, and `ParseError` with the line that is wrong."""
        samples = list(_samples(Path(path), read_text(path, "power log")))
        times, watts = np.array(samples, dtype=np.float64).reshape(-1, 2).T
        return cls(Path(path), times, watts)

    @property
    def spacing_s(self) -> float:
        """Seconds from one sample to the next, the median; NaN with fewer than two."""
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else math.nan

    def joules(self, start_s: float, end_s: float) -> float:
        return integrate(self.times_s, self.watts, start_s, end_s)


def _samples(path: Path, text: str) -> Iterator[tuple[float, float]]:
    """(time, watts) of each complete line."""
    columns, latest = (0, 1), -math.inf
    for number, line in enumerate(text.split("\n")[:-1], 1):
        cells = [cell.strip().strip('"') for cell in line.strip().lstrip("\ufeff").split(",")]
        if cells == [""]:
            continue
        if number == 1 and not _is_time(cells[0]):
            columns = _columns(path, [cell.lower() for cell in cells])
            continue
        if len(cells) <= max(columns):
            raise ParseError(path, f"{line.strip()!r} is no sample; a line is time,watts", number)
        time, watts = _time(path, cells[columns[0]], number), _watts(path, cells[columns[1]], number)
        if time <= latest:
            raise ParseError(path, f"sample times do not increase ({latest:.6f}, then {time:.6f})", number)
        latest = time
        yield time, watts


def _columns(path: Path, names: list[str]) -> tuple[int, int]:
    time, watts = ([names.index(name) for name in known if name in names] for known in (TIMES, WATTS))
    if not time or not watts:
        raise ParseError(
            path,
            f"the header {','.join(names)!r} names no column of times ({', '.join(TIMES)}) or no "
            f"column of watts ({', '.join(WATTS)})",
            1,
        )
    return time[0], watts[0]


def _is_time(cell: str) -> bool:
    return cell[:1].isdigit()


def _time(path: Path, cell: str, line: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        try:
            moment = datetime.fromisoformat(cell)
        except ValueError as error:
            raise ParseError(path, f"{cell!r} is no time: Unix seconds, or ISO 8601 with an offset", line) from error
        if moment.tzinfo is None:
            raise ParseError(path, f"{cell!r} does not say its offset from UTC, such as {cell}Z", line) from None
        value = moment.timestamp()
    if not math.isfinite(value):
        raise ParseError(path, f"{cell!r} is no time", line)
    return value


def _watts(path: Path, cell: str, line: int) -> float:
    try:
        value = float(cell)
    except ValueError as error:
        raise ParseError(path, f"{cell!r} is no number of watts", line) from error
    if not 0 <= value < math.inf:
        raise ParseError(path, f"{cell} W is no power that a meter shows", line)
    return value
