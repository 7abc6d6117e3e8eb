"""The seed paper's latency experiment (aw_nas, arXiv 2012.10388, figure 4): predict whole networks of `ofa-mbv2`.

    python benchmarks/seed_figure4.py --quick --out runs/seed_figure4
    python benchmarks/seed_figure4.py --device gpu --runtime torch --graphs --out runs/seed_figure4_gpu

Measures every block alone, 2,000 networks to train and 1,000 to test (--quick: 300 and 150), some of them twice. Naive
addition sums the blocks' latencies; the others learn from the training networks. The paper's rMSE on its GPU went from
0.63 by naive addition to 0.174. Repeat the command to go on where it was interrupted. Results: `OUT/result.json`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from cpu_prediction import compare

from hwnas.core.files import write_json
from hwnas.profile import Effort, Run, Settings, profile
from hwnas.profile.device import environment

NAIVE = "sum"
MODELS = (NAIVE, "linear1", "linear2", "mlp", "lstm", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 networks to train, 150 to test")
    parser.add_argument("--space", default="ofa-mbv2:resolution=224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--graphs", action="store_true", help="replay CUDA graphs")
    parser.add_argument("--cache", default="warm")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--networks", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="as many, not those of --quick"
    )
    parser.add_argument(
        "--chunk", type=int, default=Effort.chunk, help="networks loaded at once; few, if slow to compile"
    )
    parser.add_argument("--measure-only", action="store_true", help="fit nothing; a later call does")
    parser.add_argument("--fit-only", action="store_true", help="measure nothing; an earlier call did, on any machine")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    if given.fit_only:
        run = Run.load(given.out)
    else:
        run = measured(given)
        print(json.dumps({"environment": environment(settings_of(given)), **run.summary()}))
    if given.measure_only:
        return
    train, test, _ = sizes(given)
    scores = compare(given.out, run.requests[0].space, MODELS, test, given.seed)
    noise = run.noise()
    floor = noise.rmse_ms / math.sqrt(2) if noise else math.nan
    naive, best = scores[NAIVE]["rmse"], min(scores[name]["rmse"] for name in MODELS)
    print(f"noise floor: RMSE {floor:.4f} ms, the error of a perfect model judged by single measurements")
    print(f"best model: {naive / best:.1f} times better than naive addition, {best / floor:.2f} times the noise floor")
    write_json(
        given.out / "result.json",
        {
            "target": run.target.to_json(),
            "train": train,
            "test": test,
            "scores": scores,
            "noise_rmse_ms": floor if noise else None,
            "times_better": naive / best,
            **run.summary(),
        },
    )


def sizes(given: argparse.Namespace) -> tuple[int, int, int]:
    """Networks to train, to test, and measured twice."""
    if given.networks:
        return given.networks[0], given.networks[1], given.networks[1] // 3
    return (300, 150, 50) if given.quick else (2000, 1000, 150)


def settings_of(given: argparse.Namespace) -> Settings:
    return Settings(given.device, given.precision, given.batch, given.threads, given.cache, given.graphs)


def measured(given: argparse.Namespace) -> Run:
    train, test, repeats = sizes(given)
    return profile(
        given.space,
        given.out,
        runtime=given.runtime,
        settings=settings_of(given),
        networks=train + test,
        repeats=repeats,
        seed=given.seed,
        effort=Effort(chunk=given.chunk),
    )


if __name__ == "__main__":
    main()
