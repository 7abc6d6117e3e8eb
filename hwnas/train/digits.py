"""The built-in data set: scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged as networks need them."""

from __future__ import annotations

import numpy as np

from hwnas.train.config import DataConfig
from hwnas.train.data import Augmentation, DataSet, Images, Splits, assemble, datasets, refuse_unread

FULL_SCALE = 16
HELD_OUT = 0.2


@datasets.register("digits")
def digits(config: DataConfig, side: int) -> DataSet:
    """A fifth each is kept for validation and for testing unless `val_fraction` says otherwise."""
    refuse_unread(config, "path", "test_path", "size")
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.round(found.images * (255 / FULL_SCALE)).astype(np.uint8)
    images = Images(np.repeat(grey[..., None], 3, axis=-1), found.target.astype(np.int64))
    split = config.model_copy(update={"val_fraction": config.val_fraction or HELD_OUT})
    names = tuple(map(str, found.target_names))
    return assemble("scikit-learn's digits", names, Splits(images), split, Augmentation(flip=False, shift=0.06))
