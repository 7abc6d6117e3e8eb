"""Measured networks: what a predictor learns from, read from a run folder or a Parquet or CSV table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.columns import numbers, read_columns
from hwnas.core.documents import NETWORKS_FILE, RUN, TABLE_FILE, records_file
from hwnas.core.errors import HwnasError, InputError
from hwnas.core.files import read_json
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.core.units import Quantity, quantity_of
from hwnas.predict.base import check_values
from hwnas.predict.intervals import genotype_groups
from hwnas.spaces import SearchSpace

GROUPING = "unique_index"


@dataclass(frozen=True)
class Measurements:
    """Measured networks of one space.

    Attributes:
        population: canonical genotypes (n, genes).
        values: the metric, (n,).
        groups: (n,); rows of one group measure the same thing and never stand on both sides of a split.
        repeats: (n,) or None; a second, independent measurement of the same thing, NaN where there is none.
        left_out: rows of the source without a value, or whose measurement failed.
        copies: rows left out because they repeat the measurement of another architecture.
        target: what they were measured on, where the source says so.
        table: the cost table that stands beside them, if any.
    """

    space: SearchSpace
    metric: str
    population: Population
    values: Array
    groups: NDArray[np.int64]
    repeats: Array | None = None
    left_out: int = 0
    copies: int = 0
    target: dict[str, Any] | None = None
    table: CostTable | None = None

    @property
    def quantity(self) -> Quantity:
        return quantity_of(self.metric)

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: NDArray[Any]) -> Measurements:
        """The rows at `index` (numbers or a mask)."""
        repeats = None if self.repeats is None else self.repeats[index]
        population, values, groups = self.population[index], self.values[index], self.groups[index]
        return replace(self, population=population, values=values, groups=groups, repeats=repeats)


def read_measurements(source: str | Path, space: SearchSpace, metric: str) -> Measurements:
    """Read a run folder (`networks.parquet`), the cost table that `hwnas parse` made of logs (the networks are in its
    `NAME.records.csv`), or any table with the column `arch`; columns not asked for are ignored.

    Rows without a value, or with the verdict `failed`, are left out and counted. So are copies: of rows that share a
    `unique_index` and a value, one alone was measured, the one whose `index` it is. Raises `InputError` where the file,
    a column, an architecture or a value cannot be used.
    """
    path = Path(source)
    quantity = quantity_of(metric)
    run, logs = path.is_dir(), parsed(path)
    rows, beside = logs or (path / NETWORKS_FILE if run else path, None)
    if run and not rows.is_file():
        raise InputError(f"{path} is no run folder with measured networks ({NETWORKS_FILE} is missing)")
    wanted = ["arch", metric, f"{metric}_verdict", f"{metric}_repeat", "space", "index", GROUPING]
    columns = read_columns(rows, wanted, required=("arch", metric))
    if logs:
        columns = of_networks(columns, rows)
    raw = numbers(columns[metric], metric, path)
    if None in columns.get(GROUPING, ()):
        row = columns[GROUPING].index(None) + 1
        raise InputError(f"{path}: {GROUPING} has no value in row {row}; give each row one, or remove the column")
    keep = ~np.isnan(raw)
    if f"{metric}_verdict" in columns:
        keep &= np.array([verdict != "failed" for verdict in columns[f"{metric}_verdict"]])
    if not keep.any():
        raise InputError(f"{path}: {metric} has no value in any of its {len(raw)} rows")
    left_out = int((~keep).sum())
    if run and "space" in columns:
        keep &= of_space(columns["space"], space, path)
        if not keep.any():
            raise InputError(f"{path}: {metric} has no value in any row of {space.spec}")
    valued = int(keep.sum())
    if GROUPING in columns:
        keep = _measured_themselves(columns, raw, keep)
    values = _checked(raw, keep, quantity, metric, path)
    population = parse_archs(space, columns["arch"], path, keep)
    table = CostTable.load(path) if run and (path / TABLE_FILE).is_file() else beside
    target = beside.target.to_json() if beside is not None else None
    if run and (path / RUN.file).is_file() and (told := read_json(path / RUN.file).get("target")) is not None:
        of_run = Target.from_json(told, str(path / RUN.file))
        if table is not None:
            of_run.require_same(table.target, table.name)
        target = of_run.to_json()
    again = numbers(columns[f"{metric}_repeat"], metric, path)[keep] if f"{metric}_repeat" in columns else None
    groups = _groups(population, np.array(columns[GROUPING])[keep] if GROUPING in columns else None)
    copies = valued - len(values)
    return Measurements(space, metric, population, values, groups, again, left_out, copies, target, table)


def parsed(path: Path) -> tuple[Path, CostTable | None] | None:
    """The records, and the cost table if there is one, that `hwnas parse` wrote, given either; None: another path."""
    table = path.with_name(path.name.replace(".records.csv", ".csv"))
    records = records_file(table)
    if path not in (table, records) or not records.is_file():
        return None
    return records, CostTable.load(table) if table.is_file() else None


def of_networks(columns: dict[str, list[Any]], path: Path) -> dict[str, list[Any]]:
    """The rows of networks alone: the records of primitives stand beside them, without an architecture."""
    own = [row for row, arch in enumerate(columns["arch"]) if arch]
    if not own:
        raise InputError(f"{path} holds no network, only primitives; emit the bundle with --networks N")
    return {name: [values[row] for row in own] for name, values in columns.items()}


def _measured_themselves(columns: dict[str, list[Any]], raw: Array, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`keep` without copies: of the rows of one group with one value, the group's own row, else the first."""
    group = np.unique(np.array(columns[GROUPING]), return_inverse=True)[1].reshape(-1)
    own = np.zeros(len(raw), dtype=bool)
    if "index" in columns:
        own = np.array(columns["index"]) == np.array(columns[GROUPING])
    rows = np.flatnonzero(keep)
    order = rows[np.lexsort((rows, ~own[rows], raw[rows], group[rows]))]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[1:] = (np.diff(group[order]) == 0) & (np.diff(raw[order]) == 0)
    kept = np.zeros(len(raw), dtype=bool)
    kept[order[~repeated]] = True
    return kept


def of_space(specs: list[Any], space: SearchSpace, path: Path) -> NDArray[np.bool_]:
    """Which rows of a run are of `space`; raises `InputError` where none is."""
    own = np.array([spec == space.spec for spec in specs])
    if not own.any():
        raise InputError(f"{path}: its networks are of {', '.join(sorted(set(map(str, specs))))}, not of {space.spec}")
    return own


def parse_archs(space: SearchSpace, texts: Sequence[Any], path: Path, keep: NDArray[np.bool_]) -> Population:
    """Canonical genotypes of the rows kept; raises `InputError` that names the file and the first bad row."""
    rows = [int(row) for row in np.flatnonzero(keep)]
    try:
        return space.parse_many([str(texts[row]) for row in rows])
    except HwnasError as error:
        for row in rows:
            try:
                space.parse_many([str(texts[row])])
            except HwnasError as first:
                raise InputError(f"{path}: row {row}: {first}") from error
        raise


def _checked(raw: Array, keep: NDArray[np.bool_], quantity: Quantity, metric: str, path: Path) -> Array:
    try:
        return check_values(raw[keep], quantity, metric)
    except InputError:
        position = np.flatnonzero(keep)
        for row in position:
            try:
                check_values(raw[row : row + 1], quantity, metric)
            except InputError as error:
                raise InputError(
                    f"{path}: {metric} of row {row} is {raw[row]:g}, which no measurement gives; remove the row"
                ) from error
        raise


def _groups(population: Population, given: NDArray[Any] | None) -> NDArray[np.int64]:
    """Rows of equal genotype share a group, and so do rows that share a given one, and what the two join."""
    groups = genotype_groups(population)
    if given is None:
        return groups
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    other = np.unique(given, return_inverse=True)[1].reshape(-1) + groups.max() + 1
    size = int(other.max()) + 1
    edges = coo_matrix((np.ones(len(groups)), (groups, other)), shape=(size, size))
    labels: NDArray[np.int64] = connected_components(edges, directed=False)[1]
    return labels[groups].astype(np.int64)
