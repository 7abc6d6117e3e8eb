"""How well `dpu-sim` predicts real boards, fitted on some measurements and scored on others.

    python benchmarks/fpga_latency.py [--seeds 20] [--ship]

Reads the reference data (HWNAS_REFERENCE_DATA, default ../shared/data). With --ship, also writes the coefficients
that the project ships, fitted on the openly licensed measurements alone: latency on Accel-NASBench's ZCU102 networks,
energy on multi_dpu's ZCU102 logs.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import kendalltau

from hwnas.fpga import get_target
from hwnas.fpga.calibration import calibrate_networks, fit
from hwnas.fpga.demand import block_demand, column, network_demand
from hwnas.fpga.model import LATENCY_TERMS, MOVED, DpuModel, EnergyModel
from hwnas.fpga.targets import DpuTarget
from hwnas.parse import parse
from hwnas.spaces import Primitive, get_space

DATA = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
SHIPPED = Path(__file__).parents[1] / "fpga" / "coefficients"


def scores(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    """Mean absolute percentage error and Kendall's tau."""
    return 100 * float(np.mean(np.abs(predicted / measured - 1))), float(kendalltau(predicted, measured)[0])


def evaluate(
    demand: NDArray[np.float64], latency: NDArray[np.float64], target: DpuTarget, train: int, seeds: int
) -> dict[str, float]:
    """Fit on `train` random rows, score the others, for each seed."""
    results = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(latency))
        model = fit(demand[order[:train]], latency[order[:train]], target)
        rest = order[train:]
        results.append(scores(model.latency_ms(demand[rest], target), latency[rest]))
    mape, tau = np.array(results).T
    return {
        "train": train,
        "test": len(latency) - train,
        "seeds": seeds,
        "mape_mean": float(mape.mean()),
        "mape_p95": float(np.quantile(mape, 0.95)),
        "mape_max": float(mape.max()),
        "kendall_mean": float(tau.mean()),
        "kendall_min": float(tau.min()),
    }


def ultra96(seeds: int) -> list[dict[str, float]]:
    """Half of the blocks against the other half, and how well the bytes moved agree with those that vaitrace states."""
    target = get_target("ultra96-b2304")
    report = parse([DATA / "vaitrace_ultra96"])
    entries = [entry for entry in report.entries if entry.primitive]
    demand = block_demand([Primitive.from_key(str(e.primitive)) for e in entries], target)
    latency = np.array([e.record.costs["latency_ms"].value for e in entries])
    stated = np.array([e.record.details["ddr_mib"] for e in entries]) * 2**20
    off = np.abs(column(demand, MOVED).sum(axis=1) / stated - 1)
    print(f"bytes moved, {len(off)} blocks: median error {100 * np.median(off):.1f} %, largest {100 * off.max():.0f} %")
    return [evaluate(demand, latency, target, len(latency) // 2, seeds)]


def zcu102(seeds: int, ship: bool) -> list[dict[str, float]]:
    """50 and 300 networks against all others."""
    target, space = get_target("zcu102-b4096"), get_space("mnasnet")
    table = pq.read_table(DATA / "mnasnet_imagenet.parquet", columns=["arch", "latency_zcu102_ms"])
    latency = np.array(table["latency_zcu102_ms"], dtype=np.float64)
    known = np.isfinite(latency)
    population, latency = space.parse_many(table["arch"].to_pylist())[known], latency[known]
    demand = network_demand(space, population, target)
    results = [evaluate(demand, latency, target, train, seeds) for train in (50, 300)]
    if ship:
        source = "Accel-NASBench (Apache-2.0), ZCU102, 4,000 networks of MnasNet's space"
        model = calibrate_networks(space, population, latency, target, source)
        provenance = {**model.provenance, "held_out": results}
        own, small = zcu102_energy()
        DpuModel(model.coefficients, own, provenance).save(SHIPPED / "zcu102-b4096.json")
        transferred = {**provenance, "note": "transferred from the ZCU102's B4096; no measurement of this DPU"}
        DpuModel(model.coefficients, small, transferred).save(SHIPPED / "zcu102-b1024.json")
        DpuModel(model.coefficients, None, transferred).save(SHIPPED / "default.json")
    return results


RUNS = {
    "MobileNet": ("CIFAR10_mobilenet", "ARCH{size}"),
    "VGG-16": ("CIFAR10_vgg16", "ARCH{size}"),
    "ResNet-50": ("CIFAR100_ResNet50", "ARCH{size}"),
    "U-Net": ("unet_cityscapes64", "arch{size}"),
}
LANES = {1024: 512, 4096: 2048}
CLOCK_HZ = 287e6


def _seconds(name: str) -> float:
    start, end = map(float, (DATA / "zcu102_power" / f"{name}.csv.time").read_text().splitlines()[1].split(";"))
    return end - start


def zcu102_energy() -> tuple[EnergyModel, EnergyModel]:
    """Energy coefficients of the B4096 and the B1024.

    The logs do not say how many images ran. The work follows from the run times: on two DPUs of L1 and L2
    multipliers at one clock the same work takes (work / clock) * (1 / L1 - 1 / L2) seconds longer on the smaller.
    That counts multiplier slots, idle ones included, so that the energy of a multiply-accumulate is a lower bound.
    Energy above idle = e * work + host * seconds, by least squares of the relative error over both DPUs' runs; idle
    power plus host power is the static power. Bytes moved cannot be told apart from these logs: 0.
    """
    report = parse([DATA / "zcu102_power"], keep_going=True)
    details = {entry.record.subject: entry.record.details for entry in report.entries}
    rows, above = [], []
    idle: dict[int, list[float]] = {}
    for name, (suffix, prefix) in RUNS.items():
        names = {size: f"{prefix.format(size=size)}_{suffix}" for size in LANES}
        seconds = {size: _seconds(names[size]) for size in LANES}
        slots = CLOCK_HZ * (seconds[1024] - seconds[4096]) / (1 / LANES[1024] - 1 / LANES[4096])
        for size in LANES:
            run = details.get(names[size])
            if run is None:
                print(f"energy: {name} on B{size} left out (its log is refused)")
                continue
            rows.append([slots / 1e9, seconds[size]])
            above.append(run["run_energy_above_idle_mj"])
            idle.setdefault(size, []).append(run["idle_power_mw"])
    terms, energies = np.array(rows), np.array(above)
    solution, *_ = np.linalg.lstsq(terms / energies[:, None], np.ones(len(energies)), rcond=None)
    error = 100 * np.mean(np.abs(terms @ solution / energies - 1))
    print(f"energy above idle, {len(energies)} runs: {solution[0]:.1f} pJ, {solution[1]:.0f} mW, error {error:.0f} %")
    models = []
    for size in (4096, 1024):
        static = float(np.median(idle[size]) + max(solution[1], 0))
        source = (
            f"multi_dpu (Apache-2.0), ZCU102 B{size}: idle power measured, dynamic energy from {len(energies)} runs on "
            f"B1024 and B4096, {error:.0f} % mean error of the energy above idle; work inferred from run times, "
            "bytes not told apart"
        )
        models.append(EnergyModel(static, float(solution[0]), 0.0, source))
    return models[0], models[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    print("terms:", ", ".join(LATENCY_TERMS))
    results = {"ultra96": ultra96(options.seeds), "zcu102": zcu102(options.seeds, options.ship)}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
