"""How good the predictors are on tables that others measured: a row a cell, several draws, median and spread.

    python benchmarks/predict_bars.py --seeds 5 --out bars.jsonl [--cell zcu102_latency] [--model auto]

Every draw is appended to `--out` as a JSON line and is not computed again, so that a run can be stopped and resumed.
The tables are looked for in the folder that HWNAS_REFERENCE_DATA names, default ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.columns import column_names
from hwnas.predict import fit_predictor, read_measurements
from hwnas.predict.auto import choose, fit_named
from hwnas.predict.base import predictors
from hwnas.predict.evaluation import judge, split, test_metrics
from hwnas.predict.intervals import Calibration
from hwnas.predict.metrics import interval_score
from hwnas.spaces import get_space

FOLDER = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data"))
WHOLE_MILLISECONDS = ("essential_ph_1_ms", "pixel2_ms", "pixel3_ms", "samsung_a50_ms", "samsung_s7_ms")


@dataclass(frozen=True)
class Cell:
    """One row of the table of aims: what is learnt, from how many rows, and the aim for each number."""

    table: str
    space: str
    metric: str
    score: str
    aims: dict[int, float]
    transfer: bool = False


CELLS = {
    "zcu102_latency": Cell("mnasnet_imagenet", "mnasnet", "latency_zcu102_ms", "mape", {300: 0.5, 3000: 0.25}),
    "vck190_throughput": Cell("mnasnet_imagenet", "mnasnet", "throughput_vck190_ips", "mape", {1000: 1.6, 3000: 1.35}),
    "fbnet_gold_6240": Cell("fbnet_latency", "fbnet:variant=cifar", "gold_6240_ms", "mape", {300: 2.3, 1000: 2.05}),
    "fbnet_1080ti_64": Cell("fbnet_latency", "fbnet:variant=cifar", "1080ti_64_ms", "mape", {1000: 0.91}),
    "ofa_titan_xp_64": Cell("ofa_mbv3_latency", "ofa-mbv3:width=1.2", "titan_xp_64_ms", "mape", {100: 2.2, 1000: 1.5}),
    "a100_throughput": Cell("mnasnet_imagenet", "mnasnet", "throughput_a100_ips", "mape", {300: 0.4, 1000: 0.2}),
    "ofa_2080ti_1": Cell("ofa_mbv3_latency", "ofa-mbv3:width=1.2", "2080ti_1_ms", "medape", {3000: 4.0}),
    "pi5_energy": Cell("nb201_pi5_energy", "nasbench201", "pi5_torchmobile_cifar100_mj", "mape", {1000: 5.8}),
    "mnasnet_top1": Cell(
        "mnasnet_imagenet", "mnasnet", "val_top1_acc", "kendall", {300: 0.905, 1000: 0.922, 3500: 0.930}
    ),
    "ofa_accuracy": Cell("ofa_mbv3_imagenet_acc", "ofa-mbv3", "top1_acc", "kendall", {500: 0.91}),
    "nb201_transfer": Cell("nb201", "nasbench201", "*_ms", "spearman", {10: 0.955}, transfer=True),
    "fbnet_transfer": Cell("fbnet_latency", "fbnet:variant=cifar", "*_ms", "spearman", {20: 0.95}, transfer=True),
}
REPORTED = ("mape", "medape", "rmse", "kendall", "spearman", "coverage_90", "interval_score_90")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, action="append", help="only this one (may be repeated)")
    parser.add_argument("--rows", type=int, help="only this number of rows to train")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--test", type=int, default=500, help="held-out rows of each draw")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--out", type=Path, default=Path("predict_bars.jsonl"))
    options = parser.parse_args()
    done = _read(options.out)
    for name in options.cell or CELLS:
        for rows, aim in CELLS[name].aims.items():
            if options.rows in (None, rows):
                draws = [_draw(name, rows, seed, options, done) for seed in range(options.seeds)]
                print(_line(name, rows, aim, draws, options.model), flush=True)


def _read(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["cell"], row["rows"], row["seed"], row["model"], row["test"]): row for row in rows}


def _draw(
    name: str, rows: int, seed: int, options: argparse.Namespace, done: dict[tuple[Any, ...], dict[str, Any]]
) -> dict[str, Any]:
    key = (name, rows, seed, options.model, options.test)
    if key in done:
        return done[key]
    start, cpu = time.perf_counter(), time.process_time()
    made = (_transfer if CELLS[name].transfer else _fit)(CELLS[name], rows, seed, options)
    row = dict(zip(("cell", "rows", "seed", "model", "test"), key, strict=True))
    row |= {"seconds": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1), **made}
    with options.out.open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    return row


def _fit(cell: Cell, rows: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """As `fit_predictor` does; besides, the interval score that a constant width would have."""
    data = read_measurements(FOLDER / f"{cell.table}.parquet", get_space(cell.space), cell.metric)
    learnt, held_out = split(data, rows, options.test, seed)
    assert held_out is not None
    auto = options.model == "auto"
    made = choose(learnt, None, cell.score, seed) if auto else fit_named(learnt, options.model, None)
    metrics, predicted = test_metrics(made.model, held_out), made.model.predict(held_out.population, extrapolate=True)
    constant = Calibration.of(learnt.values, made.predicted, powers=()).interval(predicted, 0.9)
    ridge = judge(predictors.get("ridge")(data.space, metric=cell.metric), learnt, held_out)
    return {
        "chosen": [f"{row['weight']:g} {row['model']}" for row in made.compared if row["weight"]],
        **{name: metrics[name] for name in REPORTED},
        "constant_score_90": interval_score(held_out.values, *constant),
        "ridge": ridge[cell.score],
    }


def _transfer(cell: Cell, rows: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Each device in turn is new, and the other columns of the table are the devices known."""
    path = FOLDER / f"{cell.table}.parquet"
    devices = [c for c in column_names(path) if c.endswith("_ms") and c not in WHOLE_MILLISECONDS]
    found = {}
    for device in devices:
        report = fit_predictor(
            path, cell.space, device, train=rows, test=2000, seed=seed, transfer_from=[path], score=cell.score
        )
        found[device] = {name: report.metrics[name] for name in REPORTED}
    means = {name: float(np.mean([metrics[name] for metrics in found.values()])) for name in REPORTED}
    return {"chosen": ["transfer"], **means, "devices": {d: m["spearman"] for d, m in found.items()}}


def _line(name: str, rows: int, aim: float, draws: list[dict[str, Any]], model: str) -> str:
    score = CELLS[name].score
    values = np.array([draw[score] for draw in draws])
    coverage = np.mean([draw["coverage_90"] for draw in draws])
    ratio = np.mean([draw["interval_score_90"] / draw.get("constant_score_90", np.nan) for draw in draws])
    met = np.median(values) >= aim if score in ("kendall", "spearman") else np.median(values) <= aim
    return (
        f"{name:18s} {rows:5d} {score:8s} median {np.median(values):.4f} [{values.min():.4f}, {values.max():.4f}] "
        f"aim {aim:g} {'met' if met else 'missed'}  coverage {coverage:.3f}  "
        f"score to constant width's {ratio:.3f}  "
        f"{np.median([draw.get('cpu', np.nan) for draw in draws]):.0f} s CPU  {model}, {len(draws)} draws"
    )


if __name__ == "__main__":
    main()
