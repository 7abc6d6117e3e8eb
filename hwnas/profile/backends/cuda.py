"""Timing on a CUDA device: events, graphs, and a flushed or a filled L2.

`Driver` is all that timing asks of CUDA; what is done with it does not depend on PyTorch, nor on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hwnas.profile.timer import Stopwatch

CAPTURE_WARMUP = 3
FLUSHED = 2
"""How many times L2's size is overwritten to flush it, since it does not strictly replace what is oldest."""
UNKNOWN_L2 = 128 * 2**20
STALL_CYCLES = 200_000
"""About 0.1 ms, in which a graph and two events are queued."""
SENTINEL_SIDE = 1536
"""So that it takes some hundred microseconds, beside which the jitter of launching it is small."""

Run = Callable[[], Any]


class Driver(Protocol):
    """What timing asks of a CUDA device; everything is queued on one stream."""

    def mark(self) -> Any:
        """Queue an event; returns it."""

    def between_ns(self, start: Any, end: Any) -> int:
        """Wait for `end`; the device's time from `start` to it."""

    def flush(self) -> None:
        """Overwrite L2, and wait until that is done."""

    def stall(self) -> None:
        """Queue a wait, so that what follows is queued before any of it begins."""

    def capture(self, run: Run) -> Run:
        """Record the kernels that `run` queues as a graph; what is returned replays them."""


def stopwatch(driver: Driver, run: Run, cold: bool = False, queued: bool = False) -> Stopwatch:
    """Times what `run` queues, between two events.

    With `cold`, L2 is flushed before each run, outside of the timing. With `queued`, the device waits until all is
    queued, so that the time has nothing of what launching takes.
    """

    def once() -> int:
        if cold:
            driver.flush()
        if queued:
            driver.stall()
        start = driver.mark()
        run()
        return driver.between_ns(start, driver.mark())

    return once


class TorchDriver:
    """The CUDA device that PyTorch uses."""

    def __init__(self) -> None:
        import torch

        self.cuda: Any = torch.cuda
        size = FLUSHED * int(getattr(self.cuda.get_device_properties(0), "L2_cache_size", 0) or UNKNOWN_L2)
        self.buffer = torch.empty(size, dtype=torch.int8, device="cuda")

    def mark(self) -> Any:
        event: Any = self.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between_ns(self, start: Any, end: Any) -> int:
        end.synchronize()
        return int(1e6 * start.elapsed_time(end))

    def flush(self) -> None:
        self.buffer.zero_()
        self.cuda.synchronize()

    def stall(self) -> None:
        self.cuda._sleep(STALL_CYCLES)

    def capture(self, run: Run) -> Run:
        stream = self.cuda.Stream()
        stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(stream):
            for _ in range(CAPTURE_WARMUP):
                run()
        self.cuda.current_stream().wait_stream(stream)
        graph: Any = self.cuda.CUDAGraph()
        with self.cuda.graph(graph, stream=stream):
            outputs = run()
        needed = run, outputs  # a graph knows addresses, and keeps neither weights nor inputs alive

        def replay() -> Any:
            graph.replay()
            return needed[1]

        return replay


def matrix_product(driver: Driver) -> Stopwatch:
    """The sentinel on the device: a product of two square matrices."""
    import torch

    left, right = torch.rand(2, SENTINEL_SIDE, SENTINEL_SIDE, device="cuda")
    out = torch.empty_like(left)
    return stopwatch(driver, lambda: torch.mm(left, right, out=out))
