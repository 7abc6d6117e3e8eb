"""What is asked: a space, an accuracy to maximise, costs, and constraints on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError, UnknownNameError
from hwnas.core.units import UNSUPPORTED
from hwnas.search.rows import RowHash, contains
from hwnas.search.source import Source
from hwnas.search.sources import COUNTS, accuracy_source, cost_sources, count
from hwnas.spaces import SearchSpace, get_space

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Constraint:
    """`quantity` at most `bound` (or at least, where `upper` is False), in the quantity's unit."""

    quantity: str
    bound: float
    upper: bool = True

    def excess(self, values: Array) -> Array:
        """By how much `values` break the constraint, relative to the bound; 0 where they keep it, inf for NaN."""
        beyond = (values - self.bound) * (1.0 if self.upper else -1.0)
        excess = np.maximum(beyond / (abs(self.bound) or 1.0), 0.0)
        excess[np.isnan(values)] = np.inf
        return excess

    def __str__(self) -> str:
        return f"{self.quantity} {'<=' if self.upper else '>='} {self.bound:g}"


@dataclass(frozen=True)
class Problem:
    """Maximise `accuracy` over `space`, subject to `constraints` on `costs` (by quantity) or on the accuracy itself.

    With `confidence` P, a constraint on a predicted cost must hold with probability P: the end of the cost's
    prediction interval, not the prediction, has to keep the bound.
    """

    space: SearchSpace
    accuracy: Source
    costs: Mapping[str, Source]
    constraints: tuple[Constraint, ...] = ()
    confidence: float | None = None

    def cost_values(self, population: Population) -> Array:
        """Predicted costs, shape (n, costs), in the order of `costs`."""
        columns = [source.predict(population) for source in self.costs.values()]
        return np.stack(columns, axis=1) if columns else np.empty((len(population), 0))

    def violation(self, population: Population, costs: Array) -> Array:
        """Sum of the relative excesses of all constraints on costs, shape (n,); 0 where all hold."""
        total = np.zeros(len(population))
        names = list(self.costs)
        for constraint in self.constraints:
            if constraint.quantity != ACCURACY:
                values = costs[:, names.index(constraint.quantity)]
                total += constraint.excess(self.claimed(constraint, population, values))
        return total

    def accuracy_violation(self, accuracy: Array) -> Array:
        """Relative excess of the constraints on the accuracy, shape (n,)."""
        total = np.zeros(len(accuracy))
        for constraint in self.constraints:
            if constraint.quantity == ACCURACY:
                total += constraint.excess(accuracy)
        return total

    def claimed(self, constraint: Constraint, population: Population, values: Array) -> Array:
        """What has to keep the bound: predicted `values`, or the end of their interval that holds with confidence."""
        if self.confidence is None:
            return values
        interval = self.costs[constraint.quantity].interval
        if interval is None:
            return values
        low, high = interval(population, 2 * self.confidence - 1)
        return high if constraint.upper else low

    def known(self) -> Population | None:
        """The genotypes that every source can answer for; None where that is the whole space."""
        row_hash, result = RowHash(len(self.space.genes)), None
        for source in (self.accuracy, *self.costs.values()):
            if source.known is None:
                continue
            if result is None:
                result = source.known
            else:
                result = result[contains(np.sort(row_hash(source.known)), row_hash(result))]
        if result is not None and not len(result):
            raise InputError("the tables of accuracy and costs share no architecture")
        return result


def make_problem(
    space: str | SearchSpace,
    accuracy: str | Source,
    costs: str | Sequence[str] | Mapping[str, Source] = (),
    *,
    max: Mapping[str, float] | None = None,
    min: Mapping[str, float] | None = None,
    confidence: float | None = None,
) -> Problem:
    """A `Problem` from what the command line takes: names of sources, and bounds by quantity.

    Raises `InputError` for a source, a quantity, a bound or a confidence that cannot be used.
    """
    space = get_space(space) if isinstance(space, str) else space
    source = accuracy_source(accuracy, space) if isinstance(accuracy, str) else accuracy
    texts = [costs] if isinstance(costs, str) else costs
    found = dict(texts) if isinstance(texts, Mapping) else cost_sources(list(texts), space)
    constraints = []
    for bounds, upper in ((max or {}, True), (min or {}, False)):
        for name, bound in bounds.items():
            quantity = _resolve(name, found, space)
            if isinstance(bound, bool) or not math.isfinite(bound):
                raise InputError(f"the bound of {name} is {bound!r}, expected a finite number")
            constraints.append(Constraint(quantity, float(bound), upper))
    most = {each.quantity: each.bound for each in constraints if each.upper}
    for each in constraints:
        if not each.upper and each.bound > most.get(each.quantity, math.inf):
            both = f"{each.bound:g} or more and {most[each.quantity]:g} or less"
            raise InputError(f"{each.quantity} cannot be {both}; correct one of the bounds")
    _check_confidence(confidence, constraints, found)
    return Problem(space, source, found, tuple(constraints), confidence)


def _resolve(name: str, costs: dict[str, Source], space: SearchSpace) -> str:
    """The full name of a quantity; adds a built-in count that nobody declared."""
    if name == ACCURACY or name in costs:
        return name
    fitting = [key for key, source in costs.items() if key.endswith(f".{name}") or source.column == name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"{name} is ambiguous: it could be {' or '.join(fitting)}")
    if name in COUNTS:
        costs[name] = count(name, space)
        return name
    raise UnknownNameError("quantity", name, [*costs, ACCURACY, *COUNTS])


def _check_confidence(confidence: float | None, constraints: list[Constraint], costs: Mapping[str, Source]) -> None:
    if confidence is None:
        return
    if not 0.5 < confidence < 1:
        raise InputError(f"the confidence is {confidence:g}, expected a probability above 0.5 and below 1")
    for source in (costs[c.quantity] for c in constraints if c.quantity != ACCURACY):
        if source.interval is None and source.column not in (*COUNTS, UNSUPPORTED.name):
            raise InputError(
                f"{source.text} gives no prediction interval, so no budget holds with confidence {confidence:g}; "
                "fit a predictor (hwnas fit-predictor) and give its folder as --cost, or leave --confidence out"
            )


def constraint_to_json(constraint: Constraint) -> dict[str, Any]:
    return {"quantity": constraint.quantity, "max" if constraint.upper else "min": constraint.bound}
