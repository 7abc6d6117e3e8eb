"""The seed paper's FPGA experiment as a simulation: predict the energy of whole networks on a ZCU102.

    python benchmarks/seed_fpga_energy.py [--quick] [--resolution 224] [--seed 0]

No board is measured here. `dpu-sim` (fitted to published ZCU102 measurements) plays the board: it gives the energy of
each block alone and of whole networks of `ofa-mbv2`, with measurement noise of the size that the published logs show.
2,000 networks train each predictor, 1,000 others score it (--quick: 300 and 150). Naive addition sums the blocks'
energies; the others learn from the training networks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError
from hwnas.core.table import Cost, CostTable
from hwnas.fpga import get_target, shipped_model, simulate, simulated_table
from hwnas.parse import parse
from hwnas.predict import predictors
from hwnas.predict.metrics import score
from hwnas.spaces import SearchSpace, get_space

DATA = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
TARGET = "zcu102-b4096"
LATENCY_NOISE = 0.0004
"""Relative noise of a repeated ZCU102 latency in Accel-NASBench."""
POWER_NOISE = 0.0014
"""Relative noise of a run's mean power where the logs are not at hand: what `power_noise` gives on them."""
KINDS = ("sum", "linear1", "linear2", "mlp", "lstm", "residual")


def power_noise() -> float:
    """Relative difference of the mean power between the two halves of each published run, over sqrt(2) and 2."""
    if not DATA.is_dir():
        return POWER_NOISE
    differences = []
    for path in sorted((DATA / "zcu102_power").glob("*.csv")):
        try:
            record = parse([path]).entries[0].record
        except InputError as error:
            print(f"noise: left out: {error}", file=sys.stderr)
            continue
        if "run_s" not in record.details:
            continue
        samples = np.genfromtxt(path, delimiter=";", skip_header=1)
        start, end = np.genfromtxt(f"{path}.time", delimiter=";", skip_header=1)
        middle = samples[(samples[:, 1] > start + 0.2 * (end - start)) & (samples[:, 1] < end - 0.1 * (end - start))]
        half = len(middle) // 2
        first, second = middle[:half, 5].mean(), middle[half:, 5].mean()
        differences.append((first - second) / (first + second))
    return float(np.sqrt(np.mean(np.square(differences))) / np.sqrt(2))


def noisy(values: NDArray[np.float64], noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """`values` as a board with that relative noise would measure them."""
    return values * (1 + noise * rng.standard_normal(len(values)))


def blocks_alone(space: SearchSpace, noise: float, rng: np.random.Generator) -> CostTable:
    """The table of every block's energy, measured alone, noise included."""
    table = simulated_table(space.primitives(), TARGET)
    keys = [primitive.key for primitive in space.primitives()]
    values = noisy(table.vector(space, "energy_mj"), noise, rng)
    rows = {
        key: {"energy_mj": Cost(float(value), verdict="simulated")} for key, value in zip(keys, values, strict=True)
    }
    return CostTable(table.target, rows, table.manifest, table.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, test = (300, 150) if options.quick else (2000, 1000)
    rng = np.random.default_rng(options.seed)
    space = get_space(f"ofa-mbv2:resolution={options.resolution}")
    noise = float(np.hypot(LATENCY_NOISE, power_noise()))
    population = space.distinct(space.sample(2 * (train + test), rng))[: train + test]
    truth = simulate((space, population), TARGET).energy_mj
    assert truth is not None
    measured = noisy(truth, noise, rng)
    table = blocks_alone(space, noise, rng)
    results = {"noise floor": measures(truth[train:], measured[train:])}
    for kind in KINDS:
        started = time.perf_counter()
        model = predictors.get(kind)(space, table, metric="energy_mj").fit(population[:train], measured[:train])
        results[kind] = measures(model.predict(population[train:]), measured[train:])
        results[kind]["fit_s"] = time.perf_counter() - started
    shown = {
        "simulation": f"dpu-sim of {get_target(TARGET).title}; no board was measured",
        "energy_model": shipped_model(get_target(TARGET)).energy.source,  # type: ignore[union-attr]
        "space": space.spec,
        "train": train,
        "test": test,
        "noise_percent": 100 * noise,
        "mean_energy_mj": float(truth.mean()),
        "results": results,
    }
    print(json.dumps(shown, indent=2))


def measures(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> dict[str, float]:
    """RMSE in millijoules, MAPE in percent, Kendall's tau."""
    return {name: score(name, measured, predicted) for name in ("rmse", "mape", "kendall")}


if __name__ == "__main__":
    main()
