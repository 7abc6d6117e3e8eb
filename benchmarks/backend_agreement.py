"""Each backend's latency against its runtime's own tool: python benchmarks/backend_agreement.py [--runtime NAME ...]

The same compiled model is timed in turns by hwnas's stopwatch and by the tool: ONNX Runtime's profiler (its `model_run`
events; in a second session, since profiling is chosen when a session is made), TVM's time evaluator, and
`torch.utils.benchmark.Timer`. Rounds in which this process had to wait for a processor are left out, since the tools
count that wait and hwnas does not. Printed is the difference of the medians over the rounds, ours against theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hwnas.profile.backends import Backend, Settings, backends
from hwnas.profile.subject import Subject
from hwnas.profile.timer import queue_wait
from hwnas.spaces import get_space

SPACE = "ofa-mbv3:width=1.0,resolution=224"
PRIMITIVES, NETWORKS = (1, 25, 50, 75, 90), 2
ROUNDS, RUNS, LEAST = 60, 5, 15
NS, US, S = 1e-6, 1e-3, 1e3
AIM = 0.03

Tool = Callable[[], float]
"""Runs the model RUNS times; the time of one in ms."""


def evaluator(backend: Any, model: Any) -> Tool:
    """TVM's time evaluator."""
    timed = model.machine.time_evaluator("invoke_stateful", backend.device, number=RUNS)
    return lambda: float(timed("main").mean) * S


def timer(backend: Any, model: Any) -> Tool:
    """PyTorch's benchmark timer."""
    from torch.utils.benchmark import Timer

    watch = Timer("run(model)", globals={"run": backend.run, "model": model}, num_threads=backend.settings.threads)
    return lambda: float(watch.timeit(RUNS).median) * S


def profiler(backend: Any, subject: Subject, folder: Path) -> tuple[Tool, Callable[[], list[float]]]:
    """ONNX Runtime's profiler: runs now, and the `model_run` events in ms at the end."""
    import onnxruntime

    from hwnas.profile.timer import random_inputs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = backend.settings.threads, 1
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(subject.to_onnx(1), options, providers=["CPUExecutionProvider"])
    (array,) = random_inputs(subject.input_shapes(1))
    name = session.get_inputs()[0].name

    def run() -> float:
        for _ in range(RUNS):
            session.run(None, {name: array})
        return float("nan")

    def events() -> list[float]:
        records = json.loads(Path(session.end_profiling()).read_text())
        return [record["dur"] * US for record in records if record["name"] == "model_run"]

    return run, events


def compare(name: str, subject: Subject) -> tuple[float, float, int]:
    """Medians of ours and theirs in ms, and the rounds they rest on."""
    backend: Backend = backends.get(name)(Settings())
    model = backend.compile(subject)
    once, waited = backend.stopwatch(model), queue_wait()
    late: Callable[[], list[float]] | None = None
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        if name == "onnxruntime":
            tool, late = profiler(backend, subject, Path(folder))
        else:
            tool = (evaluator if name == "tvm" else timer)(backend, model)
        calm = []
        for _ in range(ROUNDS):
            before = waited()
            for _ in range(2):
                once()
            own = statistics.median(once() for _ in range(RUNS)) * NS
            tool()
            theirs.append(tool())
            ours.append(own)
            calm.append(waited() == before)
        if late:
            durations = late()
            theirs = [statistics.median(durations[(2 * i + 1) * RUNS:][:RUNS]) for i in range(ROUNDS)]
    kept = [i for i in range(ROUNDS) if calm[i]]
    kept = kept if len(kept) >= LEAST else list(range(ROUNDS))
    backend.close(model)
    return statistics.median(ours[i] for i in kept), statistics.median(theirs[i] for i in kept), len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", choices=("onnxruntime", "torch", "tvm"))
    asked = parser.parse_args()
    space = get_space(SPACE)
    primitives = space.primitives()
    subjects = [Subject.primitive(primitives[i]) for i in PRIMITIVES]
    subjects += [Subject.network(space, row) for row in space.sample(NETWORKS, 0)]
    print("| runtime | model | hwnas ms | its own tool ms | difference | rounds |\n|---|---|---|---|---|---|")
    for name in asked.runtime or ("onnxruntime", "torch", "tvm"):
        if not backends.get(name).version():
            continue
        differences = []
        for number, subject in enumerate(subjects):
            ours, theirs, rounds = compare(name, subject)
            differences.append(abs(ours / theirs - 1))
            label = subject.name if subject.kind == "primitive" else f"network {number - len(PRIMITIVES)}"
            print(f"| {name} | {label} | {ours:.4f} | {theirs:.4f} | {100 * (ours / theirs - 1):+.1f} % | {rounds} |",
                  flush=True)
        within = sum(difference <= AIM for difference in differences)
        print(f"| {name} | median of all | | | {100 * statistics.median(differences):.1f} % | "
              f"{within} of {len(subjects)} within {100 * AIM:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
