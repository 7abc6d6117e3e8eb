"""Drift: how fast the machine ran beside a sample block, and what that does to the latency of what was measured.

A *sentinel* (see `timer`) says how much slower or faster than usual the machine ran. Subjects feel a part of that:
latency ~ slow-down ** response. In 24 stores of a two-core Xeon virtual machine, slowed down by up to 25 % by its
neighbours, the response of whole networks, whose weights come from farther away, was 0.48 to 0.74, that of single
primitives 0.75 to 0.89 (down to 0.59 with TVM on two threads). In 20 stores with networks that were measured in several
campaigns the results differed by 1.7 % where nothing was corrected (the median of the stores' medians), by 1.5 % where
divided by the whole slow-down, and by 0.9 % where by its power.

What latencies are referred to is the *typical* speed, at which the machine runs most often: it is what a user meets.
The fastest seen, however rare, would say 3 to 16 % less than is observed, and differs more between stores (standard
deviation of 30 stores 5.8 % against 3.4 %).

Some machines have speeds far apart. On a two-core EPYC virtual machine the sentinel took 21.6 us, or 25 to 35 us for
some tenths of a second at a time, as where another thread shares the core; networks took 1.7 times as long then and
primitives 1.8 times, a response of 1.4 and 1.6. The median of all sentinels lay between these speeds and meant little.
Blocks at about the typical speed therefore come before those that need so large a correction: six results for each of
four networks, of 99 blocks each, lay up to 33 % apart with the median and all settled blocks alike, up to 10 % so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.profile.block import Block

CALM = 0.03
"""Sentinels within 3 % are of one speed: on an idle machine they scatter by 1 %, and real changes were 10 %."""
NEAR = 0.15
"""Within 15 % of the typical speed an error of 0.2 in the response is one of 3 % in the latency."""
PEAK = 0.2
"""A speed at which a machine runs a fifth of the time is a speed of its own; a broad hill has less within `CALM`."""
UNDISTURBED = 0.1
"""Where there is none and sentinels lie far apart, neighbours disturb the machine all the time, and never speed it up:
a tenth of them run nearly undisturbed. In such an hour networks lay 24 % above those of a quiet hour when referred to
the median, 1 % below them so."""
NETWORK = "network"
EXPECTED = {"primitive": 0.8, NETWORK: 0.6}
"""The response that is expected as long as nothing is known of a machine."""
RESPONSE_DEVIATION = 0.4
"""How far machines are expected to lie from that (standard deviation)."""
SUBJECT_DEVIATION = 0.25
"""How far single subjects lie from the response of their kind (standard deviation): 0.14 to 0.33 in 13 stores."""
SHARED = 50
"""Blocks taken one after the other see the same state of the machine: so many count as one observation."""
FINEST = 0.001
"""Medians of blocks are known no better than this, in logarithms."""
OUTLIER = 0.8
"""Blocks further than this from their subject's others, in logarithms, tell nothing of drift."""


@dataclass(frozen=True)
class Reference:
    """What latencies are referred to.

    Attributes:
        sentinel_ms: the sentinel's time at that speed; NaN where none is known.
        response: the power of the sentinel's slow-down that a latency grows by; 1: it slows down as much.
    """

    sentinel_ms: float
    response: float


def typical_speed(sentinel_ms: ArrayLike) -> float:
    """The sentinel's time at the speed at which the machine runs most often, in ms; NaN where none is known.

    The median of those within `CALM` of each other that are the most; where no speed stands out, that of all, or what
    the fastest tenth stay below, if the median is not `NEAR` that.
    """
    known = np.sort(np.asarray(sentinel_ms, dtype=np.float64))
    known = known[np.isfinite(known)]
    if not len(known):
        return math.nan
    alike = np.searchsorted(known, known * (1 + CALM), side="right") - np.arange(len(known))
    first = int(alike.argmax())
    peak = known[first : first + alike[first]]
    if len(peak) >= PEAK * len(known):
        return float(np.median(peak))
    undisturbed, median = np.quantile(known, [UNDISTURBED, 0.5])
    return float(median if median <= (1 + NEAR) * undisturbed else undisturbed)


@dataclass(frozen=True)
class Drift:
    """The machine's speed in each of some blocks.

    Attributes:
        factor: how much slower than at the reference the subject ran, as the sentinel beside it tells, shape (blocks,);
            1 where it tells nothing.
        doubt: how little that can be trusted, shape (blocks,): 0 at about the typical speed, or where nothing tells; 1
            at another; 2 where the speed changed meanwhile.
        deviation: the standard deviation of that factor's logarithm between subjects, shape (blocks,); 0 at about the
            typical speed.
    """

    factor: NDArray[np.float64]
    doubt: NDArray[np.int64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, blocks: Sequence[Block], reference: Reference) -> Drift:
        before, after = _sentinels(blocks).T
        speed = (before + after) / 2 / reference.sentinel_ms
        speed = np.where(np.isfinite(speed), speed, 1.0)
        far, changed = np.abs(speed - 1) > NEAR, np.abs(after / before - 1) > CALM
        deviation = np.where(far, SUBJECT_DEVIATION * np.abs(np.log(speed)), 0.0)
        return cls(speed**reference.response, np.where(changed, 2, 1 * far), deviation)


def response(subjects: Iterable[Sequence[Block]], expected: float) -> float:
    """The power of the sentinel's slow-down by which the latencies of `subjects`, each given by its blocks, grow.

    The pooled slope of log latency on log sentinel within each subject, over blocks at a settled speed, shrunk towards
    `expected` by the ridge that a prior of `RESPONSE_DEVIATION` makes; never below 0. What the sentinels scatter by
    themselves, as the two of each block show, is no change of speed and is taken off their spread (Fuller, Measurement
    Error Models, 1987, section 1.2).
    """
    moments, scatter, free = np.zeros((2, 2)), 0.0, -1
    for blocks in subjects:
        both, halves = _usable(blocks)
        if len(both):
            both = both - both.mean(axis=0)
            moments += both.T @ both
            scatter += float(halves @ halves) * (1 - 1 / len(both))
            free += len(both) - 1
    if free < 1:
        return expected
    (spread, shared), (_, total) = moments
    residual = (total - (shared**2 / spread if spread else 0.0)) / free
    ridge = SHARED * max(residual, FINEST**2) / RESPONSE_DEVIATION**2
    spread = max(spread - scatter, 0.0)
    return max(float((shared + ridge * expected) / (spread + ridge)), 0.0)


def _usable(blocks: Sequence[Block]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the blocks of one subject that tell something, logarithms of (sentinel, latency), (blocks, 2).

    Beside them half of what the two sentinels of each differ by, (blocks,). Where they differ by much, neither tells
    what the block felt.
    """
    settled = [b for b in blocks if not b.throttled and abs(b.after / b.before - 1) <= CALM and b.fast_ms > 0]
    if not settled:
        return np.empty((0, 2)), np.empty(0)
    sentinels = np.log(_sentinels(settled))
    both = np.column_stack([sentinels.mean(axis=1), np.log([b.fast_ms for b in settled])])
    near = np.abs(both[:, 1] - np.median(both[:, 1])) <= OUTLIER
    return both[near], (sentinels[near, 1] - sentinels[near, 0]) / 2


def _sentinels(blocks: Sequence[Block]) -> NDArray[np.float64]:
    """The sentinel before and after each block in ms, (blocks, 2)."""
    return np.array([(b.before, b.after) for b in blocks], dtype=np.float64).reshape(-1, 2)
