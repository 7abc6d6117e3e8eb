"""Parquet files of encoded images: a column `image` (bytes, or a struct with `bytes`) and an integer `label`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError
from hwnas.train.config import DataConfig
from hwnas.train.data import DataSet, Images, Splits, assemble, datasets, needed_path
from hwnas.train.decode import LOOKED_AT, Encoded, decoded, usual_side
from hwnas.train.folder import suited

IMAGES = ("image", "img")
LABELS = ("label", "fine_label", "labels")
PREFIXES = {"train": "train", "test": "test", "val": "val", "dev": "val"}
"""How the names of shards begin, and the split that they belong to."""


@datasets.register("parquet")
def parquet(config: DataConfig, side: int) -> DataSet:
    """`path` is a file or a folder of shards, `test_path` one with the test images.

    In a folder, shards called `train*`, `val*` and `test*` (themselves, or in its folder `data`) are those splits. The
    classes are those that the file names, else 0 to the largest label of a training image.
    """
    found = _splits(needed_path(config))
    if config.test_path is not None:
        if "test" in found:
            raise InputError(f"{config.path} holds test images ({found['test'][0].name}): leave test_path out")
        parts = _splits(config.test_path)
        if "test" not in parts and len(parts) > 1:
            raise InputError(f"{config.test_path} holds shards of several splits and none is called test*")
        found["test"] = parts.get("test") or parts["train"]
    shards = {split: _Shards(files) for split, files in found.items()}
    train = shards["train"]
    stored = config.size or min(side, usual_side(train.first()))
    splits = Splits(**{split: part.load(stored) for split, part in shards.items()})
    most = int(train.labels.max())
    if most >= len(train.labels):
        raise InputError(f"{config.path}: label {most} is out of range for {len(train.labels)} images")
    names = train.class_names()
    classes = names if len(names) > most else tuple(map(str, range(most + 1)))
    return assemble(str(config.path), classes, splits, config, suited(stored))


def _splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split; raises `InputError` where there are none, or where it is not clear which they are."""
    if not path.exists():
        raise InputError(f"no Parquet file at {path}")
    if not path.is_dir():
        return {"train": [path]}
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    if not files:
        raise InputError(f"{path}: no Parquet file in this folder")
    found: dict[str, list[Path]] = {}
    for file in files:
        split = next((split for prefix, split in PREFIXES.items() if file.name.startswith(prefix)), "")
        found.setdefault(split, []).append(file)
    if len(found) == 1:
        return {"train": files}
    if "" in found or "train" not in found:
        raise InputError(
            f"{path}: shards of several splits ({', '.join(part[0].name for part in found.values())}); call them "
            "train*, val* and test*, or give one file as path and another as test_path"
        )
    return found


class _Shards:
    """The rows of some Parquet files, one file after the other."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        labels = [self._labels(file) for file in files]
        self.labels = np.concatenate(labels)
        self._ends = np.cumsum([len(part) for part in labels])
        self._lock = Lock()
        self._columns: dict[int, Any] = {}
        if not len(self.labels):
            raise InputError(f"{files[0]}: holds no image")

    def load(self, side: int) -> Images:
        """All images with `side` pixels, from the cache or decoded into it."""
        images = Encoded(self.files, len(self.labels), self.name, self.bytes_of)
        return Images(decoded(images, side, f"decoding {self.files[0].name}"), self.labels)

    def name(self, index: int) -> str:
        shard, row = self._place(index)
        return f"{self.files[shard]}: image {row}"

    def bytes_of(self, index: int) -> bytes:
        shard, row = self._place(index)
        return self._encoded(self._column(shard)[row].as_py(), index)

    def first(self) -> Iterator[tuple[bytes, str]]:
        """The first images and their names; the rest is not read for them."""
        import pyarrow.parquet as pq

        path = self.files[self._place(0)[0]]
        name = _pick(path, pq.read_schema(path).names, IMAGES)
        with _readable(path), pq.ParquetFile(path) as file:
            batch = next(batch for batch in file.iter_batches(LOOKED_AT, columns=[name]) if len(batch))
        for index, value in enumerate(batch.column(0).to_pylist()):
            yield self._encoded(value, index), self.name(index)

    def _encoded(self, value: Any, index: int) -> bytes:
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise InputError(f"{self.name(index)} holds no bytes of an encoded image")
        return data

    def class_names(self) -> tuple[str, ...]:
        """What the public hubs write beside the schema; none where it is absent."""
        import pyarrow.parquet as pq

        metadata = pq.read_schema(self.files[0]).metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return tuple(map(str, features[_pick(self.files[0], list(features), LABELS)]["names"]))
        except (KeyError, TypeError, ValueError, InputError):
            return ()

    def _column(self, shard: int) -> Any:
        """The images of one file; those of two are kept, since threads that decode ask for both at a file's end."""
        with self._lock:
            if shard not in self._columns:
                for other in sorted(self._columns)[: len(self._columns) - 1]:
                    del self._columns[other]
                self._columns[shard] = _column(self.files[shard], IMAGES)
            return self._columns[shard]

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    @staticmethod
    def _labels(file: Path) -> NDArray[np.int64]:
        import pyarrow as pa

        labels = _column(file, LABELS)
        if labels.null_count or not pa.types.is_integer(labels.type):
            raise InputError(f"{file}: column label does not hold an integer for every image")
        return np.asarray(labels.to_numpy(), dtype=np.int64)


def _column(file: Path, names: tuple[str, ...]) -> Any:
    """The first column of `names` that the file has, a pyarrow array."""
    import pyarrow.parquet as pq

    with _readable(file):
        name = _pick(file, pq.read_schema(file).names, names)
        return pq.read_table(file, columns=[name])[name]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raise `InputError` for what pyarrow cannot read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file ({error})") from error


def _pick(file: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    for name in wanted:
        if name in names:
            return name
    raise InputError(f"{file}: no column {wanted[0]!r} (it has {', '.join(names)})")
