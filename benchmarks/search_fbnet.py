"""FBNet with a target: the measured latency of the networks found, beside three targets, on a CPU.

    python benchmarks/search_fbnet.py --data ../shared/data --out runs/search_fbnet

Measures the blocks and some networks of a narrow form of `fbnet` on this machine, fits a latency model, and for each of
three targets trains the super-network once on CIFAR-10 images and measures what it finds. What is finished is not done
again when the same command is repeated. Results: `OUT/result.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hwnas.core.files import write_json
from hwnas.core.progress import say
from hwnas.predict import fit_predictor
from hwnas.predict.store import read_document
from hwnas.profile import profile
from hwnas.search import Result, cost_sources, one_shot_search
from hwnas.search.reach import reachable
from hwnas.spaces import get_space
from hwnas.train import DataConfig, OneShotConfig

SPACE = "fbnet:variant=cifar,width=0.25,resolution=16,num_classes=10,head=256"
METRIC = "latency_ms"
TARGETS = (0.3, 0.5, 0.7)
"""Where the targets lie between the least and the most that the space reaches."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    space, run, model = get_space(options.space), options.out / "profile", options.out / "model"
    if not model.exists():  # once: the certificates that join the store change a little of what is known of the machine
        profile(space, run, networks=options.networks, repeats=12)
        fit_predictor(run, space, METRIC, model="linear2", out=model)
    mape = read_document(model)["scores"]["metrics"]["mape"]
    say(f"linear2: cross-validated MAPE {mape:.2f} %")
    least, most = reachable(cost_sources([str(model)], space)[METRIC], space)
    found = []
    for number, part in enumerate(TARGETS):
        target = float(np.round(least + part * (most - least), 4))
        folder = options.out / f"target-{number}"
        started = time.process_time()
        if (folder / "search.json").exists():
            best = Result.load(folder).best
            target = dict(best.certificate or {})["budget"]
        else:
            config = configuration(options, number)
            best = one_shot_search(
                config, [str(model)], max={METRIC: target}, out=folder, store=run / "samples.sqlite"
            ).best
        certificate = best.certificate or {}
        measured = certificate.get("measured") or float("nan")
        found.append(
            {
                "target": target,
                "share": measured / target,
                "cpu_seconds": time.process_time() - started,
                **best.to_json(),
            }
        )
        predicted = best.costs[METRIC]
        say(f"target {target:g} ms: predicted {predicted:.4f}, measured {measured:.4f}, {measured / target:.1%}")
    settings = {key: str(value) for key, value in vars(options).items()}
    result = {"settings": settings, "mape": mape, "reachable": [least, most], "found": found}
    write_json(options.out / "result.json", result)
    say(json.dumps([round(each["share"], 4) for each in found]))


def configuration(options: argparse.Namespace, number: int) -> OneShotConfig:
    data = DataConfig(
        name="parquet",
        path=options.data / "cifar10_train.parquet",
        test_path=options.data / "cifar10_test.parquet",
        train_limit=options.images,
        val_fraction=0.02,
    )
    return OneShotConfig(
        space=options.space,
        data=data,
        epochs=options.epochs,
        batch=32,
        learning_rate=0.06,
        arch_learning_rate=0.1,
        calibration_images=500,
        threads=options.threads,
        seed=options.seed + number,
    )


if __name__ == "__main__":
    main()
