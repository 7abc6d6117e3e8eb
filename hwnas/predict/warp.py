"""A monotone change of a target's scale that makes its values normal, for models that suppose so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from hwnas.core.arrays import Array

KNOTS = 65
TAIL = 0.1
FAR = 10.0
SEPARATION = 1e-6


@dataclass(frozen=True)
class Warp:
    """Quantiles of the values against those of the normal distribution, straight between the knots and beyond them.

    Attributes:
        values, normal: the knots, (k,) each, ascending.
    """

    values: Array
    normal: Array

    @classmethod
    def fit(cls, y: Array) -> Warp:
        """The warp of `y` (n,), of which not all are equal."""
        levels = (np.arange(min(KNOTS, len(y))) + 0.5) / min(KNOTS, len(y))
        values, normal = np.quantile(y, levels), ndtri(levels)
        values = np.maximum.accumulate(values) + SEPARATION * (y.std() or 1.0) * np.arange(len(levels))
        tail = max(1, int(TAIL * len(levels)))
        low, high = ((values[b] - values[a]) / (normal[b] - normal[a]) for a, b in ((0, tail), (-1 - tail, -1)))
        ends = values[0] - low * (FAR + normal[0]), values[-1] + high * (FAR - normal[-1])
        return cls(np.concatenate([ends[:1], values, ends[1:]]), np.concatenate([[-FAR], normal, [FAR]]))

    def forward(self, y: Array) -> Array:
        """Normal scores, (n,), of values."""
        return np.asarray(np.interp(y, self.values, self.normal))

    def backward(self, z: Array) -> Array:
        """Values, (n,), of normal scores."""
        return np.asarray(np.interp(z, self.normal, self.values))
