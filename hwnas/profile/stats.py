"""From raw times to a `Measurement`: a median, its confidence interval, and a verdict.

Sample blocks, spread over rounds and worker processes, are the units of the statistics. The value reported is the
median latency of a machine that nothing disturbs: the median over the blocks of what the fastest timings of each took,
corrected for drift, times what the median of a block lies above its fastest timings in the calmest one. On a two-core
virtual machine whose neighbours slowed it down by up to 1.6 times for milliseconds at a time, two measurements of a
network differed by 12.5 % with the medians of the blocks and by 0.4 % so (20 networks, median), and 100 networks lay
12 % below what they took in a quiet hour, and 0.5 % so. In the quiet hour it was 1.2 and 1.0 %.

Blocks of one process are more alike than those of several, so that intervals that rest on blocks alone are too narrow:
in that quiet hour 7 of 20 held the difference of two campaigns, 20 with the deviation between processes in them. Where
there are sessions enough, their medians are the units instead. Where there are fewer, intervals reach as far as these
medians at least: a block may run at one speed in some processes and at another in others, as its memory happens to lie.
Of the primitives that ten tables called steady by their blocks alone, two sessions each, 6 % (median; up to 25 %) were
wider so than was asked for, and one took 2.7 times as long in one process as in the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.profile.block import Block
from hwnas.profile.drift import Drift, Reference

Verdict = Literal["steady", "noisy", "failed", "computed", "unmeasurable"]

CONFIDENCE = 0.95
MIN_BLOCKS = 6
"""The fewest blocks, or sessions, whose extremes bracket a median with 95 % confidence: 1 - 2 / 2**6 = 0.97."""
SESSION_BLOCKS = MIN_BLOCKS // 2
"""The fewest blocks whose median tells at what level a session lies."""
SURE = 3
"""So many sessions whose drift is in no doubt tell more than others beside them. In two noisy stores (145 pairs of two
campaigns) a tenth of the pairs differed by more than 11 and 4.8 % with others, by 10.5 and 3.6 % without."""
SESSION_DEVIATION = 0.01
"""What processes alone make of a latency (standard deviation): 0.7 and 1.0 % for networks on two machines."""
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Measurement:
    """A cost of one inference of a whole batch: a latency in ms, or another metric in its unit.

    Attributes:
        n: timings or readings it rests on; `blocks`: sample blocks.
        median, low, high: the median and its 95 % confidence interval; latencies drift corrected; NaN where it failed.
        verdict: `steady` where the interval is as narrow as was asked for, else `noisy`; `failed`; `computed` where
            it follows from the model alone; `unmeasurable` where nothing here could measure it.
        reason: why it is not steady; empty where it is.
        observed: the median as it was seen, at whatever speed the machine ran; NaN where it failed.
    """

    n: int
    blocks: int
    median: float
    low: float
    high: float
    verdict: Verdict
    reason: str = ""
    observed: float = math.nan

    @property
    def half_width(self) -> float:
        """Half the confidence interval relative to the median; infinite with too few blocks."""
        return relative_half_width(self.median, self.low, self.high)

    @classmethod
    def failed(cls, reason: str, verdict: Verdict = "failed") -> Measurement:
        return cls(0, 0, math.nan, math.nan, math.nan, verdict, reason)


@lru_cache(maxsize=4096)
def median_rank(n: int, confidence: float = CONFIDENCE) -> int:
    """Largest k for which the k-th smallest and k-th largest of `n` values bracket the median with `confidence`.

    The chance that either misses is 2 P(Binomial(n, 1/2) < k), whatever the distribution (David and Nagaraja, Order
    Statistics, 2003, section 7.1). 0 where `n` is too small.
    """
    miss, k = 0.0, 0
    while True:
        miss += 2 * math.comb(n, k) / 2**n
        if miss > 1 - confidence or k >= n:
            return k
        k += 1


def median_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """(median, low, high) of independent values; low and high are infinite where there are too few of them."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    k = median_rank(len(ordered), confidence)
    if k == 0:
        return float(np.median(ordered)), -math.inf, math.inf
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[-k])


def relative_half_width(median: float, low: float, high: float) -> float:
    return (high - low) / (2 * median) if math.isfinite(high - low) and median > 0 else math.inf


def measure(blocks: Sequence[Block], reference: Reference, goal: float, *, others: bool = True) -> Measurement:
    """The measurement that `blocks` of one subject amount to.

    Blocks from a device whose clock was held down are dropped. Of the others, those of each session are used whose
    drift is least in doubt, or the `MIN_BLOCKS` least in doubt of all, where these are fewer. Each is divided by its
    drift. With as many sessions as that, the value is the median of their medians, where three or more have blocks
    whose drift is in no doubt of these alone, and the interval that of all, or of these where they are enough for one.
    With fewer it is the median of the blocks, and the interval has the medians of the sessions in it, and what
    `SESSION_DEVIATION` makes of so many. Either holds what it would be if this subject felt far speeds more or less
    than others do. `goal` is the half-width asked for, relative to the
    median. Without `others` the interval is one for these sessions alone, whatever others would say.
    """
    if not blocks:
        return Measurement.failed("no sample was taken")
    by_session = len({block.session for block in blocks}) >= MIN_BLOCKS
    throttled = [block.throttled for block in blocks if block.throttled]
    blocks = [block for block in blocks if not block.throttled]
    if not blocks:
        return Measurement.failed(
            f"the device's clock was held down throughout ({throttled[-1]}); cool it, lower the batch or lock its clock"
        )
    drift, sessions = Drift.of(blocks, reference), np.array([block.session for block in blocks])
    used = _least_in_doubt(drift, sessions)
    medians, n = np.array([block.median_ms for block in blocks]), np.array([block.n for block in blocks])
    values = _undisturbed(medians, np.array([block.fast_ms for block in blocks])) / drift.factor

    def units(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(_levels(values[used], sessions[used])) if by_session else values[used]

    sure = _levels(values[drift.doubt == 0], sessions[drift.doubt == 0]) if by_session else []
    unlike, level = np.exp(drift.deviation), float(np.median(sure if len(sure) >= SURE else units(values)))
    within = [median_interval(units(values / unlike))[1], median_interval(units(values * unlike))[2]]
    if not by_session:
        best = used & (drift.doubt == drift.doubt.min())
        within += _levels(values[best], sessions[best], SESSION_BLOCKS)
        reach = math.exp(NORMAL_95 * SESSION_DEVIATION / math.sqrt(len(np.unique(sessions[used]))))
        within += [level / reach, level * reach] if others else []
    found = _judged(units(values), goal, "sessions" if by_session else "sample blocks", within, level)
    return replace(found, n=int(n[used].sum()), blocks=int(used.sum()), observed=float(np.median(medians)))


def _undisturbed(medians: NDArray[np.float64], fast: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each block of a subject would have for a median if it were as calm as the calmest one."""
    spread = np.divide(medians, fast, out=np.ones(len(fast)), where=fast > 0)
    calm: NDArray[np.float64] = fast * spread.min()
    return calm


def _least_in_doubt(drift: Drift, sessions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which blocks to use, given the drift and the session of each: see `measure`."""
    doubt = drift.doubt
    least = np.full(sessions.max() + 1, doubt.max())
    np.minimum.at(least, sessions, doubt)
    enough = np.sum(least[np.unique(sessions)] == 0) >= MIN_BLOCKS
    used: NDArray[np.bool_] = doubt == (0 if enough else least[sessions])
    if used.sum() >= MIN_BLOCKS:
        return used
    order = np.lexsort((np.abs(np.log(drift.factor)), doubt))
    return np.isin(np.arange(len(doubt)), order[:MIN_BLOCKS])


def _levels(values: NDArray[np.float64], sessions: NDArray[np.int64], fewest: int = 1) -> list[float]:
    """The medians of those sessions that have `fewest` values at the least."""
    each = [values[sessions == session] for session in np.unique(sessions)]
    return [float(np.median(own)) for own in each if len(own) >= fewest]


def summarise(readings: ArrayLike, goal: float, computed: bool = False) -> Measurement:
    """The measurement that independent `readings` of one metric amount to; no drift correction.

    `goal` is the half-width asked for, relative to the median. Readings that all agree leave nothing to estimate; what
    is `computed` is one reading, however often it was worked out.
    """
    values = np.asarray(readings, dtype=np.float64)
    if not len(values) or values.min() <= 0:
        reason = "a reading is not above zero" if len(values) else "nothing was read"
        return Measurement.failed(reason, "unmeasurable")
    if computed or values.min() == values.max():
        n, median = 1 if computed else len(values), float(np.median(values))
        return Measurement(n, 0, median, median, median, "computed" if computed else "steady", observed=median)
    return _judged(values, goal, "readings")


def _judged(
    values: NDArray[np.float64], goal: float, name: str, within: Sequence[float] = (), level: float | None = None
) -> Measurement:
    """Steady where the interval of the median of independent `values`, with all `within` it, is within `goal`.

    Where the `level` that they stand for is known better than by their median, it takes its place.
    """
    median, low, high = median_interval(values)
    median = median if level is None else level
    low, high = min([low, median, *within]), max([high, median, *within])
    width = relative_half_width(median, low, high)
    reason = "" if width <= goal else f"the interval is within {100 * width:.1f} %, {100 * goal:g} % was asked for"
    if math.isinf(width):
        low, high = float(values.min()), float(values.max())
        reason = f"{len(values)} {name} are too few for an interval"
    return Measurement(len(values), 0, median, low, high, "noisy" if reason else "steady", reason, median)


@dataclass(frozen=True)
class Noise:
    """How far independent measurements of the same subjects lie apart: absolute differences over their mean."""

    pairs: int
    median: float
    mean: float
    p90: float
    rmse_ms: float


def noise_floor(pairs: Iterable[tuple[float, float]]) -> Noise | None:
    """The noise of repeated measurement from (first, second) latencies in ms; None without a pair.

    `rmse_ms` is the root mean square error that one measurement has as the truth of another.
    """
    both = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=np.float64).reshape(-1, 2)
    if not len(both):
        return None
    difference = np.abs(both[:, 0] - both[:, 1])
    relative = difference / both.mean(axis=1)
    return Noise(
        len(both),
        float(np.median(relative)),
        float(relative.mean()),
        float(np.quantile(relative, 0.9)),
        float(np.sqrt((difference**2).mean())),
    )
