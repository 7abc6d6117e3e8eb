"""Columns of Parquet and CSV files of networks; architectures are text, also where they look like numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError, UnknownNameError

MAGIC = b"PAR1"


def column_names(path: Path) -> list[str]:
    """Names of the columns of a Parquet or CSV file."""
    return _schema(path) if _is_parquet(path) else list(_readable(path, lambda: open_table(path).schema.names))


def read_columns(path: Path, wanted: Sequence[str], required: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of `wanted` that a Parquet or CSV file has; raises `InputError` where one of `required` is absent."""
    names = column_names(path)
    for name in {name for name in wanted if names.count(name) > 1}:
        raise InputError(f"{path}: the column {name!r} stands twice; keep one of them")
    for name in required:
        if name not in names:
            raise InputError(f"{path}: {UnknownNameError('column', name, names)}")
    kept = [name for name in wanted if name in names]
    table = open_table(path, kept)
    return {name: table.column(name).to_pylist() for name in kept}


def _schema(path: Path) -> list[str]:
    from pyarrow import parquet

    return list(_readable(path, lambda: parquet.read_schema(path)).names)


def open_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A Parquet or CSV file as a pyarrow table; of a Parquet file only `columns`, where given."""
    from pyarrow import parquet

    if _is_parquet(path):
        return _readable(path, lambda: parquet.read_table(path, columns=None if columns is None else list(columns)))
    return _readable(path, lambda: _read_csv(path))


def _read_csv(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"arch": pa.string()}))
    list(table.schema.names)  # raises UnicodeDecodeError where a name is no text
    return table


def _is_parquet(path: Path) -> bool:
    """Whether a file is called a Parquet file, or begins as one does."""
    if path.suffix == ".parquet" or not path.is_file():
        return True
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    import pyarrow as pa

    if not path.is_file():
        raise InputError(f"no run folder and no table at {path}")
    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        form = "Parquet" if _is_parquet(path) else "CSV"
        raise InputError(f"{path}: not readable as {form} ({str(error).splitlines()[0]})") from error


def numbers(cells: Sequence[Any], name: str, path: Path) -> NDArray[np.float64]:
    """Cells of the column `name` as floats, NaN where a cell is empty; raises `InputError` for any other content."""
    try:
        if any(isinstance(cell, bool) for cell in cells):
            raise TypeError("true or false")
        return np.array([np.nan if cell is None else float(cell) for cell in cells])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: column {name} holds something that is no number ({error})") from error
