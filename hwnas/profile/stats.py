"""From raw times to a `Measurement`: a median, its confidence interval, drift correction, and a verdict.

A *sample block* is a run of consecutive timings of one subject. Timings inside a block share the state of caches, clock
and neighbours, so they are correlated; the blocks, spread over rounds and worker processes, are the units of the
statistics: the value reported is the median of the block medians.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Verdict = Literal["steady", "noisy", "failed", "computed", "unmeasurable"]

CONFIDENCE = 0.95
CALM = 0.03
"""A sentinel within 3 % of its reference speed: on an idle machine it scatters by 1 %, and real changes were 10 %."""
FAST_SHARE = 0.005
"""The least share of the time that a machine has to run at its fastest for that to be its reference speed."""
MIN_BLOCKS = 6
"""The fewest blocks whose extremes bracket a median with 95 % confidence: 1 - 2 / 2**6 = 0.97."""


@dataclass(frozen=True)
class Block:
    """What the statistics need of a sample block.

    Attributes:
        session: number of the worker process that took it, counted for each subject from 0.
        n: timings in the block.
        median_ms: their median.
        spent_s: their sum.
        before, after: medians of the sentinel next to it, in ms; NaN where there was none.
        throttled: why the device's clock was held down; empty where it was not.
    """

    session: int
    n: int
    median_ms: float
    spent_s: float
    before: float = math.nan
    after: float = math.nan
    throttled: str = ""

    @classmethod
    def of(cls, session: int, times_ns: ArrayLike, sentinel_ns: ArrayLike, throttled: str = "") -> Block:
        """Summarise raw times; the sentinel's are those before the block followed by as many after it."""
        times, sentinel = np.asarray(times_ns), np.asarray(sentinel_ns)
        before, after = np.array_split(sentinel, 2)
        return cls(session, len(times), float(np.median(times)) / 1e6, float(times.sum()) / 1e9,
                   float(np.median(before)) / 1e6 if len(before) else math.nan,
                   float(np.median(after)) / 1e6 if len(after) else math.nan, throttled)


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


def reference_speed(sentinel_ms: ArrayLike) -> float:
    """The sentinel's time on the undisturbed machine: the median of its fastest mode, in ms; NaN where none is known.

    A low quantile finds the mode however long the machine was slowed down, so that two campaigns under different load
    refer to the same speed; the median of all within `CALM` above it is not biased low when nothing slowed it down.
    """
    known = np.asarray(sentinel_ms, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return math.nan
    return float(np.median(known[known <= (1 + CALM) * np.quantile(known, FAST_SHARE)]))


@dataclass(frozen=True)
class Drift:
    """The machine's speed in each of some blocks.

    Attributes:
        factor: how much slower than the reference the sentinel ran beside the block, shape (blocks,).
        settled: where it ran alike before and after, shape (blocks,).
        calm: where it ran at reference speed both times, shape (blocks,).
    """

    factor: NDArray[np.float64]
    settled: NDArray[np.bool_]
    calm: NDArray[np.bool_]

    @classmethod
    def of(cls, blocks: Sequence[Block], reference: float) -> Drift:
        before, after = np.array([(b.before, b.after) for b in blocks], dtype=np.float64).reshape(-1, 2).T / reference
        unknown = ~np.isfinite(before * after)
        before, after = np.where(unknown, 1.0, before), np.where(unknown, 1.0, after)
        calm = np.maximum(np.abs(before - 1), np.abs(after - 1)) <= CALM
        return cls((before + after) / 2, calm | (np.abs(after / before - 1) <= CALM), calm)


def measure(blocks: Sequence[Block], reference: float, goal: float) -> Measurement:
    """The measurement that `blocks` of one subject amount to.

    Blocks from a device whose clock was held down are dropped. Of the others, calm ones alone are used where there are
    enough of them (`MIN_BLOCKS`, and a third of all); otherwise blocks whose speed did not change, or all if these are
    too few, each divided by its drift. `goal` is the half-width asked for, relative to the median.
    """
    if not blocks:
        return Measurement.failed("no sample was taken")
    throttled = [block.throttled for block in blocks if block.throttled]
    blocks = [block for block in blocks if not block.throttled]
    if not blocks:
        return Measurement.failed(f"the device's clock was held down throughout ({throttled[-1]}); cool it, lower the "
                                  "batch or lock its clock")
    drift = Drift.of(blocks, reference)
    enough = max(MIN_BLOCKS, len(blocks) / 3)
    used = next((mask for mask in (drift.calm, drift.settled) if mask.sum() >= enough), np.ones(len(blocks), np.bool_))
    medians = np.array([block.median_ms for block in blocks])
    values = (medians / np.where(drift.calm, 1.0, drift.factor))[used]
    n = sum(block.n for block, use in zip(blocks, used, strict=True) if use)
    found = _judged(values, goal, "sample blocks")
    return replace(found, n=n, blocks=len(values), observed=float(np.median(medians)))


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


def _judged(values: NDArray[np.float64], goal: float, name: str) -> Measurement:
    """Steady where the interval of the median of independent `values` is within `goal`, else noisy."""
    median, low, high = median_interval(values)
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
    return Noise(len(both), float(np.median(relative)), float(relative.mean()), float(np.quantile(relative, 0.9)),
                 float(np.sqrt((difference**2).mean())))
