"""TVM against ONNX Runtime by number of MetaSchedule trials: python benchmarks/tvm_trials.py [--trials 0,8,32,64]

For some MobileNetV3 blocks: each is compiled once untuned and once for every number of trials a kernel, then all of
them and ONNX Runtime are timed in turns by the same stopwatch, round after round, so that what else the machine does
meets all alike. `kernels` is the sum of what the tuner measured of the kernels alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from hwnas.profile.backends import Settings, backends
from hwnas.profile.backends.tvm import Tvm
from hwnas.profile.subject import Subject
from hwnas.profile.timer import Stopwatch, warm_up
from hwnas.spaces import get_space

SPACE = "ofa-mbv3:width=1.0,resolution=224"
BLOCKS = (40, 100)
ROUNDS, RUNS = 15, 20
MS = 1e6


def timed(watches: dict[str, Stopwatch]) -> dict[str, float]:
    """The median over rounds of the median of a few runs, in ms."""
    found: dict[str, list[float]] = {name: [] for name in watches}
    for _ in range(ROUNDS):
        for name, once in watches.items():
            warm_up(once, 1.0)
            found[name].append(statistics.median(once() for _ in range(RUNS)) / MS)
    return {name: statistics.median(values) for name, values in found.items()}


def kernels_ms(target: Any, subject: Subject, settings: Settings) -> float:
    """The sum of the tuner's own times of the best schedule of each kernel, from the records that are there by now."""
    import onnx
    from tvm.s_tir import meta_schedule

    from hwnas.profile.backends.tvm import fused
    from hwnas.profile.tvm_tuning import here, records

    module = fused(onnx.load_from_string(subject.to_onnx(1)), target)
    known = records(module, target, settings, here(target, "cpu"), lambda: None)
    tasks = meta_schedule.relax_integration.extract_tasks(module, target)
    best = [known.query_tuning_record(task.dispatched[0], target, "main").run_secs for task in tasks]
    return 1e3 * sum(statistics.median(map(float, seconds)) for seconds in best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="0,8,32,64", help="schedules a kernel, increasing")
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)), help=f"which primitives of {SPACE}")
    parser.add_argument("--records", type=Path, help="keep the tuning records here (or use those that are here)")
    asked = parser.parse_args()
    primitives = [p for p in get_space(SPACE).primitives() if p.kind == "mbconv"]
    print("| block | trials a kernel | tuning s | TVM ms | kernels ms | ONNX Runtime ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for index in map(int, asked.blocks.split(",")):
            subject = Subject.primitive(primitives[index])
            report(subject, [int(number) for number in asked.trials.split(",")], asked.records or Path(folder))


def report(subject: Subject, trials: list[int], records: Path) -> None:
    """The rows of one block."""
    reference = backends.get("onnxruntime")(Settings())
    watches = {"onnxruntime": reference.stopwatch(reference.compile(subject))}
    seconds, kernels = {}, {}
    for number in trials:
        settings = Settings(trials=number, records=str(records))
        backend = Tvm(settings)
        start = time.perf_counter()
        watches[str(number)] = backend.stopwatch(backend.compile(subject))
        seconds[number] = time.perf_counter() - start
        kernels[number] = f"{kernels_ms(backend.target, subject, settings):.3f}" if number else "-"
    found = timed(watches)
    for number in trials:
        ratio = found[str(number)] / found["onnxruntime"]
        print(
            f"| {subject.name} | {number} | {seconds[number]:.0f} | {found[str(number)]:.3f} | {kernels[number]} | "
            f"{found['onnxruntime']:.3f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
