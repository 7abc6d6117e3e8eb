"""Accuracy of networks, with BatchNorm statistics re-estimated on a fixed set of training images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.core.errors import UnknownNameError
from hwnas.train.batches import Normaliser, fixed, resize, to_device
from hwnas.train.data import DataSet, Images

CHUNK = 256
KEPT_BYTES = 1 << 29
FLOAT_BYTES = 4


class Evaluator:
    """Accuracy of networks on one split of a data set, BatchNorm statistics re-estimated first where asked.

    Args:
        calibration: number of training images for the statistics, the same ones for every network.
    """

    def __init__(self, data: DataSet, calibration: int, seed: int, device: torch.device) -> None:
        self._data, self._device = data, device
        self._normalise = Normaliser(data, device)
        self._calibration = fixed(data.train, calibration, seed)
        self._kept: dict[tuple[str, int], list[Tensor]] = {}

    def chunks(self, name: str, resolution: int) -> Iterable[Tensor]:
        """The images of `val`, `test` or `calibration`, normalised, in chunks (n, 3, r, r); few images are kept."""
        key, images = (name, resolution), self.images(name)
        if key in self._kept:
            return self._kept[key]
        if FLOAT_BYTES * 3 * resolution**2 * len(images) > KEPT_BYTES:
            return self._prepare(images, resolution)
        while sum(chunk.nbytes for chunks in self._kept.values() for chunk in chunks) > KEPT_BYTES:
            self._kept.pop(next(iter(self._kept)))
        return self._kept.setdefault(key, list(self._prepare(images, resolution)))

    def images(self, name: str) -> Images:
        """The images of `val`, `test` or `calibration`."""
        sets = {"val": self._data.val, "test": self._data.test, "calibration": self._calibration}
        if name not in sets:
            raise UnknownNameError("split", name, sets)
        return sets[name]

    def _prepare(self, images: Images, resolution: int) -> Iterator[Tensor]:
        for rows in np.array_split(np.arange(len(images)), -(-len(images) // CHUNK)):
            pixels = torch.from_numpy(images.read(rows))
            yield self._normalise(resize(to_device(pixels, self._device), resolution))

    @torch.no_grad()
    def recalibrate(self, network: nn.Module, resolution: int) -> None:
        """Re-estimate the BatchNorm statistics of `network`: the mean over the chunks of the calibration images."""
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        network.train()
        for chunk in self.chunks("calibration", resolution):
            network(chunk)
        network.eval()
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum

    @torch.no_grad()
    def accuracy(self, network: nn.Module, resolution: int, split: str = "val") -> float:
        """Fraction of the images of `split` that `network` names rightly."""
        network.eval()
        guesses = torch.cat([network(chunk).argmax(1) for chunk in self.chunks(split, resolution)]).cpu().numpy()
        return float((guesses == self.images(split).labels).mean())
