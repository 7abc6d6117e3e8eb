"""Accuracy of networks, with BatchNorm statistics re-estimated on a fixed set of training images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.core.errors import UnknownNameError
from hwnas.train.batches import Normaliser, fixed, resize, to_device
from hwnas.train.data import DataSet, Images

CHUNK = 256
KEPT_BYTES = 1 << 30


class Evaluator:
    """Accuracy of networks on one split of a data set, BatchNorm statistics re-estimated first where asked.

    Args:
        calibration: number of training images for the statistics, the same ones for every network.
    """

    def __init__(self, data: DataSet, calibration: int, seed: int, device: torch.device) -> None:
        self._data, self._device = data, device
        self._normalise = Normaliser(data, device)
        self._calibration = fixed(data.train, calibration, seed)
        self._cache: dict[tuple[str, int], list[Tensor]] = {}

    def chunks(self, name: str, resolution: int) -> list[Tensor]:
        """The images of `val`, `test` or `calibration` in chunks (n, 3, r, r), normalised and kept."""
        key = name, resolution
        if key not in self._cache:
            kept = sum(chunk.nbytes for chunks in self._cache.values() for chunk in chunks)
            if kept > KEPT_BYTES:
                self._cache.clear()
            self._cache[key] = self._prepare(self.images(name), resolution)
        return self._cache[key]

    def images(self, name: str) -> Images:
        sets = {"val": self._data.val, "test": self._data.test, "calibration": self._calibration}
        if name not in sets:
            raise UnknownNameError("split", name, sets)
        return sets[name]

    def _prepare(self, images: Images, resolution: int) -> list[Tensor]:
        return [
            self._normalise(resize(to_device(torch.from_numpy(images.pixels[i : i + CHUNK]), self._device), resolution))
            for i in range(0, len(images), CHUNK)
        ]

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
