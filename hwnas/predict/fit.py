"""The function behind `hwnas fit-predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.arrays import Array
from hwnas.core.errors import InputError
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.predict.auto import Choice, choose, fit_named
from hwnas.predict.base import Predictor, predictors, table_column
from hwnas.predict.curve import learning_curve
from hwnas.predict.data import Measurements, read_measurements
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
from hwnas.predict.sources import read_sources
from hwnas.predict.store import check_vacant
from hwnas.predict.transfer import CANDIDATES, Transfer
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
        curve: error against number of rows, and what more rows would buy; see `learning_curve`.
        expected: accuracy that the same transfer reaches on the source devices.
        measured, predicted: of the rows scored, in one order, (n,) each.
    """

    model: Predictor
    score: str
    n_train: int
    n_test: int
    scored_on: str
    metrics: Metrics
    baselines: dict[str, Metrics]
    compared: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    copies: int = 0
    noise: Noise | None = None
    curve: dict[str, Any] | None = None
    expected: dict[str, float] | None = None
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
            **({"curve": self.curve} if self.curve else {}),
            **({"expected": self.expected} if self.expected else {}),
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
    curve: bool = False,
    transfer_from: Sequence[str | Path] = (),
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
        curve: also learn from fewer rows, and say what more of them would buy.
        transfer_from: tables of networks measured on other devices. The `train` rows are then those that tell most
            of the device, instead of random ones.

    Raises `InputError` for anything in it that cannot be used.
    """
    space = get_space(space) if isinstance(space, str) else space
    if out is not None:
        check_vacant(Path(out))
    _check_request(model, score, transfer_from)
    data = read_measurements(source, space, metric)
    costs = cost_table(table, data)
    score = score or ("mape" if data.quantity.is_cost else "kendall")
    sources = read_sources(transfer_from, space, metric, seed, source) if transfer_from else []
    transfer = Transfer(space, costs, metric=metric).learn_sources(sources) if sources else None
    learnt, held_out = _rows(data, train, test, seed, transfer)
    if model == AUTO:
        choice = choose(learnt, costs, score, seed, transfer)
    else:
        choice = fit_named(learnt, model, costs, seed, transfer=transfer)
    report = _report(choice, learnt, held_out, costs, score)
    report = replace(
        report,
        noise=noise_floor(data),
        curve=learning_curve(choice.model, learnt, score, seed) if curve else None,
        expected=transfer.expected_accuracy(sources, len(learnt), seed) if transfer else None,
    )
    if out is not None:
        choice.model.save(out, _provenance(report, data, str(source), seed))
    return report


def _check_request(model: str, score: str | None, transfer_from: Sequence[str | Path]) -> None:
    if model != AUTO:
        predictors.get(model)
    if model == Transfer.name and not transfer_from:
        raise InputError("predictor 'transfer' needs the tables of other devices; give --transfer-from")
    if score is not None and score not in SCORES:
        raise InputError(f"unknown score {score!r}: known are {', '.join(SCORES)}")


def _rows(
    data: Measurements, train: int | None, test: int | None, seed: int, transfer: Transfer | None
) -> tuple[Measurements, Measurements | None]:
    """Rows to learn from and rows to score; with `transfer`, those of the former that tell most are taken."""
    learnt, held_out = split(data, train, test, seed)
    if transfer is None or train is None:
        return learnt, held_out
    pool, held_out = split(data, None, test, seed)
    candidates = np.random.default_rng(seed).permutation(len(pool))[: max(CANDIDATES, train)]
    return pool.rows(candidates[transfer.choose_rows(pool.population[candidates], train)]), held_out


def cost_table(table: CostTable | str | Path | None, data: Measurements) -> CostTable | None:
    """The `table` given, which has to be of the networks' target, else the run's own where it tells of the metric."""
    given = CostTable.load(table) if isinstance(table, str | Path) else table
    if given is not None and data.target is not None:
        Target.from_json(data.target).require_same(given.target, given.name)
    if given is not None or data.table is None:
        return given
    try:
        table_column(data.table, data.metric)
    except InputError:
        return None
    return data.table


def _report(
    choice: Choice,
    train: Measurements,
    test: Measurements | None,
    table: CostTable | None,
    score: str,
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
        choice.compared,
        train.left_out,
        train.copies,
        measured=measured,
        predicted=predicted,
    )


def _provenance(report: FitReport, data: Measurements, source: str, seed: int) -> dict[str, Any]:
    target = data.target or (data.table.target.to_json() if data.table else None)
    document = report.to_json()
    scores = {name: document[name] for name in ("score", "scored_on", "n_train", "n_test", "metrics", "baselines")}
    evaluation = {"measured": report.measured.tolist(), "predicted": report.predicted.tolist()}
    return {
        "target": target,
        "source": Path(source).name,
        "seed": seed,
        "scores": scores,
        "noise": document["noise"],
        "evaluation": evaluation,
    }
