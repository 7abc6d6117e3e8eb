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
from statistics import median_low
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import HwnasError, InputError, UnavailableError
from hwnas.core.files import replacing
from hwnas.core.progress import progress

Item = TypeVar("Item")

VERSION = 2
CHUNK = 512
LOOKED_AT = 25
WHITE = (255, 255, 255, 255)
SIXTEEN_BITS = 65535
ORIENTATION = 0x0112
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What undoes each orientation of the EXIF standard."""


@dataclass(frozen=True)
class Encoded:
    """Images not yet decoded.

    Attributes:
        files: what holds them, in the order of the images.
        n: how many they are.
        name: says of image i where it is, for messages.
        read: gives the bytes of image i.
    """

    files: Sequence[Path]
    n: int
    name: Callable[[int], str]
    read: Callable[[int], bytes]


def cache_folder() -> Path:
    """Where decoded data sets are kept: the environment's HWNAS_CACHE, else ~/.cache/hwnas."""
    return Path(os.environ.get("HWNAS_CACHE") or Path.home() / ".cache" / "hwnas") / "data"


def decoded(images: Encoded, side: int, title: str) -> NDArray[np.uint8]:
    """Square images (n, side, side, 3), mapped from the cache or decoded into it.

    Paths, sizes and dates of the files, in their order, are the key. Raises `InputError` naming the image that cannot
    be decoded.
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in images.files]
    key = hashlib.sha256(json.dumps([VERSION, side, stats]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{key}-pixels.npy"
    found = _cached(path, images.n, side)
    if found is None:
        _decode(images, side, path, title)
        found = _cached(path, images.n, side)
        if found is None:
            raise InputError(f"{path}: the decoded images cannot be read back; free some space, or set HWNAS_CACHE")
    return found


def _cached(path: Path, n: int, side: int) -> NDArray[np.uint8] | None:
    """The decoded images in `path`; None where it does not hold them whole."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (n, side, side, 3) else None


def _decode(images: Encoded, side: int, path: Path, title: str) -> None:
    """Write a NumPy file of all images; plain writes, since a mapped file crashes where the disk is full."""
    n = images.n
    layout = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": (n, side, side, 3)}

    def one(index: int) -> NDArray[np.uint8]:
        with readable(images.name(index)):
            return decode(images.read(index), side)

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
        reason = "of no known format" if type(error).__name__ == "UnidentifiedImageError" else error
        raise InputError(f"{name}: not a readable image ({reason}); repair or remove it") from error


def decode(data: bytes, side: int) -> NDArray[np.uint8]:
    """An encoded image as (side, side, 3) uint8: upright, its shorter side resized to `side`, the centre cut out.

    What is transparent becomes white; 16 bits of grey are divided by 257.
    """
    image_module = pillow()
    with image_module.open(io.BytesIO(data)) as image:
        rgb = _rgb(_upright(image))
    width, height = rgb.size
    scale = side / min(width, height)
    wide, high = max(side, round(width * scale)), max(side, round(height * scale))
    if (wide, high) != (width, height):
        rgb = rgb.resize((wide, high), image_module.Resampling.BICUBIC, reducing_gap=2.0)
    left, top = (wide - side) // 2, (high - side) // 2
    return np.asarray(rgb.crop((left, top, left + side, top + side)), dtype=np.uint8)


def _upright(image: Any) -> Any:
    """A Pillow image turned as its EXIF data say."""
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    return image if turn is None else image.transpose(pillow().Transpose[turn])


def _rgb(image: Any) -> Any:
    """A Pillow image in 8 bits of red, green and blue."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > SIXTEEN_BITS:
            raise ValueError(f"values from {grey.min()} to {grey.max()}, which are not 16 bits of grey")
        return pillow().fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point values, whose range is not known: store 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return pillow().alpha_composite(pillow().new("RGBA", image.size, WHITE), image).convert("RGB")
    return image.convert("RGB")


def usual_side(images: Iterable[tuple[bytes, str]]) -> int:
    """The median of the shorter sides, in pixels, of encoded images, each with its name."""
    sides = []
    for data, name in images:
        with readable(name), pillow().open(io.BytesIO(data)) as image:
            sides.append(min(image.size))
    return int(median_low(sides))


def some(items: Sequence[Item]) -> Sequence[Item]:
    """About `LOOKED_AT` of `items`, spread evenly."""
    return items[:: -(-len(items) // LOOKED_AT)]


def pillow() -> Any:
    """Pillow's module Image; raises `UnavailableError` where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UnavailableError("reading encoded images needs the package pillow: pip install pillow") from error
    return Image
