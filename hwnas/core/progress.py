"""The one progress bar: on standard error, with an estimate of what is left.

On a terminal it is a bar that moves; elsewhere (a log, a pipe) it is a line now and then, so that a log stays readable.
Of several processes that torchrun started the first one alone speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_S = 10.0

console = Console(stderr=True, highlight=False)


class Task:
    """A piece of long work: `advance` as it is done, `describe` to say where it stands."""

    def __init__(self, title: str, total: float, bar: Progress | None) -> None:
        self.title, self.total, self.done, self._before = title, total, 0.0, 0.0
        self._bar = bar
        self._id: TaskID | None = bar.add_task(title, total=total) if bar else None
        self._started = self._logged = time.monotonic()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.update(self.done + amount, note)

    def resume(self, done: float) -> None:
        """Begin where an earlier process ended: what is left takes as long as what is done from here on tells."""
        self._before = done
        self.update(done)

    def update(self, done: float, note: str = "") -> None:
        self.done = done
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, completed=done, description=f"{self.title} {note}".strip())
            return
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S and is_first_process():
            self._logged = now
            own = done - self._before
            left = f", about {(now - self._started) * (self.total - done) / own:.0f} s left" if own > 0 else ""
            print(f"{self.title}: {round(done, 1):g} of {self.total:g} {note}".rstrip() + left, file=sys.stderr)


@contextmanager
def progress(title: str, total: float) -> Iterator[Task]:
    """Show progress of `total` steps of work called `title` while the block runs."""
    if not (console.is_terminal and is_first_process()):
        yield Task(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Task(title, total, bar)


def say(text: str) -> None:
    """One line for a person, on standard error, where it never mixes with `--json`."""
    if is_first_process():
        console.print(text, markup=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
