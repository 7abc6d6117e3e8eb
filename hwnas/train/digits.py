"""The built-in data sets: scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged as networks need them.

`digits` fills the image with each digit, which the smallest networks learn as well as the largest. `scattered-digits`
draws each one once and for all at a place, size and angle of its own on a noisy ground, which takes a better network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.train.config import DataConfig
from hwnas.train.data import Augmentation, DataSet, Images, assemble, datasets

FULL_SCALE = 16
HELD_OUT = 0.2


SCATTER_SEED = 64
SIZES = (0.35, 0.75)
DEGREES = 30.0
INK = (90.0, 200.0)
GROUND = 24.0


@datasets.register("digits")
def digits(config: DataConfig, side: int) -> DataSet:
    """A fifth each is kept for validation and for testing unless `val_fraction` says otherwise."""
    grey, labels = _read()
    return _assemble("scikit-learn's digits", np.round(grey * 255).astype(np.uint8), labels, config)


@datasets.register("scattered-digits")
def scattered_digits(config: DataConfig, side: int) -> DataSet:
    """The same digits, each at a random place, size (a third to three quarters of the side) and angle; split alike."""
    grey, labels = _read()
    rng = np.random.default_rng(SCATTER_SEED)
    drawn = np.stack([_scatter(image, side, rng) for image in grey])
    return _assemble("scikit-learn's digits, scattered", drawn, labels, config)


def _read() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images / FULL_SCALE, found.target.astype(np.int64)


def _scatter(image: NDArray[np.float64], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One digit, (8, 8) in [0, 1], on a canvas (side, side)."""
    from scipy.ndimage import affine_transform

    size = rng.uniform(*SIZES) * side
    angle, step = np.deg2rad(rng.uniform(-DEGREES, DEGREES)), len(image) / size
    turn = step * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(size / 2, side - size / 2, 2)
    offset = (len(image) - 1) / 2 - turn @ centre
    ink = affine_transform(image, turn, offset, (side, side), order=1)
    canvas = ink * rng.uniform(*INK) + rng.normal(GROUND, GROUND / 2, (side, side))
    drawn: NDArray[np.uint8] = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return drawn


def _assemble(source: str, grey: NDArray[np.uint8], labels: NDArray[np.int64], config: DataConfig) -> DataSet:
    images = Images(np.repeat(grey[..., None], 3, axis=-1), labels)
    split = config.model_copy(update={"val_fraction": config.val_fraction or HELD_OUT})
    names = tuple(str(label) for label in range(int(labels.max()) + 1))
    return assemble(source, names, images, None, split, Augmentation(flip=False, shift=0.06))
