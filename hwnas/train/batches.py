"""Batches: which images a step sees and how they are varied, as a function of seed and step alone.

Nothing depends on what came before, so that a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.core.errors import InputError, UnavailableError
from hwnas.train.data import Augmentation, DataSet, Images

ON_DEVICE_BYTES = 4 << 30
VARIED_TOGETHER = 4


class Normaliser:
    """Scales images (n, 3, H, W) in [0, 255] to mean 0 and deviation 1 a channel, in channels-last order."""

    def __init__(self, data: DataSet, device: torch.device) -> None:
        self._mean = torch.tensor(data.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(data.std, dtype=torch.float32, device=device).view(1, 3, 1, 1) * 255

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


def to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 images (n, H, W, 3) as floats (n, 3, H, W) on `device`."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float()


def resize(x: Tensor, resolution: int) -> Tensor:
    """Bilinear, with a low-pass filter where the images shrink."""
    if x.shape[-1] == resolution:
        return x
    smaller = resolution < x.shape[-1]
    return F.interpolate(x, (resolution, resolution), mode="bilinear", align_corners=False, antialias=smaller)


def augment(x: Tensor, resolution: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Random mirroring, crops and shifts of images (n, 3, H, W), resized to (n, 3, resolution, resolution).

    Where images keep their stored size a shift is by whole pixels, so that nothing is blurred. What lies outside an
    image is black.
    """
    n, side = len(x), x.shape[-1]
    draw = torch.rand(5, n, generator=generator).to(x.device)
    mirror = torch.where(draw[0] < 0.5, -1.0, 1.0) if how.flip else torch.ones(n, device=x.device)
    zoom = (how.scale + (1 - how.scale) * draw[1]).sqrt()
    aspect = torch.exp((draw[4] - 0.5) * (0.575 if how.scale < 1 else 0.0)).sqrt()
    width, height = (zoom * aspect).clamp(max=1.0), (zoom / aspect).clamp(max=1.0)
    shift_x = (2 * draw[2] - 1) * (2 * how.shift + 1 - width)
    shift_y = (2 * draw[3] - 1) * (2 * how.shift + 1 - height)
    if resolution == side and how.scale == 1:
        shift_x, shift_y = ((s * side / 2).round() * 2 / side for s in (shift_x, shift_y))
    zero = torch.zeros_like(zoom)
    theta = torch.stack([width * mirror, zero, shift_x, zero, height, shift_y], dim=1).view(n, 2, 3)
    out = max(side, resolution)
    grid = F.affine_grid(theta, [n, 3, out, out], align_corners=False)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return resize(moved, resolution)


def randaugment(pixels: Tensor, operations: int, seed: int) -> Tensor:
    """RandAugment (Cubuk et al., 2020) of uint8 images (n, H, W, 3), drawn anew for every few of them."""
    vary = torchvision_transforms().RandAugment(operations)
    with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []):
        torch.manual_seed(seed)
        parts = [vary(part) for part in torch.split(pixels.permute(0, 3, 1, 2), VARIED_TOGETHER)]
    return torch.cat(parts).permute(0, 2, 3, 1)


def torchvision_transforms() -> Any:
    """Raises `UnavailableError` where torchvision is not installed, or not the one that goes with this PyTorch."""
    try:
        return import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(
            f"randaugment needs the torchvision that goes with PyTorch {torch.__version__}: pip install torchvision"
        ) from error


class Batches:
    """Training batches of a data set; `at(step, resolution)` gives images (n, 3, r, r) and labels (n,).

    `rank` and `world` share each step's images out between processes: every image once an epoch, whole batches only.
    Raises `InputError` where the data set has fewer images than one step takes.
    """

    def __init__(
        self, data: DataSet, batch: int, seed: int, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        self.how, self.seed, self.rank, self.world = data.augmentation, seed, rank, world
        if batch * world > len(data.train):
            raise InputError(
                f"batch is {batch}{f' in each of {world} processes' if world > 1 else ''}, but {data.source} leaves "
                f"{len(data.train)} images to train on: set batch to {len(data.train) // world} or less"
            )
        if self.how.randaugment:
            torchvision_transforms()
        self.batch, self.steps_per_epoch = batch, len(data.train) // (batch * world)
        self._images, self._device = data.train, device
        self._normalise = Normaliser(data, device)
        self._resident: Tensor | None = None
        if device.type == "cuda" and data.train.nbytes < ON_DEVICE_BYTES:
            self._resident = torch.from_numpy(data.train.read()).to(device)
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Tensor]] | None = None
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def rows(self, step: int) -> np.ndarray:
        """Which images this process sees in `step`, shape (batch,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(len(self._images))
        start = (position * self.world + self.rank) * self.batch
        return self._order[1][start : start + self.batch]

    def rng(self, step: int) -> np.random.Generator:
        """Random numbers of one step and process."""
        return np.random.default_rng([self.seed, 4, step, self.rank])

    def at(self, step: int, resolution: int) -> tuple[Tensor, Tensor]:
        rows = self.rows(step)
        labels = torch.from_numpy(self._images.labels[rows]).to(self._device)
        generator = torch.Generator().manual_seed(int(self.rng(step).integers(2**62)))
        pixels = self._pixels(step, rows)
        if self.how.randaugment:
            pixels = randaugment(pixels, self.how.randaugment, int(torch.randint(2**31, (1,), generator=generator)))
        images = augment(to_device(pixels, self._device), resolution, self.how, generator)
        return self._normalise(images), labels

    def _pixels(self, step: int, rows: np.ndarray) -> Tensor:
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self._device)]
        ready = self._next[1].result() if self._next and self._next[0] == step else self._read(rows)
        self._next = step + 1, self._pool.submit(self._read, self.rows(step + 1))
        return ready

    def _read(self, rows: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(self._images.read(rows))
        return pixels.pin_memory() if self._device.type == "cuda" else pixels


def fixed(images: Images, limit: int, seed: int) -> Images:
    """At most `limit` of `images`, the same for the same seed."""
    if len(images) <= limit:
        return images
    return images.take(np.sort(np.random.default_rng([seed, 2]).permutation(len(images))[:limit]))
