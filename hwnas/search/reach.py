"""What a space can reach: the least and the most of a cost, so that an impossible budget is refused at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InfeasibleBudgetError
from hwnas.search.evaluator import all_of
from hwnas.search.moves import neighbours
from hwnas.search.problem import ACCURACY, Problem
from hwnas.search.source import Source
from hwnas.spaces import SearchSpace

Range = tuple[float, float]

SAMPLED = 512
STARTS = 4


def reachable(source: Source, space: SearchSpace, known: Population | None = None) -> Range:
    """The least and the most of a cost, in its unit.

    Exact where the cost is a sum over blocks, comes from a table, or the space is small; else the ends that a descent
    finds.
    """
    known = _countable(space, known)
    if known is not None:
        values = source.predict(known)
        return float(np.nanmin(values)), float(np.nanmax(values))
    if source.additive is not None and source.additive.extremes is not None:
        return source.additive.extremes
    least = source.predict(minimise(source.predict, space)[None])[0]
    most = source.predict(minimise(lambda population: -source.predict(population), space)[None])[0]
    return float(least), float(most)


def _countable(space: SearchSpace, known: Population | None) -> Population | None:
    """The architectures that can be looked at one by one: those `known`, or all of a small space; else None."""
    if known is None and len(every := all_of(space)):
        return every
    return known


def minimise(function: Callable[[Population], Array], space: SearchSpace) -> Population:
    """A genotype, shape (genes,), at which no change of one gene lowers `function`: descent from several starts.

    Each round moves to the best neighbour, or changes at once all genes that help alone, whichever is lower.
    """
    pool = space.sample(SAMPLED, 0)
    pool = pool[np.argsort(function(pool), kind="stable")[:STARTS]]
    values = function(pool)
    while True:
        near = space.canonical(neighbours(pool, space)).reshape(len(pool), -1, pool.shape[1])
        near = np.concatenate([near, _jumps(pool, near, function(near.reshape(-1, pool.shape[1])), values)], axis=1)
        found = function(near.reshape(-1, pool.shape[1])).reshape(len(pool), -1)
        best = found.argmin(axis=1)
        lower = found.min(axis=1) < values
        if not lower.any():
            result: Population = pool[values.argmin()]
            return result
        pool = np.where(lower[:, None], near[np.arange(len(pool)), best], pool)
        values = np.minimum(values, found.min(axis=1))


def _jumps(pool: Population, near: Population, found: Array, values: Array) -> Population:
    """For each start, every gene set to the choice that is best with the others unchanged; shape (starts, 1, genes)."""
    gains = np.where(near != pool[:, None], (values[:, None] - found.reshape(len(pool), -1))[..., None], 0.0)
    best = gains.argmax(axis=1)
    chosen = np.take_along_axis(near, best[:, None], axis=1)
    helps = np.take_along_axis(gains, best[:, None], axis=1) > 0
    return np.where(helps, chosen, pool[:, None])


def check_reach(problem: Problem, known: Population | None) -> dict[str, Range]:
    """The reachable range of each constrained cost.

    Raises `InfeasibleBudgetError` where one bound, or all of them together, can be met by no architecture.
    """
    ranges: dict[str, Range] = {}
    for constraint in problem.constraints:
        if constraint.quantity == ACCURACY:
            continue
        name = constraint.quantity
        ranges[name] = ranges.get(name) or reachable(problem.costs[name], problem.space, known)
        least, most = ranges[name]
        if (constraint.bound < least) if constraint.upper else (constraint.bound > most):
            sure = problem.costs[name].additive is not None or _countable(problem.space, known) is not None
            option = f"--{'max' if constraint.upper else 'min'} {name}"
            has = "has" if sure else "was found with"
            raise InfeasibleBudgetError(
                f"no network of {problem.space.spec} {has} {constraint}: {name} reaches "
                f"from {least:.6g} to {most:.6g}; set {option} in that range, or choose another space"
            )
    return ranges


def infeasible(problem: Problem, ranges: dict[str, Range], best_accuracy: float | None) -> InfeasibleBudgetError:
    """The error for a search that found no architecture which keeps all constraints."""
    asked = " and ".join(map(str, problem.constraints))
    alone = ", ".join(f"{name} from {least:.6g} to {most:.6g}" for name, (least, most) in ranges.items())
    accuracy = "" if best_accuracy is None else f"; the best accuracy found under the budgets is {best_accuracy:.6g}"
    sure = "" if problem.confidence is None else f" with confidence {problem.confidence:g}"
    together = f" at once; each alone reaches {alone}" if len(problem.constraints) > 1 and alone else ""
    loosen = "one of them" if len(problem.constraints) > 1 else "it"
    return InfeasibleBudgetError(
        f"no network of {problem.space.spec} was found with {asked}{sure}{together}{accuracy}; loosen {loosen}"
    )


def first_feasible(problem: Problem) -> Population | None:
    """An architecture that keeps all constraints on costs, shape (1, genes).

    None where there is none, or where in a large space a descent finds none.
    """

    def violation(population: Population) -> Array:
        return problem.violation(population, problem.cost_values(population))

    every = _countable(problem.space, problem.known())
    row = minimise(violation, problem.space)[None] if every is None else every[[violation(every).argmin()]]
    return row if violation(row)[0] == 0 else None
