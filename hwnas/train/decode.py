"""Encoded images to uint8 arrays, once: the arrays are kept in a cache folder and mapped from there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import HwnasError, InputError, UnavailableError
from hwnas.core.files import replacing
from hwnas.core.progress import progress
from hwnas.train.data import Images

VERSION = 1
CHUNK = 512


@dataclass(frozen=True)
class Encoded:
    """Images not yet decoded: `read(i)` gives the bytes of image i, `names[i]` says where it is, for messages."""

    labels: NDArray[np.int64]
    names: Sequence[str]
    read: Callable[[int], bytes]


def cache_folder() -> Path:
    """Where decoded data sets are kept: the environment's HWNAS_CACHE, else ~/.cache/hwnas."""
    return Path(os.environ.get("HWNAS_CACHE") or Path.home() / ".cache" / "hwnas") / "data"


def decoded(files: Iterable[Path], side: int, open_images: Callable[[], Encoded], title: str) -> Images:
    """The images of `files`, square with `side` pixels, from the cache or decoded into it.

    `files` are what the result depends on: their names, sizes and dates are its key. Raises `InputError` naming the
    image that cannot be decoded.
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    key = hashlib.sha256(json.dumps([VERSION, side, stats]).encode()).hexdigest()[:24]
    folder = cache_folder()
    pixels, labels = folder / f"{key}-pixels.npy", folder / f"{key}-labels.npy"
    if not labels.exists() or not pixels.exists():
        encoded = open_images()
        _decode(encoded, side, pixels, title)
        with replacing(labels) as temporary, temporary.open("wb") as handle:
            np.save(handle, encoded.labels)
    return Images(np.load(pixels, mmap_mode="r", allow_pickle=False), np.load(labels, allow_pickle=False))


def _decode(encoded: Encoded, side: int, path: Path, title: str) -> None:
    """Write a NumPy file of all images; plain writes, since a mapped file crashes where the disk is full."""
    n = len(encoded.names)
    layout = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": (n, side, side, 3)}

    def one(index: int) -> NDArray[np.uint8]:
        with readable(encoded.names[index]):
            return decode(encoded.read(index), side)

    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        progress(title, n) as task,
        ThreadPoolExecutor() as pool,
    ):
        np.lib.format.write_array_header_1_0(file, layout)
        for start in range(0, n, CHUNK):
            rows = range(start, min(n, start + CHUNK))
            file.write(np.stack(list(pool.map(one, rows))).tobytes())
            task.update(rows.stop)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what a bad image raises into an `InputError` that names it; Pillow's plugins raise whatever they like."""
    try:
        yield
    except HwnasError:
        raise
    except Exception as error:
        raise InputError(f"{name}: not a readable image ({error}); repair or remove it") from error


def decode(data: bytes, side: int) -> NDArray[np.uint8]:
    """An encoded image as (side, side, 3) uint8: its shorter side resized to `side`, the centre cut out."""
    image_module = pillow()
    with image_module.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    width, height = rgb.size
    scale = side / min(width, height)
    wide, high = max(side, round(width * scale)), max(side, round(height * scale))
    if (wide, high) != (width, height):
        rgb = rgb.resize((wide, high), image_module.Resampling.BICUBIC, reducing_gap=2.0)
    left, top = (wide - side) // 2, (high - side) // 2
    return np.asarray(rgb.crop((left, top, left + side, top + side)), dtype=np.uint8)


def own_side(data: bytes, name: str) -> int:
    """The shorter side of an encoded image in pixels."""
    with readable(name), pillow().open(io.BytesIO(data)) as image:
        return int(min(image.size))


def pillow() -> Any:
    """Pillow's module Image; raises `UnavailableError` where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UnavailableError("reading encoded images needs the package pillow: pip install pillow") from error
    return Image
