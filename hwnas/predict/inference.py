"""The functions behind `hwnas predict`: architectures or an ONNX model in, predictions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core.arrays import Array
from hwnas.core.columns import open_table
from hwnas.core.documents import PREDICTOR
from hwnas.core.errors import InputError, MissingCostError
from hwnas.core.files import replacing
from hwnas.core.table import CostTable, is_table
from hwnas.core.units import THROUGHPUT, quantity_of
from hwnas.predict.audit import sum_over_whole
from hwnas.predict.base import MS_PER_S, Predictor, predictors, table_column
from hwnas.predict.store import load_predictor
from hwnas.spaces import Primitive, SearchSpace, get_space

if TYPE_CHECKING:
    from hwnas.spaces.onnx_cut import Unknown

SHOWN_UNKNOWN = 5


def open_model(
    model: Predictor | str | Path, space: SearchSpace | str | None = None, metric: str | None = None
) -> Predictor:
    """A saved predictor, or a cost table used additively.

    A table needs `space`, unless its manifest names one, and `metric` where it has several columns. Raises `InputError`
    where a saved predictor is of another space or metric.
    """
    if isinstance(model, Predictor):
        return model
    path = Path(model)
    if (path / PREDICTOR.file).is_file() or not is_table(path):
        saved = load_predictor(path)
        if metric not in (None, saved.metric):
            raise InputError(f"{path} predicts {saved.metric}, not {metric}; leave --metric out")
        if space is not None and (get_space(space) if isinstance(space, str) else space) != saved.space:
            raise InputError(f"{path} is of {saved.space.spec}, not of {space}; leave --space out")
        return saved
    table = CostTable.load(path)
    spaces = table.manifest.get("spaces", [])
    named = space or (spaces[0] if len(spaces) == 1 else None)
    if named is None:
        raise InputError(f"{path} is a cost table; say of which space (--space) to use it additively")
    column = _only_column(table, metric)
    chosen = get_space(str(named)) if not isinstance(named, SearchSpace) else named
    return predictors.get("sum")(chosen, table, metric=column)


def _only_column(table: CostTable, metric: str | None) -> str:
    columns = table.summable(metric)
    if len(columns) != 1:
        if not columns:
            raise InputError(f"{table.name} has no column that adds up over blocks, such as latency_ms")
        raise InputError(f"{table.name} has several columns ({', '.join(columns)}); say which one (--metric)")
    return columns[0]


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model, in its metric's unit.

    Attributes:
        metric: what is predicted.
        value: (n,).
        lower, upper: ends of the 90 % interval, (n,); NaN where the model has none (a cost table alone).
    """

    metric: str
    value: Array
    lower: Array
    upper: Array


def predict(
    model: Predictor | str | Path,
    archs: Sequence[str],
    *,
    space: SearchSpace | str | None = None,
    metric: str | None = None,
    extrapolate: bool = False,
) -> Predictions:
    """Predict architectures given as text in the space's notation; `model` as for `open_model`."""
    opened = open_model(model, space, metric)
    population = opened.space.parse_many(archs)
    value = opened.predict(population, extrapolate=extrapolate)
    if not opened.has_intervals:
        unknown = np.full(len(value), np.nan)
        return Predictions(opened.metric, value, unknown, unknown)
    return Predictions(opened.metric, value, *opened.interval(population, 0.9, extrapolate=extrapolate))


def predict_file(
    model: Predictor | str | Path,
    file: str | Path,
    out: str | Path | None = None,
    *,
    space: SearchSpace | str | None = None,
    metric: str | None = None,
    extrapolate: bool = False,
) -> Predictions:
    """Predict the column `arch` of a Parquet or CSV file; its rows with the columns `prediction`, `lower_90` and
    `upper_90` go to `out`, Parquet or CSV by its name."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    path = Path(file)
    if out is not None and Path(out).suffix not in (".csv", ".parquet"):
        raise InputError(f"{out}: predictions are written as Parquet or CSV; choose a name in .parquet or .csv")
    table = open_table(path)
    if "arch" not in table.schema.names:
        raise InputError(f"{path}: no column 'arch'; it has {', '.join(table.schema.names)}")
    archs = [str(arch) for arch in table.column("arch").to_pylist()]
    result = predict(model, archs, space=space, metric=metric, extrapolate=extrapolate)
    if out is None:
        return result
    for name, values in (("prediction", result.value), ("lower_90", result.lower), ("upper_90", result.upper)):
        if name in table.schema.names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values))
    with replacing(out) as temporary:
        try:
            (csv.write_csv if Path(out).suffix == ".csv" else parquet.write_table)(table, temporary)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: a column of it cannot be written to {out} ({reason}); leave it out") from error
    return result


@dataclass(frozen=True)
class OnnxPrediction:
    """The cost of an ONNX model as the sum of the primitives that it was cut into.

    Attributes:
        value: of those primitives, in the unit of `metric`; a throughput is made of their latencies.
        primitives: how many there are.
        unknown: operations that are in none of them, which `value` leaves out.
        unknown_macs: their share of the model's multiply-accumulates; None where it cannot be told.
        expected: what the whole of it would take if its parts added up as those of the run's measured networks did,
            of which there are `networks`; None where there are none, or operations are unknown.
    """

    value: float
    metric: str
    primitives: int
    unknown: tuple[Unknown, ...]
    unknown_macs: float | None
    expected: float | None = None
    networks: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "unknown": [asdict(each) for each in self.unknown]}


def predict_onnx(
    table: CostTable | str | Path, file: str | Path, *, metric: str | None = None, allow_unknown: bool = False
) -> OnnxPrediction:
    """Cut the ONNX model in `file` into primitives of a cost table (a file or run folder), and add up their costs.

    Raises `InputError` for operations that are in no primitive of the table, unless `allow_unknown`, where nothing is
    known at all, and for a model of another batch, or in a half precision that is not the table's; `MissingCostError`
    for a primitive whose measurement failed.
    """
    from hwnas.spaces.onnx_cut import cut

    costs = table if isinstance(table, CostTable) else CostTable.load(table)
    asked = _only_column(costs, metric)
    column = table_column(costs, asked)
    found = cut(file, [Primitive.from_key(key) for key in costs.rows])
    if found.batch not in (0, costs.target.batch):
        raise InputError(
            f"{file} takes {found.batch} images at a time, {costs.name} is of batch {costs.target.batch}; export the "
            "model with that batch or a dynamic one, or give a table of its batch"
        )
    if found.precision and costs.target.precision not in (found.precision, "unknown"):
        raise InputError(
            f"{file} is in {found.precision}, {costs.name} of {costs.target.precision}; give the model in fp32, or a "
            f"table of {found.precision}"
        )
    if not found.primitives and (allow_unknown or not found.unknown):
        raise InputError(f"{file}: {costs.name} knows none of its operations; profile a space that has them")
    if found.unknown and not allow_unknown:
        named = ", ".join(f"{each.operation} ({each.count}x)" for each in found.unknown[:SHOWN_UNKNOWN])
        more = len(found.unknown) - SHOWN_UNKNOWN
        raise InputError(
            f"{file}: {costs.name} does not know {share_text(found.unknown_share)} of its multiply-accumulates: "
            f"{named}{f' and {more} other kinds' if more > 0 else ''}; profile a space that has them, or leave them "
            "out (--allow-unknown)"
        )
    values = [costs.rows[primitive.key].get(column) for primitive in found.primitives]
    pairs = zip(found.primitives, values, strict=True)
    missing = sorted({primitive.key for primitive, cost in pairs if cost is None or np.isnan(cost.value)})
    if missing:
        raise MissingCostError(missing, column, costs.name)
    total = float(sum(cost.value for cost in values if cost is not None))
    if quantity_of(asked) == THROUGHPUT:
        total = MS_PER_S * costs.target.batch / total
    result = OnnxPrediction(total, asked, len(found.primitives), found.unknown, found.unknown_share)
    known = None if isinstance(table, CostTable) or found.unknown else sum_over_whole(table, costs, asked)
    return replace(result, expected=total / known[0], networks=known[1]) if known else result


def share_text(share: float | None) -> str:
    """A share of the multiply-accumulates in words."""
    return "some" if share is None else f"{100 * share:.1f} %"
