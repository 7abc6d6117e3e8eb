"""Asks a problem's sources, once an architecture, and remembers the answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.progress import Task
from hwnas.search.problem import Problem
from hwnas.search.rows import RowHash, RowSet, contains
from hwnas.spaces import SearchSpace

Index = slice | NDArray[np.bool_] | NDArray[np.intp]

INFEASIBLE = 1e6
ENUMERATED = 50_000
STALE_ROUNDS = 3
PROPOSALS_PER_EVALUATION = 100
HOPELESS = 5_000
REFILL_BELOW = 0.1


@dataclass(frozen=True)
class Scored:
    """Architectures and how good they are.

    Attributes:
        genotypes: (n, genes).
        score: (n,), the accuracy where all constraints hold: constrained dominance (Deb et al., NSGA-II, IEEE TEC 2002)
            as one number. -1e6 minus the violation where the accuracy alone falls short, -2e6 minus the violation where
            a cost breaks its bound, -inf where a source does not know the architecture.
        costs: (n, costs).
    """

    genotypes: Population
    score: Array
    costs: Array

    @property
    def feasible(self) -> NDArray[np.bool_]:
        return self.score > -INFEASIBLE

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: Index) -> Scored:
        return Scored(self.genotypes[index], self.score[index], self.costs[index])

    def __add__(self, other: Scored) -> Scored:
        return join([self, other])


def join(parts: list[Scored]) -> Scored:
    return Scored(
        np.concatenate([part.genotypes for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.costs for part in parts]),
    )


class Evaluator:
    """Evaluates populations until `limit` distinct architectures were asked for their accuracy.

    The first random sample holds `start`, architectures that keep the budgets, where these are hard to meet by chance.

    Attributes:
        evaluations: how many were.
        proposals: distinct architectures whose costs were asked.
        shown: the progress bar to keep up to date, where there is one.
        best_short: the best accuracy within the budgets that is below what is asked for, where none is above.
        history: (evaluations, best accuracy) whenever it rose.
    """

    def __init__(
        self,
        problem: Problem,
        limit: int,
        rng: np.random.Generator,
        seconds: float | None = None,
        start: Population | None = None,
    ) -> None:
        self.problem, self.rng = problem, rng
        self.known = problem.known()
        self._pool = self._promising_first(rng.permutation(all_of(problem.space) if self.known is None else self.known))
        self._next, self._start = 0, start
        self.limit = min(limit, len(self._pool) or limit)
        self.evaluations = self.proposals = 0
        self.best_short: float | None = None
        self.shown: Task | None = None
        self.history: list[tuple[int, float]] = []
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._stale = 0
        self._hash = RowHash(len(problem.space.genes))
        self._seen = RowSet()
        self._known_hashes = None if self.known is None else np.sort(self._hash(self.known))
        self._feasible: list[Scored] = []

    def _promising_first(self, pool: Population) -> Population:
        """`pool` with those in front that keep the budgets: there may be few, and all are known."""
        if not len(pool):
            return pool
        violation = self.problem.violation(pool, self.problem.cost_values(pool))
        return pool[np.argsort(violation > 0, kind="stable")]

    @property
    def exhausted(self) -> bool:
        """Whether the limit is reached, the time is up, or several rounds in a row brought nothing new.

        A search that meets hardly any architecture within the budgets, or none, ends too.
        """
        return (
            self.evaluations >= self.limit
            or self.proposals >= max(PROPOSALS_PER_EVALUATION * self.evaluations, HOPELESS)
            or self._stale >= STALE_ROUNDS
            or (self._deadline is not None and time.monotonic() >= self._deadline)
        )

    def sample(self, n: int) -> Population:
        """`n` architectures drawn at random; from a small space, or from a table, each once before any comes again.

        Of these the ones that keep the budgets come first.
        """
        if not len(self._pool):
            drawn, start, self._start = self.problem.space.sample(n, self.rng), self._start, None
            return drawn if start is None else np.concatenate([start, drawn])[:n]
        index = np.arange(self._next, self._next + n) % len(self._pool)
        self._next += n
        return self._pool[index]

    def ask(self, population: Population) -> Scored:
        """Evaluate those that were never asked before and that the sources know, others at random where few are.

        The accuracy is asked of those alone that keep the constraints on costs: the others compare by violation.
        """
        fresh = self._unseen(self.problem.space.canonical(population))
        if len(fresh) < REFILL_BELOW * len(population):
            fresh = np.concatenate([fresh, self._unseen(self.sample(len(population)))])
        self.proposals += len(fresh)
        self._stale = 0 if len(fresh) else self._stale + 1
        costs = self.problem.cost_values(fresh)
        violation = self.problem.violation(fresh, costs)
        score = -2 * INFEASIBLE - violation
        asked = np.flatnonzero(violation == 0)[: self.limit - self.evaluations]
        accuracy = self.problem.accuracy.predict(fresh[asked])
        short = self.problem.accuracy_violation(accuracy)
        if len(accuracy) and short.all():
            self.best_short = max(float(accuracy.max()), self.best_short or -np.inf)
        score[asked] = np.where(short > 0, -INFEASIBLE - short, accuracy)
        score[np.isnan(score)] = -np.inf
        self.evaluations += int(np.isfinite(accuracy).sum())
        if self.shown is not None:
            self.shown.update(self.evaluations, f"best {self.history[-1][1]:.4f}" if self.history else "")
        return self._keep(Scored(fresh, score, costs))

    def feasible(self) -> Scored:
        """Every architecture evaluated so far that keeps all constraints."""
        genes, costs = len(self.problem.space.genes), len(self.problem.costs)
        empty = Scored(np.empty((0, genes), np.int16), np.empty(0), np.empty((0, costs)))
        self._feasible = [join([empty, *self._feasible])]
        return self._feasible[0]

    def _unseen(self, population: Population) -> Population:
        hashes = self._hash(population)
        if self._known_hashes is not None:
            population = population[contains(self._known_hashes, hashes)]
            hashes = self._hash(population)
        return population[self._seen.add(hashes)]

    def _keep(self, scored: Scored) -> Scored:
        feasible = scored[scored.feasible]
        if len(feasible):
            self._feasible.append(feasible)
            best = float(feasible.score.max())
            if not self.history or best > self.history[-1][1]:
                self.history.append((self.evaluations, best))
        return scored


def all_of(space: SearchSpace) -> Population:
    """Every canonical genotype of a small space; none of a large one."""
    if prod(int(choices) for choices in space.choices) > ENUMERATED:
        return np.empty((0, len(space.choices)), np.int16)
    grid = np.indices(space.choices.tolist(), dtype=np.int16).reshape(len(space.choices), -1).T
    return space.distinct(grid)
