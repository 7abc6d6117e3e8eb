"""`Block`: a sample block, a run of consecutive timings of one subject.

Timings inside a block share the state of caches, clock and neighbours, so they are correlated; what is known of a
subject is counted in blocks. Whatever disturbs a run makes it longer, so that the fastest of a block are the least
disturbed (Chen and Revels, Robust benchmarking in noisy environments, 2016). The single fastest may be one that too
much waiting was taken off (see `timer.clocked`): of many timings, a twentieth have to be as fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

FASTEST = 0.05


@dataclass(frozen=True)
class Block:
    """What the statistics need of a sample block.

    Attributes:
        session: number of the worker process that took it, counted for each subject from 0.
        n: timings in the block.
        median_ms: their median.
        fast_ms: what the fastest twentieth of them took at the most, the fastest one of fewer than 21; the median
            where the clock is too coarse to tell.
        spent_s: their sum.
        before, after: the sentinel's fastest run next to it, in ms, above 0; NaN where there was none.
        throttled: why the device's clock was held down; empty where it was not.
    """

    session: int
    n: int
    median_ms: float
    fast_ms: float
    spent_s: float
    before: float = math.nan
    after: float = math.nan
    throttled: str = ""

    @classmethod
    def of(cls, session: int, times_ns: ArrayLike, sentinel_ns: ArrayLike, throttled: str = "") -> Block:
        """Summarise raw times; the sentinel's are those before the block followed by as many after it."""
        times, sentinel = np.sort(times_ns), np.asarray(sentinel_ns)
        before, after = (float(part.min()) / 1e6 if len(part) else 0.0 for part in np.array_split(sentinel, 2))
        return cls(
            session,
            len(times),
            float(np.median(times)) / 1e6,
            float(times[int(FASTEST * (len(times) - 1))] or np.median(times)) / 1e6,
            float(times.sum()) / 1e9,
            before if before > 0 else math.nan,
            after if after > 0 else math.nan,
            throttled,
        )
