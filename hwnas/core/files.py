"""Files that are either whole or not there: every output is written beside its place and renamed into it.

What is being written is locked, so that others can tell it from what a process that was killed has left behind. The
kernel drops a lock with its process; where there is none (Windows, some network file systems) nothing is told apart.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from hwnas.core.errors import InputError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

SCRATCH = ".hwnas-scratch-"
PART = ".hwnas-part"
UNLOCKED = -1


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and takes the place of `path`.

    A link stays one. Raises `InputError` where `path` is there and no file, the folder cannot be written or the disk is
    full; what stood there before stays.
    """
    final = Path(os.path.realpath(path))
    temporary: Path | None = None
    lock = UNLOCKED
    try:
        if final.exists() and not final.is_file():
            what = "folder" if final.is_dir() else "device"
            raise InputError(f"cannot write {path}: it is a {what}; choose another place")
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean(final.parent)
        while temporary is None:
            opened, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=PART, dir=final.parent)
            os.close(opened)
            lock, temporary = _keep(Path(name))
        yield temporary
        with temporary.open("r+b") as handle:
            os.fsync(handle.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(final)
        temporary = None
    except OSError as error:
        raise InputError(
            f"cannot write {final}: {error.strerror or error}; choose another place or free some space"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _release(lock)


@cache
def _clean(folder: Path) -> None:
    """Remove what was left unfinished in `folder`, once in the life of this process."""
    _sweep(folder, f".*{PART}")


def _sweep(folder: Path, pattern: str) -> None:
    """Remove files and folders of ours that match `pattern` and that no living process holds."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            lock = _lock(path)
            try:
                if lock != UNLOCKED:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                _release(lock)


def _lock(path: Path) -> int:
    """Lock a file or folder; the descriptor that holds it, `UNLOCKED` where locks do not work.

    Raises `BlockingIOError` where another process holds it.
    """
    if fcntl is None:
        return UNLOCKED
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return UNLOCKED
    return descriptor


def _release(lock: int) -> None:
    if lock != UNLOCKED:
        os.close(lock)


def _keep(path: Path) -> tuple[int, Path | None]:
    """Lock what was made this moment; no path where another process has taken it for left behind."""
    try:
        lock = _lock(path)
    except (BlockingIOError, FileNotFoundError):
        return UNLOCKED, None
    except OSError:
        return UNLOCKED, path
    if path.exists():
        return lock, path
    _release(lock)
    return UNLOCKED, None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes from claiming it; raises `InputError` where one has."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except BlockingIOError as error:
        raise InputError(f"another process is at work in {folder}; wait for it, or choose another place") from error
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; choose another place") from error
    try:
        yield
    finally:
        _release(lock)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder of our own; those of processes that were killed are removed."""
    root = Path(tempfile.gettempdir())
    _sweep(root, f"{SCRATCH}*/")
    folder: Path | None = None
    while folder is None:
        lock, folder = _keep(Path(tempfile.mkdtemp(prefix=SCRATCH, dir=root)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(lock)


def check_folder(path: str | Path | None) -> None:
    """Raise `InputError` where `path` cannot become a folder of ours, before any work is done for it."""
    for part in [] if path is None else [Path(path), *Path(path).parents]:
        try:
            if not part.exists():
                continue
        except OSError as error:
            raise InputError(f"cannot write into {path}: {error.strerror}; choose another folder") from error
        if not part.is_dir():
            raise InputError(f"cannot write into {path}: {part} is a file; choose another folder")
        if not os.access(part, os.W_OK | os.X_OK):
            raise InputError(f"cannot write into {path}: {part} is closed to this user; choose another folder")
        return


def write_bytes(path: str | Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str = "JSON file") -> dict[str, Any]:
    """Read a JSON object; raises `InputError` with the file and the line where it is missing or broken.

    What JSON cannot say again is broken too: NaN, numbers beyond the range of floats, halves of characters.
    """
    text = read_text(path, what)
    try:
        value = json.loads(text, object_pairs_hook=distinct, parse_constant=_number, parse_float=_number)
        if "\\ud" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not a readable {what} ({error.msg})") from error
    except RecursionError as error:
        raise InputError(f"{path}: not a readable {what} (it is nested too deeply)") from error
    except ValueError as error:
        raise InputError(f"{path}: not a readable {what} ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a {what}: it holds a {type(value).__name__} where an object was expected")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that JSON knows")
    return value


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`; raises `ValueError` where a key stands twice in it."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def read_text(path: str | Path, what: str = "file") -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"no {what} at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {what} {path}: {error}") from error


@contextmanager
def data_folder(name: str) -> Iterator[Path]:
    """The folder `assets` or `fpga`: inside the installed package, or at the top of a source checkout."""
    checkout = Path(__file__).resolve().parents[2] / name
    if checkout.is_dir():
        yield checkout
        return
    with as_file(files("hwnas").joinpath("_data", name)) as folder:
        yield folder
