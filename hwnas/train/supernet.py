"""`Supernet`: a trained super-network, the accuracies of its sub-networks, and their weights."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hwnas.core.config import parse_config
from hwnas.core.documents import SUPERNET
from hwnas.core.errors import InputError
from hwnas.core.progress import progress
from hwnas.spaces import SearchSpace, get_space
from hwnas.spaces.modules import Network, channels_last
from hwnas.train import checkpoint
from hwnas.train.config import OneShotConfig, RunConfig, SupernetConfig
from hwnas.train.data import DataSet, check_same, describe, load_data
from hwnas.train.distributed import pick_device
from hwnas.train.elastic import ElasticNetwork
from hwnas.train.evaluate import Evaluator
from hwnas.train.mixed import MixedNetwork

FORMS: dict[str, tuple[type[ElasticNetwork | MixedNetwork], type[SupernetConfig | OneShotConfig]]] = {
    "elastic": (ElasticNetwork, SupernetConfig),
    "mixed": (MixedNetwork, OneShotConfig),
}
"""What a checkpoint's `form` stands for: the network, and the configuration it was trained with."""


class Supernet:
    """A super-network: weights for every network of `space`.

    Attributes:
        network: the elastic or the mixed network.
        config: what it was trained with.
        about: what its checkpoint says: step, finished, versions.
    """

    def __init__(
        self,
        network: ElasticNetwork | MixedNetwork,
        config: SupernetConfig | OneShotConfig,
        about: dict[str, Any],
        data: DataSet | None = None,
    ) -> None:
        self.network, self.config, self.about, self._data = network.eval(), config, about, data

    @property
    def space(self) -> SearchSpace:
        return self.network.space

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def data(self) -> DataSet:
        """The data set it was trained on, opened when it is first needed; raises `InputError` where it is another."""
        if self._data is None:
            self._data = open_data(self.space, self.config)
            check_same(self.about.get("data_set", {}), describe(self._data), "the super-network")
        return self._data

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.data, self.config.calibration_images, self.config.seed, self.device)

    def extract(self, row: ArrayLike, recalibrate: bool = True) -> Network:
        """The sub-network `row` on its own, in evaluation mode: `space.build(row)` with the super-network's weights.

        Its BatchNorm statistics are re-estimated on the configuration's training images, as `accuracy` does; with
        `recalibrate=False` they are the shared ones, and outputs equal `network(images, row)`.
        """
        network = self.network.extract(row).eval()
        if recalibrate:
            self.evaluator.recalibrate(network, resolution_of(network))
        return network

    def accuracy(
        self, population: ArrayLike, split: str = "val", known: MutableMapping[str, float] | None = None
    ) -> NDArray[np.float64]:
        """Accuracy of each genotype as a fraction in [0, 1], shape (n,), on the images of `split` (`val` or `test`).

        Genotypes that are equal in canonical form are evaluated once. Those in `known`, by their notation, are not
        evaluated; the others are added to it, each as soon as it is.
        """
        known = {} if known is None else known
        rows, inverse = np.unique(self.space.canonical(population), axis=0, return_inverse=True)
        names = [self.space.format(row) for row in rows]
        new = [index for index, name in enumerate(names) if name not in known]
        with progress("evaluating sub-networks", len(new)) as task:
            for index in new:
                network = self.extract(rows[index])
                known[names[index]] = self.evaluator.accuracy(network, resolution_of(network), split)
                task.advance()
        result: NDArray[np.float64] = np.array([known[name] for name in names])[inverse.reshape(-1)]
        return result


def load_supernet(folder: str | Path, device: str = "auto") -> Supernet:
    """The super-network that `train_supernet` left in `folder`, also one whose training goes on.

    Raises `InputError` where the checkpoint is missing, damaged or of another kind.
    """
    about = checkpoint.read(folder, SUPERNET)
    where = str(Path(folder) / SUPERNET.file)
    form = about.get("form", "elastic")
    if not isinstance(form, str) or form not in FORMS:
        raise InputError(f"{where}: a super-network of the unknown form {form!r}; the known ones: {', '.join(FORMS)}")
    kind, settings = FORMS[form]
    config = parse_config(about["config"], settings, where)
    network = kind(get_space(config.space), config.seed)
    checkpoint.put_weights(network, checkpoint.tensors(folder, about, "weights"), where)
    network.to(pick_device(device))
    channels_last(network)
    return Supernet(network, config, about)


def open_data(space: SearchSpace, config: RunConfig) -> DataSet:
    """The data set of `config` at the largest resolution of `space`, its classes those of the space."""
    sides = [p.inputs[0][-1] for p in space.primitives()]
    return load_data(config.data, max(sides), space.graph(space.choices - 1).output[0])


def resolution_of(network: Network) -> int:
    """Height and width of the images that `network` was built for."""
    return network.topology.inputs[0][-1]
