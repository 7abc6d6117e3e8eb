"""`auto`: choose among the registered kinds, or average several, by cross-validation on the training rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array
from hwnas.core.errors import InputError, MissingCostError
from hwnas.core.progress import progress
from hwnas.core.table import CostTable
from hwnas.predict.base import Predictor, check_learnable, predictors
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import Calibration, cross_fit, folds_of, left_to_learn
from hwnas.predict.metrics import loss, score
from hwnas.predict.scaling import Scaling
from hwnas.predict.transfer import Transfer

Options = dict[str, Any]
Rows = NDArray[np.bool_] | slice

FEW, SOME, MANY, STEEP = 40, 80, 200, 2000
FOLDS, FOLDS_OF_FEW = 5, 10
STEPS = 12
LEAST_WEIGHT = 0.1
LEAST_GAIN = 0.005
MOST_ROWS = 6000
ROWS_A_CHOICE = 4
ROBUST = {"loss": "tukey"}
ALL = slice(None)
ROBUST_SCORES = ("mape", "medape", "within_5", "within_10")


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


def fit_named(
    data: Measurements, name: str, table: CostTable | None, seed: int = 0, *, transfer: Transfer | None = None
) -> Choice:
    """Fit one kind by name, its intervals calibrated by cross-validation.

    `seed` is that of the folds, and of the kind where it draws anything. `transfer` is the model of that kind that has
    learnt its source devices.
    """
    if transfer is not None and name == transfer.name:
        return _fitted(transfer.clone(), data, seed)
    kind = predictors.get(name)
    options = {"seed": seed} if "seed" in kind.default_options() else {}
    return _fitted(kind(data.space, table, metric=data.metric, **options), data, seed)


def _check(data: Measurements) -> None:
    check_learnable(data.values, data.metric)
    different = len(np.unique(data.groups))
    if different < 2:
        raise InputError(f"all {len(data)} rows measure one architecture: there is nothing to tell apart; measure more")
    if different < FOLDS:
        raise InputError(
            f"{different} measured architectures are fewer than the {FOLDS} folds of cross-validation; measure more"
        )


def _fitted(model: Predictor, data: Measurements, seed: int) -> Choice:
    _check(data)
    predicted = cross_fit(model, data.population, data.values, data.groups, seed=seed)
    model.fit(data.population, data.values)
    model.calibration = Calibration.of(data.values, predicted)
    return Choice(model, [], predicted)


def choose(
    data: Measurements, table: CostTable | None, score_name: str, seed: int = 0, transfer: Transfer | None = None
) -> Choice:
    """Cross-validate the candidates, refit the best mixture of them, and report what was compared, best first.

    The predictions of `Choice` are those of the mixture that the other folds would have chosen, so that having chosen
    does not flatter them. A mixture is chosen by forward selection with replacement (Caruana et al., ICML 2004). With
    `transfer`, and too few rows to choose by, that is the choice; with more, it is one of the candidates.
    """
    _check(data)
    if transfer is not None and len(data) < FEW:
        return _fitted(transfer.clone(), data, seed)
    fold = folds_of(data.groups, min(FOLDS_OF_FEW if len(data) < FEW else FOLDS, len(np.unique(data.groups))), seed)
    candidates = _compare(data, table, score_name, fold, transfer)
    blend = _Blend.of(candidates, data, score_name)
    weights, honest = blend.weights(), np.empty(len(data))
    for part in np.unique(fold):
        rest = fold != part
        honest[~rest] = blend.predicted(blend.weights(rest), ~rest)
    transfers = transfer is not None and weights[-1] > 0
    model = transfer.clone() if transfer and transfers else _mixed(candidates, weights, data, table)
    model.fit(data.population, data.values)
    model.calibration = Calibration.of(data.values, honest)
    if SOME <= len(data) <= STEEP:
        known = data.population, data.values, data.groups
        model.calibration = model.calibration.scaled(left_to_learn(model, *known, fold, blend.predicted(weights)))
    return Choice(model, _report(candidates, weights, data, score_name), honest)


@dataclass(frozen=True)
class _Blend:
    """Mixtures of candidates, averaged as they are learnt: a throughput as the time of an image.

    Attributes:
        targets: (candidates, n) out-of-fold predictions, scaled.
        mixable: (candidates,) which of them can be averaged.
    """

    targets: Array
    values: Array
    score: str
    scaling: Scaling
    mixable: NDArray[np.bool_]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], data: Measurements, score_name: str) -> _Blend:
        scaling = Scaling(data.quantity).fit(data.values)
        targets = np.stack([scaling.forward(candidate.predicted) for candidate in candidates])
        mixable = np.array([predictors.get(c.kind).learns and c.kind != Transfer.name for c in candidates])
        return cls(targets, data.values, score_name, scaling, mixable)

    def predicted(self, weights: Array, rows: Rows = ALL) -> Array:
        """The mixture's out-of-fold predictions of some rows."""
        return self.scaling.backward(weights @ self.targets[:, rows])

    def weights(self, rows: Rows = ALL) -> Array:
        """Those, (candidates,), with the least loss on `rows`; a single candidate unless a mixture is better."""
        targets, values = self.targets[:, rows], self.values[rows]

        def error(target: Array) -> float:
            return loss(self.score, values, self.scaling.backward(target))

        alone = np.array([error(target) for target in targets])
        counts = np.zeros(len(targets))
        best = int(np.argmin(alone))
        counts[best] = 1
        if not self.mixable[best]:
            return counts
        for step in range(1, STEPS):
            tried = [error((counts @ targets + target) / (step + 1)) for target in targets]
            counts[int(np.argmin(np.where(self.mixable, tried, np.inf)))] += 1
        weights: Array = np.where(counts / counts.sum() < LEAST_WEIGHT, 0.0, counts)
        weights = weights / weights.sum()
        if error(weights @ targets) < alone[best] * (1 - LEAST_GAIN):
            return weights
        return np.asarray(np.eye(len(targets))[best])


def _report(candidates: Sequence[Candidate], weights: Array, data: Measurements, name: str) -> list[dict[str, Any]]:
    order = np.argsort([loss(name, data.values, candidate.predicted) for candidate in candidates])
    return [
        {
            "model": candidates[i].label,
            name: score(name, data.values, candidates[i].predicted),
            "weight": round(float(weights[i]), 4),
        }
        for i in order
    ]


def _mixed(candidates: Sequence[Candidate], weights: Array, data: Measurements, table: CostTable | None) -> Predictor:
    chosen = [(c.kind, c.options, float(w)) for c, w in zip(candidates, weights, strict=True) if w > 0]
    if len(chosen) == 1:
        kind, options, _ = chosen[0]
        return predictors.get(kind)(data.space, table, metric=data.metric, **options)
    return predictors.get("ensemble")(data.space, table, metric=data.metric, members=tuple(chosen))


def _compare(
    data: Measurements, table: CostTable | None, score_name: str, fold: NDArray[np.int64], transfer: Transfer | None
) -> list[Candidate]:
    """Out-of-fold predictions of all that is worth trying; robust losses only where a cheap model gains by one.

    Not those that need a cost which the table lacks.

    `transfer` is the last one where it is given.
    """
    done: list[Candidate] = []

    def run(wanted: Sequence[tuple[str, Options]]) -> None:
        with progress("compare predictors", len(wanted)) as task:
            for kind, options in wanted:
                model = predictors.get(kind)(data.space, table, metric=data.metric, **options)
                with suppress(MissingCostError):
                    done.append(Candidate(kind, options, model.cross_predict(data.population, data.values, fold)))
                task.advance(note=kind)

    run(_cheap(table is not None))
    robust = False
    if score_name in ROBUST_SCORES and data.quantity.is_cost and len(data) >= MANY:
        run([("physical", ROBUST)])
        plain = next(c for c in done if c.kind == "physical")
        robust = loss(score_name, data.values, done[-1].predicted) < loss(score_name, data.values, plain.predicted)
    run(_dear(data, robust))
    if transfer is not None:
        left_out = transfer.cross_predict(data.population, data.values, fold)
        done.append(Candidate(transfer.name, {}, left_out))
    return done


def _cheap(with_costs: bool) -> list[tuple[str, Options]]:
    costly: list[tuple[str, Options]] = [("sum", {}), ("linear1", {}), ("linear2", {})] if with_costs else []
    return [("flops", {}), ("ridge", {}), ("physical", {}), *costly]


def _dear(data: Measurements, robust: bool) -> list[tuple[str, Options]]:
    found: list[tuple[str, Options]] = []
    if len(data) <= MOST_ROWS:
        found += [("gp", {}), ("gp", {"kernels": "offset+additive"})]
    if len(data) >= SOME:
        found.append(("boosting", {}))
    if len(data) >= MANY:
        found.append(("residual", {} if len(data) <= MOST_ROWS else {"base": "ridge"}))
    if robust:
        found += [("boosting", {"loss": "l1"}), ("boosting", {"loss": "l1", "power": 2.0, "leaves": 6})]
        found.append(("residual", {"base": "physical", **ROBUST}))
    if robust and len(data) <= MOST_ROWS:
        found.append(("gp", {"kernels": "offset+additive", "loss": "l1"}))
    if not data.quantity.is_cost and len(data) >= MANY:
        found.append(("mlp", {"loss": "l1"}))
        placed = ROWS_A_CHOICE * int(data.space.choices.sum()) <= len(data) <= MOST_ROWS
        found += [("gp", {"effects": True, "warp": True})] if placed else []
    return found
