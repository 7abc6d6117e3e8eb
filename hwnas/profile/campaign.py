"""The campaign: measures subjects until each is steady or has had its time, whatever happens to the workers.

A campaign is a sequence of *sweeps*. In a sweep one worker process takes every unfinished subject through one
*session*: subjects are loaded in chunks and measured in rounds, a sample block of each in random order, until each has
enough blocks. Sessions of one subject are in different processes. What to do next follows from the samples in the store
alone, so a campaign that was killed goes on where it stood, and several processes share the work through the store's
claims. So do several boards of one kind: each has a thread that sweeps like a campaign of its own, and what a board
leaves unfinished when it drops out is unfinished for all.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

import numpy as np

from hwnas.core.errors import HwnasError, UnavailableError
from hwnas.core.progress import Task, progress
from hwnas.core.target import Target
from hwnas.core.units import LATENCY
from hwnas.profile.backends import Settings, backends
from hwnas.profile.boards import look_at_boards
from hwnas.profile.calibration import recall, remember, settle
from hwnas.profile.device import cpu_model, environment, idlest_cores
from hwnas.profile.memory import MEMORY
from hwnas.profile.meters import ENERGY, WINDOW, Metering, window_readings
from hwnas.profile.process import Limits, WorkerDied, WorkerProcess
from hwnas.profile.stats import MIN_BLOCKS, Block, Drift, Measurement, measure, reference_speed, summarise
from hwnas.profile.store import Reading, Sample, Store
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Pace

WAIT_S = 0.5
STOP_S = 10.0
IDLE_DEATHS = 3
REFERENCE = "reference_ms"
LONGEST_SESSION = 4
CHUNKS_EACH = 4
RECORDS = "tuning"


@dataclass(frozen=True)
class Effort:
    """How much is done for a subject.

    Attributes:
        goal: half-width of the median's 95 % confidence interval, relative to the median, at which it is steady.
        time_limit_s: seconds in timed runs after which it is given up as noisy (not before `MIN_BLOCKS` blocks).
        sessions: worker processes that measure it at the least.
        batch_blocks: sample blocks taken before asking whether they suffice. A session takes one batch, two where the
            machine's speed was not settled, and the last one up to four until the subject is steady.
        chunk: subjects loaded at once.
        limits: what a worker may take before it counts as hung or out of memory.
        pace: how long a sample block is.
        memory: whether peak memory is found too.
        metering: how energy is read too; None where it is not.
    """

    goal: float = 0.02
    time_limit_s: float = 1.0
    sessions: int = 2
    batch_blocks: int = 5
    chunk: int = 30
    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)
    memory: bool = False
    metering: Metering | None = None


def blocks_due(blocks: Sequence[Block], reference: float, effort: Effort) -> tuple[int, int]:
    """What a subject with these blocks needs next: (session, number of blocks); no blocks where it is done.

    Whether it is done is asked at whole batches only, so that the answer is the same however often it is asked.
    """
    batch = effort.batch_blocks
    if not blocks:
        return 0, batch
    latest, spent = blocks[-1].session, sum(block.spent_s for block in blocks)
    if len(blocks) >= MIN_BLOCKS and spent >= effort.time_limit_s:
        return latest, 0
    most = max(MIN_BLOCKS - len(blocks), math.ceil((effort.time_limit_s - spent) / (spent / len(blocks))))
    own = [block for block in blocks if block.session == latest]
    if len(own) % batch:
        return latest, min(batch - len(own) % batch, most)
    if len(own) < 2 * batch and Drift.of(own, reference).settled.sum() < batch:
        return latest, min(batch, most)
    if latest + 1 >= effort.sessions:
        if measure(blocks, reference, effort.goal).verdict == "steady":
            return latest, 0
        if len(own) < LONGEST_SESSION * batch:
            return latest, min(batch, most)
    return latest + 1, min(batch, most)


def run_campaign(store: Store, target: Target, settings: Settings, subjects: Sequence[Subject], *, series: int = 0,
                 effort: Effort | None = None, seed: int = 0, title: str = "profiling") -> None:
    """Measure `subjects` on `target` into `store`; returns when each is steady, noisy or failed.

    `series` tells independent repetitions apart. Raises `StoreError` where the store fails and `UnavailableError` where
    workers do not start. An interrupt leaves every finished sample block in the store.
    """
    effort, crew = effort or Effort(), Crew()
    if settings.trials and not settings.records:
        settings = replace(settings, records=str(store.path.parent / RECORDS))
    boards = look_at_boards(settings).count if settings.remote else 1
    if boards > 1:
        effort = replace(effort, chunk=min(effort.chunk, math.ceil(len(subjects) / (CHUNKS_EACH * boards))))

    def help_out(number: int) -> None:
        with Store(store.path) as own:
            while not crew.done.is_set():
                with suppress(HwnasError):
                    _Campaign(own, target, settings, subjects, series, effort, [seed, number], crew).finish()
                    return
                crew.done.wait(WAIT_S)

    helpers = [Thread(target=help_out, args=(number,), daemon=True) for number in range(1, boards)]
    try:
        for helper in helpers:
            helper.start()
        _Campaign(store, target, settings, subjects, series, effort, [seed], crew).run(title)
    finally:
        crew.dismiss()
        for helper in helpers:
            helper.join(STOP_S)


class Crew:
    """The workers of one campaign: one, or one for each board."""

    def __init__(self) -> None:
        self.done = Event()
        self.at_work: dict[int, WorkerProcess] = {}

    def dismiss(self) -> None:
        """End what is still under way: nothing, unless the campaign was interrupted or has failed."""
        self.done.set()
        for process in list(self.at_work.values()):
            process.kill()


class History:
    """What is stored about one target, by item; `refresh` reads what this and other processes have added."""

    def __init__(self, store: Store, target: Target) -> None:
        self.store, self.target = store, store.target(target)
        self.blocks: dict[int, list[Block]] = defaultdict(list)
        self.readings: dict[int, list[Reading]] = defaultdict(list)
        self.sentinel_ms: list[float] = []
        self.seen = self.read = 0
        self.remembered = [float(value) for each in store.environments() if (value := each.get(REFERENCE))]
        self.refresh()

    def refresh(self) -> None:
        for number, item, block in self.store.blocks(self.target, self.seen):
            self.seen = number
            self.blocks[item].append(block)
            self.sentinel_ms += (block.before, block.after)
        for number, item, _, reading in self.store.readings(self.target, self.read):
            self.read = number
            self.readings[item].append(reading)
        self.failures = self.store.failures(self.target)
        self.reference = settle(reference_speed(self.sentinel_ms), self.remembered)

    def measurements(self, subjects: Iterable[Subject], *, series: int = 0, goal: float = Effort.goal,
                     metric: str = LATENCY.name) -> dict[Subject, Measurement]:
        """What is known of `subjects`; latencies are drift corrected, and one without a sample is `failed`."""
        items = self.store.items(self.target, series)
        return {subject: self._measurement(items.get(subject.id, -1), goal, metric) for subject in subjects}

    def _measurement(self, item: int, goal: float, metric: str = LATENCY.name) -> Measurement:
        if reason := self.failures.get(item):
            return Measurement.failed(reason)
        if metric == LATENCY.name:
            return measure(self.blocks.get(item, ()), self.reference, goal)
        values = [reading.value for reading in self.readings.get(item, ()) if reading.metric == metric]
        return summarise(values, goal, computed=metric == MEMORY)


class _Campaign:
    def __init__(self, store: Store, target: Target, settings: Settings, subjects: Sequence[Subject], series: int,
                 effort: Effort, seed: Sequence[int], crew: Crew) -> None:
        self.store, self.settings, self.effort, self.crew = store, settings, effort, crew
        self.backend = target.runtime
        self.history = History(store, target)
        items = store.ask(self.history.target, series, [subject.id for subject in subjects])
        self.subjects = {items[subject.id]: subject for subject in subjects}
        self.rng = np.random.default_rng([*seed, series])
        self.common_sentinel = backends.get(target.runtime).here(settings)
        self.begun = time.time()
        self.loaded: set[int] = set()
        self.alone: set[int] = set()
        self.environment = self.deaths = 0
        self.task: Task | None = None
        self.shares: dict[int, float] = {}
        self.rounds = Counter((item, block.session) for item, blocks in self.history.blocks.items() for block in blocks)

    def run(self, title: str) -> None:
        with progress(title, len(self.subjects)) as self.task:
            self.finish()
        if self.common_sentinel:
            remember(cpu_model(), self.history.reference, len(self.history.sentinel_ms))

    def finish(self) -> None:
        """Sweep until nothing is left to do."""
        try:
            self.show(self.subjects)
            while pending := self.pending():
                if not self.sweep(pending):
                    time.sleep(WAIT_S)
                self.history.refresh()
                self.show(pending)
        finally:
            self.store.release()

    # what is known

    def due(self, item: int) -> tuple[int, int]:
        """The session in which `item` needs blocks next, and how many."""
        if item in self.history.failures:
            return 0, 0
        return blocks_due(self.history.blocks[item], self.history.reference, self.effort)

    def windows_due(self, item: int) -> int:
        """How many windows of energy `item` still needs; those that an external log has not covered are taken anew."""
        metering = self.effort.metering
        if metering is None or item in self.history.failures:
            return 0
        known = {reading.started for reading in self.history.readings[item] if reading.metric == ENERGY
                 or (reading.metric == WINDOW and reading.started >= self.begun)}
        return max(0, metering.windows - len(known))

    def unfinished(self, item: int) -> bool:
        """Whether `item` lacks sample blocks, windows of energy, or its peak memory."""
        if item in self.history.failures:
            return False
        known = not self.effort.memory or any(reading.metric == MEMORY for reading in self.history.readings[item])
        return bool(self.due(item)[1] or self.windows_due(item) or not (known or item in self.loaded))

    def pending(self) -> list[int]:
        return [item for item in self.subjects if self.unfinished(item)]

    def show(self, items: Iterable[int]) -> None:
        """Tell the progress bar how `items` stand: a subject under way counts by its share of the least work."""
        if self.task is None:
            return
        least = self.effort.sessions * self.effort.batch_blocks
        for item in items:
            share = min(0.9, len(self.history.blocks[item]) / least)
            self.shares[item] = share if self.unfinished(item) else 1.0
        failed = sum(item in self.history.failures for item in self.subjects)
        self.task.update(sum(self.shares.values()), f"({failed} failed)" if failed else "")

    # what is done

    def sweep(self, pending: list[int]) -> bool:
        """Take each pending subject through one session; returns whether any could be claimed."""
        order = [pending[i] for i in self.rng.permutation(len(pending))]
        shared = [item for item in order if item not in self.alone]
        worked = self.share(shared)
        for item in [item for item in order if item in self.alone]:
            worked |= self.try_alone(item)
        return worked

    def share(self, items: list[int]) -> bool:
        """Measure `items` in chunks in one worker, restarted where it dies; returns whether any could be claimed."""
        worked = False
        while items:
            try:
                with self.worker() as worker:
                    while chunk := self.claim(items):
                        worked = True
                        self.measure_chunk(worker, chunk)
                        self.store.release()
                        items = [item for item in items if item not in chunk]
                return worked
            except WorkerDied as death:
                self.store.release()
                self.mourn(death)
                if death.item is None:
                    break
                self.alone.add(death.item)
                items = [item for item in items if item != death.item]
        return worked

    def try_alone(self, item: int) -> bool:
        """Measure one suspect in a worker of its own; it fails for good where that worker dies of it too."""
        if not self.claim([item]):
            return False
        try:
            with self.worker() as worker:
                self.measure_chunk(worker, [item])
        except WorkerDied as death:
            self.mourn(death)
            if death.item is not None:
                self.fail(item, death.reason)
        self.store.release()
        return True

    def mourn(self, death: WorkerDied) -> None:
        """Raise `UnavailableError` where workers keep dying with no subject to blame, and no other board is at work."""
        self.deaths = 0 if death.item is not None else self.deaths + 1
        self.history.refresh()
        if self.deaths >= IDLE_DEATHS and not self.crew.at_work and self.pending():
            raise UnavailableError(f"the {self.backend} worker keeps dying: {death.reason}") from death

    def claim(self, items: list[int]) -> list[int]:
        """The next chunk of `items` that no other process holds, with what others have stored of them."""
        chunk = self.store.claim(items, self.effort.chunk)
        self.history.refresh()
        return chunk

    def fail(self, item: int, reason: str) -> None:
        self.store.fail(item, reason)
        self.history.refresh()

    def measure_chunk(self, worker: WorkerProcess, chunk: list[int]) -> None:
        """One session of each subject of `chunk`; raises `WorkerDied`."""
        sessions = {item: self.due(item)[0] for item in chunk if self.unfinished(item)}
        for reply in worker.load({item: self.subjects[item] for item in sessions}):
            if "failed" in reply:
                self.set_aside(reply["failed"], reply["reason"], len(chunk))
                del sessions[reply["failed"]]
            else:
                self.loaded.add(reply["loaded"])
                self.store.compiled(reply["loaded"], reply["seconds"])
                self.store.read(reply["loaded"], self.environment,
                                [Reading(metric, value, time.time()) for metric, value in reply["memory"].items()])
        while order := self.order(sessions):
            for count, reply in enumerate(worker.run(order), 1):
                if "failed" in reply:
                    self.set_aside(reply["failed"], reply["reason"], len(chunk))
                    sessions.pop(reply["failed"], None)
                else:
                    self.keep(reply, sessions[reply["block"]])
                if count % len(sessions or chunk) == 0 or count == len(order):
                    self.store.renew()
                    self.history.refresh()
                    self.show(sessions)
        self.measure_energy(worker, sessions, len(chunk))
        worker.unload()

    def measure_energy(self, worker: WorkerProcess, sessions: dict[int, int], company: int) -> None:
        """This session's share of the windows of energy, round after round; raises `WorkerDied`."""
        metering = self.effort.metering
        if metering is None:
            return
        self.history.refresh()
        share = math.ceil(metering.windows / self.effort.sessions)
        due = {item: min(share, self.windows_due(item)) for item in sessions}
        for number in range(max(due.values(), default=0)):
            order = [item for item in self.rng.permutation(list(due)).tolist() if due[item] > number]
            for reply in worker.meter(order, metering.meter, metering.window_s):
                if "failed" in reply:
                    self.set_aside(reply["failed"], reply["reason"], company)
                    due[reply["failed"]] = 0
                else:
                    self.store.read(reply["item"], self.environment, window_readings(reply))
                self.store.renew()
        self.history.refresh()
        self.show(sessions)

    def order(self, sessions: Mapping[int, int]) -> list[int]:
        """The subjects that still need blocks in their session: round after round, each round in random order."""
        due = {item: number for item, session in sessions.items() for now, number in [self.due(item)] if now == session}
        rounds = ([item for item in due if due[item] > r] for r in range(max(due.values(), default=0)))
        return [active[i] for active in rounds for i in self.rng.permutation(len(active))]

    def set_aside(self, item: int, reason: str, company: int) -> None:
        """A clean failure is final where the subject had the worker for itself, else it is tried alone."""
        if company == 1:
            self.fail(item, reason)
        else:
            self.alone.add(item)

    def keep(self, reply: Mapping[str, Any], session: int) -> None:
        """Store one sample block."""
        item = reply["block"]
        self.rounds[item, session] += 1
        sample = Sample(session, self.rounds[item, session] - 1, reply["started"], reply["times"], reply["sentinel"],
                        reply["conditions"])
        self.store.add(item, self.environment, sample)

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """A new worker on the idlest cores, and a record of its circumstances."""
        if self.crew.done.is_set():
            raise UnavailableError("the campaign has ended")
        cpus = [] if self.settings.remote else idlest_cores(self.settings.threads)
        with WorkerProcess(self.backend, self.settings, self.effort.pace, cpus, self.effort.limits,
                           self.effort.memory) as process:
            record = environment(self.settings, cpus) | process.about
            if self.common_sentinel and (known := recall(record["cpu"])):
                record[REFERENCE] = known
                self.history.remembered.append(known)
            self.environment = self.store.environment(record)
            self.crew.at_work[id(self)] = process
            try:
                yield process
            finally:
                del self.crew.at_work[id(self)]
