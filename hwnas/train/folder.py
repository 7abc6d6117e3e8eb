"""Image folders: `PATH/train/CLASS/*`, and `val` and `test` beside `train` where there are any; or `PATH/CLASS/*`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwnas.core.errors import InputError
from hwnas.train.config import DataConfig
from hwnas.train.data import Augmentation, DataSet, Images, assemble, datasets, needed_path
from hwnas.train.decode import Encoded, decoded, own_side

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"}
LARGE = 64


@datasets.register("folder")
def folder(config: DataConfig, side: int) -> DataSet:
    """Classes are the names of the folders, in alphabetical order. `val` serves as the test set where `test` is absent.

    Raises `InputError` naming a class folder without an image, a folder that only one split has, or a bad image.
    """
    root = needed_path(config)
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    train = parts.get("train", root)
    classes = tuple(sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not classes:
        raise InputError(f"{train}: no class folders; images of a class lie in a folder of its name")
    first = _files(train, classes[:1])[0][0]
    stored = config.size or min(side, own_side(first.read_bytes(), str(first)))
    held = parts.get("test") or parts.get("val") if "train" in parts else None
    images = _load(train, classes, stored)
    source = assemble(root, classes, images, _load(held, classes, stored) if held else None, config, suited(stored))
    return source


def suited(side: int) -> Augmentation:
    """Crops as on ImageNet for large images, shifts by an eighth as on CIFAR for small ones."""
    return Augmentation(flip=True, scale=0.25) if side >= LARGE else Augmentation(flip=True, shift=0.125)


def _files(root: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    extra = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")} - set(classes)
    if extra and len(classes) > 1:
        raise InputError(f"{root / min(extra)}: a class that the training images do not have")
    found = []
    for label, name in enumerate(classes):
        paths = (
            sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
            if (root / name).is_dir()
            else []
        )
        if not paths:
            raise InputError(
                f"{root / name}: no image of class {name!r} ({', '.join(sorted(SUFFIXES))}); add some or remove it"
            )
        found += [(path, label) for path in paths]
    return found


def _load(root: Path, classes: tuple[str, ...], side: int) -> Images:
    entries = _files(root, classes)
    paths, labels = [path for path, _ in entries], np.array([label for _, label in entries], dtype=np.int64)
    return decoded(
        paths,
        side,
        lambda: Encoded(labels, [str(p) for p in paths], lambda i: paths[i].read_bytes()),
        f"decoding {root.name}",
    )
