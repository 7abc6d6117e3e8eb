"""`auto`: choose among the registered kinds by cross-validation on the training rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.core.errors import InputError
from hwnas.core.progress import progress
from hwnas.core.table import CostTable
from hwnas.predict.base import Array, Predictor, predictors
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import Calibration, cross_fit
from hwnas.predict.metrics import loss, score

Options = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A kind with its options, and its out-of-fold predictions (n,)."""

    kind: str
    options: Options
    predicted: Array

    @property
    def label(self) -> str:
        return ",".join([self.kind, *(f"{name}={value}" for name, value in self.options.items())])


@dataclass(frozen=True)
class Choice:
    """What was chosen: the fitted model, all that was compared, and honest out-of-fold predictions (n,)."""

    model: Predictor
    compared: list[dict[str, Any]]
    predicted: Array


def fit_named(data: Measurements, name: str, table: CostTable | None, options: Options | None = None) -> Choice:
    """Fit one kind by name, its intervals calibrated by cross-validation."""
    model = predictors.get(name)(data.space, table, metric=data.metric, **(options or {}))
    predicted = cross_fit(model.clone, data.population, data.values, data.groups)
    model.fit(data.population, data.values)
    model.calibration = Calibration.of(data.values, predicted)
    return Choice(model, [], predicted)


def choose(data: Measurements, table: CostTable | None, score_name: str, seed: int = 0) -> Choice:
    """Cross-validate the candidates, refit the best, and report what was compared, best first."""
    candidates = _cross_validate(data, table, seed)
    losses = [loss(score_name, data.values, c.predicted) for c in candidates]
    best = candidates[int(np.argmin(losses))]
    model = _make(best, data, table).fit(data.population, data.values)
    model.calibration = Calibration.of(data.values, best.predicted)
    compared = [
        {"model": candidates[i].label, score_name: score(score_name, data.values, candidates[i].predicted)}
        for i in np.argsort(losses)
    ]
    return Choice(model, compared, best.predicted)


def _candidates(rows: int, with_costs: bool) -> list[tuple[str, Options]]:
    found: list[tuple[str, Options]] = [("flops", {}), ("ridge", {}), ("physical", {})]
    found += [("sum", {}), ("linear1", {}), ("linear2", {})] if with_costs else []
    return found


def _make(candidate: Candidate, data: Measurements, table: CostTable | None) -> Predictor:
    return predictors.get(candidate.kind)(data.space, table, metric=data.metric, **candidate.options)


def _cross_validate(data: Measurements, table: CostTable | None, seed: int) -> list[Candidate]:
    options = _candidates(len(data), table is not None)
    if len(data) < 2:
        raise InputError(f"{len(data)} measured networks are too few to choose a model by")
    done = []
    with progress("compare predictors", len(options)) as task:
        for kind, chosen in options:
            model = predictors.get(kind)(data.space, table, metric=data.metric, **chosen)
            done.append(
                Candidate(kind, chosen, cross_fit(model.clone, data.population, data.values, data.groups, seed=seed))
            )
            task.advance(note=kind)
    return done
