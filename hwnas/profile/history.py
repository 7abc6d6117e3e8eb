"""What the store knows of subjects, and what they still need: a campaign decides by this alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwnas.core.target import Target
from hwnas.core.units import LATENCY
from hwnas.profile.block import Block
from hwnas.profile.calibration import settle
from hwnas.profile.drift import EXPECTED, NETWORK, Drift, Reference, response
from hwnas.profile.memory import MEMORY
from hwnas.profile.meters import Metering
from hwnas.profile.process import Limits
from hwnas.profile.stats import MIN_BLOCKS, Measurement, measure, summarise
from hwnas.profile.store import Reading, Store
from hwnas.profile.subject import Subject, kind_of
from hwnas.profile.timer import Pace

LONGEST_SESSION = 4
ROUNDING = 1e-9
TYPICAL = "typical_ms"
"""Under this name the environment of a session keeps what the sentinel typically took, as was known before it."""


@dataclass(frozen=True)
class Effort:
    """How much is done for a subject.

    Attributes:
        goal: half-width of the median's 95 % confidence interval, relative to the median, at which it is steady.
        time_limit_s: seconds in timed runs after which it is given up as noisy (not before `MIN_BLOCKS` blocks, nor
            before a batch in each of `sessions`).
        sessions: worker processes that measure it at the least.
        batch_blocks: sample blocks taken before asking whether they suffice. A session takes one batch, and up to four
            until it has its share of `MIN_BLOCKS` at the machine's typical speed, the last one also until the subject
            is steady, or steady in this session so that it is sessions that differ, unless there are sessions enough
            for an interval between them. Of slow subjects a batch is smaller.
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


def blocks_due(blocks: Sequence[Block], reference: Reference, effort: Effort) -> tuple[int, int]:
    """What a subject with these blocks needs next: (session, number of blocks); no blocks where it is done.

    Whether it is done is asked at whole batches only, so that the answer is the same however often it is asked.
    """
    if not blocks:
        return 0, 1
    latest, spent = blocks[-1].session, sum(block.spent_s for block in blocks)
    own = [block for block in blocks if block.session == latest]
    limit = effort.time_limit_s * (1 - ROUNDING)
    share = math.ceil(MIN_BLOCKS / effort.sessions)
    batch = _batch(blocks[0].spent_s, limit, effort, share)
    left = max(MIN_BLOCKS - len(blocks), math.ceil((limit - spent) / (spent / len(blocks))))
    last = latest + 1 >= effort.sessions
    entitled = not last or (latest + 1 == effort.sessions and len(own) < batch)
    most = batch if entitled else left
    if most <= 0:
        return latest, 0
    if len(own) % batch:
        return latest, min(batch - len(own) % batch, most)
    if len(own) < LONGEST_SESSION * batch and np.sum(Drift.of(own, reference).doubt == 0) < share:
        return latest, min(batch, most)
    if last and measure(blocks, reference, effort.goal).verdict == "steady":
        return latest, 0
    longer = effort.sessions < MIN_BLOCKS and len(own) < LONGEST_SESSION * batch
    if last and longer and measure(own, reference, effort.goal, others=False).verdict != "steady":
        return latest, min(batch, most)
    return latest + 1, min(batch, most)


def _batch(block_s: float, limit_s: float, effort: Effort, least: int) -> int:
    """How many blocks of `block_s` a session takes: fewer where the time limit leaves its share of it no more."""
    return min(effort.batch_blocks, max(int(limit_s / (effort.sessions * block_s)), least))


class History:
    """What is stored about one target, by item; `refresh` reads what this and other processes have added.

    What is worked out of all items together, by `learn`, stays the same while the blocks that are due are taken.
    """

    def __init__(self, store: Store, target: Target) -> None:
        self.store, self.target = store, store.target(target)
        self.blocks: dict[int, list[Block]] = defaultdict(list)
        self.readings: dict[int, list[Reading]] = defaultdict(list)
        self.sentinel_ms: list[float] = []
        self.kinds: dict[int, str] = {}
        self.felt = dict(EXPECTED)
        self.seen = self.read = 0
        self.remembered = [float(value) for each in store.environments(self.target) if (value := each.get(TYPICAL))]
        self.refresh()
        self.learn()

    def refresh(self) -> None:
        for number, item, block in self.store.blocks(self.target, self.seen):
            self.seen = number
            self.blocks[item].append(block)
            self.sentinel_ms += (block.before, block.after)
        for number, item, _, reading in self.store.readings(self.target, self.read):
            self.read = number
            self.readings[item].append(reading)
        self.failures = self.store.failures(self.target)

    def learn(self) -> None:
        """What the machine's typical speed is, and how much of a slow-down is felt, by all that is known now."""
        self.kinds = {item: kind_of(subject) for item, subject in self.store.subjects(self.target).items()}
        self.typical_ms = settle(self.sentinel_ms, self.remembered)
        for kind, expected in EXPECTED.items():
            known = [blocks for item, blocks in self.blocks.items() if self.kinds[item] == kind]
            self.felt[kind] = response(known, expected)

    @property
    def awaited_ms(self) -> float:
        """What the sentinel takes at the speed to wait for: the typical one where it was known before; else NaN.

        What a campaign finds by itself it has to find without a choice of when to look.
        """
        return self.typical_ms if self.typical_ms in self.remembered else math.nan

    def reference(self, item: int) -> Reference:
        """What the latencies of `item` are referred to."""
        return Reference(self.typical_ms, self.felt[self.kinds.get(item, NETWORK)])

    def tried(self, subjects: Iterable[Subject], series: int = 0) -> list[Subject]:
        """Those of `subjects` that were sampled, or have failed."""
        items = self.store.items(self.target, series)
        return [s for s in subjects if (item := items.get(s.id, -1)) in self.failures or self.blocks.get(item)]

    def measurements(
        self, subjects: Iterable[Subject], *, series: int = 0, goal: float = Effort.goal, metric: str = LATENCY.name
    ) -> dict[Subject, Measurement]:
        """What is known of `subjects`; latencies are drift corrected, and one without a sample is `failed`."""
        items = self.store.items(self.target, series)
        return {subject: self._measurement(items.get(subject.id, -1), goal, metric) for subject in subjects}

    def _measurement(self, item: int, goal: float, metric: str = LATENCY.name) -> Measurement:
        if reason := self.failures.get(item):
            return Measurement.failed(reason)
        if metric == LATENCY.name:
            return measure(self.blocks.get(item, ()), self.reference(item), goal)
        values = [reading.value for reading in self.readings.get(item, ()) if reading.metric == metric]
        return summarise(values, goal, computed=metric == MEMORY)
