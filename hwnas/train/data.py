"""Data sets: decoded once to uint8 arrays that are mapped from a file, whatever they were before.

A new data set is a function `DataConfig, side -> DataSet` with the decorator `@datasets.register(NAME)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError
from hwnas.core.registry import Registry
from hwnas.train.config import DataConfig

SPLIT_SEED = 20200426
MAX_VALIDATION = 10_000
VAL_FRACTION = 0.1


@dataclass(frozen=True)
class Images:
    """Images (n, H, W, 3) uint8 and their labels (n,) int64.

    Attributes:
        store: (N, H, W, 3), in memory or mapped from a file; read it by `read`.
        rows: where in `store` each image is; image i is number i where None.
    """

    store: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        return int(self.store.shape[1])

    @property
    def nbytes(self) -> int:
        return len(self) * int(np.prod(self.store.shape[1:]))

    def take(self, rows: NDArray[np.int64]) -> Images:
        """Some of the images; none is read for it."""
        return Images(self.store, self.labels[rows], rows if self.rows is None else self.rows[rows])

    def read(self, rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.uint8]:
        """Some of the images, shape (n, H, W, 3), in memory."""
        return np.asarray(self.store[rows if self.rows is None else self.rows[rows]])


@dataclass(frozen=True)
class Augmentation:
    """Random mirroring, shift by up to a part of the side, and the smallest area of a random crop."""

    flip: bool = True
    shift: float = 0.0
    scale: float = 1.0
    randaugment: int = 0


@dataclass(frozen=True)
class DataSet:
    """Images to train on, to choose by (`val`) and to report (`test`), all of one size.

    Attributes:
        source: the file or folder they came from, for messages.
        classes: names of the labels 0, 1, ...
        mean, std: of each colour channel of the training images, in [0, 1].
        augmentation: what suits these images unless the configuration says otherwise.
    """

    source: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation


Loader = Callable[[DataConfig, int], DataSet]
datasets: Registry[Loader] = Registry(
    "data set", tuple(f"hwnas.train.{module}" for module in ("digits", "cifar", "folder", "parquet"))
)


def load_data(config: DataConfig, side: int, num_classes: int) -> DataSet:
    """The data set that `config` names, for a space whose largest resolution is `side`.

    Raises `InputError` where its files cannot be used or its classes are not the space's `num_classes`.
    """
    data = datasets.get(config.name)(config, config.size or side)
    if len(data.classes) != num_classes:
        raise InputError(
            f"{data.source} has {len(data.classes)} classes, the space {num_classes}: "
            f"give the space num_classes={len(data.classes)}"
        )
    for name, images in (("training", data.train), ("validation", data.val), ("test", data.test)):
        if not len(images):
            raise InputError(f"{data.source}: no {name} image is left; use more images or another val_fraction")
    chosen = {
        key: value for key in ("flip", "shift", "scale", "randaugment") if (value := getattr(config, key)) is not None
    }
    return replace(data, augmentation=replace(data.augmentation, **chosen))


def assemble(
    source: str | Path,
    classes: tuple[str, ...],
    train: Images,
    test: Images | None,
    config: DataConfig,
    augmentation: Augmentation,
) -> DataSet:
    """A `DataSet` of decoded images: labels checked, validation (and test, where there is none) split off `train`.

    The split depends on the number of images alone. Raises `InputError` where labels are out of range or all the same.
    """
    for images in filter(None, (train, test)):
        _check_labels(str(source), images.labels, len(classes))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    wanted = VAL_FRACTION * len(train) if config.val_fraction is None else config.val_fraction * len(train)
    held = min(MAX_VALIDATION, max(1, round(wanted)))
    val, rest = order[:held], order[held:]
    if test is None:
        test, rest = train.take(np.sort(rest[:held])), rest[held:]
    kept = train.take(np.sort(rest[: config.train_limit]))
    if len(np.unique(kept.labels)) < 2:
        raise InputError(f"{source}: all training images have one class; a classifier needs two or more")
    sample = kept.read(slice(None, None, max(1, len(kept) // 2048))).reshape(-1, 3) / 255.0
    mean, std = sample.mean(0), np.maximum(sample.std(0), 1e-3)
    held_out = train.take(np.sort(val))
    return DataSet(str(source), classes, kept, held_out, test, tuple(mean.tolist()), tuple(std.tolist()), augmentation)


def _check_labels(source: str, labels: NDArray[np.int64], classes: int) -> None:
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise InputError(
            f"{source}: label {labels[bad[0]]} of image {bad[0]} is out of range, "
            f"the {classes} classes are 0 to {classes - 1}"
        )
    if len(labels) and (labels == labels[0]).all():
        raise InputError(f"{source}: all {len(labels)} images have label {labels[0]}; a classifier needs two classes")


def needed_path(config: DataConfig) -> Path:
    """The path of `config`; raises `InputError` where there is none, or nothing is there."""
    if config.path is None:
        raise InputError(f"data set {config.name!r} needs a path: data: {{name: {config.name}, path: ...}}")
    if not config.path.exists():
        raise InputError(f"data set {config.name!r}: nothing at {config.path}")
    return config.path
