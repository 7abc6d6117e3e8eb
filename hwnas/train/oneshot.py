"""Searches that train a super-network of mixed blocks and learn what to choose: `train_one_shot`.

A method is a function registered with `@one_shot.register(NAME)`: from the run, the mixed network, the configuration,
the costs and the batches that train the choices to the phases of its training. It leaves the choices it learnt in
`network.choices`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.documents import SUPERNET
from hwnas.core.errors import InputError
from hwnas.core.registry import Registry
from hwnas.core.threads import torch_threads
from hwnas.spaces import get_space
from hwnas.train.batches import Batches
from hwnas.train.config import OneShotConfig
from hwnas.train.data import DataSet, describe
from hwnas.train.expected import ExpectedCost
from hwnas.train.loop import Phase, Run
from hwnas.train.mixed import MixedNetwork
from hwnas.train.supernet import Supernet, open_data

AIM = 0.015
FEWEST = 2


@dataclass(frozen=True)
class CostTerm:
    """A cost that the search keeps low (`bound` None), or at most (`upper`) or at least `bound`, in its unit.

    Attributes:
        least, most: what the space can reach.
    """

    name: str
    cost: ExpectedCost
    least: float
    bound: float | None = None
    upper: bool = True
    most: float = math.inf

    @property
    def within_reach(self) -> bool:
        """Whether the bound can be used up: it lies short of the far end of what the space can reach."""
        return self.bound is not None and (self.bound < self.most if self.upper else self.bound > self.least)

    def to_json(self) -> dict[str, Any]:
        return {
            f"{'max' if self.upper else 'min'} of {self.name}": self.bound,
            f"cost of {self.name}": self.cost.digest,
        }


Algorithm = Callable[[Run, MixedNetwork, OneShotConfig, Sequence[CostTerm], Batches], list[Phase]]
one_shot: Registry[Algorithm] = Registry("one-shot method", ("hwnas.train.fbnet",))


def train_one_shot(
    config: OneShotConfig, terms: Sequence[CostTerm], out: str | Path, *, resume: bool = True
) -> Supernet:
    """Train the mixed network of `config` and its choices in the folder `out`, going on from a checkpoint there.

    The folder then is a super-network's. Raises `InputError` where data, space, costs or checkpoint cannot be used, and
    where a loss is not finite.
    """
    space = get_space(config.space)
    algorithm = one_shot.get(config.algorithm)
    network = MixedNetwork(space, config.seed)
    data = open_data(space, config)
    of_weights, of_choices = halves(data, config)
    costs = {key: value for term in terms for key, value in term.to_json().items()}
    with torch_threads(config.threads):
        run = Run.begin(out, SUPERNET, config, of_weights, network, form="mixed", costs=costs, data_set=describe(data))
        shared = config.batch, config.seed, run.device, run.group.rank, run.group.world
        run.fit(algorithm(run, network, config, terms, Batches(of_choices, *shared)), resume)
    return Supernet(network, config, run.about, data)


def halves(data: DataSet, config: OneShotConfig) -> tuple[DataSet, DataSet]:
    """The training images that train the weights, and those that train the choices; the same for the same seed."""
    order = np.random.default_rng([config.seed, 6]).permutation(len(data.train))
    held = round(config.arch_fraction * len(order))
    if min(held, len(order) - held) < FEWEST:
        raise InputError(
            f"{data.source}: {len(order)} training images leave {held} for the choices and {len(order) - held} for the "
            "weights; use more images, or another arch_fraction"
        )
    parts = (np.sort(order[held:]), np.sort(order[:held]))
    of_weights, of_choices = (replace(data, train=data.train.take(rows)) for rows in parts)
    return of_weights, of_choices
