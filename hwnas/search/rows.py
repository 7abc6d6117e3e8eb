"""Sets of genotypes, by a 64-bit hash of each row: membership and repeats without a Python loop.

Two of n distinct genotypes share a hash with probability about n^2 / 2^65: one in 30 million for a million.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Population = NDArray[np.int16]
Hashes = NDArray[np.uint64]

SEED = 20259
EMPTY = np.uint64(0x9D7C3E5A1B2F4860)
"""Marks a free slot; that a genotype hashes to it is as unlikely as that two share a hash."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
LEAST_SLOTS = 1 << 16
SLOTS_A_HASH = 2


class RowHash:
    """A linear hash modulo 2^64 with random odd multipliers, one a gene."""

    def __init__(self, genes: int) -> None:
        rng = np.random.default_rng(SEED)
        self._multipliers = rng.integers(0, 2**63, genes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def __call__(self, population: Population) -> Hashes:
        """Hashes of a population (n, genes), shape (n,)."""
        return np.asarray(np.einsum("ij,j->i", population.astype(np.uint64), self._multipliers))


class RowSet:
    """The hashes seen so far, in a table of open addressing.

    A hash stands in the first slot that was free, counted from where Fibonacci hashing points (Knuth, TAOCP 3, 6.4).
    """

    def __init__(self) -> None:
        self._slots = np.full(LEAST_SLOTS, EMPTY)
        self._claims = np.zeros(LEAST_SLOTS, dtype=np.int32)
        self._count = 0

    def add(self, hashes: Hashes) -> NDArray[np.intp]:
        """Add `hashes`; returns the positions of those that are new, first appearances only, ascending."""
        if SLOTS_A_HASH * (self._count + len(hashes)) > len(self._slots):
            self._grow(len(hashes))
        fresh = np.flatnonzero(self._insert(hashes))
        self._count += len(fresh)
        return fresh

    def _grow(self, more: int) -> None:
        held = self._slots[self._slots != EMPTY]
        size = 1 << (2 * SLOTS_A_HASH * (len(held) + more)).bit_length()
        self._slots, self._claims = np.full(size, EMPTY), np.zeros(size, dtype=np.int32)
        self._insert(held)

    def _insert(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Put `hashes` where they belong, all a slot further each round; which of them were not there yet."""
        slots, claims, fresh = self._slots, self._claims, np.zeros(len(hashes), dtype=bool)
        left = np.arange(len(hashes), dtype=np.int32)
        at = (hashes * GOLDEN >> np.uint64(65 - len(slots).bit_length())).astype(np.intp)
        while len(left):
            free = slots[at] == EMPTY
            claiming, claimed = left[free], at[free]
            claims[claimed[::-1]] = claiming[::-1]  # of several that claim a slot, the first is written last
            won = claims[claimed] == claiming
            slots[claimed[won]] = hashes[claiming[won]]
            fresh[claiming[won]] = True
            on = slots[at] != hashes[left]
            left, at = left[on], (at[on] + 1) % len(slots)
        return fresh


def contains(ordered: Hashes, values: Hashes) -> NDArray[np.bool_]:
    """Which of `values` are in the ascending array `ordered`."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    position = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[position] == values)
