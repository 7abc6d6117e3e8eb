"""How far predictions are from measurements."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hwnas.core.arrays import Array
from hwnas.core.errors import InputError

SCORES = ("mape", "medape", "rmse", "kendall", "spearman", "within_5", "within_10")
HIGHER_IS_BETTER = ("kendall", "spearman", "within_5", "within_10")


def relative_errors(measured: Array, predicted: Array) -> Array:
    """|predicted - measured| / |measured| of the rows whose measured value is not zero."""
    known = measured != 0
    errors: Array = np.abs(predicted[known] - measured[known]) / np.abs(measured[known])
    return errors


def score(name: str, measured: ArrayLike, predicted: ArrayLike) -> float:
    """One of `SCORES`. MAPE and median APE are in percent, `within_*` a fraction, RMSE in the metric's unit.

    Rank correlations of constant predictions are 0: they order nothing.
    """
    y, p = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if name == "rmse":
        return float(np.sqrt(np.mean((p - y) ** 2)))
    if name in ("kendall", "spearman"):
        if len(y) < 2 or np.ptp(p) == 0 or np.ptp(y) == 0:
            return 0.0
        from scipy import stats  # slow to import

        return float((stats.kendalltau if name == "kendall" else stats.spearmanr)(y, p).statistic)
    errors = relative_errors(y, p)
    if not len(errors):
        return float("nan")
    if name == "mape":
        return 100 * float(errors.mean())
    if name == "medape":
        return 100 * float(np.median(errors))
    if name in ("within_5", "within_10"):
        return float((errors <= int(name.removeprefix("within_")) / 100).mean())
    raise InputError(f"unknown score {name!r}: known are {', '.join(SCORES)}")


def loss(name: str, measured: ArrayLike, predicted: ArrayLike) -> float:
    """`score`, or one minus it where higher is better, so that less is always better and 0 is best."""
    value = score(name, measured, predicted)
    return 1.0 - value if name in HIGHER_IS_BETTER else value


def coverage(measured: Array, low: Array, high: Array) -> float:
    """Share of measured values inside their interval."""
    return float(((measured >= low) & (measured <= high)).mean())


def interval_scores(measured: Array, low: Array, high: Array, level: float = 0.9) -> Array:
    """Interval score of each row, (n,), in the metric's unit; less is better.

    Gneiting and Raftery, JASA 2007, eq. 43.
    """
    outside = np.maximum(low - measured, 0) + np.maximum(measured - high, 0)
    return high - low + 2 / (1 - level) * outside


def interval_score(measured: Array, low: Array, high: Array, level: float = 0.9) -> float:
    """Mean of `interval_scores`."""
    return float(interval_scores(measured, low, high, level).mean())


def all_metrics(measured: ArrayLike, predicted: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, float | None]:
    """Every metric of the report; None where it is undefined (no finite value)."""
    y, p = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    values = {name: score(name, y, p) for name in ("rmse", "mape", "medape", "within_5", "within_10")}
    values |= {name: score(name, y, p) for name in ("spearman", "kendall")}
    values |= {"coverage_90": coverage(y, a, b), "interval_score_90": interval_score(y, a, b)}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
