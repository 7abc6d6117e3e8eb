"""Image folders: `PATH/train/CLASS/*`, and `val` and `test` beside `train` where there are any; or `PATH/CLASS/*`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hwnas.core.errors import InputError
from hwnas.train.config import DataConfig
from hwnas.train.data import Augmentation, DataSet, Images, Splits, assemble, datasets, needed_path, refuse_unread
from hwnas.train.decode import Encoded, decoded, some, usual_side

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"}
VALIDATION = ("val", "valid", "validation")
LARGE = 64


@datasets.register("folder")
def folder(config: DataConfig, side: int) -> DataSet:
    """Classes are the names of the folders, in alphabetical order. Where `test` is absent, `val` is the test set.

    Folders and files whose names begin with a dot are left out. Raises `InputError` naming a class folder without an
    image, a class that the training images lack, or a bad image.
    """
    refuse_unread(config, "test_path")
    root = needed_path(config)
    if not root.is_dir():
        raise InputError(f"{root} is a file: data set 'folder' reads a folder that holds one folder a class")
    split = (root / "train").is_dir() and bool(_folders(root / "train"))
    train = root / "train" if split else root
    val = next((root / name for name in VALIDATION if split and (root / name).is_dir()), None)
    test = root / "test" if split and (root / "test").is_dir() else None
    classes = tuple(_folders(train))
    if not classes:
        raise InputError(f"{train}: no class folders; images of a class lie in a folder of its name")
    looked_at = some(_files(train, classes))
    stored = config.size or min(side, usual_side((path.read_bytes(), str(path)) for path, _ in looked_at))
    if test is None:
        val, test = None, val
    images = _load(train, classes, stored)
    held = [_load(part, classes, stored) if part else None for part in (val, test)]
    return assemble(root, classes, Splits(images, *held), config, suited(stored))


def suited(side: int) -> Augmentation:
    """Crops as on ImageNet for large images, shifts by an eighth as on CIFAR for small ones."""
    return Augmentation(flip=True, scale=0.25) if side >= LARGE else Augmentation(flip=True, shift=0.125)


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    extra = set(_folders(root)) - set(classes)
    if extra and len(classes) > 1:
        raise InputError(f"{root / min(extra)}: a class that the training images do not have")
    found = []
    for label, name in enumerate(classes):
        paths = sorted(_images_below(root / name))
        if not paths:
            raise InputError(
                f"{root / name}: no image of class {name!r} ({', '.join(sorted(SUFFIXES))}); add some or remove it"
            )
        found += [(path, label) for path in paths]
    return found


def _images_below(folder: Path) -> Iterator[Path]:
    """The image files in a folder and those in it, each folder once; links are followed."""
    seen = set[str]()
    for where, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(where))
        folders[:] = [n for n in folders if not n.startswith(".") and os.path.realpath(Path(where, n)) not in seen]
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                if not path.exists():
                    raise InputError(f"{path}: a link that leads nowhere; repair or remove it")
                yield path


def _load(root: Path, classes: tuple[str, ...], side: int) -> Images:
    entries = _files(root, classes)
    paths, labels = [path for path, _ in entries], np.array([label for _, label in entries], dtype=np.int64)
    images = Encoded(paths, len(paths), lambda index: str(paths[index]), lambda index: paths[index].read_bytes())
    return Images(decoded(images, side, f"decoding {root.name}"), labels)
