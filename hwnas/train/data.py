"""Data sets: decoded once to uint8 arrays that are mapped from a file, whatever they were before.

A new data set is a function `DataConfig, side -> DataSet` with the decorator `@datasets.register(NAME)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError
from hwnas.core.registry import Registry
from hwnas.train.config import DataConfig

SPLIT_SEED = 20200426
MAX_VALIDATION = 10_000
VAL_FRACTION = 0.1
IMAGES_AT_ONCE = 64


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
            f"{data.source} has {len(data.classes)} classes (labels up to {len(data.classes) - 1}), the space "
            f"{num_classes}: correct the labels, or give the space num_classes={len(data.classes)}"
        )
    for name, images in (("training", data.train), ("validation", data.val), ("test", data.test)):
        if not len(images):
            raise InputError(f"{data.source}: no {name} image is left; use more images or another val_fraction")
    chosen = {
        key: value for key in ("flip", "shift", "scale", "randaugment") if (value := getattr(config, key)) is not None
    }
    return replace(data, augmentation=replace(data.augmentation, **chosen))


@dataclass(frozen=True)
class Splits:
    """The images that a source holds, in the parts that it says; validation and test images may be missing."""

    train: Images
    val: Images | None = None
    test: Images | None = None


def assemble(
    source: str | Path, classes: tuple[str, ...], splits: Splits, config: DataConfig, augmentation: Augmentation
) -> DataSet:
    """A `DataSet` of decoded images: labels checked, validation and test images split off where there are none.

    The split depends on the number of images alone. Raises `InputError` where labels are out of range or all the same.
    """
    _check_labels(source, splits, len(classes))
    train, val, test = splits.train, splits.val, splits.test
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    wanted = VAL_FRACTION * len(train) if config.val_fraction is None else config.val_fraction * len(train)
    held = max(1, round(wanted))
    if config.val_fraction is None:
        held = min(MAX_VALIDATION, held)
    if val is None:
        val, order = train.take(np.sort(order[:held])), order[held:]
    elif config.val_fraction is not None:
        raise InputError(f"{source} holds {len(val)} validation images: leave val_fraction out")
    if test is None:
        test, order = train.take(np.sort(order[:held])), order[held:]
    kept = train.take(np.sort(order[: config.train_limit]))
    if len(np.unique(kept.labels)) < 2:
        raise InputError(
            f"{source}: the {len(kept)} images left to train on have one class, a classifier needs two: use more images"
        )
    return DataSet(str(source), classes, kept, val, test, *_mean_and_std(kept), augmentation)


def _mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each colour channel, in [0, 1], over some thousands of the images, a few in memory at a time."""
    chosen = np.arange(0, len(images), max(1, len(images) // 2048))
    counts = np.zeros((3, 256))
    for part in np.array_split(chosen, -(-len(chosen) // IMAGES_AT_ONCE)):
        pixels = images.read(part).reshape(-1, 3)
        counts += [np.bincount(channel, minlength=256) for channel in pixels.T]
    share, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255.0
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


def _check_labels(source: str | Path, splits: Splits, classes: int) -> None:
    for name, images in (("training", splits.train), ("validation", splits.val), ("test", splits.test)):
        labels = images.labels if images else np.empty(0, np.int64)
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(bad):
            raise InputError(
                f"{source}: label {labels[bad[0]]} of {name} image {bad[0]} is out of range, "
                f"the {classes} classes are 0 to {classes - 1}"
            )
    labels = splits.train.labels
    if len(labels) and (labels == labels[0]).all():
        raise InputError(f"{source}: all {len(labels)} images have label {labels[0]}; a classifier needs two classes")


def describe(data: DataSet) -> dict[str, Any]:
    """What a checkpoint keeps of the data set it was trained on: what its networks expect, and what tells it apart."""
    splits = (data.train, data.val, data.test)
    labels = hashlib.sha256(b"".join(images.labels.tobytes() for images in splits))
    return {
        "classes": list(data.classes),
        "images": [len(images) for images in splits],
        "labels": labels.hexdigest()[:16],
        "mean": list(data.mean),
        "std": list(data.std),
    }


def check_same(found: Mapping[str, Any], now: Mapping[str, Any], where: str | Path) -> None:
    """Raise `InputError` where the data set described as `now` is not the one that the checkpoint `where` is of."""
    for key, what in (("classes", "classes"), ("images", "numbers of images"), ("labels", "labels")):
        if key in found and found[key] != now[key]:
            shown = "" if key == "labels" else f" ({found[key]} then, {now[key]} now)"
            raise InputError(f"{where}: the data set is not the one that this was trained on: other {what}{shown}")
    if not np.allclose([found.get(key, now[key]) for key in ("mean", "std")], [now["mean"], now["std"]], atol=1e-6):
        raise InputError(f"{where}: the data set is not the one that this was trained on: other images")


def refuse_unread(config: DataConfig, *keys: str) -> None:
    """Raise `InputError` where one of `keys`, which the data set does not read, is set."""
    for key in keys:
        if getattr(config, key) is not None:
            raise InputError(f"data set {config.name!r} does not read {key}: leave it out")


def needed_path(config: DataConfig) -> Path:
    """The path of `config`; raises `InputError` where there is none, or nothing is there."""
    if config.path is None:
        raise InputError(f"data set {config.name!r} needs a path: data: {{name: {config.name}, path: ...}}")
    if not config.path.exists():
        seen = "" if config.path.is_absolute() else f" in {Path.cwd()}"
        raise InputError(f"data set {config.name!r}: nothing at {config.path}{seen}")
    return config.path
