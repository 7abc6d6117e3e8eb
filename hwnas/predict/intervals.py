"""Prediction intervals by cross-conformal calibration.

Residuals of rows that the predicting model had not seen give the width; the finite-sample quantile is that of split
conformal prediction (Vovk et al. 2005; Lei et al., JASA 2018). The width is constant, or grows with the prediction
where that surely has the better interval score on the calibration rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hwnas.core.arrays import Array, Population
from hwnas.predict.metrics import interval_scores

if TYPE_CHECKING:
    from hwnas.predict.base import Predictor


FOLDS, FEWER_FOLDS = 5, 3
SURELY, VERY_SURELY = 1.0, 2.0
FEWEST_TO_TELL = 20
POWERS = (0.5, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Sorted absolute residuals divided by `(|prediction| / centre) ** power`.

    Attributes:
        residuals: (n,) ascending, in the metric's unit.
        power: 0 for a constant width, 1 for one in proportion to the prediction.
        centre: typical magnitude of the predictions.
    """

    residuals: Array
    power: float
    centre: float

    @classmethod
    def of(cls, measured: Array, predicted: Array, powers: Sequence[float] = POWERS) -> Calibration:
        """Calibrate on out-of-sample predictions, (n,) each.

        The width is constant unless one of `powers` has a better interval score by more than its standard error.
        """
        centre = float(np.median(np.abs(predicted))) or 1.0
        best, least = cls(np.sort(np.abs(measured - predicted)), 0.0, centre), 0.0
        constant = interval_scores(measured, *best.interval(predicted, 0.9))
        for power in powers if len(measured) >= FEWEST_TO_TELL else ():
            residuals = np.abs(measured - predicted) / _difficulty(predicted, centre, power)
            made = cls(np.sort(residuals), power, centre)
            change = interval_scores(measured, *made.interval(predicted, 0.9)) - constant
            surely = float(change.mean() + SURELY * change.std() / np.sqrt(len(change)))
            if surely < least:
                best, least = made, surely
        return best

    def scaled(self, factor: float) -> Calibration:
        """The same with errors of `factor` times the size."""
        return replace(self, residuals=self.residuals * factor)

    def width(self, coverage: float) -> float:
        """Half the width at `centre`.

        Where there are too few residuals for the quantile, Student's t with as many degrees of freedom as residuals
        takes its place.
        """
        n = len(self.residuals)
        rank = int(np.ceil((n + 1) * coverage))
        if rank <= n:
            return float(self.residuals[rank - 1])
        spread = float(np.sqrt(np.mean(self.residuals**2)))
        return max(float(self.residuals[-1]), spread * float(stdtrit(max(n - 1, 1), (1 + coverage) / 2)))

    def interval(self, predicted: Array, coverage: float) -> tuple[Array, Array]:
        """Ends of the interval around each prediction, (n,) each."""
        half = self.width(coverage) * _difficulty(predicted, self.centre, self.power)
        return predicted - half, predicted + half

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {"residuals": self.residuals, "shape": np.array([self.power, self.centre])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Calibration:
        return cls(arrays["residuals"], float(arrays["shape"][0]), float(arrays["shape"][1]))


def _difficulty(predicted: Array, centre: float, power: float) -> Array:
    result: Array = np.maximum(np.abs(predicted) / centre, 1e-3) ** power
    return result


def folds_of(groups: NDArray[Any], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each row, shape (n,): rows of one group share a fold, and folds are about equal in rows."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    ends = np.cumsum(counts[order])
    assigned = np.empty(len(counts), dtype=np.int64)
    assigned[order] = np.minimum((ends - counts[order] / 2) * folds // ends[-1], folds - 1).astype(np.int64)
    return assigned[group.reshape(-1)]


def genotype_groups(population: Population) -> NDArray[np.int64]:
    """A number a distinct genotype, shape (n,)."""
    groups: NDArray[np.int64] = np.unique(population, axis=0, return_inverse=True)[1].reshape(-1)
    return groups


def cross_fit(
    model: Predictor,
    population: Population,
    values: Array,
    groups: NDArray[Any] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> Array:
    """Predictions, (n,), each by a model of this kind that was fitted without the row's fold."""
    groups = genotype_groups(population) if groups is None else groups
    return model.cross_predict(population, values, folds_of(groups, min(folds, len(np.unique(groups))), seed))


def left_to_learn(
    model: Predictor,
    population: Population,
    values: Array,
    groups: NDArray[Any],
    fold: NDArray[np.int64],
    predicted: Array,
) -> float:
    """Errors of a model of all rows over those of `predicted`, by models that lack a `fold` each: surely at most this.

    The folds' models learnt from fewer rows. Errors fall as a power of the rows (Hestness et al., 2017); the power is
    taken from models of this kind that learnt from still fewer, less two standard errors, so that it is 0, and this 1,
    where the curve is flat or too few rows tell; it is 1 at most, faster than which no error falls for long.
    """
    fewer_folds = folds_of(groups, FEWER_FOLDS)
    fewer = np.abs(values - model.cross_predict(population, values, fewer_folds))
    errors = np.abs(values - predicted)
    more = fewer - errors
    surely = float(more.mean() - VERY_SURELY * more.std() / np.sqrt(len(more)))
    if surely <= 0:
        return 1.0
    share, fewer_share = (1 - np.mean(np.bincount(f)[f]) / len(f) for f in (fold, fewer_folds))
    if share <= fewer_share:
        return 1.0
    power = np.log1p(surely / errors.mean()) / np.log(share / fewer_share)
    return float(share ** min(power, 1.0))
