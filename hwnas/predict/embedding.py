"""Blocks as points: a kernel between primitives, and the features by which additive models share strength among them.

The cost of a network is a sum over its blocks, `sum_i f(block_i)`. With a Gaussian process prior on `f` over the
blocks' configuration, the kernel between two networks is `c K c'`, c counting their blocks. A low-rank factor of K
(pivoted Cholesky; Harbrecht et al., 2012) makes it an inner product of features that add up over the blocks.
"""

from __future__ import annotations

from functools import lru_cache
from math import log2

import numpy as np

from hwnas.core.arrays import Array
from hwnas.predict.features import Lookups, gene_groups, lookups
from hwnas.spaces import Primitive, SearchSpace
from hwnas.spaces.base import with_nothing

RANK = 160
TOLERANCE = 1e-4
KIND_APART, FLAG_APART = 4.0, 1.5


@lru_cache(maxsize=32)
def block_features(space: SearchSpace, length: float) -> Lookups:
    """Features (n, rank) whose inner product is the kernel `c K c'`; `length` is how far apart blocks are alike.

    One unit of distance is a doubling of a size. What a block is thought to cost grows with its MACs, its bytes and a
    constant part, in equal shares over the space.
    """
    primitives = space.primitives()
    points = np.array([_point(primitive) for primitive in primitives])
    acts = sorted({str(dict(p.params).get("act", "")) for p in primitives})
    kinds = sorted({p.kind for p in primitives})
    flags = [
        [KIND_APART * (p.kind == kind) for kind in kinds]
        + [FLAG_APART * (str(dict(p.params).get("act", "")) == act) for act in acts]
        for p in primitives
    ]
    shares = np.array([(p.macs, p.bytes_moved, 1.0) for p in primitives])
    size = (shares / np.maximum(shares.mean(axis=0), 1e-12)).mean(axis=1)
    table = low_rank(np.concatenate([points, np.array(flags)], axis=1) / length) * size[:, None]
    padded = with_nothing(table)
    return lookups(space, [(group.genes, padded[group.blocks].sum(axis=1)) for group in gene_groups(space)])


def _point(p: Primitive) -> list[float]:
    sizes = (p.inputs[0][0], p.inputs[0][-1], p.output[0], p.output[-1], p.number("mid"), p.number("se"))
    numbers = (p.number("kernel", 1) / 2, p.number("groups", 1) > 1, len(p.inputs), 3 * (p.number("se") > 0))
    return [*(log2(1 + size) for size in sizes), *map(float, numbers), 2.0 * (p.number("mid") > 0)]


def low_rank(points: Array) -> Array:
    """Factor Z, (P, rank), of the Matern 5/2 kernel between `points` (P, d): K is about Z Z'."""
    left = np.ones(len(points))
    columns: list[Array] = []
    for _ in range(min(RANK, len(points))):
        pivot = int(np.argmax(left))
        if left[pivot] < TOLERANCE:
            break
        distance = np.sqrt(5 * ((points - points[pivot]) ** 2).sum(axis=1))
        column = (1 + distance + distance**2 / 3) * np.exp(-distance)
        if columns:
            made = np.array(columns)
            column = column - made.T @ made[:, pivot]
        column = column / np.sqrt(left[pivot])
        columns.append(column)
        left = np.maximum(left - column**2, 0.0)
    return np.array(columns).T
