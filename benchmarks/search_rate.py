"""Distinct architectures evaluated a second in search on one core, beside the bare predictor's batch rate.

    OMP_NUM_THREADS=1 python benchmarks/search_rate.py [--repeats 5]

Both are timed in CPU seconds, in turns, so that other load on the machine touches neither more than the other. Needs
the reference data (HWNAS_REFERENCE_DATA).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hwnas.search import make_problem, solve

DATA = Path(os.environ.get("HWNAS_REFERENCE_DATA", "../shared/data")) / "ofa_imagenet"
SPACE = "ofa-mbv3:width=1.2,resolution=160/176/192/208/224"
BATCH = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{'budget':>9} {'bare /s':>9} {'search /s':>9} {'share':>6}")
    for budget in (20, 25, 30, 40):
        problem = make_problem(
            SPACE, f"ofa:{DATA / 'acc_predictor.pth'}", f"note10:{DATA / 'note10'}", max={"latency_ms": budget}
        )
        population = problem.space.sample(BATCH, 0)
        rates = []
        for seed in range(options.repeats):
            started = time.process_time()
            problem.accuracy.predict(population)
            middle = time.process_time()
            result, _ = solve(problem, seed=seed)
            rates.append((BATCH / (middle - started), result.evaluations / (time.process_time() - middle)))
        bare, search = np.median(rates, axis=0)
        print(f"{budget:6d} ms {bare:9.0f} {search:9.0f} {search / bare:6.0%}")


if __name__ == "__main__":
    main()
