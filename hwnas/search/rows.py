"""Sets of genotypes, by a 64-bit hash of each row: membership and repeats without a Python loop.

Two of n distinct genotypes share a hash with probability about n^2 / 2^65: one in 30 million for a million.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Population

Hashes = NDArray[np.uint64]

SEED = 20259
YOUNG_SHARE = 0.25


class RowHash:
    """A linear hash modulo 2^64 with random odd multipliers, one a gene."""

    def __init__(self, genes: int) -> None:
        rng = np.random.default_rng(SEED)
        self._multipliers = rng.integers(0, 2**63, genes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def __call__(self, population: Population) -> Hashes:
        """Hashes of a population (n, genes), shape (n,)."""
        return np.asarray(np.einsum("ij,j->i", population.astype(np.uint64), self._multipliers))


class RowSet:
    """The hashes seen so far: a large sorted array, and a small one that is merged into it now and then."""

    def __init__(self) -> None:
        self._old = self._young = np.empty(0, dtype=np.uint64)

    def add(self, hashes: Hashes) -> NDArray[np.intp]:
        """Add `hashes`; returns the positions of those that are new, first appearances only, ascending."""
        if not len(hashes):
            return np.empty(0, dtype=np.intp)
        order = np.argsort(hashes)
        ordered = hashes[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        values, first = ordered[starts], np.minimum.reduceat(order, starts)
        fresh = ~(contains(self._old, values) | contains(self._young, values))
        self._young = _merged(self._young, values[fresh])
        if len(self._young) > YOUNG_SHARE * len(self._old):
            self._old, self._young = _merged(self._old, self._young), self._young[:0]
        return np.sort(first[fresh])


class RowTable:
    """A value for each of some genotypes (n, genes), looked up by their hashes; of equal genotypes the mean counts."""

    def __init__(self, population: Population, values: NDArray[np.float64]) -> None:
        self._hash = RowHash(population.shape[1])
        self._hashes, group = np.unique(self._hash(population), return_inverse=True)
        self._values = np.bincount(group.reshape(-1), values) / np.bincount(group.reshape(-1))

    def __len__(self) -> int:
        return len(self._hashes)

    def __call__(self, population: Population, otherwise: ArrayLike) -> NDArray[np.float64]:
        """Values of a population (n, genes), shape (n,); `otherwise`, (n,) or one, for a genotype that has none."""
        wanted = self._hash(population)
        position = np.minimum(np.searchsorted(self._hashes, wanted), len(self) - 1)
        return np.where(self._hashes[position] == wanted, self._values[position], otherwise)


def contains(ordered: Hashes, values: Hashes) -> NDArray[np.bool_]:
    """Which of `values` are in the ascending array `ordered`."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    position = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[position] == values)


def _merged(one: Hashes, other: Hashes) -> Hashes:
    """Two ascending arrays as one; a stable sort merges ascending runs in linear time."""
    return np.sort(np.concatenate([one, other]), kind="stable")
