"""Search algorithms: each one short composition of selection, crossover and mutation.

An algorithm asks an `Evaluator` until it is exhausted; what it found is in the evaluator. A new one is a function
registered under a name, in this module or through the entry-point group `hwnas.algorithms`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwnas.core.arrays import Array
from hwnas.core.registry import Registry
from hwnas.core.units import quantity_of
from hwnas.search.evaluator import Evaluator, Scored
from hwnas.search.moves import best, crossover, crowding, mutate, ranks
from hwnas.search.problem import Problem

Algorithm = Callable[[Evaluator], None]
algorithms: Registry[Algorithm] = Registry("algorithm")

PARENTS = 400
CHILDREN = 4000
CROSSED = 0.3
MORE_MUTATIONS = 1.0


def sizes(evaluator: Evaluator) -> tuple[int, int]:
    """Parents and children of a generation: some twenty-five generations or more, whatever the limit."""
    children = int(np.clip(evaluator.limit // 25, 10, CHILDREN))
    return max(children * PARENTS // CHILDREN, 10), children


def offspring(parents: Scored, n: int, evaluator: Evaluator) -> Scored:
    """Evaluated children of `parents`: crossed or copied, then mutated."""
    children = crossover(parents.genotypes, n, CROSSED, evaluator.rng)
    return evaluator.ask(mutate(children, evaluator.problem.space, MORE_MUTATIONS, evaluator.rng))


@algorithms.register("random")
def random(evaluator: Evaluator) -> None:
    """Architectures drawn uniformly: the baseline."""
    _, children = sizes(evaluator)
    while not evaluator.exhausted:
        evaluator.ask(evaluator.sample(children))


@algorithms.register("evolution")
def evolution(evaluator: Evaluator) -> None:
    """Elitist evolution under constrained dominance: the best of parents and children are the next parents."""
    size, children = sizes(evaluator)
    parents = best(evaluator.ask(evaluator.sample(children)), size)
    while not evaluator.exhausted:
        parents = best(parents + offspring(parents, children, evaluator), size)


@algorithms.register("nsga2")
def nsga2(evaluator: Evaluator) -> None:
    """NSGA-II (Deb et al., IEEE TEC 2002) on accuracy and all costs: for the front."""
    size, children = sizes(evaluator)
    children = min(children, 4 * size)
    parents = _spread(evaluator.ask(evaluator.sample(children)), size, evaluator)
    while not evaluator.exhausted:
        parents = _spread(parents + offspring(parents, children, evaluator), size, evaluator)


def objectives(scored: Scored, problem: Problem) -> Array:
    """Accuracy and costs as columns to maximise, shape (n, 1 + costs)."""
    names = [name.rpartition(".")[2] for name in problem.costs]
    signs = np.array([-1.0 if quantity_of(name).lower_is_better else 1.0 for name in names])
    return np.column_stack([scored.score, scored.costs * signs])


def _spread(scored: Scored, n: int, evaluator: Evaluator) -> Scored:
    """The `n` best by non-domination rank, then by crowding distance; infeasible ones come last, by violation."""
    feasible, others = scored[scored.feasible], scored[~scored.feasible]
    values = objectives(feasible, evaluator.problem)
    rank, distance = ranks(values), np.empty(len(feasible))
    for level in range(rank.max(initial=-1) + 1):
        distance[rank == level] = crowding(values[rank == level])
    order = np.lexsort((-distance, rank))[:n]
    return feasible[order] + best(others, n - len(order)) if len(order) < n else feasible[order]
