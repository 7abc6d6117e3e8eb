"""Active measurement: which networks to measure next, and how good the model is by now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError
from hwnas.core.table import CostTable
from hwnas.predict.data import Measurements
from hwnas.predict.gp import GaussianProcess
from hwnas.predict.intervals import folds_of
from hwnas.predict.kernels import grams
from hwnas.predict.likelihood import JITTER
from hwnas.predict.metrics import HIGHER_IS_BETTER, score
from hwnas.spaces import SearchSpace

POOL = 1000
KERNELS = "offset+additive+logs"
FEWEST_TO_FIT = 8
PRIOR_NOISE = 0.03
FOLDS, FOLDS_OF_MANY, MANY = 10, 5, 200
JUDGED = 500
RESAMPLES = 100
ONE_SIDED_90 = 1.28
LEAST_SIZE = 0.05


def next_to_measure(
    space: SearchSpace,
    metric: str,
    measured: ArrayLike,
    values: ArrayLike,
    n: int,
    *,
    table: CostTable | None = None,
    candidates: ArrayLike | None = None,
    seed: int = 0,
) -> Population:
    """Pick `n` networks to measure next, (n, genes), none of them measured already.

    Args:
        measured: genotypes (m, genes) measured so far; may be empty.
        values: their `metric`, (m,).
        candidates: genotypes to pick from; a random pool where None.

    Each pick is the one that leaves the least mean variance over the candidates, given the ones picked before it (Cohn
    et al., JAIR 1996). Variances are the mean of two Gaussian processes': one fitted to what is measured, relative to
    the predicted cost; and one whose kernels count alike, which makes the first networks a design for the space, and
    goes on to spread them where the first has been led astray.
    """
    known = space.canonical(measured) if np.size(measured) else np.zeros((0, len(space.genes)), dtype=np.int16)
    pool = unmeasured(space, known, candidates=candidates, seed=seed)
    if not len(pool):
        raise InputError(f"all networks of {space.spec} to pick from have been measured: nothing is left")
    model = GaussianProcess(space, table, metric=metric, kernels=KERNELS)
    uncertainties = [_before_fitting(model.clone(), known, pool)]
    if len(known) >= FEWEST_TO_FIT:
        uncertainties.append(_relative_uncertainty(model.fit(known, values), pool))
    scales = [1 / max(float(np.diag(covariance).mean()), JITTER) for covariance, _ in uncertainties]
    covariance = sum(scale * covariance for scale, (covariance, _) in zip(scales, uncertainties, strict=True))
    noise = sum(scale * noise for scale, (_, noise) in zip(scales, uncertainties, strict=True))
    return pool[greedy_average(np.asarray(covariance), float(noise), n)]


def unmeasured(
    space: SearchSpace, known: Population, *, candidates: ArrayLike | None = None, seed: int = 0
) -> Population:
    """Distinct `candidates`, or random networks, (m, genes), without those of `known`."""
    drawn = space.sample(POOL, np.random.default_rng(seed)) if candidates is None else candidates
    return space.distinct(np.concatenate([known, space.canonical(drawn)]))[len(np.unique(known, axis=0)) :]


def _before_fitting(model: GaussianProcess, known: Population, pool: Population) -> tuple[Array, float]:
    """Covariance (m, m) of `pool` given that `known` were measured, and the noise, before any value is learnt from."""
    rows = np.concatenate([known, pool])
    views = model.viewer.fit(rows, np.zeros(len(rows)))
    covariance = np.mean(list(grams(model.kernels, views, views)), axis=0)
    for row in range(len(known)):
        _condition(covariance, row, PRIOR_NOISE)
    return covariance[len(known) :, len(known) :], PRIOR_NOISE


def _relative_uncertainty(model: GaussianProcess, genotypes: Population) -> tuple[Array, float]:
    """Covariance (n, n) of unmeasured networks given the measured ones, and the noise of one measurement.

    For a cost both are relative to what is predicted, so that relative errors count.
    """
    predicted, covariance, noise = model.posterior(genotypes)
    if model.quantity.is_cost:
        size = np.maximum(np.abs(predicted), LEAST_SIZE)
        covariance = covariance / np.outer(size, size)
    return covariance, noise


def _condition(covariance: Array, row: int, noise: float) -> None:
    """What is left of `covariance` (m, m) once `row` is measured, in place."""
    column = covariance[:, row] / np.sqrt(covariance[row, row] + noise + JITTER)
    covariance -= np.outer(column, column)


def greedy_average(covariance: Array, noise: float, n: int) -> NDArray[np.int64]:
    """`n` rows of `covariance` (m, m), each the one whose measurement lowers the mean variance of all rows the most."""
    left = covariance.copy()
    chosen: list[int] = []
    for _ in range(min(n, len(left))):
        gain = (left**2).sum(axis=0) / (np.diag(left) + noise + JITTER)
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen.append(best)
        _condition(left, best, noise)
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class Progress:
    """How good the model is by now.

    Attributes:
        value: the score to expect on random networks of the space.
        surely: the worse end of its one-sided 90 % bootstrap interval; stop when this one meets the target.
        n: networks measured.
    """

    value: float
    surely: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def progress_of(data: Measurements, name: str, table: CostTable | None = None) -> Progress:
    """The `name` (a score of `metrics.SCORES`) that a model of the networks measured so far reaches on random ones.

    Networks that were picked are not like random ones, so their cross-validated errors are not those to expect. What is
    carried over is each error in units of the deviation that the model predicted for it: random networks err by their
    own deviation times one of these.
    """
    model = GaussianProcess(data.space, table, metric=data.metric, kernels=KERNELS)
    standard = _standardised_errors(model, data)
    model.fit(data.population, data.values)
    rng = np.random.default_rng(0)
    predicted, deviation = model.predictive(data.space.sample(JUDGED, rng))
    draws = []
    for _ in range(RESAMPLES):
        errors = rng.choice(rng.choice(standard, len(standard)), len(predicted)) * deviation
        truth, expected = (model.scaling.backward(target) for target in (predicted + errors, predicted))
        draws.append(score(name, truth, expected))
    value, spread = float(np.mean(draws)), float(np.std(draws))
    worse = -ONE_SIDED_90 if name in HIGHER_IS_BETTER else ONE_SIDED_90
    return Progress(value, value + worse * spread, len(data))


def _standardised_errors(model: GaussianProcess, data: Measurements) -> Array:
    """Errors on left-out rows, (n,), each divided by the deviation that the model fitted to the others predicted."""
    fold = folds_of(data.groups, FOLDS if len(data) < MANY else FOLDS_OF_MANY)
    errors = np.empty(len(data))
    for part in np.unique(fold):
        test = fold == part
        fitted = model.clone().fit(data.population[~test], data.values[~test])
        predicted, deviation = fitted.predictive(data.population[test])
        errors[test] = (fitted.scaling.forward(data.values[test]) - predicted) / deviation
    return errors
