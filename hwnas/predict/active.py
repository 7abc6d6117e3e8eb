"""Active measurement: which networks to measure next, and how good the model is by now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.errors import InputError
from hwnas.core.table import CostTable
from hwnas.predict.base import Array
from hwnas.predict.data import Measurements
from hwnas.predict.gp import JITTER, GaussianProcess
from hwnas.predict.intervals import cross_fit
from hwnas.predict.metrics import HIGHER_IS_BETTER, score
from hwnas.spaces import SearchSpace

POOL = 1000
KERNELS = "offset+additive+logs"
FEWEST_TO_FIT = 8
RANDOM_SHARE = 0.25
FOLDS = 10
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
    seed: int = 0,
) -> NDArray[np.int16]:
    """Pick `n` networks to measure next, (n, genes), none of them measured already.

    Args:
        measured: genotypes (m, genes) measured so far; may be empty.
        values: their `metric`, (m,).

    Three quarters are those of a random pool that leave the least mean variance over the pool, by a Gaussian process
    and each given the ones picked before it (Cohn et al., JAIR 1996), relative to the predicted cost; the others are
    random. The most uncertain networks themselves are the odd ones, and teach little about the rest.
    """
    rng = np.random.default_rng(seed)
    known = space.canonical(measured) if np.size(measured) else np.zeros((0, len(space.genes)), dtype=np.int16)
    pool = space.distinct(np.concatenate([known, space.sample(POOL, rng)]))[len(np.unique(known, axis=0)) :]
    if not len(pool):
        raise InputError(f"all of {POOL} networks drawn from {space.spec} have been measured: nothing is left to pick")
    pool = rng.permutation(pool)
    at_random = int(np.ceil(n * RANDOM_SHARE)) if len(known) >= FEWEST_TO_FIT else n
    if at_random >= n:
        return pool[:n]
    model = GaussianProcess(space, table, metric=metric, kernels=KERNELS).fit(known, values)
    rest = pool[at_random:]
    covariance, noise = _relative_uncertainty(model, rest)
    return np.concatenate([pool[:at_random], rest[greedy_average(covariance, noise, n - at_random)]])


def _relative_uncertainty(model: GaussianProcess, genotypes: NDArray[np.int16]) -> tuple[Array, float]:
    """Covariance (n, n) of unmeasured networks given the measured ones, and the noise of one measurement.

    For a cost both are relative to what is predicted, so that relative errors count.
    """
    covariance, noise = model.covariance(genotypes)
    if model.quantity.is_cost:
        size = np.maximum(np.abs(model._predict(genotypes)), LEAST_SIZE)
        covariance = covariance / np.outer(size, size)
    return covariance, noise


def greedy_average(covariance: Array, noise: float, n: int) -> NDArray[np.int64]:
    """`n` rows of `covariance` (m, m), each the one whose measurement lowers the mean variance of all rows the most."""
    left = covariance.copy()
    chosen: list[int] = []
    for _ in range(min(n, len(left))):
        gain = (left**2).sum(axis=0) / (np.diag(left) + noise + JITTER)
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen.append(best)
        column = left[:, best] / np.sqrt(left[best, best] + noise + JITTER)
        left -= np.outer(column, column)
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class Progress:
    """How good the model is by now.

    Attributes:
        value: the score, cross-validated over all networks measured.
        surely: the worse end of its one-sided 90 % bootstrap interval; stop when this one meets the target.
        n: networks measured.
    """

    value: float
    surely: float
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def progress_of(data: Measurements, name: str, table: CostTable | None = None) -> Progress:
    """The cross-validated `name` (a score of `metrics.SCORES`) of the networks measured so far.

    Networks picked for being uncertain are harder than the space's own, so that the figure errs on the careful side.
    """
    model = GaussianProcess(data.space, table, metric=data.metric, kernels=KERNELS)
    predicted = cross_fit(model, data.population, data.values, data.groups, folds=FOLDS)
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(data), len(data)) for _ in range(RESAMPLES)]
    spread = float(np.std([score(name, data.values[rows], predicted[rows]) for rows in draws]))
    value = score(name, data.values, predicted)
    worse = -ONE_SIDED_90 if name in HIGHER_IS_BETTER else ONE_SIDED_90
    return Progress(value, value + worse * spread, len(data))
