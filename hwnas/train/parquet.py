"""Parquet files of encoded images: a column `image` (bytes, or a struct with `bytes`) and an integer `label`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.errors import InputError
from hwnas.train.config import DataConfig
from hwnas.train.data import DataSet, Images, assemble, datasets, needed_path
from hwnas.train.decode import Encoded, decoded, own_side
from hwnas.train.folder import suited

IMAGES = ("image", "img")
LABELS = ("label", "fine_label", "labels")


@datasets.register("parquet")
def parquet(config: DataConfig, side: int) -> DataSet:
    """`path` is a file or a folder of shards; `test_path` holds the test images.

    Labels are 0 to the largest that a training image has.
    """
    path = needed_path(config)
    first = _Shards(path)
    stored = config.size or min(side, own_side(first.bytes_of(0), f"{path}: image 0"))
    train = _load(path, stored)
    test = _load(config.test_path, stored) if config.test_path else None
    if train.labels.max() >= len(train):
        raise InputError(f"{path}: label {train.labels.max()} is out of range for {len(train)} images")
    classes = tuple(map(str, range(int(train.labels.max()) + 1)))
    return assemble(path, classes, train, test, config, suited(stored))


class _Shards:
    """The rows of one Parquet file, or of all in a folder in order of their names."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self.files:
            raise InputError(f"{path}: no Parquet file in this folder")
        tables = []
        for file in self.files:
            try:
                names = pq.read_schema(file).names
                columns = [_pick(file, names, IMAGES), _pick(file, names, LABELS)]
                tables.append(pq.read_table(file, columns=columns).rename_columns(["image", "label"]))
            except FileNotFoundError as error:
                raise InputError(f"no Parquet file at {file}") from error
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file}: not a readable Parquet file ({error})") from error
        table = pa.concat_tables(tables)
        if not table.num_rows:
            raise InputError(f"{path}: holds no image")
        self.path, self._images = path, table["image"]
        labels = table["label"]
        if labels.null_count or not pa.types.is_integer(labels.type):
            raise InputError(f"{path}: column label does not hold an integer for every image")
        self.labels = labels.to_numpy().astype(np.int64)

    def bytes_of(self, row: int) -> bytes:
        value: Any = self._images[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise InputError(f"{self.path}: image {row} holds no bytes of an encoded image")
        return data


def _pick(file: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise InputError(f"{file}: no column {wanted[0]!r} (it has {', '.join(names)})")


def _load(path: Path, side: int) -> Images:
    if not path.exists():
        raise InputError(f"no Parquet file at {path}")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]

    def open_images() -> Encoded:
        shards = _Shards(path)
        return Encoded(shards.labels, [f"{path}: image {i}" for i in range(len(shards.labels))], shards.bytes_of)

    return decoded(files, side, open_images, f"decoding {path.name}")
