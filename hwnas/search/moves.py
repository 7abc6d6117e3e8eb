"""What search algorithms are composed of: selection, crossover, mutation and neighbourhoods, each on a population."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.search.evaluator import Scored
from hwnas.spaces import SearchSpace


def best(scored: Scored, n: int) -> Scored:
    """The `n` of highest score, best first; the earlier one first where they are equal."""
    scored = leading(scored, n)
    return scored[np.argsort(-scored.score, kind="stable")[:n]]


def leading(scored: Scored, n: int) -> Scored:
    """The `n` of highest score and all that equal the last of them, in the order given."""
    if len(scored) <= n:
        return scored
    threshold = np.partition(scored.score, len(scored) - n)[len(scored) - n]
    return scored[np.flatnonzero(scored.score >= threshold)]


def crossover(parents: Population, n: int, share: float, rng: np.random.Generator) -> Population:
    """`n` children: a `share` of them uniform crossovers of two random parents, the others copies of one."""
    crossed = round(share * n)
    children = parents.take(rng.integers(0, len(parents), n), axis=0)
    others = parents.take(rng.integers(0, len(parents), crossed), axis=0)
    bits = np.frombuffer(rng.bytes(-(-others.size // 8)), dtype=np.uint8)
    mask = -np.unpackbits(bits, count=others.size).view(np.int8).astype(others.dtype).reshape(others.shape)
    # A choice by bits of a mask: np.where on random bits costs a mispredicted branch a gene.
    children[:crossed] ^= (children[:crossed] ^ others) & mask
    return children


def mutate(population: Population, space: SearchSpace, extra: float, rng: np.random.Generator) -> Population:
    """One gene of each changed to another of its choices, and about `extra` more; returns a new population."""
    n, genes = population.shape
    result = population.copy()
    flat = result.reshape(-1)
    more = rng.integers(0, flat.size, rng.poisson(extra * n))
    where = np.concatenate([np.arange(0, flat.size, genes) + rng.integers(0, genes, n), more])
    choices = space.choices[where % genes]
    shift = 1 + (rng.random(len(where)) * (choices - 1)).astype(np.int64)
    flat[where] = (flat[where] + shift) % choices
    return result


def neighbours(population: Population, space: SearchSpace) -> Population:
    """Every genotype that differs from one of `population` in one gene, shape (n * sum(choices - 1), genes)."""
    gene = np.repeat(np.arange(len(space.choices)), space.choices - 1)
    shift = np.concatenate([np.arange(1, choices) for choices in space.choices])
    result = np.repeat(population[:, None], len(gene), axis=1)
    at = np.arange(len(gene))
    result[:, at, gene] = (result[:, at, gene] + shift) % space.choices[gene]
    return result.reshape(-1, population.shape[1])


def ranks(objectives: Array) -> NDArray[np.intp]:
    """Non-domination rank of each row (0: dominated by none); all columns of `objectives` (n, m) are maximised."""
    at_least = np.ones((len(objectives), len(objectives)), dtype=bool)
    above = np.zeros_like(at_least)
    for column in objectives.T:
        at_least &= column[:, None] >= column
        above |= column[:, None] > column
    dominates = at_least & above
    rank = np.full(len(objectives), -1, dtype=np.intp)
    dominators = dominates.sum(axis=0)
    level = 0
    while (rank < 0).any():
        front = (rank < 0) & (dominators == 0)
        rank[front] = level
        dominators = dominators - dominates[front].sum(axis=0)
        level += 1
    return rank


def crowding(objectives: Array) -> Array:
    """Crowding distance (Deb et al. 2002) of each row among all rows, shape (n,); inf at the ends."""
    distance = np.zeros(len(objectives))
    for column in objectives.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def nondominated(objectives: Array) -> NDArray[np.intp]:
    """Positions of the rows that no other row dominates, of equal rows the first; all columns maximised."""
    order = np.argsort(-objectives[:, 0])
    if objectives.shape[1] == 2:
        order = order[_rises(objectives[order, 1], np.greater_equal)]
    order = order[np.lexsort((order, *-objectives[order].T[::-1]))]
    if objectives.shape[1] == 2:
        return order[_rises(objectives[order, 1], np.greater)]
    left, kept = order, []
    while len(left):
        first, rest = left[0], left[1:]
        kept.append(first)
        left = rest[(objectives[rest] > objectives[first]).any(axis=1)]
    return np.array(kept, dtype=np.intp)


def _rises(values: Array, compare: np.ufunc) -> NDArray[np.bool_]:
    """Which of `values` (n,) are above all before them, as `compare` has it."""
    highest = np.maximum.accumulate(np.append(-np.inf, values[:-1]))
    return np.asarray(compare(values, highest))
