"""How well a super-network ranks networks, and what a search with it is worth, on a CPU.

    python benchmarks/train_ofa_cpu.py --data ../shared/data --out runs/train_ofa_cpu

1. trains a narrow super-network on 10,000 CIFAR-10 images;
2. trains twelve of its networks, chosen evenly over size, alone with two seeds each: Kendall tau between the
   super-network's accuracy and theirs, beside the tau between the two seeds, the ceiling that any estimate can reach;
3. measures networks on this machine, searches under a latency budget, and trains the network found alone, beside random
   networks under the same budget.

What is finished is not done again when the same command is repeated, so it can run in pieces. Results:
`OUT/result.json`, with the CPU seconds of each part (of the call that finished it).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from hwnas.core.files import read_json, write_json
from hwnas.core.progress import say
from hwnas.predict import fit_predictor
from hwnas.profile import profile
from hwnas.search import cost_sources, search
from hwnas.search.reach import reachable
from hwnas.search.subnets import supernet_source
from hwnas.spaces import SearchSpace, get_space
from hwnas.train import DataConfig, NetworkConfig, SupernetConfig, train_network, train_supernet

SPACE = "ofa-mbv3:variant=cifar,width=0.25,resolution=8/16/24,num_classes=10"
METRIC = "latency_ms"
SEEDS = (1, 2)
MEASURED_NETWORKS = 60
SUB_NETWORKS = 80
NO_LIMIT_S = 1e6
BUDGET_AT = 0.35
RANDOM_NETWORKS = 5


class Bench:
    """The parts of the job; each writes its own file in `out` when it is done and is read from there afterwards."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out, self.space = options, options.out, get_space(options.space)
        self.data = DataConfig(
            name="parquet",
            path=options.data / "cifar10_train.parquet",
            test_path=options.data / "cifar10_test.parquet",
            train_limit=options.images,
            val_fraction=0.03,
        )
        self.settings = {k: str(v) for k, v in vars(options).items() if k not in ("out", "data", "threads")}
        if self.part("settings", lambda: self.settings) | self.settings != self.part("settings", dict):
            raise SystemExit(f"{self.out} holds parts of a run with other settings: choose another --out")

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` returns, with the CPU seconds it took in this process."""
        path = self.out / f"{name}.json"
        if not path.exists():
            say(f"{time.strftime('%H:%M')} part {name}")
            started = time.process_time()
            write_json(path, {**work(), "cpu_seconds": round(time.process_time() - started, 1)})
        return read_json(path, "part of the benchmark")

    def supernet(self) -> dict[str, Any]:
        config = SupernetConfig(
            space=self.space.spec,
            data=self.data,
            rule="sandwich",
            epochs=self.options.epochs,
            bounds_every=2,
            subnets=3,
            calibration_images=1000,
            seed=self.options.seed,
            threads=self.options.threads,
        )
        rows = spread(self.space, self.options.networks, self.options.seed)
        supernet = train_supernet(config, self.out / "supernet")
        return {
            "archs": [self.space.format(row) for row in rows],
            "macs_m": (self.space.macs(rows) / 1e6).tolist(),
            "accuracy": supernet.accuracy(rows, "test").tolist(),
        }

    def alone(self, arch: str, seed: int) -> dict[str, Any]:
        """Test accuracy of one network trained from scratch."""
        config = NetworkConfig(
            space=self.space.spec,
            arch=arch,
            data=self.data,
            epochs=self.options.alone_epochs,
            warmup_epochs=0.3,
            ema=0.99,
            seed=seed,
            threads=self.options.threads,
        )
        trained = train_network(config, self.out / "alone" / f"{_name(arch)}-seed{seed}")
        return {"arch": arch, "seed": seed, "accuracy": trained.accuracy["test"]}

    def all_alone(self, archs: list[str], seed: int) -> list[dict[str, Any]]:
        return [self.part(f"alone-{_name(arch)}-{seed}", partial(self.alone, arch, seed)) for arch in archs]

    def found(self) -> dict[str, Any]:
        """The winner of a search under a measured budget, and random architectures predicted to keep it."""
        run, model = self.out / "profile", self.out / "model"
        profile(self.space, run, networks=MEASURED_NETWORKS, repeats=12)
        fitted = fit_predictor(run, self.space, METRIC, model="linear2", out=model)
        costs = cost_sources([str(model)], self.space)
        least, most = reachable(costs[METRIC], self.space)
        budget = float(np.round(least + BUDGET_AT * (most - least), 4))
        accuracy = supernet_source(str(self.out / "supernet"), self.space, SUB_NETWORKS, NO_LIMIT_S)
        best = search(
            self.space,
            accuracy,
            costs,
            max={METRIC: budget},
            seed=self.options.seed,
            store=run / "samples.sqlite",
            out=self.out / "found",
        ).best
        pool = self.space.sample(2000, self.options.seed)
        random = pool[costs[METRIC].predict(pool) <= budget][:RANDOM_NETWORKS]
        return {
            "budget": budget,
            "reachable": [least, most],
            "predictor_mape": fitted.metrics["mape"],
            "best": best.to_json(),
            "random": [self.space.format(row) for row in random],
        }


def spread(space: SearchSpace, n: int, seed: int) -> np.ndarray:
    """`n` genotypes at even steps of the logarithm of MACs, from the smallest network to the largest."""
    rows = np.concatenate([space.sample(20_000, seed), [space.choices - 1, np.zeros_like(space.choices)]])
    rows = space.canonical(rows)
    macs = np.log(space.macs(rows))
    targets = np.linspace(macs.min(), macs.max(), n)
    return rows[[int(np.abs(macs - target).argmin()) for target in targets]]


def tau(estimate: np.ndarray, *truths: np.ndarray) -> float | None:
    """Mean Kendall tau of `estimate` with each of `truths`; None where all values of one are equal."""
    taus = [kendalltau(estimate, truth).statistic for truth in truths]
    return None if np.isnan(taus).any() else float(np.mean(taus))


def _name(arch: str) -> str:
    return hashlib.sha256(arch.encode()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=6, help="of the super-network")
    parser.add_argument("--alone-epochs", type=float, default=2)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    bench = Bench(parser.parse_args())
    shared = bench.part("supernet-accuracy", bench.supernet)
    alone = [bench.all_alone(shared["archs"], seed) for seed in SEEDS]
    values = np.array([[each["accuracy"] for each in runs] for runs in alone])
    found = bench.part("search", bench.found)
    winner = bench.all_alone([found["best"]["arch"]], SEEDS[0])[0]
    random = bench.all_alone(found["random"], SEEDS[0])
    result = {
        "settings": bench.settings,
        "macs_m": shared["macs_m"],
        "supernet": shared["accuracy"],
        "alone": values.tolist(),
        "tau": tau(np.array(shared["accuracy"]), *values),
        "tau_between_seeds": tau(*values),
        "tau_of_macs": tau(np.array(shared["macs_m"]), *values),
        "budget": found["budget"],
        "certificate": found["best"]["certificate"],
        "found_alone": winner["accuracy"],
        "random_alone": [each["accuracy"] for each in random],
        "random_median": float(np.median([each["accuracy"] for each in random])),
        "cpu_seconds": shared["cpu_seconds"]
        + found["cpu_seconds"]
        + sum(each["cpu_seconds"] for runs in [*alone, random, [winner]] for each in runs),
    }
    write_json(bench.out / "result.json", result)
    shown = ("tau", "tau_between_seeds", "tau_of_macs", "found_alone", "random_median", "cpu_seconds")
    say(json.dumps({key: result[key] for key in shown}))


if __name__ == "__main__":
    main()
