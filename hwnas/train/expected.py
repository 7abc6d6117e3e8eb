"""The mean cost of networks drawn layer by layer, as a function of the probabilities that can be differentiated.

For a cost f and independent layers with probabilities p, F(p) = E[f(a)], a ~ p, is linear in each layer's p, and its
derivative by p[l, c] is the mean of f over networks whose layer l is c. For a cost that is a sum over layers (a table,
a linear model) F is exact; for any other (an MLP, an LSTM, boosting) value and derivative are estimated without bias on
a few networks that are drawn, so that no model is ever asked about anything that is not a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.spaces import SearchSpace

Cost = Callable[[Population], Array]

PROBED = 256
EXACT = 1e-9
DRAWN = 4


@dataclass(frozen=True)
class LayerCosts:
    """A cost that is `base` plus what each choice of each layer adds: `added` (layers, most choices), 0 for padding."""

    base: float
    added: Array

    def __call__(self, population: Population) -> Array:
        result: Array = self.base + self.added[np.arange(len(self.added)), population].sum(axis=1)
        return result


def layer_costs(space: SearchSpace, cost: Cost) -> LayerCosts | None:
    """`cost` of networks of `space` as a sum over its genes; None where it is no such sum on random networks."""
    none = np.zeros((1, len(space.genes)), dtype=np.int16)
    base = float(cost(none)[0])
    found = LayerCosts(base, _singles(space, cost, none)[0] - base)
    found.added[_padding(space)] = 0.0
    probe = space.sample(PROBED, 0)
    truth = cost(probe)
    return found if np.abs(found(probe) - truth).max() <= EXACT * np.abs(truth).max() else None


class ExpectedCost:
    """F(p) of one cost over a space whose genes each decide one layer; see the module."""

    def __init__(self, space: SearchSpace, cost: Cost) -> None:
        self.space, self.cost = space, cost

    @cached_property
    def layers(self) -> LayerCosts | None:
        return layer_costs(self.space, self.cost)

    @cached_property
    def digest(self) -> str:
        """Tells costs apart: a hash of what it says of fixed random networks, to nine digits."""
        values = self.cost(self.space.sample(PROBED, 0))
        return sha256(" ".join(f"{value:.9g}" for value in values).encode()).hexdigest()[:16]

    def __call__(self, probabilities: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean cost, a scalar, for `probabilities` (layers, most choices), in the cost's unit."""
        p = probabilities.detach().double().cpu().numpy()
        if self.layers is not None:
            slope, value = self.layers.added, self.layers.base + float((p * self.layers.added).sum())
        else:
            drawn = _draw(p, rng)
            singles = _singles(self.space, self.cost, drawn)
            slope, value = singles.mean(axis=0), float(self.cost(drawn).mean())
        linear = (probabilities * probabilities.new_tensor(slope)).sum()
        return linear - linear.detach() + value


def _draw(p: Array, rng: np.random.Generator) -> Population:
    """A few genotypes with independent genes of probabilities `p`, shape (DRAWN, genes)."""
    edges = (p / p.sum(axis=1, keepdims=True)).cumsum(axis=1)
    last = (p > 0).cumsum(axis=1).argmax(axis=1)
    below = (rng.random((DRAWN, len(p), 1)) >= edges[None]).sum(axis=2)
    drawn: Population = np.minimum(below, last).astype(np.int16)
    return drawn


def _singles(space: SearchSpace, cost: Cost, population: Population) -> Array:
    """The cost with each single gene set to each choice, shape (n, genes, most choices); padding repeats choice 0."""
    genes, most = len(space.genes), int(space.choices.max())
    rows = np.tile(population[:, None, None], (1, genes, most, 1))
    choice = np.where(_padding(space), 0, np.arange(most))
    gene = np.arange(genes)
    rows[:, gene, :, gene] = choice[:, None]
    return cost(rows.reshape(-1, genes)).reshape(len(population), genes, most)


def _padding(space: SearchSpace) -> NDArray[np.bool_]:
    return np.asarray(np.arange(space.choices.max())[None] >= space.choices[:, None])
