"""Ctrl-C that waits for a moment at which nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hwnas.core.progress import say


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold the first interrupt back: the block asks whether one came, and where the block ends it is raised.

    A second one is raised at once. Nothing is held where interrupts are ignored or handled otherwise, nor outside the
    main thread, which alone may handle them.
    """
    came = False

    def hold(_number: int, _frame: Any) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("interrupted: ends after this step and keeps it; once more to stop at once")

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
