"""Costs that are sums of terms, each of a few genes: quick to evaluate and exact to minimise.

A cost table over a space is such a sum: a slot's cost depends on that slot's genes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Population
from hwnas.spaces import SearchSpace
from hwnas.spaces.base import with_nothing

LARGEST_FACTOR = 10_000_000
LARGEST_LOOKUP = 4096


@dataclass(frozen=True)
class Factor:
    """A term: the genes it depends on, ascending, and its value for each of their choices, in the cost's unit."""

    genes: tuple[int, ...]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, genes: tuple[int, ...], values: ArrayLike) -> Factor:
        """A factor whose axes follow `genes` in any order."""
        order = np.argsort(genes)
        return cls(tuple(sorted(genes)), np.asarray(values, dtype=np.float64).transpose(order))

    def __add__(self, other: Factor) -> Factor:
        genes = tuple(sorted({*self.genes, *other.genes}))
        return Factor(genes, self._over(genes) + other._over(genes))

    def _over(self, genes: tuple[int, ...]) -> NDArray[np.float64]:
        shape = [self.values.shape[self.genes.index(g)] if g in self.genes else 1 for g in genes]
        return self.values.reshape(shape)


class Additive:
    """f(genotype) = the sum of its factors, divided by `unit`: a count in millions is an exact sum of integers."""

    def __init__(self, factors: Iterable[Factor], unit: float = 1.0) -> None:
        merged: dict[tuple[int, ...], Factor] = {}
        for factor in factors:
            merged[factor.genes] = merged[factor.genes] + factor if factor.genes in merged else factor
        self.factors, self.unit = tuple(merged.values()), unit

    @classmethod
    def of_primitives(cls, space: SearchSpace, values: ArrayLike, unit: float = 1.0) -> Additive:
        """The sum over the blocks that run of `values`, one a primitive of `space`, shape (P,)."""
        padded = with_nothing(np.asarray(values, dtype=np.float64))
        slots = zip(space.slots, space.tables, strict=True)
        return cls((Factor.of(slot.genes, padded[table]) for slot, table in slots), unit)

    def __call__(self, population: Population) -> NDArray[np.float64]:
        """Values of a population (n, genes), shape (n,)."""
        strides, starts, values = self._flat
        index = (population[:, : len(strides)].astype(np.float64) @ strides + starts).astype(np.intp)
        return np.asarray(values.take(index).sum(axis=1) / self.unit)

    @cached_property
    def _flat(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """All factors as one array, and where in it a genotype's values stand: genotype @ strides + starts.

        Positions are floats (exact below 2**53), so that the product is one call of BLAS.
        """
        factors = _fewer(self.factors)
        genes = 1 + max((gene for factor in factors for gene in factor.genes), default=-1)
        strides, sizes = np.zeros((genes, len(factors))), []
        for column, factor in enumerate(factors):
            shape = factor.values.shape
            strides[list(factor.genes), column] = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
            sizes.append(factor.values.size)
        values = np.concatenate([np.empty(0), *(factor.values.ravel() for factor in factors)])
        return strides, np.cumsum([0, *sizes[:-1]], dtype=np.float64)[: len(sizes)], values

    @cached_property
    def extremes(self) -> tuple[float, float] | None:
        """The exact minimum and maximum over all genotypes; None where the factors are too entangled for it."""
        try:
            return _eliminate(self.factors, np.min) / self.unit, _eliminate(self.factors, np.max) / self.unit
        except MemoryError:
            return None


def _fewer(factors: Iterable[Factor]) -> list[Factor]:
    """The same sum in fewer factors: each is added to the first that stays small with it."""
    result: list[Factor] = []
    for factor in factors:
        fitting = (at for at, other in enumerate(result) if _joined_size([factor, other]) <= LARGEST_LOOKUP)
        if (at := next(fitting, None)) is None:
            result.append(factor)
        else:
            result[at] += factor
    return result


def _eliminate(factors: tuple[Factor, ...], extreme: Callable[..., NDArray[np.float64]]) -> float:
    """Minimum or maximum of a sum of factors by variable elimination (Bertele and Brioschi, 1972)."""
    pending = list(factors)
    while genes := {gene for factor in pending for gene in factor.genes}:
        gene = min(genes, key=lambda g: (_joined_size(_holding(pending, g)), g))
        holding = _holding(pending, gene)
        if _joined_size(holding) > LARGEST_FACTOR:
            raise MemoryError
        joined = reduce(Factor.__add__, holding)
        pending = [factor for factor in pending if gene not in factor.genes]
        axis = joined.genes.index(gene)
        pending.append(Factor(joined.genes[:axis] + joined.genes[axis + 1 :], extreme(joined.values, axis=axis)))
    return float(sum(factor.values.item() for factor in pending))


def _holding(factors: list[Factor], gene: int) -> list[Factor]:
    return [factor for factor in factors if gene in factor.genes]


def _joined_size(factors: list[Factor]) -> int:
    """Number of values of the sum of `factors`."""
    sizes = {gene: n for f in factors for gene, n in zip(f.genes, f.values.shape, strict=True)}
    return prod(sizes.values())
