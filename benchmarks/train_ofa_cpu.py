"""How well a super-network ranks networks: Kendall tau between its accuracies and those of networks trained alone.

    python benchmarks/train_ofa_cpu.py --data ../shared/data --out runs/train_ofa_cpu

Trains a narrow super-network on 10,000 CIFAR-10 images, then twelve of its networks, chosen evenly over size, alone
with two seeds each. The tau between the two seeds is the ceiling that any estimate can reach. What is finished is not
done again when the same command is repeated. Results: `OUT/result.json`, with its settings.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from hwnas.core.files import write_json
from hwnas.core.progress import say
from hwnas.spaces import SearchSpace, get_space
from hwnas.train import DataConfig, NetworkConfig, SupernetConfig, train_network, train_supernet

SPACE = "ofa-mbv3:width=0.25,resolution=48,num_classes=10"


def spread(space: SearchSpace, n: int, seed: int) -> np.ndarray:
    """`n` genotypes at even steps of MACs, from the smallest network to the largest, shape (n, genes)."""
    rows = np.concatenate([space.sample(20_000, seed), [space.choices - 1, np.zeros_like(space.choices)]])
    rows = space.canonical(rows)
    macs = space.macs(rows)
    targets = np.linspace(macs.min(), macs.max(), n)
    return rows[[int(np.abs(macs - target).argmin()) for target in targets]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=12, help="of the super-network")
    parser.add_argument("--alone-epochs", type=float, default=5)
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    space = get_space(options.space)
    data = DataConfig(
        name="parquet",
        path=options.data / "cifar10_train.parquet",
        test_path=options.data / "cifar10_test.parquet",
        train_limit=options.images,
    )
    started = time.monotonic()
    settings = SupernetConfig(
        space=space.spec,
        data=data,
        rule="sandwich",
        epochs=options.epochs,
        bounds_every=2,
        subnets=3,
        seed=options.seed,
    )
    supernet = train_supernet(settings, options.out / "supernet")
    rows = spread(space, options.networks, options.seed)
    shared = supernet.accuracy(rows, "test")
    alone = np.array([[_alone(space, row, data, seed, options) for row in rows] for seed in (1, 2)])
    result = {
        "settings": {key: str(value) for key, value in vars(options).items()},
        "architectures": [space.format(row) for row in rows],
        "macs_m": (space.macs(rows) / 1e6).tolist(),
        "supernet": shared.tolist(),
        "alone": alone.tolist(),
        "tau": _tau(shared, *alone),
        "tau_between_seeds": _tau(*alone),
        "tau_of_macs": _tau(space.macs(rows), *alone),
        "seconds_of_this_call": time.monotonic() - started,
    }
    write_json(options.out / "result.json", result)
    say(json.dumps({key: result[key] for key in ("tau", "tau_between_seeds", "tau_of_macs")}))


def _tau(estimate: np.ndarray, *truths: np.ndarray) -> float | None:
    """Mean Kendall tau of `estimate` with each of `truths`; None where all values of one are equal."""
    taus = [kendalltau(estimate, truth).statistic for truth in truths]
    return None if np.isnan(taus).any() else float(np.mean(taus))


def _alone(space: SearchSpace, row: np.ndarray, data: DataConfig, seed: int, options: argparse.Namespace) -> float:
    """Test accuracy of one network trained from scratch."""
    arch = space.format(row)
    config = NetworkConfig(
        space=space.spec, arch=arch, data=data, epochs=options.alone_epochs, warmup_epochs=0.3, ema=0.99, seed=seed
    )
    size = f"{space.macs(row)[0] / 1e6:.2f}M"
    return train_network(config, options.out / "alone" / f"{size}-seed{seed}").accuracy["test"]


if __name__ == "__main__":
    main()
