"""Other devices' tables of measured networks, and what these devices would take for any network of the space."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Self

import numpy as np
from scipy.linalg import cho_solve

from hwnas.core.arrays import Array, Population
from hwnas.core.columns import column_names, numbers, read_columns
from hwnas.core.documents import NETWORKS_FILE
from hwnas.core.errors import InputError
from hwnas.core.units import THROUGHPUT, Quantity, quantity_of
from hwnas.predict.data import of_networks, of_space, parse_archs, parsed
from hwnas.predict.gp import GaussianProcess
from hwnas.predict.likelihood import factor
from hwnas.spaces import SearchSpace

SOURCE_ROWS = 1000
FEWEST_VALUES = 0.5


@dataclass(frozen=True)
class SourceTable:
    """Costs of networks on other devices: `population` (n, genes) and `costs` (n, devices), each of mean about 1."""

    population: Population
    costs: Array
    devices: tuple[str, ...]


def read_sources(
    paths: Sequence[str | Path], space: SearchSpace, metric: str, seed: int = 0, target: str | Path | None = None
) -> list[SourceTable]:
    """Read tables of measured networks, or run folders of other devices.

    Every column of `metric`'s quantity is a device, but `metric` itself in `target`, where it is what is to be learnt,
    and beside other columns, which are named by their devices then. What `hwnas parse` wrote is of one device, whose
    other columns are details. Raises `InputError` where a table has no such column, or one that tells nothing.
    """
    quantity = quantity_of(metric)
    tables = []
    for name in paths:
        path = _networks(name)
        columns = _devices(path, quantity, metric, target is not None and _same_file(path, _networks(target)))
        read = read_columns(path, ["arch", "space", *columns], required=("arch",))
        if parsed(path):
            read = of_networks(read, path)
        if path.name == NETWORKS_FILE and "space" in read:
            own = of_space(read["space"], space, path)
            read = {column: list(compress(values, own)) for column, values in read.items()}
        costs = np.stack([numbers(read[column], column, path) for column in columns], axis=1)
        full = np.isfinite(costs).mean(axis=0) >= FEWEST_VALUES
        devices = tuple(c for c, keep in zip(columns, full, strict=True) if keep)
        costs = 1 / costs[:, full] if quantity == THROUGHPUT else costs[:, full]
        rows = np.flatnonzero(np.isfinite(costs).all(axis=1) & (costs > 0).all(axis=1))
        if len(rows) < 2 or not devices:
            raise InputError(f"{path} has too few rows with a value in every column of {quantity.name}")
        rows = np.random.default_rng(seed).permutation(rows)[:SOURCE_ROWS]
        keep = np.zeros(len(costs), dtype=bool)
        keep[rows] = True
        if constant := [c for c, spread in zip(devices, np.ptp(costs[keep], axis=0), strict=True) if spread == 0]:
            raise InputError(f"{path}: column {constant[0]} is the same for all networks; remove it")
        population = parse_archs(space, read["arch"], path, keep)
        tables.append(SourceTable(population, costs[keep] / costs[keep].mean(axis=0), devices))
    return tables


def _networks(name: str | Path) -> Path:
    """The table of networks that `name` is, or that the run folder or the parsed logs `name` have."""
    path = Path(name)
    if path.is_dir():
        return path / NETWORKS_FILE
    return found[0] if (found := parsed(path)) else path


def _devices(path: Path, quantity: Quantity, metric: str, is_target: bool) -> list[str]:
    """The columns of a table of networks that are devices to transfer from."""
    columns = [c for c in column_names(path) if _is_quantity(c, quantity.name)]
    if parsed(path):
        columns = [column for column in columns if column == metric]
    if columns != [metric] or is_target:
        columns = [column for column in columns if column != metric]
    if not columns:
        raise InputError(f"{path} has no column of {quantity.name} but {metric} to transfer from")
    return columns


def _same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _is_quantity(column: str, name: str) -> bool:
    try:
        return quantity_of(column).name == name
    except InputError:
        return False


class SourceCosts(GaussianProcess):
    """Predicts the costs of a table's devices: one Gaussian process whose kernel all devices share."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space, relative=False)

    def learn(self, table: SourceTable) -> Self:
        """Learn the kernel from the devices' mean cost, and each device's coefficients, (n, devices)."""
        self._fit(table.population, table.costs.mean(axis=1))
        centred = (table.costs - self._centre[0]) / self._centre[1]
        self._alpha = cho_solve(factor(self._covariance(), self._variances[-1] * self._noise), centred)
        return self

    def __call__(self, genotypes: Population) -> Array:
        """Costs (n, devices), each of mean about 1 over the space."""
        return self._predict(genotypes)

    def without(self, device: int) -> Self:
        """The same, of all devices but one."""
        other = copy(self)
        other._alpha = np.delete(self._alpha, device, axis=1)
        return other
