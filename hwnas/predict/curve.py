"""Learning curves: error against the number of measurements, and what more of them would buy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from hwnas.core.arrays import Array
from hwnas.predict.base import Predictor
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import folds_of
from hwnas.predict.metrics import HIGHER_IS_BETTER, loss

FOLDS = 4
POINTS = 6
SMALLEST = 10


def learning_curve(model: Predictor, data: Measurements, score: str, seed: int = 0) -> dict[str, Any]:
    """Errors of `model`'s kind on left-out folds, learnt from more and more of the other rows.

    Returns `points`, each `{n, <score>, range}` (mean and range over the folds), and `advice`: the score that `more`
    further measurements are expected to bring, from the power law `a + b n ** -c` fitted to the points, or None where
    there are too few rows to say.
    """
    fold = folds_of(data.groups, min(FOLDS, len(np.unique(data.groups))), seed)
    parts = np.unique(fold)
    most = min(int((fold != part).sum()) for part in parts)
    sizes = np.unique(np.geomspace(min(SMALLEST, most), most, POINTS).astype(int))
    errors = np.array([[_error(model, data, fold == part, int(n), score, seed) for part in parts] for n in sizes])
    means = errors.mean(axis=1)
    points = [
        {"n": int(n), score: _shown(score, mean), "range": sorted(_shown(score, e) for e in (row.min(), row.max()))}
        for n, mean, row in zip(sizes, means, errors, strict=True)
    ]
    return {"points": points, "advice": _advice(sizes, means, len(data), score)}


def _error(model: Predictor, data: Measurements, test: NDArray[np.bool_], n: int, score: str, seed: int) -> float:
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~test))[:n]
    if np.ptp(data.values[rows]) == 0:
        predicted = np.full(int(test.sum()), data.values[rows][0])
    else:
        fitted = model.clone().fit(data.population[rows], data.values[rows])
        predicted = fitted.predict(data.population[test], extrapolate=True)
    return loss(score, data.values[test], predicted)


def _shown(score: str, error: float) -> float:
    return float(1 - error if score in HIGHER_IS_BETTER else error)


def _advice(sizes: NDArray[np.int64], errors: Array, rows: int, score: str) -> dict[str, Any] | None:
    if len(sizes) < 4 or not np.isfinite(errors).all():
        return None
    start = (errors[-1] * 0.7, max(errors[0] - errors[-1], 1e-9) * sizes[0] ** 0.5, 0.5)
    bounds = ([0, 0, 0.1], [max(errors.min(), 1e-9), np.inf, 2.0])
    spread = np.maximum(errors, 1e-9) / np.sqrt(sizes)
    try:
        (floor, slope, power), _ = curve_fit(_power_law, sizes, errors, p0=start, sigma=spread, bounds=bounds)
    except (RuntimeError, ValueError):
        return None
    now, then = (float(_power_law(np.array([n]), floor, slope, power)[0]) for n in (rows, 2 * rows))
    shown = {"now": _shown(score, now), "then": _shown(score, then), "at_best": _shown(score, floor)}
    text = (
        f"{rows} more measurements would take {score} from about {shown['now']:.3g} to {shown['then']:.3g}; "
        f"with any number it stays near {shown['at_best']:.3g}"
    )
    return {"more": rows, **shown, "text": text}


def _power_law(n: NDArray[np.int64], floor: float, slope: float, power: float) -> Array:
    return np.asarray(floor + slope * n.astype(np.float64) ** -power)
