"""The functions behind `hwnas fit-predictor` and `hwnas predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.errors import InputError
from hwnas.core.files import replacing
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.predict.auto import Choice, choose, fit_named
from hwnas.predict.base import Array, Predictor, predictors
from hwnas.predict.data import Measurements, read_columns, read_measurements
from hwnas.predict.evaluation import (
    Metrics,
    Noise,
    baseline_metrics,
    noise_floor,
    out_of_fold_metrics,
    split,
    test_metrics,
)
from hwnas.predict.metrics import SCORES
from hwnas.predict.store import load_predictor
from hwnas.spaces import SearchSpace, get_space

AUTO = "auto"


@dataclass(frozen=True)
class FitReport:
    """What `fit_predictor` did: the fitted `model`, and how good it is on rows that it has not seen.

    Attributes:
        scored_on: `test` rows, or `cross-validation` of the training rows.
        metrics: of the model; see `hwnas.predict.metrics`.
        baselines: the same of `flops`, `ridge`, and `sum` where there is a cost table.
        compared: what `auto` tried, best first, each with its cross-validated score.
        left_out: rows of the source without a value.
        copies: rows of the source that repeat another's measurement, also left out.
    """

    model: Predictor
    score: str
    n_train: int
    n_test: int
    scored_on: str
    metrics: Metrics
    baselines: dict[str, Metrics]
    noise: Noise | None
    compared: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    copies: int = 0
    measured: Array = field(default_factory=lambda: np.zeros(0))
    predicted: Array = field(default_factory=lambda: np.zeros(0))

    def to_json(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "space": self.model.space.spec,
            "metric": self.model.metric,
            "quantity": self.model.quantity.name,
            "unit": self.model.quantity.unit,
            "model": self.model.name,
            "score": self.score,
            "scored_on": self.scored_on,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "left_out": self.left_out,
            "copies": self.copies,
            "metrics": self.metrics,
            "baselines": self.baselines,
            "noise": self.noise.to_json() if self.noise else None,
            "compared": self.compared,
        }


def fit_predictor(
    source: str | Path,
    space: SearchSpace | str,
    metric: str,
    *,
    table: CostTable | str | Path | None = None,
    model: str = AUTO,
    score: str | None = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> FitReport:
    """Learn to predict `metric` from measured networks, and say how well.

    Args:
        source: a run folder, or a Parquet or CSV table with a column `arch` and the column `metric`.
        table: the primitives' costs; a run folder's own table where none is given.
        model: a registered kind, or `auto` to choose by cross-validation on the training rows.
        score: what `auto` optimises, one of `metrics.SCORES`; MAPE for costs, Kendall's tau for accuracy.
        train: rows to draw and learn from; all where None.
        test: other rows to draw and score on; without it, scores are cross-validated.
        out: the folder to save the model to.

    Raises `InputError` for anything in it that cannot be used.
    """
    space = get_space(space) if isinstance(space, str) else space
    if model != AUTO:
        predictors.get(model)
    if score is not None and score not in SCORES:
        raise InputError(f"unknown score {score!r}: known are {', '.join(SCORES)}")
    data = read_measurements(source, space, metric)
    costs = _cost_table(table, data)
    score = score or ("mape" if data.quantity.is_cost else "kendall")
    noise = noise_floor(data)
    learnt, held_out = split(data, train, test, seed)
    choice = choose(learnt, costs, score, seed) if model == AUTO else fit_named(learnt, model, costs)
    report = _report(choice, learnt, held_out, costs, score, noise)
    if out is not None:
        choice.model.save(out, _provenance(report, data, str(source), seed))
    return report


def _cost_table(table: CostTable | str | Path | None, data: Measurements) -> CostTable | None:
    given = CostTable.load(table) if isinstance(table, str | Path) else table
    if given is not None and data.target is not None:
        Target.from_json(data.target).require_same(given.target, given.name)
    return given or data.table


def _report(
    choice: Choice,
    train: Measurements,
    test: Measurements | None,
    table: CostTable | None,
    score: str,
    noise: Noise | None,
) -> FitReport:
    model = choice.model
    if test is None:
        metrics = out_of_fold_metrics(train.values, choice.predicted, train.groups, train.quantity.is_cost)
        measured, predicted = train.values, choice.predicted
    else:
        metrics, measured = test_metrics(model, test), test.values
        predicted = model.predict(test.population, extrapolate=True)
    return FitReport(
        model,
        score,
        len(train),
        len(test) if test else 0,
        "test" if test else "cross-validation",
        metrics,
        baseline_metrics(train, test, table),
        noise,
        choice.compared,
        train.left_out,
        train.copies,
        measured,
        predicted,
    )


def _provenance(report: FitReport, data: Measurements, source: str, seed: int) -> dict[str, Any]:
    target = data.target or (data.table.target.to_json() if data.table else None)
    document = report.to_json()
    scores = {name: document[name] for name in ("score", "scored_on", "n_train", "n_test", "metrics", "baselines")}
    evaluation = {"measured": report.measured.tolist(), "predicted": report.predicted.tolist()}
    return {"target": target, "source": Path(source).name, "seed": seed, "scores": scores, "noise": document["noise"],
            "evaluation": evaluation}  # fmt: skip


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
    named = space or table.manifest.get("space")
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
    names = ["arch"]
    archs = [str(arch) for arch in read_columns(path, names, required=names)["arch"]]
    result = predict(model, archs, space=space, metric=metric, extrapolate=extrapolate)
    if out is None:
        return result
    table = (
        csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"arch": pa.string()}))
        if (path.suffix == ".csv")
        else parquet.read_table(path)
    )
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
