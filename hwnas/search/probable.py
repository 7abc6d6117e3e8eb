"""The most probable architectures under bounds on costs, given the probability of each choice of each gene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.search.algorithm import algorithms
from hwnas.search.evaluator import Evaluator
from hwnas.search.moves import best
from hwnas.search.problem import Constraint, Problem
from hwnas.search.reach import first_feasible
from hwnas.search.source import Source
from hwnas.spaces import SearchSpace
from hwnas.train.expected import LayerCosts, layer_costs

EVALUATIONS = 20_000
LEAST_LOG = -60.0
MARGIN = 2e-6
SPARE = 20


@dataclass(frozen=True)
class Limit:
    """`low` <= `cost` <= `high`, in the cost's unit; infinite where there is no such end."""

    cost: Callable[[Population], Array]
    low: float = -np.inf
    high: float = np.inf

    def kept(self, population: Population) -> np.ndarray:
        values = self.cost(population)
        return np.asarray((values >= self.low) & (values <= self.high))


def most_probable(space: SearchSpace, probabilities: Array, limits: list[Limit], n: int, seed: int = 0) -> Population:
    """Up to `n` genotypes within all limits, the most probable first, shape (n, genes); none where none was found.

    Args:
        probabilities: (genes, most choices), 0 for padding.

    Exact, by integer programming, where every cost is a sum over the genes; else what an evolution finds.
    """
    logs = np.maximum(np.log(np.maximum(probabilities, 1e-300)), LEAST_LOG)
    sums = [layer_costs(space, limit.cost) for limit in limits]
    known = [found for found in sums if found is not None]
    if len(known) == len(limits):
        found = _programmed(space, logs, list(zip(known, limits, strict=True)), n)
    else:
        found = _evolved(space, logs, limits, n, seed)
    return found


def _programmed(space: SearchSpace, logs: Array, rows: list[tuple[LayerCosts, Limit]], n: int) -> Population:
    """scipy's HiGHS: one binary variable a choice; each solution found is cut off before the next.

    Limits are widened by more than the solver's tolerance, so that it misses nothing, and solutions are checked.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    gene = np.repeat(np.arange(len(space.genes)), space.choices)
    choice = np.concatenate([np.arange(count) for count in space.choices])
    one_each = LinearConstraint((gene[None] == np.arange(len(space.genes))[:, None]).astype(float), 1, 1)
    constraints = [one_each]
    for costs, limit in rows:
        scale = max(float(np.abs(costs.added).max()), 1e-12)
        low, high = ((end - costs.base) / scale for end in (limit.low, limit.high))
        constraints.append(LinearConstraint(costs.added[gene, choice][None] / scale, low - MARGIN, high + MARGIN))
    found: list[np.ndarray] = []
    for _ in range(n + SPARE):
        if len(found) == n:
            break
        solved = milp(-logs[gene, choice], integrality=np.ones(len(gene)), bounds=Bounds(0, 1), constraints=constraints)
        if solved.x is None:
            break
        taken = solved.x > 0.5
        row = choice[taken].astype(np.int16)
        if all(limit.kept(row[None]).all() for _, limit in rows):
            found.append(row)
        constraints.append(LinearConstraint(taken.astype(float)[None], -np.inf, len(space.genes) - 1))
    return np.array(found, dtype=np.int16).reshape(-1, len(space.genes))


def _evolved(space: SearchSpace, logs: Array, limits: list[Limit], n: int, seed: int) -> Population:
    genes = np.arange(len(space.genes))
    score = Source("log-probability", "accuracy", lambda population: logs[genes, population].sum(axis=1))
    costs = {str(i): Source(str(i), "latency_ms", limit.cost) for i, limit in enumerate(limits)}
    ends = [(str(i), end, upper) for i, x in enumerate(limits) for end, upper in ((x.low, False), (x.high, True))]
    constraints = tuple(Constraint(name, end, upper) for name, end, upper in ends if np.isfinite(end))
    problem = Problem(space, score, costs, constraints)
    start = first_feasible(problem)
    if start is None:
        return np.empty((0, len(space.genes)), dtype=np.int16)
    evaluator = Evaluator(problem, EVALUATIONS, np.random.default_rng(seed), start=start)
    algorithms.get("evolution")(evaluator)
    return best(evaluator.feasible(), n).genotypes
