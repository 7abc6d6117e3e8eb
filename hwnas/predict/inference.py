"""The functions behind `hwnas predict`: architectures in, predictions with intervals out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwnas.core.errors import InputError
from hwnas.core.files import replacing
from hwnas.core.table import CostTable
from hwnas.predict.base import Array, Predictor, predictors
from hwnas.predict.data import open_table
from hwnas.predict.store import load_predictor
from hwnas.spaces import SearchSpace, get_space


def open_model(
    model: Predictor | str | Path, space: SearchSpace | str | None = None, metric: str | None = None
) -> Predictor:
    """A saved predictor, or a cost table used additively.

    A table needs `space`, unless its manifest names one, and `metric` where it has several columns.
    """
    if isinstance(model, Predictor):
        return model
    path = Path(model)
    if (path / "model.json").is_file() or not (path.suffix == ".csv" or (path / "table.csv").is_file()):
        return load_predictor(path)
    table = CostTable.load(path)
    spaces = table.manifest.get("spaces", [])
    named = space or (spaces[0] if len(spaces) == 1 else None)
    if named is None:
        raise InputError(f"{path} is a cost table; say of which space (--space) to use it additively")
    if metric is None and len(table.metrics) != 1:
        raise InputError(f"{path} has several columns ({', '.join(table.metrics)}); say which one (--metric)")
    chosen = get_space(str(named)) if not isinstance(named, SearchSpace) else named
    return predictors.get("sum")(chosen, table, metric=metric or table.metrics[0])


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model, in its metric's unit.

    Attributes:
        value: (n,).
        lower, upper: ends of the 90 % interval, (n,); NaN where the model has none (a cost table alone).
    """

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
    if opened.calibration is None and opened._training is None:
        unknown = np.full(len(value), np.nan)
        return Predictions(value, unknown, unknown)
    return Predictions(value, *opened.interval(population, 0.9, extrapolate=extrapolate))


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
    `upper_90` go to `out` (Parquet, or CSV where its name ends so)."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    path = Path(file)
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
        if Path(out).suffix == ".csv":
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)
    return result
