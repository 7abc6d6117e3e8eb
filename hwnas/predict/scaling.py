"""`Scaling`: between a metric and the target that predictors learn, additive in the blocks and about 1 in size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hwnas.core.arrays import Array
from hwnas.core.units import THROUGHPUT, Quantity

LEAST = 1e-3


@dataclass(frozen=True)
class Scaling:
    """A throughput is learnt as its inverse, the time an image takes, in which networks are additive.

    Attributes:
        quantity: of the metric.
        size: the mean magnitude of the training rows, which the target is divided by; 1 where nothing was learnt.
    """

    quantity: Quantity
    size: float = 1.0

    def fit(self, values: Array) -> Self:
        """The scaling that gives the metric's `values`, (n,), a mean magnitude of 1."""
        return type(self)(self.quantity, float(np.abs(self._additive(values)).mean()))

    def forward(self, values: Array) -> Array:
        """The target of the metric's values, (n,)."""
        return self._additive(values) / self.size

    def backward(self, target: Array) -> Array:
        """The metric of targets, (n,): no cost below zero, and no infinite throughput."""
        if self.quantity == THROUGHPUT:
            least = np.finfo(float).tiny if self.size == 1.0 else LEAST  # of a sum of seconds, or of about 1
            return 1.0 / (self.size * np.maximum(target, least))
        value = target * self.size
        return np.maximum(value, 0.0) if self.quantity.is_cost else value

    def _additive(self, values: Array) -> Array:
        return 1.0 / values if self.quantity == THROUGHPUT else values
