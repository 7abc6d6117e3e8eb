"""How well two independent campaigns agree, and what a campaign costs beside the runs it times.

    python benchmarks/profile_repeatability.py [--space S] [--networks N] [--load spin|matmul|none] [--json]

Measures every primitive of a space (and N networks) twice, in two stores that know nothing of each other, while other
processes load all cores but one. Prints the relative difference of the medians, of subjects judged steady in both and
of all, and the overhead: wall time over the seconds inside recorded runs plus one compilation of each subject.
Aims: median 1.5 %, 90th percentile 5 %, overhead below 1.5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hwnas.profile import Measurement, Run, Settings, Subject, profile
from hwnas.profile.device import environment, usable_cores
from hwnas.profile.history import History
from hwnas.profile.store import Store

LOADS = {
    "spin": "while True: pass",
    "matmul": "import numpy\na = numpy.ones((400, 400), 'f')\nwhile True: a @ a",
    "none": "",
}


@contextmanager
def busy(kind: str) -> Iterator[None]:
    """Keep all cores but one busy, with one thread each."""
    command = ["env", "OPENBLAS_NUM_THREADS=1", sys.executable, "-c", LOADS[kind]]
    workers = [subprocess.Popen(command) for _ in usable_cores()[1:]] if LOADS[kind] else []
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def campaign(space: str, folder: Path, networks: int, threads: int) -> tuple[dict[Subject, Measurement], float]:
    """One campaign: its measurements and its overhead."""
    start = time.perf_counter()
    run = profile(space, folder, networks=networks, settings=Settings(threads=threads))
    wall_s = time.perf_counter() - start
    return measured(run), wall_s / work(run)


def subjects(run: Run) -> list[Subject]:
    return [subject for request in run.requests for subject in (*request.primitives(), *request.sampled())]


def measured(run: Run) -> dict[Subject, Measurement]:
    with Store(run.store, read_only=True) as store:
        return History(store, run.target).measurements(subjects(run), goal=run.goal)


def work(run: Run) -> float:
    """Seconds inside recorded runs plus one compilation of each subject."""
    with Store(run.store, read_only=True) as store:
        history = History(store, run.target)
        timed = sum(block.spent_s for blocks in history.blocks.values() for block in blocks)
        return timed + sum(store.compile_seconds(history.target).values())


def compare(
    first: dict[Subject, Measurement], second: dict[Subject, Measurement], kind: str
) -> dict[str, dict[str, float]]:
    """How far the two results for a subject lie apart, in %: of those judged steady in both, and of all."""
    pairs = [(first[s], second[s]) for s in first if s.kind == kind]
    return {"steady": apart([pair for pair in pairs if all(m.verdict == "steady" for m in pair)]), "all": apart(pairs)}


def apart(pairs: list[tuple[Measurement, Measurement]]) -> dict[str, float]:
    if not pairs:
        return {"subjects": 0}
    (median, p90, most), (raw_median, raw_p90, _) = (
        np.quantile(100 * np.abs(a - b) / ((a + b) / 2), (0.5, 0.9, 1.0)).round(2).tolist()
        for a, b in (
            np.array([[getattr(m, name) for m in pair] for pair in pairs]).T for name in ("median", "observed")
        )
    )
    return {
        "subjects": len(pairs),
        "median_percent": median,
        "p90_percent": p90,
        "max_percent": most,
        "uncorrected_median_percent": raw_median,
        "uncorrected_p90_percent": raw_p90,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="ofa-mbv3:width=1.0,resolution=160")
    parser.add_argument("--networks", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", choices=sorted(LOADS), default="spin")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, busy(options.load):
        results = [campaign(options.space, Path(folder) / name, options.networks, options.threads) for name in "ab"]
    (first, overhead_a), (second, overhead_b) = results
    report = {
        "space": options.space,
        "load": options.load,
        "threads": options.threads,
        **{
            kind: compare(first, second, kind)
            for kind in ("primitive", "network")
            if any(s.kind == kind for s in first)
        },
        "overhead": [round(overhead_a, 2), round(overhead_b, 2)],
        "environment": environment(),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for kind in filter(report.__contains__, ("primitive", "network")):
        for which, found in report[kind].items():
            print(kind, which, *(f"{name}={value}" for name, value in found.items()))
    print("overhead", *report["overhead"])


if __name__ == "__main__":
    main()
