"""Evaluation that cannot flatter: splits by architecture, baselines beside, and the noise floor of the measurements."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError, MissingCostError
from hwnas.core.table import CostTable
from hwnas.predict.base import Predictor, predictors
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import Calibration, cross_fit, folds_of
from hwnas.predict.metrics import all_metrics

BASELINES = ("flops", "ridge", "sum")
HALF_NORMAL_PAIR = 2**0.5

Metrics = dict[str, float | None]


def split(
    data: Measurements, train: int | None, test: int | None, seed: int
) -> tuple[Measurements, Measurements | None]:
    """Draw `train` rows to learn from and `test` others to score; no group has rows in both.

    Without `test` there is no second part; without `train` all rows that are left are learnt from.
    """
    for name, number in (("--train", train), ("--test", test)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}, expected at least 1")
    if (train or 0) + (test or 0) > len(data):
        raise InputError(
            f"{train or 0} rows to train and {test or 0} to test are asked for, {len(data)} have a value of "
            f"{data.metric}; ask for fewer"
        )
    order = grouped_order(data.groups, seed)
    if test is None:
        return data.rows(np.sort(order[: train or len(order)])), None
    held_out = order[:test]
    rest = order[test:][~np.isin(data.groups[order[test:]], data.groups[held_out])]
    if len(rest) < (train or 1):
        raise InputError(
            f"only {len(rest)} rows share no architecture with the {test} to test: ask for fewer to train or to test"
        )
    return data.rows(np.sort(rest[: train or len(rest)])), data.rows(np.sort(held_out))


def grouped_order(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random order of the rows, (n,), in which rows of one group follow each other."""
    rank = np.random.default_rng(seed).permutation(int(groups.max()) + 1)[groups]
    return np.argsort(rank, kind="stable")


def out_of_fold_metrics(measured: Array, predicted: Array, groups: NDArray[Any], quantity_is_cost: bool) -> Metrics:
    """Metrics of out-of-sample predictions; each fold's intervals are calibrated on the other folds."""
    fold = folds_of(groups, min(5, len(np.unique(groups))), seed=1)
    low, high = np.empty(len(measured)), np.empty(len(measured))
    for part in np.unique(fold):
        test = fold == part
        low[test], high[test] = Calibration.of(measured[~test], predicted[~test]).interval(predicted[test], 0.9)
    return all_metrics(measured, predicted, np.maximum(low, 0) if quantity_is_cost else low, high)


def test_metrics(model: Predictor, data: Measurements) -> Metrics:
    """Metrics of a fitted model on rows that it has not seen, in its domain or not."""
    predicted = model.predict(data.population, extrapolate=True)
    return all_metrics(data.values, predicted, *model.interval(data.population, 0.9, extrapolate=True))


def baseline_metrics(train: Measurements, test: Measurements | None, table: CostTable | None) -> dict[str, Metrics]:
    """The baselines, judged as the model is: on `test`, else cross-validated on `train`.

    Those that need a cost which the table lacks are left out.
    """
    results = {}
    for name in BASELINES:
        kind = predictors.get(name)
        if not kind.needs_costs or table is not None:
            with suppress(MissingCostError):
                results[name] = judge(kind(train.space, table, metric=train.metric), train, test)
    return results


def judge(model: Predictor, train: Measurements, test: Measurements | None) -> Metrics:
    """Metrics of an unfitted model, fitted to `train`: on `test`, else cross-validated."""
    predicted = cross_fit(model, train.population, train.values, train.groups)
    if test is None:
        return out_of_fold_metrics(train.values, predicted, train.groups, train.quantity.is_cost)
    model.fit(train.population, train.values)
    model.calibration = Calibration.of(train.values, predicted)
    return test_metrics(model, test)


@dataclass(frozen=True)
class Noise:
    """How much equal things differ.

    Attributes:
        difference: mean absolute relative difference of two measurements of one thing, percent.
        mape: the error of a perfect model judged by single measurements, percent: `difference` over the root of two.
        pairs: how many pairs were compared.
        source: `repeats` of one architecture, or architectures whose cost must be `equal`.
    """

    difference: float
    mape: float
    pairs: int
    source: str

    def to_json(self) -> dict[str, float | int | str]:
        return {"difference": self.difference, "mape": self.mape, "pairs": self.pairs, "source": self.source}


def noise_floor(data: Measurements) -> Noise | None:
    """The noise of `data` from repeated architectures, else from those of equal cost; None without either."""
    population, values = data.population, data.values
    if data.repeats is not None and np.isfinite(data.repeats).any():
        twice = np.isfinite(data.repeats)
        return _noise(_relative_difference(values[twice], data.repeats[twice]), "repeats")
    repeats = _pair_differences(population, values)
    if len(repeats):
        return _noise(repeats, "repeats")
    equal = _pair_differences(data.space.equal_cost(population), values) if data.quantity.is_cost else repeats
    return _noise(equal, "equal") if len(equal) else None


def _noise(differences: Array, source: str) -> Noise:
    mean = 100 * float(differences.mean())
    return Noise(mean, mean / HALF_NORMAL_PAIR, len(differences), source)


def _pair_differences(population: Population, values: Array) -> Array:
    """|a - b| / mean(a, b) of rows of one genotype, each with the next."""
    _, group = np.unique(population, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    same = np.diff(group.reshape(-1)[order]) == 0
    a, b = values[order[:-1]][same], values[order[1:]][same]
    return _relative_difference(a, b)


def _relative_difference(a: Array, b: Array) -> Array:
    middle = (np.abs(a) + np.abs(b)) / 2
    return np.asarray(np.abs(a - b)[middle > 0] / middle[middle > 0])
