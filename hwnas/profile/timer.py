"""The timer: how one sample block is taken. What it does, and why, as found by measuring.

Found on a two-core Xeon virtual machine, ONNX Runtime 1.31, one thread, batch 1, a busy process on the other core, 96
MobileNetV3 blocks of 10 us to 0.3 ms and whole networks of 1 to 3 ms (`benchmarks/profile_repeatability.py` repeats the
experiment on any machine):

- The machine has two speeds. For tens of milliseconds to minutes at a time vector-heavy kernels run 10 to 11 % slower;
  a pure Python loop does not show it. Within one speed the medians of 20 ms blocks have an interquartile range of 0.1
  to 1.5 %, across both of 8 %. Two campaigns of six rounds in one process that ignored this differed by 5 % in the
  median and by 10 % at the 90th percentile.
- A *sentinel*, a matrix product of 96 x 96 that takes 9 us, run right before and right after each block tells the two
  speeds apart (8.8 against 9.8 us). Once a round is too seldom: in 16 % of 20 ms blocks the speed changed inside.
- Most blocks slow down nearly as much as the sentinel does, some (small maps, many weights) by less than half of it,
  whole networks by six tenths. So sample blocks between two sentinels that agree are corrected by what subjects of
  their kind feel (see `drift`). Fitting each subject's own slope made it worse (1.8 against 1.0 % between two campaigns
  that ran nine tenths of the time at the slow speed); one for all primitives and one for all networks made it better.
- The speed that latencies refer to has to be the same in two campaigns, hence remembered between them (`calibration`):
  a campaign that was slowed down throughout was 12 % off another. Once with the same speed, two campaigns under a load
  of five processes on the two cores differed by 0.6 % in the median and 2.6 % at the 90th percentile; uncorrected, by
  6.5 and 9.2 %.
- The sentinel's matrices have to lie at fixed offsets in a page-aligned buffer: left to the allocator, its time changed
  by 10 % from one process to the next. Inputs and outputs of the subjects are aligned for the same reason.
- Different worker processes measure some subjects up to 5 % apart, however long each samples, since code and weights
  land elsewhere in memory (standard deviation 0.6 to 1.5 %; whole networks 0.7 %). Hence two of them for each block.
- After a switch of subject the first run takes 1.4 to 3 times as long; most blocks are steady after 3 or 4 runs,
  networks after 4, a few are 7 % slow at the sixth. Hence warm-up ends when a run is no faster than the best before it.
- A processor that has waited for 50 ms takes a millisecond to reach its speed (the sentinel twice as long meanwhile, on
  an EPYC virtual machine). Hence it is woken up before each round.
- On that machine the sentinel takes 1.4 times as long for some 40 ms at a time (means of nine stores: 20 to 140 ms), up
  to 70 % of the time. Hence a block waits for the typical speed where that is known, for a while.
- Some hours there are phases of milliseconds too, shorter than a block, that the sentinels beside it do not show. The
  fastest runs of a block lie between them: what they took repeats within 0.4 % where medians differ by 12 %. Hence they
  count, and of the sentinel the fastest run (see `stats`).
- Medians of 10 ms blocks scatter as little as those of 20 ms (0.86 and 0.88 %), those of 5 ms more (1.3 %).
- Where more is to be done than there are processors, a run of some milliseconds is interrupted by other processes; the
  median then was 2 to 3 times too long for minutes, and the sentinel, too short to be hit, showed nothing. Priorities
  do not help across sessions. Linux counts how long a thread stood in the queue, so that time is taken off each run.
- Feeding through I/O binding with preallocated outputs takes 2 to 9 us less a run and repeats better (standard
  deviation between processes 0.6 % against 1.4 %): the allocation of the output is not part of the network.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.profile.drift import NEAR

Stopwatch = Callable[[], int]
"""Runs something once and says how many nanoseconds it took."""

SCHEDULER_RECORD = "/proc/thread-self/schedstat"
RECORD_BYTES = 96

STEADY = 0.97
WAKE_S = 0.002
SENTINEL_SIDE = 96
SENTINEL_WARMUP = 2
SENTINEL_RUNS = 7
GAP = 256


_of_this_thread = threading.local()
"""Each thread has a record of its own, opened once: a worker has as many stopwatches as subjects."""


@dataclass(frozen=True)
class Pace:
    """How long a sample block is.

    A block ends once it has lasted `block_s` and holds `least` timings, holds `most`, or has lasted `longest_s`.
    Warm-up ends once steady, and at the latest after `warmup_s`.
    """

    block_s: float = 0.010
    least: int = 8
    most: int = 500
    longest_s: float = 0.5
    warmup_s: float = 1.0


def queue_wait() -> Stopwatch:
    """How long the calling thread has waited for a processor since it started, in nanoseconds; 0 where none is told.

    Linux counts it in the second field of /proc/PID/schedstat (its Documentation/scheduler/sched-stats.rst).
    """
    if not hasattr(_of_this_thread, "waited"):
        _of_this_thread.waited = _read_queue_wait()
    waited: Stopwatch = _of_this_thread.waited
    return waited


def _read_queue_wait() -> Stopwatch:
    try:
        record = Path(SCHEDULER_RECORD).open("rb", buffering=0)  # noqa: SIM115
        int(os.pread(record.fileno(), RECORD_BYTES, 0).split()[1])
    except (OSError, IndexError, ValueError, AttributeError):
        return lambda: 0
    return lambda: int(os.pread(record.fileno(), RECORD_BYTES, 0).split()[1])


def clocked(run: Callable[[], Any]) -> Stopwatch:
    """Time `run` by this machine's clock, less what it waited for a processor."""
    clock, waited = time.perf_counter_ns, queue_wait()

    def once() -> int:
        before = waited()
        start = clock()
        run()
        took = clock() - start
        wait = waited() - before
        # A wait that is longer than the run lay beside it, between the clocks.
        return took - wait if wait < took else took

    return once


def warm_up(once: Stopwatch, limit_s: float) -> int:
    """Run until a run is not 3 % faster than the best one before it; returns the nanoseconds it took."""
    best = spent = once()
    while spent < limit_s * 1e9:
        latest = once()
        spent += latest
        if latest > STEADY * best:
            break
        best = latest
    return spent


def take_block(once: Stopwatch, pace: Pace) -> list[int]:
    """Consecutive timings in nanoseconds, warm-up not included."""
    times: list[int] = []
    spent = 0
    block, longest = pace.block_s * 1e9, pace.longest_s * 1e9
    while (spent < block or len(times) < pace.least) and len(times) < pace.most and (spent < longest or not times):
        latest = once()
        times.append(latest)
        spent += latest
    return times


def wake_up(once: Stopwatch) -> None:
    """Keep a processor that has rested busy until it runs at its speed."""
    end = time.perf_counter() + WAKE_S
    while time.perf_counter() < end:
        once()


def run_sentinel(once: Stopwatch) -> list[int]:
    """A few timings of the sentinel, its own warm-up not included."""
    for _ in range(SENTINEL_WARMUP):
        once()
    return [once() for _ in range(SENTINEL_RUNS)]


def await_speed(once: Stopwatch, typical_ms: float, patience_s: float) -> tuple[list[int], float]:
    """A few timings of the sentinel as soon as it runs at about its typical speed; and how many seconds that took.

    Its last timings where it does not within `patience_s`; its first where the typical speed is not known (NaN).
    """
    start = time.perf_counter()
    while True:
        times = run_sentinel(once)
        waited = time.perf_counter() - start
        if waited >= patience_s or not abs(min(times) / 1e6 / typical_ms - 1) > NEAR:
            return times, waited


def matrix_sentinel() -> Stopwatch:
    """A product of two small matrices at fixed places in memory."""
    size = SENTINEL_SIDE**2
    buffer = aligned((3 * (size + GAP),))
    left, right, out = (buffer[i * (size + GAP) :][:size].reshape(SENTINEL_SIDE, SENTINEL_SIDE) for i in range(3))
    left[:], right[:] = np.random.default_rng(0).random((2, SENTINEL_SIDE, SENTINEL_SIDE), dtype=np.float32)
    multiply, clock = np.matmul, time.perf_counter_ns

    def once() -> int:
        start = clock()
        multiply(left, right, out=out)
        return clock() - start

    return once


def no_sentinel() -> int:
    """In place of a sentinel where nothing here runs on the device: it takes no time, and tells nothing."""
    return 0


def watch_sentinel(seconds: float) -> list[float]:
    """How long the sentinel takes for some time, in ms, each value the median of a few runs."""
    once, end = matrix_sentinel(), time.monotonic() + seconds
    times: list[float] = []
    while not times or time.monotonic() < end:
        times.append(sorted(run_sentinel(once))[SENTINEL_RUNS // 2] / 1e6)
    return times


def aligned(shape: Sequence[int], dtype: type[np.generic] = np.float32) -> NDArray[Any]:
    """An array of zeros that begins at a page of its own."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=dtype, count=int(np.prod(shape))).reshape(tuple(shape))


def random_inputs(
    shapes: Sequence[Sequence[int]], dtypes: Sequence[type[np.generic]] | None = None
) -> list[NDArray[Any]]:
    """The inputs every backend is fed: standard normal, the same for the same shapes; float32 unless told."""
    arrays = []
    for index, shape in enumerate(shapes):
        array = aligned(shape, dtypes[index] if dtypes else np.float32)
        array[...] = np.random.default_rng(index).standard_normal(tuple(shape), dtype=np.float32)
        arrays.append(array)
    return arrays
