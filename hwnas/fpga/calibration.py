"""Calibrating `dpu-sim` on measurements: blocks measured alone, or whole networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from hwnas import __version__
from hwnas.core.columns import numbers, read_columns
from hwnas.core.errors import InputError
from hwnas.core.table import CostTable
from hwnas.core.units import LATENCY, quantity_of
from hwnas.fpga.demand import block_demand, column, network_demand
from hwnas.fpga.model import LATENCY_TERMS, MOVED, DpuModel, EnergyModel, nanoseconds, shipped_model
from hwnas.fpga.targets import DpuTarget
from hwnas.spaces import Primitive, SearchSpace

MIN_SAMPLES = 8
FOLDS = 5
ROBUST_STEPS = 15
ROBUST_FLOOR = 0.02


def fit(demand: NDArray[np.float64], latency_ms: ArrayLike, target: DpuTarget) -> DpuModel:
    """Calibrate the latency on measurements.

    Least absolute relative error by iteratively re-weighted non-negative least squares. A term that none of the
    measurements exercises keeps the value of the model that ships for the target, and is named as assumed.

    Args:
        demand: (n, terms) of what was measured, from `block_demand` or `network_demand`.
        latency_ms: (n,) medians.

    Raises `InputError` for fewer than 8 measurements or latencies that are not positive numbers.
    """
    y = np.asarray(latency_ms, dtype=np.float64)
    if len(y) < MIN_SAMPLES or not (np.isfinite(y) & (y > 0)).all():
        raise InputError(f"calibration needs {MIN_SAMPLES} or more positive latencies, got {len(y)}")
    shares = nanoseconds(demand, target) / 1e6 / y[:, None]
    scale = shares.mean(axis=0)
    used = scale > 0
    rows = shares[:, used] / scale[used]
    weights = np.ones(len(y))
    for _ in range(ROBUST_STEPS):
        solution, _ = nnls(rows * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(rows @ solution - 1), ROBUST_FLOOR))
    coefficients = dict(shipped_model(target).coefficients)
    fitted = [term for term, seen in zip(LATENCY_TERMS, used, strict=True) if seen]
    coefficients.update(zip(fitted, map(float, solution / scale[used]), strict=True))
    provenance = {
        "fitted_by": f"hwnas {__version__}",
        "device": target.device,
        "clock_mhz": target.clock_mhz,
        "n": len(y),
        "fit_mape": float(100 * np.mean(np.abs(rows @ solution - 1))),
        "assumed": [term for term in LATENCY_TERMS if term not in fitted],
    }
    return DpuModel(coefficients, provenance=provenance)


def fit_energy(demand: NDArray[np.float64], latency_ms: ArrayLike, energy_mj: ArrayLike, source: str) -> EnergyModel:
    """Static power and dynamic energies by non-negative least squares of the relative error.

    energy = static * latency + per MAC * MACs + per byte * bytes. Raises `InputError` where values are not positive.
    """
    t, e = (np.asarray(values, dtype=np.float64) for values in (latency_ms, energy_mj))
    if len(e) < MIN_SAMPLES or not (np.isfinite(e) & (e > 0) & np.isfinite(t) & (t > 0)).all():
        raise InputError(f"calibration needs {MIN_SAMPLES} or more positive energies and latencies, got {len(e)}")
    terms = np.column_stack([t / 1e3, column(demand, ["macs"])[:, 0] / 1e9, column(demand, MOVED).sum(axis=1) / 1e9])
    rows = terms / e[:, None]
    scale = np.maximum(rows.mean(axis=0), 1e-30)
    solution, _ = nnls(rows / scale, np.ones(len(e)))
    error = 100 * np.mean(np.abs(rows / scale @ solution - 1))
    static, mac, byte = map(float, solution / scale)
    return EnergyModel(static, mac, byte, f"{source}; {len(e)} samples, {error:.1f} % mean error")


def calibrate(table: CostTable, target: DpuTarget, metric: str = "latency_ms") -> DpuModel:
    """A model from a table of blocks measured alone on the board: `metric`, and `energy_mj` where it is there.

    Raises `InputError` where the table is simulated, of several images at once, has no such latencies or blocks that
    the DPU has no engine for.
    """
    if table.target.origin == "simulated":
        raise InputError(f"{table.name} is simulated; calibrate from measurements")
    if table.target.batch != 1:
        raise InputError(
            f"{table.name} is of batch {table.target.batch}; a DPU takes one image: give a table of batch 1"
        )
    keys, demand, latency = _measured_blocks(table, target, metric)
    model = fit(demand, latency, target)
    measured = [i for i, key in enumerate(keys) if "energy_mj" in table.rows[key]]
    energy = None
    if len(measured) >= MIN_SAMPLES:
        energies = [table.rows[keys[i]]["energy_mj"].value for i in measured]
        energy = fit_energy(demand[measured], latency[measured], energies, table.name)
    return DpuModel(model.coefficients, energy, {**model.provenance, "data": table.name})


def _measured_blocks(
    table: CostTable, target: DpuTarget, metric: str
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Keys of the blocks that have a latency, their demand (n, quantities) and their latencies (n,) in ms."""
    if metric not in table.metrics:
        raise InputError(f"{table.name} has no column {metric}; it has {', '.join(table.metrics) or 'none'}")
    keys = [key for key, row in table.rows.items() if metric in row and row[metric].value > 0]
    demand = block_demand([Primitive.from_key(key) for key in keys], target)
    return keys, demand, np.array([table.rows[key][metric].value for key in keys])


def calibrate_networks(
    space: SearchSpace, population: ArrayLike, latency_ms: ArrayLike, target: DpuTarget, source: str = ""
) -> DpuModel:
    """A model from whole networks measured on the board; see `fit`. `source` says where the latencies come from."""
    model = fit(network_demand(space, population, target), latency_ms, target)
    return DpuModel(model.coefficients, None, {**model.provenance, "space": space.spec, "data": source})


def held_out_mape(
    demand: NDArray[np.float64], latency_ms: NDArray[np.float64], target: DpuTarget, seed: int = 0
) -> float:
    """Mean absolute percentage error of rows left out of the fit, over five folds."""
    order = np.random.default_rng(seed).permutation(len(latency_ms))
    errors = []
    for fold in range(FOLDS):
        test, train = order[fold::FOLDS], np.delete(order, np.s_[fold::FOLDS])
        predicted = fit(demand[train], latency_ms[train], target).latency_ms(demand[test], target)
        errors.append(np.abs(predicted / latency_ms[test] - 1))
    return float(100 * np.mean(np.concatenate(errors)))


@dataclass(frozen=True)
class CalibrationReport:
    """A calibrated model, the number of measurements, and the error on those left out of five fits."""

    model: DpuModel
    n: int
    held_out_mape: float
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "skipped": self.skipped,
            "held_out_mape": self.held_out_mape,
            "coefficients": dict(self.model.coefficients),
            "energy": self.model.energy.__dict__ if self.model.energy else None,
            "provenance": dict(self.model.provenance),
        }


def calibrate_file(
    source: str | Path, target: DpuTarget, out: str | Path, space: SearchSpace | None = None, metric: str = "latency_ms"
) -> CalibrationReport:
    """Calibrate on a cost table (.csv with its manifest), or on a table of networks with a column `arch`.

    Args:
        space: the space of the architectures; only for a table of networks.
        metric: the latency column, milliseconds.
        out: where the model (JSON) is written.

    Raises `InputError` where the table lacks the column, has too few rows, or is simulated.
    """
    path = Path(source)
    if quantity_of(metric) != LATENCY:
        raise InputError(f"{metric} is no latency in milliseconds, which the cycles of a DPU are fitted to")
    if space is None:
        table = CostTable.load(path)
        model = calibrate(table, target, metric)
        keys, demand, latency = _measured_blocks(table, target, metric)
        skipped = len(table.rows) - len(keys)
    else:
        columns = read_columns(path, ("arch", metric), required=("arch", metric))
        values = numbers(columns[metric], metric, path)
        known = np.flatnonzero(~np.isnan(values))
        bad = known[~((values[known] > 0) & np.isfinite(values[known]))]
        if len(bad):
            raise InputError(f"{path}: {metric} of row {bad[0]} is {values[bad[0]]:g}, which no measurement gives")
        population, latency = space.parse_many([str(columns["arch"][row]) for row in known]), values[known]
        skipped = len(values) - len(known)
        demand = network_demand(space, population, target)
        model = calibrate_networks(space, population, latency, target, str(path))
    error = held_out_mape(demand, latency, target)
    model = DpuModel(model.coefficients, model.energy, {**model.provenance, "held_out_mape": error})
    model.save(out)
    return CalibrationReport(model, len(latency), error, skipped)
