"""Ctrl-C, and a polite kill, that wait for a moment at which nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hwnas.core.progress import say

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold the first interrupt back: the block asks whether one came, and where the block ends it is raised.

    A second one does what it always does. Held are those signals that end this process by an exception; none outside
    the main thread, which alone may handle them.
    """
    came = False
    main = threading.current_thread() is threading.main_thread()
    before = {number: handler for number in ENDING if main and callable(handler := signal.getsignal(number))}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(_number: int, _frame: Any) -> None:
        nonlocal came
        came = True
        restore()
        say("interrupted: ends after this step and keeps it; once more to stop at once")

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: came
    finally:
        restore()
    if came:
        raise KeyboardInterrupt
