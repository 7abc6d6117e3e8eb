"""How many networks have to be measured to reach an accuracy: picked by `next_to_measure`, against random ones.

    python benchmarks/active_measuring.py --seeds 5 --out active.jsonl [--cell fbnet_gold_6240]

The networks are rows of tables that others measured, so that a measurement is a look-up. Both ways measure batch after
batch, each a fifth of what was measured before; after each batch the same Gaussian process is judged on 1,000 held-out
rows. Every draw is appended to `--out` as a JSON line and is not computed again. The tables are looked for in the
folder that HWNAS_REFERENCE_DATA names, default ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.predict import next_to_measure, progress_of, read_measurements
from hwnas.predict.active import KERNELS
from hwnas.predict.data import Measurements
from hwnas.predict.gp import GaussianProcess
from hwnas.predict.metrics import score
from hwnas.spaces import get_space

FOLDER = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
FIRST, GROWTH, MOST, HELD_OUT, POOL = 20, 0.2, 220, 1000, 1000
NEVER = 1000.0


@dataclass(frozen=True)
class Cell:
    """A table, and the MAPEs (percent) to reach."""

    table: str
    space: str
    metric: str
    aims: tuple[float, float]


CELLS = {
    "zcu102_latency": Cell("mnasnet_imagenet", "mnasnet", "latency_zcu102_ms", (2.0, 1.0)),
    "fbnet_gold_6240": Cell("fbnet_latency", "fbnet:variant=cifar", "gold_6240_ms", (2.5, 2.3)),
    "ofa_titan_xp_64": Cell("ofa_mbv3_latency", "ofa-mbv3:width=1.2", "titan_xp_64_ms", (2.2, 2.0)),
    "nb201_gold_6240": Cell("nb201", "nasbench201", "gold_6240_ms", (7.5, 7.2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, action="append", help="only this one (may be repeated)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("active.jsonl"))
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(row["cell"], row["way"], row["seed"]): row for row in map(json.loads, lines)}
    for name in options.cell or CELLS:
        for seed in range(options.seeds):
            for way in ("random", "picked"):
                if (name, way, seed) not in done:
                    row = done[name, way, seed] = _draw(name, way, seed)
                    with options.out.open("a") as handle:
                        handle.write(json.dumps(row) + "\n")
        for aim in CELLS[name].aims:
            print(_line(name, aim, [row for (cell, _, _), row in done.items() if cell == name]), flush=True)


def _draw(name: str, way: str, seed: int) -> dict[str, Any]:
    cell = CELLS[name]
    data = read_measurements(FOLDER / f"{cell.table}.parquet", get_space(cell.space), cell.metric)
    order = np.random.default_rng(seed).permutation(len(data))
    test, pool = data.rows(order[:HELD_OUT]), data.rows(order[HELD_OUT:])
    chosen = np.zeros(0, dtype=np.int64)
    curve: list[dict[str, Any]] = []
    while len(chosen) < MOST:
        number = max(int(GROWTH * len(chosen)), FIRST - len(chosen))
        picked = (
            _picked(pool, chosen, number, seed) if way == "picked" else np.arange(len(chosen), len(chosen) + number)
        )
        chosen = np.concatenate([chosen, picked])
        learnt = pool.rows(chosen)
        model = GaussianProcess(data.space, metric=cell.metric, kernels=KERNELS).fit(learnt.population, learnt.values)
        predicted = model.predict(test.population, extrapolate=True)
        told = progress_of(learnt, "mape").value if len(curve) % 4 == 0 else None
        curve.append({"n": len(chosen), "mape": score("mape", test.values, predicted), "told": told})
    return {"cell": name, "way": way, "seed": seed, "curve": curve}


def _picked(pool: Measurements, chosen: NDArray[np.int64], number: int, seed: int) -> NDArray[np.int64]:
    """Rows of `pool` to measure next."""
    free = np.random.default_rng([seed, len(chosen)]).permutation(np.setdiff1d(np.arange(len(pool)), chosen))[:POOL]
    row = {pool.population[i].tobytes(): i for i in free}
    picked = next_to_measure(
        pool.space,
        pool.metric,
        pool.population[chosen],
        pool.values[chosen],
        number,
        candidates=pool.population[free],
        seed=seed,
    )
    return np.array([row[genotype.tobytes()] for genotype in picked])


def _reached(curve: list[dict[str, Any]], aim: float) -> float:
    """Networks measured when the error first was `aim`, on the straight line between two batches."""
    for before, after in zip([None, *curve], curve, strict=False):
        if after["mape"] <= aim:
            if before is None:
                return float(after["n"])
            share = (before["mape"] - aim) / (before["mape"] - after["mape"])
            return float(before["n"] + share * (after["n"] - before["n"]))
    return NEVER


def _line(name: str, aim: float, draws: list[dict[str, Any]]) -> str:
    parts = []
    for way in ("random", "picked"):
        curves = [draw["curve"] for draw in draws if draw["way"] == way]
        reached = [_reached(curve, aim) for curve in curves]
        told = [abs(p["told"] / p["mape"] - 1) for curve in curves for p in curve if p["told"] is not None]
        most = "not reached" if max(reached) == NEVER else f"{max(reached):.0f}"
        parts.append(
            f"{way}: median {np.median(reached):.0f} [{min(reached):.0f}, {most}], "
            f"told MAPE off by {100 * np.median(told):.0f} % (median)"
        )
    return f"{name:16s} MAPE {aim:g} %  {'   '.join(parts)}   {len(draws) // 2} draws"


if __name__ == "__main__":
    main()
