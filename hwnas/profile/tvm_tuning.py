"""Tuning of TVM's kernels with MetaSchedule, each workload once: its records are kept and read by later campaigns.

MetaSchedule (Shao et al., "Tensor Program Optimization with Probabilistic Programs", NeurIPS 2022) proposes schedules
of a kernel; each is compiled and timed in a process of its own, which is forked from one that has TVM loaded, so that a
schedule that hangs or crashes costs its time limit and nothing else. TVM's own pool starts anew for every batch and
spends 10 to 24 s of processor time in each process on loading intrinsics of GPUs, beyond its own time limits where
processors are few.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from tvm import ir, runtime
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import get_global_func, structural_hash

from hwnas.profile.backends import Settings

SCHEDULES_AT_ONCE = 16
CPU_LIMIT_S = 20
WALL_LIMIT_S = 60.0
TIMED_MS = 20
FIRST_TIMED = 1
FAILED_S = 1e9
SEED = 1
SEARCH = {"population_size": 64, "init_min_unmeasured": 16, "genetic_num_iters": 2}
GPU_INTRINSICS = "tvm.s_tir.tensor_intrin.cuda"
"""A module that MetaSchedule loads for every target, in ten seconds and more; it serves GPUs alone."""

Measure = Callable[[str, list[Any]], list[float]]
"""Seconds of the runs of a kernel, given as the file of its module and the shapes of its arguments; may raise."""

Alive = Callable[[], None]


def records(module: ir.IRModule, target: Any, settings: Settings, measure: Measure, alive: Alive) -> Any:
    """The database of the best known schedules of every kernel in `module`, tuned now where none are known.

    Args:
        settings: `records` is where they are kept, a folder a workload, target and number of trials; `trials` how many
            schedules of a kernel are measured. Records of as many or more are taken as they are.
        alive: called after each schedule.
    """
    folder, trials = Path(settings.records), settings.trials
    if "cuda" not in str(target.kind):
        sys.modules.setdefault(GPU_INTRINSICS, ModuleType(GPU_INTRINSICS))
    found = []
    for task in ms.relax_integration.extract_tasks(module, target):
        workload = task.dispatched[0]
        name = _name(workload, target)
        known = _known(folder, name, trials)
        if known is None:
            known = _tune(workload, target, folder, f"{name}-{trials}", trials, measure, alive)
        found.append(ms.database.JSONDatabase(work_dir=str(known)))
    return ms.database.UnionDatabase(*found)


def _name(workload: ir.IRModule, target: Any) -> str:
    """What tells workloads on targets apart: the kernel's structure and the target's description, as a digest."""
    text = f"{structural_hash(workload) & (2**64 - 1):016x} {target}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _known(folder: Path, name: str, trials: int) -> Path | None:
    """The finished records of a workload with the most trials, at least `trials`."""
    kept = {int(path.name.rpartition("-")[2]): path for path in folder.glob(f"{name}-*")}
    return kept[max(kept)] if kept and max(kept) >= trials else None


def _tune(
    workload: ir.IRModule, target: Any, folder: Path, name: str, trials: int, measure: Measure, alive: Alive
) -> Path:
    """Tune one workload; its records appear under `name` once they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished, runner = Path(tempfile.mkdtemp(prefix=".tuning-", dir=folder)), _Runner(measure, alive)
    try:
        context = ms.TuneContext(
            workload,
            target=target,
            space_generator="post-order-apply",
            search_strategy=ms.search_strategy.EvolutionarySearch(**SEARCH),
            rand_state=SEED,
            num_threads=1,
            logger=_quiet(),
        )
        ms.tune_tasks(
            tasks=[context],
            task_weights=[1.0],
            work_dir=str(unfinished),
            max_trials_global=trials,
            num_trials_per_iter=min(trials, SCHEDULES_AT_ONCE),
            builder=_Saver(unfinished),
            runner=runner,
            cost_model=ms.cost_model.RandomModel(seed=SEED),
            measure_callbacks=[ms.measure_callback.AddToDatabase()],
        )
        if not _any_ran(unfinished):
            raise RuntimeError(f"none of {trials} schedules of a kernel ran: {runner.error}")
        for module in unfinished.glob("*.module"):
            module.unlink()
        unfinished.chmod(0o755)
        with contextlib.suppress(OSError):
            unfinished.rename(folder / name)
        return folder / name
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _any_ran(folder: Path) -> bool:
    """Whether a schedule in these records ran; MetaSchedule keeps those that did not with a time that stands for it."""
    found = ms.database.JSONDatabase(work_dir=str(folder)).get_all_tuning_records()
    return any(float(seconds) < FAILED_S for record in found for seconds in record.run_secs or ())


def _quiet() -> logging.Logger:
    logger = logging.getLogger("hwnas.tvm")
    logger.setLevel(logging.ERROR)
    return logger


@derived_object
class _Saver(ms.builder.PyBuilder):  # type: ignore[misc]
    """A builder that leaves the building to the process that times the kernel."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def build(self, build_inputs: Sequence[Any]) -> list[Any]:
        results = []
        for given in build_inputs:
            handle, path = tempfile.mkstemp(suffix=".module", dir=self.folder)
            with os.fdopen(handle, "w") as file:
                file.write(ir.save_json(given.mod))
            results.append(ms.builder.BuilderResult(path, None))
        return results


@derived_object
class _Runner(ms.runner.PyRunner):  # type: ignore[misc]
    """Times one schedule after the other."""

    def __init__(self, measure: Measure, alive: Alive) -> None:
        super().__init__()
        self.measure, self.alive, self.error = measure, alive, ""

    def run(self, runner_inputs: Sequence[Any]) -> list[Any]:
        futures = []
        for given in runner_inputs:
            shapes = [list(info.as_json()) for info in given.args_info]
            try:
                seconds, error = self.measure(given.artifact_path, shapes), None
            except Exception as failure:
                seconds, error = None, f"{type(failure).__name__}: {failure}"[:300]
                self.error = error
            self.alive()
            futures.append(ms.runner.LocalRunnerFuture(seconds, error))
        return futures


def build(path: str, target: Any) -> Any:
    """The runnable kernel of a saved module, without the rearrangement of weights, which is done once beforehand."""
    import tvm
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    module = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(ir.load_json(Path(path).read_text()))
    return tvm.driver.build(module, target=target)


def timed(kernel: Any, device: Any, shapes: Sequence[Any], function: Callable[[str], Any]) -> list[float]:
    """Seconds of a kernel's runs on a device; `function` finds TVM's functions where that is."""
    from tvm.s_tir.meta_schedule.runner.utils import alloc_argument_common, run_evaluator_common

    fill = function("tvm.contrib.random.random_fill_for_measure")
    config = ms.runner.EvaluatorConfig(number=FIRST_TIMED, repeat=1, min_repeat_ms=TIMED_MS)
    return list(run_evaluator_common(kernel, device, config, alloc_argument_common(fill, device, shapes, 1)))


def here(target: Any, device: str) -> Measure:
    """Times kernels on this machine, each in a process of its own."""
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])
    text = ir.save_json(target)

    def measure(path: str, shapes: list[Any]) -> list[float]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_measure_here, args=(theirs, path, text, device, shapes), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(WALL_LIMIT_S):
                raise TimeoutError(f"no result within {WALL_LIMIT_S:g} s")
            answer = ours.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"the process ended with {process.exitcode}") from None
        finally:
            process.kill()
            process.join()
            ours.close()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return list(answer)

    return measure


def _measure_here(answers: Connection, path: str, target: str, device: str, shapes: list[Any]) -> None:
    """In a process of its own: build the kernel and time it."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    try:
        answers.send(timed(build(path, ir.load_json(target)), runtime.device(device, 0), shapes, get_global_func))
    except Exception as error:
        answers.send(f"{type(error).__name__}: {error}"[:300])
