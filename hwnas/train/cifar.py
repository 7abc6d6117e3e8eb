"""CIFAR-10 and CIFAR-100 from the official binary files (Krizhevsky, 2009), in their archive or taken out of it."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from hwnas.core.errors import InputError
from hwnas.train.config import DataConfig
from hwnas.train.data import Augmentation, DataSet, Images, Splits, assemble, datasets, needed_path, refuse_unread

SIDE = 32
MEBIBYTE = 1 << 20
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Layout:
    """The official files; a record is `label_bytes` labels, the last of which counts, and 3072 bytes in CHW order."""

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


CIFAR10 = Layout(tuple(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1)
CIFAR100 = Layout(("train.bin",), "test.bin", "fine_label_names.txt", 2)


@datasets.register("cifar10")
def cifar10(config: DataConfig, side: int) -> DataSet:
    return _cifar(CIFAR10, config)


@datasets.register("cifar100")
def cifar100(config: DataConfig, side: int) -> DataSet:
    return _cifar(CIFAR100, config)


def _cifar(layout: Layout, config: DataConfig) -> DataSet:
    refuse_unread(config, "test_path", "size")
    path = needed_path(config)
    files = _read(path, (*layout.train, layout.test, layout.names))
    classes = tuple(files[layout.names].decode("utf-8", "replace").split())
    parts = [_images(f"{path}: {name}", files[name], layout.label_bytes) for name in layout.train]
    train = Images(np.concatenate([p.store for p in parts]), np.concatenate([p.labels for p in parts]))
    test = _images(f"{path}: {layout.test}", files[layout.test], layout.label_bytes)
    return assemble(path, classes, Splits(train, test=test), config, Augmentation(flip=True, shift=0.125))


def _images(name: str, data: bytes, label_bytes: int) -> Images:
    record = label_bytes + PIXELS
    if not data or len(data) % record:
        raise InputError(f"{name}: {len(data)} bytes are no whole number of records of {record}; the file is cut off")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    pixels = rows[:, label_bytes:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Images(np.ascontiguousarray(pixels), rows[:, label_bytes - 1].astype(np.int64))


def _read(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files called `names` in a folder or a tar archive; nothing is unpacked to disk."""
    try:
        found = _from_folder(path, names) if path.is_dir() else _from_archive(path, names)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: not a readable folder or archive of CIFAR ({error})") from error
    for name in names:
        if name not in found:
            raise InputError(
                f"{path}: no {name} in it; the binary version is needed (cifar-10-binary.tar.gz or "
                "cifar-100-binary.tar.gz), since the Python version is made of pickles, which can run code"
            )
    return found


def _from_folder(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: found[0].read_bytes() for name in names if (found := sorted(path.rglob(name)))}


def _from_archive(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            stream = archive.extractfile(member) if name in names else None
            if stream is not None:
                found[name] = stream.read()
        while archive.fileobj is not None and archive.fileobj.read(MEBIBYTE):
            pass  # a gzip file's check sum stands at its end
    return found
