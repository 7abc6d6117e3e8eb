"""The cost table: one target, a row a primitive, a group of columns a metric. CSV next to JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from hwnas.core.documents import COST_TABLE, RUN, TABLE_FILE
from hwnas.core.errors import InputError, MissingCostError, ParseError
from hwnas.core.files import data_folder, read_json, read_text, write_text
from hwnas.core.target import Target
from hwnas.core.units import THROUGHPUT, may_be_zero, quantity_of

Verdict = Literal["steady", "noisy", "failed", "imported", "simulated", "computed", "unmeasurable"]
WITHOUT_VALUE = ("failed", "unmeasurable")
_PARTS = ("low", "high", "n", "verdict")


class HasKey(Protocol):
    @property
    def key(self) -> str: ...


class HasPrimitives(Protocol):
    def primitives(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Cost:
    """One measured cost: its value, the ends of its 95 % confidence interval, samples taken, and the verdict.

    `value` is NaN where the measurement failed, or where nothing could measure it; `low` and `high` are NaN where the
    source gave no interval.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    verdict: Verdict = "imported"

    def same(self, other: Cost) -> bool:
        """Whether all of it is equal; what is not known (NaN) is equal to what is not known."""
        return all(a == b or (a != a and b != b) for a, b in zip(astuple(self), astuple(other), strict=True))


@dataclass(frozen=True)
class CostTable:
    """Costs of primitives on one target.

    Attributes:
        target: what the costs were measured on.
        rows: primitive key -> metric column (`latency_ms`, `energy_mj`, ...) -> `Cost`.
        manifest: where the numbers come from: environment, versions, seed, date, spaces.
    """

    target: Target
    rows: Mapping[str, Mapping[str, Cost]]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the cost table"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric columns, in order of first appearance."""
        return tuple(dict.fromkeys(metric for row in self.rows.values() for metric in row))

    def costs(self, primitives: Iterable[HasKey], metric: str) -> NDArray[np.float64]:
        """The values of `metric` for `primitives`, shape (P,), in the metric's unit.

        Raises `InputError` where no row has the metric and `MissingCostError` where some primitives lack it.
        """
        if metric not in self.metrics:
            raise InputError(f"{self.name} has no column {metric!r}; it has {', '.join(self.metrics) or 'none'}")
        keys = [primitive.key for primitive in primitives]
        values = np.array([self.rows.get(key, {}).get(metric, _MISSING).value for key in keys], dtype=np.float64)
        missing = [key for key, value in zip(keys, values, strict=True) if not math.isfinite(value)]
        if missing:
            raise MissingCostError(missing, metric, self.name)
        return values

    def vector(self, space: HasPrimitives, metric: str) -> NDArray[np.float64]:
        """`costs` of `space.primitives()`, shape (P,): the array that `cost[blocks].sum(1)` indexes."""
        return self.costs(space.primitives(), metric)

    def summable(self, metric: str | None = None) -> tuple[str, ...]:
        """The columns that add up over the blocks of a network, or `metric` alone.

        Of several columns of one quantity the one that bears its name stands for it, where there is one. A throughput
        that is asked for is made of latencies. Raises `InputError` where `metric` is a peak, which is no sum.
        """
        if metric is None:
            quantities = {column: quantity_of(column) for column in self.metrics}
            named = {column: column == of.name or of.name not in quantities for column, of in quantities.items()}
            return tuple(column for column, of in quantities.items() if of.adds and named[column])
        if metric in self.metrics and not (quantity_of(metric).adds or quantity_of(metric) == THROUGHPUT):
            raise InputError(
                f"{self.name}: {metric} of a network is no sum over its blocks; measure networks whole (hwnas profile "
                f"--networks N) and fit a predictor to them (hwnas fit-predictor --metric {metric})"
            )
        return (metric,)

    def merge(self, other: CostTable) -> CostTable:
        """Both tables' rows; raises `TargetMismatchError` for another target, `InputError` for a conflicting cost.

        A measurement that failed gives way to one that did not.
        """
        self.target.require_same(other.target, other.name)
        rows = {key: dict(row) for key, row in self.rows.items()}
        for key, row in other.rows.items():
            for metric, cost in row.items():
                mine = rows.setdefault(key, {}).setdefault(metric, cost)
                if math.isnan(mine.value):
                    rows[key][metric] = cost
                elif not math.isnan(cost.value) and not mine.same(cost):
                    raise InputError(
                        f"{self.name} and {other.name} disagree on {metric} of {key}: {mine.value:g} and "
                        f"{cost.value:g}; drop one of the rows"
                    )
        parts = [manifest for table in (self, other) for manifest in table.manifest.get("merged", [table.manifest])]
        spaces = list(dict.fromkeys(space for part in parts for space in part.get("spaces", [])))
        return CostTable(self.target, rows, {"spaces": spaces, "merged": parts}, f"{self.name} + {other.name}")

    def save(self, path: str | Path) -> None:
        """Write `path` (CSV) and its manifest beside it (same name, `.json`).

        Raises `InputError` where another document has that name.
        """
        path = _csv_path(path)
        manifest = path.with_suffix(".json")
        if manifest.exists() and read_json(manifest).get("kind") != COST_TABLE.kind:
            raise InputError(f"{path} would replace {manifest}, which is no table's manifest; choose another place")
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["primitive", *(name for m in self.metrics for name in (m, *(f"{m}_{part}" for part in _PARTS)))]
        )
        for key, row in sorted(self.rows.items()):
            cells: list[str] = [key]
            for metric in self.metrics:
                cells += _cells(row.get(metric))
            writer.writerow(cells)
        write_text(path, out.getvalue())
        COST_TABLE.write(manifest, {"target": self.target.to_json(), **self.manifest})

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a table from its CSV file, from a run folder, or one that ships with hwnas by its name.

        Raises `InputError` where there is none, `ParseError` with the file and line of the first cell that cannot be
        trusted.
        """
        with _found(Path(path)) as file:
            return cls._read(file)

    @classmethod
    def _read(cls, path: Path) -> CostTable:
        text = read_text(path, "cost table")
        manifest = COST_TABLE.read(path.with_suffix(".json"))
        target = Target.from_json(manifest.pop("target", {}), str(path.with_suffix(".json")))
        manifest = {key: value for key, value in manifest.items() if key not in COST_TABLE.head()}
        return cls(target, _read_rows(path, text), manifest, str(path))


_MISSING = Cost(math.nan)


def is_table(path: str | Path) -> bool:
    """Whether `path` names what `CostTable.load` reads: a CSV file, here or shipped, or the folder of a run."""
    return Path(path).suffix == ".csv" or (Path(path) / TABLE_FILE).is_file()


@contextmanager
def shipped_tables() -> Iterator[list[Path]]:
    """The CSV files of the tables that ship with hwnas, by name."""
    with data_folder("assets") as assets:
        yield sorted((assets / "latency_tables").glob("*.csv"))


@contextmanager
def _found(path: Path) -> Iterator[Path]:
    """The CSV file that is meant by `path`."""
    if path.exists():
        if (path / RUN.file).is_file() and not (path / TABLE_FILE).exists():
            raise InputError(f"{path}: this run has no cost table yet; repeat the command that was to make it")
        yield _csv_path(path)
        return
    with shipped_tables() as shipped:
        file = next((file for file in shipped if str(path) == file.name), None)
        if file is None:
            raise InputError(
                f"no cost table at {path}: give a .csv file with its .json manifest beside it, the folder of a run, or "
                "the name of one that hwnas tables list shows"
            )
        yield file


def _csv_path(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        path = path / TABLE_FILE
    if path.suffix != ".csv":
        raise InputError(f"{path}: a cost table is a .csv file with its .json manifest beside it")
    return path


def _cells(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * (1 + len(_PARTS))
    numbers = ["" if math.isnan(value) else repr(float(value)) for value in (cost.value, cost.low, cost.high)]
    return [*numbers, str(cost.n), cost.verdict]


def _read_rows(path: Path, text: str) -> dict[str, dict[str, Cost]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        header = reader.fieldnames or []
    except csv.Error as error:
        raise ParseError(path, f"not readable as CSV ({error})", 1) from error
    metrics = [name for name in header if f"{name}_verdict" in header]
    expected = ["primitive", *(name for m in metrics for name in (m, *(f"{m}_{part}" for part in _PARTS)))]
    if not metrics or list(header) != expected:
        raise ParseError(
            path,
            "the header is not that of a cost table "
            "(primitive, then METRIC, METRIC_low, METRIC_high, METRIC_n, METRIC_verdict for each metric)",
            1,
        )
    for metric in metrics:
        try:
            quantity_of(metric)
        except InputError as error:
            raise ParseError(path, str(error), 1) from error
    rows: dict[str, dict[str, Cost]] = {}
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ParseError(path, f"{len(header)} cells expected", reader.line_num)
            if row["primitive"] in rows:
                raise ParseError(path, f"primitive {row['primitive']!r} stands twice", reader.line_num)
            cells = {metric: _read_cost(path, row, metric, reader.line_num) for metric in metrics}
            rows[row["primitive"]] = {metric: cost for metric, cost in cells.items() if cost is not None}
    except csv.Error as error:
        raise ParseError(path, f"not readable as CSV ({error})", reader.line_num) from error
    return rows


def _read_cost(path: Path, row: dict[str, str], metric: str, line: int) -> Cost | None:
    verdict = row[f"{metric}_verdict"]
    if not verdict:
        return None
    if verdict not in get_args(Verdict):
        raise ParseError(path, f"{metric}_verdict is {verdict!r}", line)
    try:
        value, low, high = (
            float(row[name]) if row[name] else math.nan for name in (metric, f"{metric}_low", f"{metric}_high")
        )
        cost = Cost(value, low, high, int(row[f"{metric}_n"]), verdict)  # type: ignore[arg-type]
    except ValueError as error:
        raise ParseError(path, f"{metric}: {error}", line) from error
    if (
        math.isinf(value)
        or value < 0
        or (value == 0 and not may_be_zero(metric))
        or cost.n < 0
        or (math.isnan(value) and verdict not in WITHOUT_VALUE)
        or low > value
        or high < value
    ):
        raise ParseError(
            path,
            f"{metric} of {row['primitive']} is {row[metric]!r} in [{low}, {high}], which no measurement gives",
            line,
        )
    return cost


@dataclass(frozen=True)
class Change:
    """A primitive whose cost differs between two tables by more than both intervals allow."""

    key: str
    before: Cost
    after: Cost

    @property
    def ratio(self) -> float:
        return self.after.value / self.before.value if self.before.value else math.inf


def compare(before: CostTable, after: CostTable, metric: str) -> tuple[list[Change], list[str], list[str], int]:
    """What changed beyond both confidence intervals, largest first; the keys that only one has; how many both have.

    A cost without an interval is taken as exact; a measurement that failed gave none.
    """
    ours, theirs = (
        {key: row[metric] for key, row in table.rows.items() if metric in row and not math.isnan(row[metric].value)}
        for table in (before, after)
    )
    changes = [
        Change(key, ours[key], theirs[key])
        for key in ours.keys() & theirs.keys()
        if _low(theirs[key]) > _high(ours[key]) or _high(theirs[key]) < _low(ours[key])
    ]
    changes.sort(key=lambda change: (-abs(math.log(max(change.ratio, 1e-12))), change.key))
    common = len(ours.keys() & theirs.keys())
    return changes, sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys()), common


def _low(cost: Cost) -> float:
    return cost.value if math.isnan(cost.low) else cost.low


def _high(cost: Cost) -> float:
    return cost.value if math.isnan(cost.high) else cost.high
