"""How well latency on this CPU is predicted, beside the noise of measuring it.

Measures networks of a space (one thread, batch 1, ONNX Runtime), some of them twice, fits every model to some and
scores it on the others. Resumes where it was interrupted.

    python benchmarks/cpu_prediction.py --out runs/cpu_prediction
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from hwnas.predict import fit_predictor, read_measurements
from hwnas.predict.evaluation import noise_floor
from hwnas.profile import profile
from hwnas.profile.device import environment
from hwnas.spaces import get_space

MODELS = (
    *("flops", "sum", "linear1", "linear2", "ridge", "physical", "mlp", "lstm", "boosting", "gp", "residual"),
    "auto",
)
METRIC = "latency_ms"
SHOWN = ("rmse", "mape", "medape", "within_5", "within_10", "kendall")


def compare(run: Path, space: str, models: Sequence[str], test: int, seed: int) -> dict[str, dict[str, float]]:
    """Fit each of `models` to a run, all but `test` networks; prints and returns its scores on those."""
    print("model".ljust(14), *(name.rjust(10) for name in SHOWN))
    scores = {}
    for name in models:
        report = fit_predictor(run, space, METRIC, model=name, test=test, seed=seed)
        scores[name] = {key: math.nan if (found := report.metrics[key]) is None else found for key in SHOWN}
        print(name.ljust(14), *(f"{scores[name][key]:10.4f}" for key in SHOWN), flush=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="ofa-mbv3:width=1.0,resolution=160")
    parser.add_argument("--networks", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    run = profile(given.space, given.out, networks=given.networks, repeats=given.repeats, seed=given.seed)
    print(json.dumps(environment()))
    print(json.dumps(run.summary()))
    scores = compare(given.out, given.space, given.models, given.test, given.seed)
    best = min(score["mape"] for score in scores.values())
    noise = noise_floor(read_measurements(given.out, get_space(given.space), METRIC))
    if noise:
        print(
            f"noise floor (MAPE of one measurement as the truth of another, over sqrt 2): {noise.mape:.2f} %; "
            f"best model at {best / noise.mape:.2f} times the noise floor"
        )


if __name__ == "__main__":
    main()
