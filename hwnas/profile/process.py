"""`WorkerProcess`: the parent's end of a worker."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any

from hwnas.profile import nvidia
from hwnas.profile.backends import Settings
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Pace

STARTUP_S, CLOSE_S = 120.0, 1.0


@dataclass(frozen=True)
class Limits:
    """What a worker may take: seconds for one compilation or sample block, and a share of the memory that is free."""

    timeout_s: float = 120.0
    memory_share: float = 0.8


class WorkerDied(Exception):
    """The worker crashed, was killed, or hung; `item` is the subject it was at, None where it was at none."""

    def __init__(self, item: int | None, reason: str) -> None:
        super().__init__(reason)
        self.item = item
        self.reason = reason


class WorkerProcess:
    """A worker under way; a context manager that leaves no process behind.

    `limits.timeout_s` is how long one step (a compilation, a sample block) may take before the worker counts as hung;
    `alive` is called with each.
    """

    def __init__(
        self,
        backend: str,
        settings: Settings,
        pace: Pace,
        cpus: list[int],
        limits: Limits,
        memory: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.alive = alive
        self.timeout_s = limits.timeout_s
        self.item: int | None = None
        self._doing = "start"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hwnas.profile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=worker_environment(settings.threads),
        )
        assert self._process.stdout is not None
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._reader = Thread(target=_pass_on, args=(self._process.stdout, self._lines), daemon=True)
        self._reader.start()
        try:
            self._send(
                "setup",
                backend=backend,
                settings=asdict(settings),
                pace=asdict(pace),
                cpus=cpus,
                memory_share=limits.memory_share,
                memory=memory,
            )
            self.about: dict[str, Any] = self._read(max(self.timeout_s, STARTUP_S))["about"]
        except BaseException:
            self.close()
            raise

    def load(self, subjects: Mapping[int, Subject]) -> Iterator[dict[str, Any]]:
        """Compile subjects under their numbers: `{"loaded", "seconds", "memory"}` or `{"failed", "reason"}` of each."""
        self._send("load", subjects=[(item, asdict(subject)) for item, subject in subjects.items()])
        return self._replies()

    def run(self, order: list[int], typical_ms: float = math.nan) -> Iterator[dict[str, Any]]:
        """A sample block (or failure) of each loaded subject in `order`, as they come.

        `typical_ms`: what the sentinel takes at the machine's typical speed, which blocks wait for; NaN: not known.
        """
        self._send("run", order=order, typical_ms=typical_ms)
        return self._replies()

    def meter(self, order: list[int], meter: str, window_s: float) -> Iterator[dict[str, Any]]:
        """A window of energy of each in `order`, as they come: `{"window", "idle", "meter", "item"}`.

        Or `{"unmetered", "reason"}` of one for which there is none; of all where that is None.
        """
        self._send("meter", order=order, meter=meter, window_s=window_s)
        return self._replies()

    def unload(self) -> None:
        self._send("unload")
        list(self._replies())

    def kill(self) -> None:
        """End the process; whoever reads from it gets `WorkerDied`."""
        self._process.kill()

    def close(self) -> None:
        """Kill and reap the process."""
        self.kill()
        self._process.wait()
        self._reader.join(CLOSE_S)
        ended = [] if self._reader.is_alive() else [self._process.stdout]  # a process that the worker left may hold it
        for pipe in (self._process.stdin, self._errors, *ended):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _replies(self) -> Iterator[dict[str, Any]]:
        """What the worker answers to one request, up to its end; keeps in mind which subject it is at."""
        while True:
            message = self._read(self.timeout_s)
            if "at" in message:
                self.alive()
                self.item, self._doing = message["at"], message["doing"]
                continue
            self.item = None
            if "end" in message:
                return
            yield message

    def _send(self, do: str, **message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **message}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _read(self, timeout_s: float) -> dict[str, Any]:
        """The next message; raises `WorkerDied` where none comes in time."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            raise WorkerDied(self.item, f"hung: no answer to {self._doing} within {timeout_s:g} s") from None
        if not line.endswith(b"\n"):
            raise self._died()
        message: dict[str, Any] = json.loads(line)
        return message

    def _died(self) -> WorkerDied:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return WorkerDied(self.item, f"died in {self._doing}: {why}{': ' + said[-1][:200] if said else ''}")


def _pass_on(pipe: IO[bytes], lines: SimpleQueue[bytes]) -> None:
    """Put the lines of `pipe` into a queue, which can be waited for on every system, and at its end an empty one."""
    for line in pipe:
        lines.put(line)
    lines.put(b"")


def worker_environment(threads: int) -> dict[str, str]:
    """The worker's environment: one thread for the sentinel's product, `threads` for a runtime that reads OpenMP's."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        **nvidia.ORDER,
        "PYTHONPATH": path,
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
