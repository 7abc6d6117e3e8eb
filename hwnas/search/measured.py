"""A table of measured networks as a source: it answers for the architectures that it holds, and for no other."""

from __future__ import annotations

import numpy as np

from hwnas.predict import read_measurements
from hwnas.search.rows import RowHash
from hwnas.search.sources import Array, Population, Source
from hwnas.spaces import SearchSpace


def measured_source(path: str, column: str, space: SearchSpace) -> Source:
    """The column of a Parquet or CSV table with a column `arch`; architectures that repeat are averaged.

    Rows without a value are left out. Raises `InputError` for a table or a column that cannot be used.
    """
    data = read_measurements(path, space, column)
    row_hash = RowHash(len(space.genes))
    hashes, first, group = np.unique(row_hash(data.population), return_index=True, return_inverse=True)
    means = np.bincount(group.reshape(-1), data.values) / np.bincount(group.reshape(-1))

    def predict(population: Population) -> Array:
        wanted = row_hash(population)
        position = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        return np.where(hashes[position] == wanted, means[position], np.nan)

    known = None if len(hashes) == space.size else data.population[np.sort(first)]
    return Source(f"table:{path}#{column}", column, predict, known=known, notes={"architectures": len(hashes)})
