"""The process that measures: `python -m hwnas.profile.worker`, JSON lines in and out.

The parent (`WorkerProcess`) sends `setup`, then `load`, `run` and `unload`; the worker announces each subject before
it touches it, so that the parent knows which one it died of. Nothing is shared but the two pipes, so a worker can hang,
crash or be killed for memory without harm to the campaign.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

from hwnas.profile.backends import Backend, Settings, backends
from hwnas.profile.memory import MEASURED_MEMORY, MEMORY, peak_activation_mib
from hwnas.profile.meters import IDLE_S, POWER_LOG, SETTLE_S, Counter, Span, meters, take_span
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Pace, Stopwatch, await_speed, run_sentinel, take_block, wake_up, warm_up

OOM_FIRST = 1000
PR_SET_PDEATHSIG = 1
PRIORITY = -10
PATIENCE, PATIENCE_AT_FIRST_S, LONGEST_WAIT_S = 2.0, 0.2, 1.0


class Worker:
    """Answers requests; `models` are the loaded subjects by number, with their stopwatches."""

    def __init__(self, replies: IO[str]) -> None:
        self.replies = replies
        self.models: dict[int, tuple[Any, Stopwatch]] = {}
        self.rests: dict[str, tuple[Counter | None, Span]] = {}
        self.patience_s = PATIENCE_AT_FIRST_S
        self.backend: Backend
        self.sentinel: Stopwatch
        self.pace: Pace
        self.memory: bool

    def setup(
        self,
        backend: str,
        settings: dict[str, Any],
        pace: dict[str, Any],
        cpus: list[int],
        memory_share: float,
        memory: bool,
    ) -> None:
        if cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpus)
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        if settings["device"] == "cpu":
            limit_memory(memory_share)
        self.backend = backends.get(backend)(Settings(**settings))
        self.sentinel = self.backend.sentinel()
        self.pace = Pace(**pace)
        self.memory = memory
        self.say(ready=True, pid=os.getpid(), about=self.backend.about())

    def load(self, subjects: list[tuple[int, dict[str, Any]]]) -> None:
        """Compile each subject and run it once."""
        for item, subject in subjects:
            self.backend.alive = partial(self.say, at=item, doing="compile")
            self.backend.alive()
            start, model = time.perf_counter(), None
            try:
                model = self.backend.compile(Subject(**subject))
                once = self.backend.stopwatch(model)
                compiled = time.perf_counter() - start
                once()
            except Exception as error:
                self.drop(item, model, error)
                continue
            self.models[item] = model, once
            self.say(loaded=item, seconds=compiled, memory=self.peaks(Subject(**subject), model) if self.memory else {})
        self.say(end=True)

    def drop(self, item: int, model: Any, error: Exception) -> None:
        """Say why a subject failed, and close its model where there is one."""
        self.end_where_lost(error)
        if model is not None:
            self.backend.close(model)
        self.say(failed=item, reason=one_line(error))

    def end_where_lost(self, error: Exception) -> None:
        """End this process where the device is gone: then an error may be no fault of the subject's."""
        if self.backend.lost():
            raise SystemExit(f"the device no longer answers: {one_line(error)}") from error

    def peaks(self, subject: Subject, model: Any) -> dict[str, float]:
        """Peak memory in MiB by metric: from the graph, and as the device counted it; what fails is left out."""
        found, settings = {}, self.backend.settings
        with contextlib.suppress(Exception):
            found[MEMORY] = peak_activation_mib(subject.to_onnx(settings.batch), settings.precision, settings.batch)
        with contextlib.suppress(Exception):
            if (measured := self.backend.memory_mib(model)) is not None:
                found[MEASURED_MEMORY] = measured
        return found

    def run(self, order: list[int], typical_ms: float) -> None:
        """A sample block of each loaded subject in `order`, between two runs of the sentinel.

        Each waits until that takes about `typical_ms`, but no longer than `LONGEST_WAIT_S`, and all together `PATIENCE`
        times as long as the blocks take.
        """
        wake_up(self.sentinel)
        for item in order:
            if item not in self.models:
                continue
            self.say(at=item, doing="run")
            try:
                once = self.models[item][1]
                started, conditions = time.time(), self.backend.conditions()
                before, waited = await_speed(self.sentinel, typical_ms, min(self.patience_s, LONGEST_WAIT_S))
                warm = warm_up(once, self.pace.warmup_s)
                times = take_block(once, self.pace)
                after = run_sentinel(self.sentinel)
                self.patience_s += PATIENCE * sum(times) / 1e9 - waited
            except Exception as error:
                self.drop(item, self.models.pop(item)[0], error)
                continue
            self.say(
                block=item,
                started=started,
                times=times,
                sentinel=before + after,
                warmup_ns=warm,
                conditions=conditions | self.backend.conditions(),
            )
        self.say(end=True)

    def meter(self, order: list[int], meter: str, window_s: float) -> None:
        """A window of inferences of each loaded subject in `order`, and what they took of energy; first a rest.

        What goes wrong here is the meter's matter: it costs a subject its energy, not its latency.
        """
        try:
            counter, idle = self.rest(meter, window_s)
        except Exception as error:
            self.say(unmetered=None, reason=one_line(error))
            order = []
        for item in order:
            if item not in self.models:
                continue
            self.say(at=item, doing="meter")
            try:
                window = take_span(partial(self.backend.repeat, self.models[item][0]), counter, window_s)
            except Exception as error:
                self.end_where_lost(error)
                self.say(unmetered=item, reason=one_line(error))
                continue
            self.say(window=asdict(window), idle=asdict(idle), meter=meter, item=item)
        self.say(end=True)

    def rest(self, meter: str, window_s: float) -> tuple[Counter | None, Span]:
        """The counter of `meter`, and a rest before its first window; a log's samples have to cover both alike."""
        if meter not in self.rests:
            counter = None if meter == POWER_LOG else meters.get(meter)().joules
            time.sleep(SETTLE_S)
            self.rests[meter] = counter, take_span(None, counter, IDLE_S if counter else max(IDLE_S, window_s))
        return self.rests[meter]

    def unload(self) -> None:
        for model, _ in self.models.values():
            self.backend.close(model)
        self.models.clear()
        self.say(end=True)

    def say(self, **message: Any) -> None:
        self.replies.write(json.dumps(message) + "\n")
        self.replies.flush()

    def serve(self, requests: IO[str]) -> None:
        actions: dict[str, Callable[..., None]] = {
            "setup": self.setup,
            "load": self.load,
            "run": self.run,
            "meter": self.meter,
            "unload": self.unload,
        }
        for line in requests:
            message = json.loads(line)
            actions[message.pop("do")](**message)


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


def limit_memory(share: float) -> None:
    """Make an allocation fail once the process holds that share of what is free now, before the machine runs out."""
    import psutil

    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        limit = int(share * psutil.virtual_memory().available)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def die_with_parent() -> None:
    """Be killed when the parent dies (beside the end of input), and be the first to go when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_FIRST))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve requests from standard input; what libraries print goes to standard error, not between the replies."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    Worker(replies).serve(sys.stdin)


if __name__ == "__main__":
    main()
