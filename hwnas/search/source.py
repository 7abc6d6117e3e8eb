"""What a problem's accuracy and costs are to a search: functions of a population."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import DomainError
from hwnas.core.target import Target
from hwnas.core.units import Quantity, quantity_of
from hwnas.search.additive import Additive
from hwnas.spaces import SearchSpace

Interval = Callable[[Population, float], tuple[Array, Array]]

PROBED = 16


@dataclass(frozen=True)
class Source:
    """One quantity of every architecture.

    Attributes:
        text: what the user wrote.
        column: the name of what is predicted; `quantity` is read from its suffix.
        predict: canonical population (n, genes) -> values (n,), in the quantity's unit.
        interval: population and coverage -> ends of the prediction interval, (n,) each; None: it has none.
        known: the canonical genotypes it can answer for; None: all. For others `predict` gives NaN.
        additive: the same function as a sum of factors, where it is one.
        exact: asks what the source was fitted on (a super-network); None: `predict` is all there is.
        asked: the architectures that `exact` has answered for so far, (n, genes); None: it does not remember.
        supernet: the folder of the super-network that it asks; None: it asks none.
        target: the device that a cost is of; None where the notion does not apply.
        notes: what the report says about it, such as the rank correlation of a fitted accuracy model.
    """

    text: str
    column: str
    predict: Callable[[Population], Array]
    interval: Interval | None = None
    known: Population | None = None
    additive: Additive | None = None
    exact: Callable[[Population], Array] | None = None
    asked: Callable[[], Population] | None = None
    supernet: str | None = None
    target: Target | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def quantity(self) -> Quantity:
        return quantity_of(self.column)


def translation(space: SearchSpace, other: SearchSpace, what: str) -> Callable[[Population], Population]:
    """Genotypes of `space` as genotypes of `other`, where each choice of the one is a choice of the other.

    Spaces that differ in a list of choices alone, such as their resolutions, share networks and therefore predictors.
    """
    if space == other:
        return lambda population: population
    refusal = DomainError(f"{what} is of {other.spec}, which is not {space.spec}; choose one that was fitted on it")
    if [gene.name for gene in space.genes] != [gene.name for gene in other.genes]:
        raise refusal
    tables = []
    for mine, theirs in zip(space.genes, other.genes, strict=True):
        if not set(mine.choices) <= set(theirs.choices):
            raise refusal
        tables.append(np.array([theirs.choices.index(choice) for choice in mine.choices], dtype=np.int16))

    def move(population: Population) -> Population:
        return np.stack([table[column] for table, column in zip(tables, population.T, strict=True)], axis=1)

    probe = space.sample(PROBED, 0)
    if any(space.graph(row) != other.graph(moved) for row, moved in zip(probe, move(probe), strict=True)):
        raise refusal
    return move
