"""What a step of progressive shrinking with four sub-networks takes, beside a plain step of the largest network.

    python benchmarks/train_step.py [--device cuda --batch 256 --precision bf16 --space SPEC] [--steps 30]

Steps of both kinds are taken in turns on the same images (scikit-learn's digits, enlarged); a line gives the images a
second of each and the ratio of their medians. The aim on a GPU is a ratio below 3.5.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hwnas.core.documents import SUPERNET
from hwnas.core.threads import torch_threads
from hwnas.spaces import get_space
from hwnas.train import DataConfig, SupernetConfig
from hwnas.train.elastic import ElasticNetwork
from hwnas.train.evaluate import Evaluator
from hwnas.train.loop import Run
from hwnas.train.ofa import ElasticPhase, once_for_all
from hwnas.train.supernet import open_data

SUBNETS = 4
LEARNING_RATE = 1e-4
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="ofa-mbv3:variant=cifar,width=1.0,num_classes=10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    config = SupernetConfig(
        space=given.space,
        data=DataConfig(name="digits"),
        batch=given.batch,
        precision=given.precision,
        device=given.device,
        threads=given.threads,
    )
    with tempfile.TemporaryDirectory() as folder, torch_threads(config.threads):
        plain, shrinking = stepper(config, Path(folder))
        seconds = np.array([(plain(step), shrinking(step)) for step in range(WARM_UP + given.steps)])[WARM_UP:]
    median, low, high = (np.percentile(seconds, q, axis=0) for q in (50, 25, 75))
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name()
                if torch.cuda.is_available() and given.device != "cpu"
                else "cpu",
                "batch": config.batch,
                "precision": config.precision,
                "space": config.space,
                "steps": given.steps,
                "plain_images_s": config.batch / median[0],
                "shrinking_images_s": config.batch / median[1],
                "quartiles_ms": [[1e3 * low[i], 1e3 * high[i]] for i in (0, 1)],
                "ratio": median[1] / median[0],
            }
        )
    )


def stepper(config: SupernetConfig, folder: Path) -> tuple[Callable[[int], float], ...]:
    """What takes one step of the largest network alone, and one of four sub-networks with its teacher; both give the
    seconds that took."""
    space = get_space(config.space)
    data, network = open_data(space, config), ElasticNetwork(space, config.seed)
    run = Run.begin(folder, SUPERNET, config, data, network)
    phases = once_for_all(run, network, config, Evaluator(data, config.calibration_images, config.seed, run.device))
    elastic = [phase for phase in phases if isinstance(phase, ElasticPhase)]
    optimizer = run._optimizer({})

    def timed(phase: ElasticPhase) -> Callable[[int], float]:
        def step(number: int) -> float:
            wait(run.device)
            started = time.perf_counter()
            run._step(phase, number, optimizer, LEARNING_RATE)
            wait(run.device)
            return time.perf_counter() - started

        return step

    last = [phase for phase in elastic if phase.stage.subnets == SUBNETS][-1]
    return timed(elastic[0]), timed(last)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
