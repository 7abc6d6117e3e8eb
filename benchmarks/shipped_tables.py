"""Measure the latency tables that ship in assets/latency_tables: five spaces, each runtime, one and two threads.

    python benchmarks/shipped_tables.py --device-name xeon-2core --work DIR [--runtime onnxruntime --runtime torch]
        [--threads 1 --threads 2] [--space SPEC ...] [--device cpu] [--trials 16]

Run folders stay in DIR, so that the same command goes on where an interrupted one stopped; a table is copied when its
run is whole. Files are named DEVICE_RUNTIME_PRECISION_bBATCH_tTHREADS_SPACE.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from hwnas.profile import Effort, Run, Settings, profile
from hwnas.spaces import get_space

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "latency_tables"
SPACES = {
    "ofa-mbv2-w1.0-r160": "ofa-mbv2:width=1.0,resolution=160",
    "ofa-mbv3-w1.0-r160": "ofa-mbv3:width=1.0,resolution=160",
    "fbnet": "fbnet",
    "mnasnet": "mnasnet",
    "nasbench201": "nasbench201",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device-name", required=True, help="how the files call this machine, such as xeon-2core")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runtime", action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--space", choices=list(SPACES), action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trials", type=int, default=0, help="schedules to try for each kernel (TVM)")
    options = parser.parse_args()
    for runtime in options.runtime or ["onnxruntime", "torch"]:
        for threads in options.threads or [1, 2]:
            for name in options.space or SPACES:
                settings = Settings(options.device, threads=threads, trials=options.trials)
                tuned = f"_{options.trials}-trials" if options.trials else ""
                work = options.work / f"{runtime}_{options.device}_t{threads}{tuned}_{name}"
                run = profile(get_space(SPACES[name]), work, runtime=runtime, settings=settings, effort=Effort())
                print(ship(run, options.device_name, name), flush=True)


def ship(run: Run, device: str, space: str) -> str:
    """Copy the run's table to the assets; returns what it holds in a line."""
    target = run.target
    tuned = "-tuned" if target.tuned else ""
    name = (
        f"{device}_{target.runtime}-{target.runtime_version}{tuned}_{target.precision}"
        f"_b{target.batch}_t{target.threads}_{space}"
    )
    for suffix in ("csv", "json"):
        shutil.copyfile(run.folder / f"table.{suffix}", ASSETS / f"{name}.{suffix}")
    summary = run.summary()
    return f"{name}: {summary['primitives']} primitives, {summary['steady']} steady, {summary['noisy']} noisy"


if __name__ == "__main__":
    main()
