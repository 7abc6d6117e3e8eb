"""How well latency on this CPU is predicted, beside the noise of measuring it.

Measures networks of a space (one thread, batch 1, ONNX Runtime), some of them twice, fits every model to some and
scores it on the others. Resumes where it was interrupted.

    python benchmarks/cpu_prediction.py --out runs/cpu_prediction
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hwnas.predict import fit_predictor
from hwnas.profile import profile
from hwnas.profile.device import environment

MODELS = (
    *("flops", "sum", "linear1", "linear2", "ridge", "physical", "mlp", "lstm", "boosting", "gp", "residual"),
    "auto",
)
SHOWN = ("rmse", "mape", "medape", "within_5", "within_10", "kendall")


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
    print("model".ljust(14), *(name.rjust(10) for name in SHOWN))
    best = float("inf")
    for name in given.models:
        report = fit_predictor(given.out, given.space, "latency_ms", model=name, test=given.test, seed=given.seed)
        print(name.ljust(14), *(f"{report.metrics[key]:10.4f}" for key in SHOWN), flush=True)
        best = min(best, report.metrics["mape"] or best)
    if report.noise:
        print(
            f"noise floor (MAPE of one measurement as the truth of another, over sqrt 2): {report.noise.mape:.2f} %; "
            f"best model at {best / report.noise.mape:.2f} times the noise floor"
        )


if __name__ == "__main__":
    main()
