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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import numpy as np

from hwnas.core.errors import HwnasError, UnavailableError
from hwnas.core.progress import Task, progress, say
from hwnas.core.target import Target
from hwnas.profile.backends import Settings, backends
from hwnas.profile.block import Block
from hwnas.profile.boards import look_at_boards
from hwnas.profile.calibration import recall, remember
from hwnas.profile.device import environment, idlest_cores
from hwnas.profile.history import TYPICAL, Effort, History, blocks_due
from hwnas.profile.memory import MEMORY
from hwnas.profile.meters import ENERGY, WINDOW, window_readings
from hwnas.profile.process import WorkerDied, WorkerProcess
from hwnas.profile.processor import cpu_model
from hwnas.profile.store import Reading, Sample, Store
from hwnas.profile.subject import Subject

WAIT_S = 0.5
STOP_S = 10.0
IDLE_DEATHS = 3
CHUNKS_EACH = 4
RECORDS = "tuning"


def run_campaign(
    store: Store,
    target: Target,
    settings: Settings,
    subjects: Sequence[Subject],
    *,
    series: int = 0,
    effort: Effort | None = None,
    seed: int = 0,
    title: str = "profiling",
) -> None:
    """Measure `subjects` on `target` into `store`; returns when each is steady, noisy or failed.

    `series` tells independent repetitions apart. Raises `StoreError` where the store fails and `UnavailableError` where
    workers do not start. An interrupt leaves every finished sample block in the store.
    """
    effort = effort or Effort()
    if settings.trials and not settings.records:
        settings = replace(settings, records=str(store.path.parent / RECORDS))
    boards = look_at_boards(settings).count if settings.remote else 1
    pool = WorkerPool(boards)
    if boards > 1:
        effort = replace(effort, chunk=min(effort.chunk, math.ceil(len(subjects) / (CHUNKS_EACH * boards))))

    def sweep_on_another_board(number: int) -> None:
        with Store(store.path) as own:
            while not pool.stopped.is_set():
                with suppress(HwnasError):
                    _Campaign(own, target, settings, subjects, series, effort, seed, pool, number).sweep_until_done()
                    pool.idle_deaths[number] = IDLE_DEATHS
                    return
                pool.stopped.wait(WAIT_S)

    threads = [Thread(target=sweep_on_another_board, args=(number,), daemon=True) for number in range(1, boards)]
    try:
        for thread in threads:
            thread.start()
        _Campaign(store, target, settings, subjects, series, effort, seed, pool).run(title)
    finally:
        pool.stop()
        for thread in threads:
            thread.join(STOP_S)


class WorkerPool:
    """The workers of one campaign: one, or one for each board.

    `idle_deaths` counts for each how often in a row it died with no subject to blame; one that is done counts as dead.
    """

    def __init__(self, workers: int) -> None:
        self.stopped = Event()
        self.idle_deaths = [0] * workers
        self.running: dict[int, WorkerProcess] = {}

    def stop(self) -> None:
        """End what is still under way: nothing, unless the campaign was interrupted or has failed."""
        self.stopped.set()
        for process in list(self.running.values()):
            process.kill()


class _Campaign:
    def __init__(
        self,
        store: Store,
        target: Target,
        settings: Settings,
        subjects: Sequence[Subject],
        series: int,
        effort: Effort,
        seed: int,
        pool: WorkerPool,
        number: int = 0,
    ) -> None:
        self.store, self.settings, self.effort, self.pool, self.number = store, settings, effort, pool, number
        self.backend = target.runtime
        self.history = History(store, target)
        items = store.ask(self.history.target, series, [subject.id for subject in subjects])
        self.subjects = {items[subject.id]: subject for subject in subjects}
        self.rng = np.random.default_rng([seed, number, series])
        self.common_sentinel = backends.get(target.runtime).here(settings)
        self.sentinel_ms: list[float] = []
        self.begun = time.time()
        self.loaded: set[int] = set()
        self.isolated: set[int] = set()
        self.unmetered: set[int] = set()
        self.environment = 0
        self.task: Task | None = None
        self.fractions: dict[int, float] = {}
        self.rounds = Counter((item, block.session) for item, blocks in self.history.blocks.items() for block in blocks)

    def run(self, title: str) -> None:
        with progress(title, len(self.subjects)) as self.task:
            self.sweep_until_done()
        if self.common_sentinel:
            remember(cpu_model(), self.sentinel_ms)

    def sweep_until_done(self) -> None:
        try:
            self.update_progress(self.subjects)
            while pending := self.pending():
                if not self.sweep(pending):
                    time.sleep(WAIT_S)
                self.history.refresh()
                self.history.learn()
                self.update_progress(pending)
        finally:
            self.store.release()

    # what is known

    def session_due(self, item: int) -> tuple[int, int]:
        """The session in which `item` needs blocks next, and how many."""
        if item in self.history.failures:
            return 0, 0
        return blocks_due(self.history.blocks[item], self.history.reference(item), self.effort)

    def windows_due(self, item: int) -> int:
        """How many windows of energy `item` still needs; those that an external log has not covered are taken anew."""
        metering = self.effort.metering
        if metering is None or item in self.history.failures or item in self.unmetered:
            return 0
        known = {
            reading.started
            for reading in self.history.readings[item]
            if reading.metric == ENERGY or (reading.metric == WINDOW and reading.started >= self.begun)
        }
        return max(0, metering.windows - len(known))

    def unfinished(self, item: int) -> bool:
        """Whether `item` lacks sample blocks, windows of energy, or its peak memory."""
        if item in self.history.failures:
            return False
        known = not self.effort.memory or any(reading.metric == MEMORY for reading in self.history.readings[item])
        return bool(self.session_due(item)[1] or self.windows_due(item) or not (known or item in self.loaded))

    def pending(self) -> list[int]:
        return [item for item in self.subjects if self.unfinished(item)]

    def update_progress(self, items: Iterable[int]) -> None:
        """Tell the progress bar how `items` stand."""
        if self.task is None:
            return
        for item in items:
            self.fractions[item] = self.fraction(item) if self.unfinished(item) else 1.0
        failed = sum(item in self.history.failures for item in self.subjects)
        self.task.update(sum(self.fractions.values()), f"({failed} failed)" if failed else "")

    def fraction(self, item: int) -> float:
        """How far a subject under way is: half by the fewest blocks that it may need, the rest by its time limit."""
        blocks = self.history.blocks[item]
        least = len(blocks) / (self.effort.sessions * self.effort.batch_blocks)
        most = sum(block.spent_s for block in blocks) / self.effort.time_limit_s
        return (min(1.0, least) + min(1.0, most)) / 2

    # what is done

    def sweep(self, pending: list[int]) -> bool:
        """Take each pending subject through one session; returns whether any could be claimed."""
        order = [pending[i] for i in self.rng.permutation(len(pending))]
        worked = self.measure_together([item for item in order if item not in self.isolated])
        for item in [item for item in order if item in self.isolated]:
            worked |= self.measure_alone(item)
        return worked

    def measure_together(self, items: list[int]) -> bool:
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
                self.worker_died(death)
                if death.item is None:
                    break
                self.isolated.add(death.item)
                items = [item for item in items if item != death.item]
        return worked

    def measure_alone(self, item: int) -> bool:
        """Measure one suspect in a worker of its own; it fails for good where that worker dies of it too."""
        if not self.claim([item]):
            return False
        try:
            with self.worker() as worker:
                self.measure_chunk(worker, [item])
        except WorkerDied as death:
            self.worker_died(death)
            if death.item is not None:
                self.fail(item, death.reason)
        self.store.release()
        return True

    def worker_died(self, death: WorkerDied) -> None:
        """Raise `UnavailableError` where workers keep dying with no subject to blame, those of all boards."""
        deaths = self.pool.idle_deaths
        deaths[self.number] = 0 if death.item is not None else deaths[self.number] + 1
        self.history.refresh()
        if min(deaths) >= IDLE_DEATHS and self.pending():
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
        sessions = {item: self.session_due(item)[0] for item in chunk if self.unfinished(item)}
        alone = len(chunk) == 1
        self.load(worker, sessions, alone)
        self.measure_blocks(worker, sessions, alone)
        self.measure_energy(worker, sessions)
        worker.unload()

    def load(self, worker: WorkerProcess, sessions: dict[int, int], alone: bool) -> None:
        """Load the subjects of `sessions` into the worker; those that fail are taken out."""
        for reply in worker.load({item: self.subjects[item] for item in sessions}):
            if "failed" in reply:
                self.isolate_or_fail(reply["failed"], reply["reason"], alone)
                del sessions[reply["failed"]]
            else:
                self.loaded.add(reply["loaded"])
                self.store.compiled(reply["loaded"], reply["seconds"])
                self.store.read(
                    reply["loaded"],
                    self.environment,
                    [Reading(metric, value, time.time()) for metric, value in reply["memory"].items()],
                )

    def measure_blocks(self, worker: WorkerProcess, sessions: dict[int, int], alone: bool) -> None:
        """Sample blocks, round after round, until no session needs more; subjects that fail are taken out."""
        while order := self.block_order(sessions):
            for count, reply in enumerate(worker.run(order, self.history.awaited_ms), 1):
                if "failed" in reply:
                    self.isolate_or_fail(reply["failed"], reply["reason"], alone)
                    sessions.pop(reply["failed"], None)
                else:
                    self.store_block(reply, sessions[reply["block"]])
                if count % max(1, len(sessions)) == 0 or count == len(order):
                    self.history.refresh()
                    self.update_progress(sessions)
            self.history.learn()

    def measure_energy(self, worker: WorkerProcess, sessions: dict[int, int]) -> None:
        """This session's share of the windows of energy, round after round; raises `WorkerDied`."""
        metering = self.effort.metering
        if metering is None:
            return
        self.history.refresh()
        windows = math.ceil(metering.windows / self.effort.sessions)
        due = {item: min(windows, self.windows_due(item)) for item in sessions}
        for number in range(max(due.values(), default=0)):
            order = [item for item in self.rng.permutation(list(due)).tolist() if due[item] > number]
            if not order:
                break
            for reply in worker.meter(order, metering.meter, metering.window_s):
                if "unmetered" in reply:
                    left = list(self.subjects) if reply["unmetered"] is None else [reply["unmetered"]]
                    self.leave_unmetered(left, reply["reason"])
                    due |= dict.fromkeys(due.keys() & left, 0)
                else:
                    self.store.read(reply["item"], self.environment, window_readings(reply))
        self.history.refresh()
        self.update_progress(sessions)

    def leave_unmetered(self, items: Sequence[int], reason: str) -> None:
        """Do without the energy of `items` in this campaign, and say why, once."""
        if not self.unmetered:
            say(f"{'no energy' if len(items) > 1 else 'not every energy'} is read: {reason}")
        self.unmetered.update(items)

    def block_order(self, sessions: Mapping[int, int]) -> list[int]:
        """The subjects that still need blocks in their session: round after round, each round in random order."""
        needs = {item: self.session_due(item) for item in sessions}
        due = {item: number for item, (session, number) in needs.items() if session == sessions[item]}
        rounds = ([item for item in due if due[item] > r] for r in range(max(due.values(), default=0)))
        return [active[i] for active in rounds for i in self.rng.permutation(len(active))]

    def isolate_or_fail(self, item: int, reason: str, alone: bool) -> None:
        """A clean failure is final where the subject had the worker for itself, else it is measured alone."""
        if alone:
            self.fail(item, reason)
        else:
            self.isolated.add(item)

    def store_block(self, reply: Mapping[str, Any], session: int) -> None:
        item = reply["block"]
        self.rounds[item, session] += 1
        self.pool.idle_deaths[self.number] = 0
        block = Block.of(session, reply["times"], reply["sentinel"])
        self.sentinel_ms += [value for value in (block.before, block.after) if math.isfinite(value)]
        sample = Sample(
            session,
            self.rounds[item, session] - 1,
            reply["started"],
            reply["times"],
            reply["sentinel"],
            reply["conditions"],
        )
        self.store.add(item, self.environment, sample)

    @contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """A new worker on the idlest cores, and a record of its circumstances."""
        if self.pool.stopped.is_set():
            raise UnavailableError("the campaign has ended")
        cpus = [] if self.settings.remote else idlest_cores(self.settings.threads)
        with WorkerProcess(
            self.backend,
            self.settings,
            self.effort.pace,
            cpus,
            self.effort.limits,
            self.effort.memory,
            alive=self.store.renew,
        ) as process:
            record = environment(self.settings, cpus) | process.about
            if self.common_sentinel and (known := recall(record["cpu"])):
                record[TYPICAL] = known
                self.history.remembered.append(known)
            self.environment = self.store.environment(record)
            self.pool.running[id(self)] = process
            try:
                yield process
            finally:
                del self.pool.running[id(self)]
