"""Each backend's latency against its runtime's own tool: python benchmarks/backend_agreement.py [--runtime NAME ...]

The same compiled model is timed in turns by hwnas's stopwatch and by the tool: TVM's time evaluator and
`torch.utils.benchmark.Timer`. ONNX Runtime's profiler (its `model_run` events) times the same runs as the stopwatch, in
a session that keeps a profile, which slows it down. The tools count what a run waits for a processor, and hwnas does
not: PyTorch's is given a clock that does not either, and runs that waited are left out of the others'. Printed is the
difference of the medians, ours against theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hwnas.profile.backends import Backend, Settings, backends
from hwnas.profile.subject import Subject
from hwnas.profile.timer import queue_wait
from hwnas.spaces import get_space

SPACE = "ofa-mbv3:width=1.0,resolution=224"
PRIMITIVES, NETWORKS = (1, 25, 50, 75, 90), 2
RUNS, LONGEST_S = 100, 20.0
MS_A_NS, MS_A_US, MS_A_S = 1e-6, 1e-3, 1e3
AIM = 0.03

Tool = Callable[[], float]
"""Runs the model once; its time in ms."""


def evaluator(backend: Any, model: Any) -> Tool:
    """TVM's time evaluator."""
    timed = model.machine.time_evaluator("invoke_stateful", backend.device, number=1)
    return lambda: float(timed("main").mean) * MS_A_S


def timer(backend: Any, model: Any) -> Tool:
    """PyTorch's benchmark timer, with a clock that stands while this process waits for a processor."""
    from torch.utils.benchmark import Timer

    waited = queue_wait()
    clock = lambda: time.perf_counter() - waited() * MS_A_NS / MS_A_S  # noqa: E731
    watch = Timer(
        "run(model)", timer=clock, globals={"run": backend.run, "model": model}, num_threads=backend.settings.threads
    )
    return lambda: float(watch.timeit(1).median) * MS_A_S


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Sessions of ONNX Runtime that are made meanwhile keep a profile in `folder`."""
    import onnxruntime

    original = onnxruntime.SessionOptions

    def options() -> Any:
        made = original()
        made.enable_profiling, made.profile_file_prefix = True, str(folder / "profile")
        return made

    onnxruntime.SessionOptions = options
    try:
        yield
    finally:
        onnxruntime.SessionOptions = original


def events(model: Any) -> list[float]:
    """The `model_run` events of a session's profile, in ms."""
    records = json.loads(Path(model.session.end_profiling()).read_text())
    return [record["dur"] * MS_A_US for record in records if record["name"] == "model_run"]


def compare(name: str, subject: Subject) -> tuple[float, float, int]:
    """Medians of ours and theirs in ms, and the number of runs that the latter rests on."""
    profiled = name == "onnxruntime"
    with tempfile.TemporaryDirectory() as folder, profiling(Path(folder)) if profiled else nullcontext():
        backend: Backend = backends.get(name)(Settings())
        model = backend.compile(subject)
        once, waited = backend.stopwatch(model), queue_wait()
        tool: Tool | None = None if profiled else (evaluator if name == "tvm" else timer)(backend, model)
        ours: list[float] = []
        theirs: list[float] = []
        waits: list[float] = []
        deadline = time.monotonic() + LONGEST_S
        while waits.count(0) < RUNS and time.monotonic() < deadline:
            once()
            before = waited()
            ours.append(once() * MS_A_NS)
            if tool:
                tool()
                before = waited()
                theirs.append(tool())
            waits.append(0.0 if name == "torch" else (waited() - before) * MS_A_NS)
        if profiled:
            theirs = events(model)[-2 * len(ours) :][1::2]
        backend.close(model)
    kept = [value for value, wait in zip(theirs, waits, strict=True) if not wait]
    return statistics.median(ours), statistics.median(kept), len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", action="append", choices=("onnxruntime", "torch", "tvm"))
    asked = parser.parse_args()
    space = get_space(SPACE)
    primitives = space.primitives()
    subjects = [Subject.primitive(primitives[i]) for i in PRIMITIVES]
    subjects += [Subject.network(space, row) for row in space.sample(NETWORKS, 0)]
    print("| runtime | model | hwnas ms | its own tool ms | difference | runs |\n|---|---|---|---|---|---|")
    for name in asked.runtime or ("onnxruntime", "torch", "tvm"):
        if not backends.get(name).version():
            continue
        differences = []
        for number, subject in enumerate(subjects):
            ours, theirs, runs = compare(name, subject)
            differences.append(abs(ours / theirs - 1))
            label = subject.name if subject.kind == "primitive" else f"network {number - len(PRIMITIVES)}"
            print(
                f"| {name} | {label} | {ours:.4f} | {theirs:.4f} | {100 * (ours / theirs - 1):+.1f} % | {runs} |",
                flush=True,
            )
        within = sum(difference <= AIM for difference in differences)
        print(
            f"| {name} | median of all | | | {100 * statistics.median(differences):.1f} % | "
            f"{within} of {len(subjects)} within {100 * AIM:.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
