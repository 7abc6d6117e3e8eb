"""Additivity audit: the sum of the parts against the whole, and what is left when its faults are corrected."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.arrays import Array
from hwnas.core.documents import NETWORKS_FILE
from hwnas.core.errors import HwnasError, InputError
from hwnas.core.table import CostTable
from hwnas.predict.base import predictors
from hwnas.predict.data import Measurements, read_measurements
from hwnas.predict.evaluation import Noise, noise_floor
from hwnas.predict.fit import cost_table
from hwnas.predict.intervals import cross_fit
from hwnas.predict.metrics import score
from hwnas.spaces import SearchSpace, get_space

CLOSE = 1.25
GOOD_ENOUGH = 2.0
RESAMPLES = 500
FEWEST = 3
FEWEST_TO_LEARN = 40


@dataclass(frozen=True)
class Step:
    """A correction of the sum, and the error that is left with it: cross-validated MAPE, percent."""

    name: str
    explanation: str
    mape: float


@dataclass(frozen=True)
class Audit:
    """Sum of parts against the whole.

    Attributes:
        n: networks compared.
        ratio: median of sum over whole, and the ends of its 95 % bootstrap interval.
        offset, slope: of whole = offset + slope x sum, in the metric's unit and dimensionless.
        per_block: what a searchable block adds beyond the slope, in the metric's unit.
        systematic: share of the sum's squared error that an offset, a slope and a term a block remove.
        steps: from the plain sum to a learnt model.
        noise: the error that a perfect model would have, where repeats tell.
        recommendation: `table`, `linear` or `learned`, and `why`.
    """

    space: str
    metric: str
    unit: str
    n: int
    ratio: tuple[float, float, float]
    offset: float
    slope: float
    per_block: float
    systematic: float
    steps: tuple[Step, ...]
    noise: Noise | None
    recommendation: str
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def audit(
    run: str | Path,
    space: SearchSpace | str,
    metric: str = "latency_ms",
    table: CostTable | str | Path | None = None,
) -> Audit:
    """Compare measured networks with the sums of their blocks' measured costs.

    Args:
        run: a run folder, or a table of measured networks.
        table: the cost table; the run's own where none is given.

    Raises `InputError` where there is no cost table or fewer than three networks.
    """
    space = get_space(space) if isinstance(space, str) else space
    data = read_measurements(run, space, metric)
    costs = cost_table(table, data)
    if costs is None:
        raise InputError(f"{run} has no cost table to audit; profile the primitives too, or give --table")
    if len(np.unique(data.groups)) < FEWEST:
        raise InputError(f"{run} has {len(data)} measured networks; an audit needs three or more: profile --networks N")
    total = predictors.get("sum")(space, costs, metric=metric).predict(data.population)
    steps, predictions = _steps(data, costs)
    noise = noise_floor(data)
    recommendation, why = _recommend({step.name: step.mape for step in steps}, noise)
    return Audit(
        space.spec,
        metric,
        data.quantity.unit,
        len(data),
        _ratio(total, data.values),
        *_coefficients(data, total),
        _systematic(data.values, total, predictions["linear2"]),
        steps,
        noise,
        recommendation,
        why,
    )


def sum_over_whole(run: str | Path, table: CostTable, metric: str) -> tuple[float, int] | None:
    """What the sum of the parts is of the whole, the median of the measured networks of a run, and how many these are.

    None where `run` is no folder with networks of that metric, or its table is not of the whole of one space.
    """
    spaces = table.manifest.get("spaces", [])
    if not (Path(run) / NETWORKS_FILE).is_file() or len(spaces) != 1:
        return None
    try:
        space = get_space(spaces[0])
        data = read_measurements(run, space, metric)
        total = predictors.get("sum")(space, table, metric=metric).predict(data.population)
    except HwnasError:
        return None
    return _ratio(total, data.values)[0], len(data)


def _steps(data: Measurements, table: CostTable) -> tuple[tuple[Step, ...], dict[str, Array]]:
    kinds = {"sum": "the plain sum", "linear1": "with offset and slope", "linear2": "and a term a block"}
    if len(data) >= FEWEST_TO_LEARN:
        kinds |= {"ridge": "a cost for each choice, fitted", "gp": "learnt, with interactions"}
    predictions = {
        kind: cross_fit(
            predictors.get(kind)(data.space, table, metric=data.metric), data.population, data.values, data.groups
        )
        for kind in kinds
    }
    steps = tuple(Step(kind, text, score("mape", data.values, predictions[kind])) for kind, text in kinds.items())
    return steps, predictions


def _coefficients(data: Measurements, total: Array) -> tuple[float, float, float]:
    running = (data.space.blocks(data.population)[:, data.space.searchable] >= 0).sum(axis=1)
    ones = np.ones(len(total))
    offset, slope = np.linalg.lstsq(np.stack([ones, total], axis=1), data.values, rcond=None)[0]
    if np.ptp(running) == 0:
        return float(offset), float(slope), 0.0
    per_block = np.linalg.lstsq(np.stack([ones, total, running], axis=1), data.values, rcond=None)[0][2]
    return float(offset), float(slope), float(per_block)


def _ratio(total: Array, whole: Array) -> tuple[float, float, float]:
    ratios = total[whole > 0] / whole[whole > 0]
    draws = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def _systematic(whole: Array, total: Array, corrected: Array) -> float:
    plain, left = np.mean((whole - total) ** 2), np.mean((whole - corrected) ** 2)
    return float(np.clip(1 - left / plain, 0, 1)) if plain > 0 else 0.0


def _recommend(error: dict[str, float], noise: Noise | None) -> tuple[str, str]:
    """The simplest model that is nearly as good as the best, or as the measurements allow."""
    best = min(error.values())
    enough = max(CLOSE * best, GOOD_ENOUGH * noise.mape if noise else 0.0)
    for name, model in (("table", "sum"), ("linear", "linear1"), ("linear", "linear2")):
        if error[model] <= enough:
            return name, f"{model} is {error[model]:.2f} % off, the best model {best:.2f} %"
    return "learned", f"the sum is {error['sum']:.2f} % off, corrected {error['linear2']:.2f} %, learnt {best:.2f} %"
