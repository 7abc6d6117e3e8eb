"""A table of measured networks as a source: it answers for the architectures that it holds, and for no other."""

from __future__ import annotations

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.predict import read_measurements
from hwnas.search.rows import RowTable
from hwnas.search.source import Source
from hwnas.spaces import SearchSpace


def measured_source(path: str, column: str, space: SearchSpace) -> Source:
    """The column of a Parquet or CSV table with a column `arch`; architectures that repeat are averaged.

    Rows without a value are left out. Raises `InputError` for a table or a column that cannot be used.
    """
    data = read_measurements(path, space, column)
    table = RowTable(data.population, data.values)

    def predict(population: Population) -> Array:
        return table(population, np.nan)

    known = None if len(table) == space.size else space.distinct(data.population)
    return Source(f"table:{path}#{column}", column, predict, known=known, notes={"architectures": len(table)})
