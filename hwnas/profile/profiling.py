"""`profile`: the function behind `hwnas profile`; and `measure_onnx`, which measures models that are no run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwnas.core.documents import NETWORKS_FILE, RUN, SAMPLES_FILE, TABLE_FILE, stamp
from hwnas.core.errors import InputError
from hwnas.core.files import check_folder, scratch
from hwnas.core.progress import say
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.profile.backends import Settings
from hwnas.profile.campaign import run_campaign
from hwnas.profile.choosers import Chooser, at_random
from hwnas.profile.device import environment, local_target
from hwnas.profile.history import Effort, History
from hwnas.profile.metrics import DEFAULT, OF_COLUMN, WITHOUT, Plan, collect, cost_rows, left_out, write_networks
from hwnas.profile.run import FIRST, METRIC, REPEAT, Request, Run
from hwnas.profile.stats import Measurement
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject
from hwnas.spaces import SearchSpace


def profile(
    space: str | SearchSpace,
    out: str | Path,
    *,
    runtime: str = "onnxruntime",
    settings: Settings | None = None,
    networks: int = 0,
    choose: Chooser = at_random,
    repeats: int = 0,
    seed: int = 0,
    effort: Effort | None = None,
    store: str | Path | None = None,
    metrics: Sequence[str] = DEFAULT,
    power_log: str | Path | None = None,
    retry: bool = False,
) -> Run:
    """Measure every primitive of `space`, and `networks` whole networks, on this machine; the result is in `out`.

    The same call goes on where an interrupted one stopped. Another space in the same folder is added to it.

    Args:
        space: a space, or its name with options.
        out: the folder of the run.
        runtime: a registered backend.
        settings: device, precision, batch and threads.
        networks: networks to measure, at most; `choose` picks them, with `seed`.
        repeats: how many of them (of the primitives, without networks) are measured twice, for the noise floor.
        effort: precision and time limits.
        store: a sample store shared with other runs, instead of one inside `out`.
        metrics: `memory_mib`, `energy_mj` besides `latency_ms`; what cannot be measured here is `unmeasurable` in the
            table, and its manifest says why.
        power_log: log of an external meter (see `hwnas.profile.power`), from which energy is read.
        retry: whether what has failed before is tried again.

    Raises:
        UnavailableError: device or runtime are absent.
        TargetMismatchError: `out` holds a run of another target.
        StoreError: the store cannot be read or written.
    """
    settings = settings or Settings()
    request = choose.request(space, networks, seed, repeats)
    target, plan = local_target(runtime, settings), Plan.of(metrics, power_log, settings, effort or Effort())
    check_folder(out)
    run = _open(Path(out), target, store, plan.effort.goal).measuring(plan.metrics)
    request = request.choosing(choose.design(request)).continuing(run.requests)
    with Store(run.store) as samples:
        profiling = _Profiling(run, request, samples, settings, plan, retry)
        profiling.measure_primitives()
        profiling.measure_networks(choose)
        profiling.measure_repeats()
    return profiling.run


class _Profiling:
    """A request on its way from the device through the store into the files of a run.

    Networks are measured in one process, not two: they vary by 0.7 % between processes, and compiling one takes about
    as long as measuring it.
    """

    def __init__(self, run: Run, request: Request, samples: Store, settings: Settings, plan: Plan, retry: bool) -> None:
        self.run, self.samples, self.settings, self.plan, self.retry = run, samples, settings, plan, retry
        self._ask(request)

    def measure_primitives(self) -> None:
        self._measure(self.request.primitives(), FIRST, "primitives")

    def measure_networks(self, choose: Chooser) -> None:
        """Measure what is chosen, and let `choose` pick more by it, until it wants no more."""
        self._measure(self.request.sampled(), FIRST, "networks")
        while self.request.left > 0:
            more = self.request.choosing(choose.pick(self.run, self.request))
            if more == self.request:
                return
            self._ask(more)
            self._measure(more.sampled(), FIRST, "networks")

    def measure_repeats(self) -> None:
        self._measure(self.request.repeated(), REPEAT, "repeats")

    def _ask(self, request: Request) -> None:
        """Write `request` to `run.json` before it is measured: a run that is cut off goes on with the same networks."""
        self.request, self.run = request, self.run.asking(request)
        self.run.save(self.settings)

    def _measure(self, subjects: Sequence[Subject], series: int, title: str) -> None:
        """Measure `subjects`, and bring the files of the run up to date."""
        if not subjects:
            return
        if self.retry:
            self.samples.forgive(self.run.target, [subject.id for subject in subjects])
        effort = self.plan.effort if subjects[0].kind == "primitive" else replace(self.plan.effort, sessions=1)
        run_campaign(
            self.samples,
            self.run.target,
            self.settings,
            subjects,
            series=series,
            effort=effort,
            seed=self.request.seed,
            title=title,
        )
        _write(self.run, self.samples, self.settings, self.plan.settle(self.samples, self.run.target))


def profile_batches(
    space: str | SearchSpace,
    out: str | Path,
    batches: Sequence[int],
    *,
    settings: Settings | None = None,
    store: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """`profile` for each batch size: in `out` itself for one, else in `out/batch_N`, all sharing one store."""
    if not batches or len(set(batches)) < len(batches):
        raise InputError(f"--batch {','.join(map(str, batches))}: batch sizes have to differ, and be at least one")
    chosen = [replace(settings or Settings(), batch=batch) for batch in batches]
    if len(chosen) == 1:
        return [profile(space, out, settings=chosen[0], store=store, **options)]
    shared = store or Path(out) / SAMPLES_FILE
    return [
        profile(space, Path(out) / f"batch_{each.batch}", settings=each, store=shared, **options) for each in chosen
    ]


def measure_onnx(
    models: Mapping[str, bytes | str | Path],
    *,
    runtime: str = "onnxruntime",
    settings: Settings | None = None,
    effort: Effort | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    metric: str = METRIC,
) -> dict[str, Measurement]:
    """Measure ONNX models, given by name as bytes or files, interleaved in one campaign, as `profile` measures.

    With the `store` of a run, their medians refer to the same speed of the machine as that run's; what it already holds
    of the same models is measured anew, so that the result is independent. Raises what `profile` raises.
    """
    with scratch() as folder:
        subjects = {}
        for index, (name, model) in enumerate(models.items()):
            path = folder / f"{index}.onnx"
            if isinstance(model, bytes):
                path.write_bytes(model)
            subjects[name] = Subject.model(path if isinstance(model, bytes) else model)
        how: dict[str, Any] = {"runtime": runtime, "settings": settings, "effort": effort, "store": store}
        return measure_subjects(subjects, seed=seed, metric=metric, **how)


def measure_subjects(
    subjects: Mapping[str, Subject],
    *,
    runtime: str = "onnxruntime",
    settings: Settings | None = None,
    effort: Effort | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    metric: str = METRIC,
) -> dict[str, Measurement]:
    """`measure_onnx` of primitives or networks of a space, for runtimes that do not read ONNX too.

    `metric` may be another column of a run than the latency; where nothing here reads it, the measurements say why.
    """
    settings, asked = settings or Settings(), OF_COLUMN.get(metric, metric)
    plan = Plan.of(tuple(dict.fromkeys((METRIC, asked))), None, settings, effort or Effort())
    target = local_target(runtime, settings)
    if asked in plan.unmeasurable:
        return dict.fromkeys(subjects, Measurement.failed(plan.unmeasurable[asked], "unmeasurable"))
    with scratch() as folder, Store(store or folder / SAMPLES_FILE) as samples:
        series = samples.next_series(target, [subject.id for subject in subjects.values()])
        run_campaign(
            samples,
            target,
            settings,
            list(subjects.values()),
            series=series,
            effort=plan.effort,
            seed=seed,
            title="models",
        )
        history = History(samples, target)
        found = history.measurements(subjects.values(), series=series, goal=plan.effort.goal, metric=metric)
    nothing = Measurement.failed(WITHOUT.get(metric, "nothing was read"), "unmeasurable")
    measured = {name: found[subject] for name, subject in subjects.items()}
    return {name: nothing if each.verdict == "unmeasurable" else each for name, each in measured.items()}


def _open(folder: Path, target: Target, store: str | Path | None, goal: float) -> Run:
    """The run in `folder`, or a new one without requests."""
    path = Path(store) if store else folder / SAMPLES_FILE
    if not (folder / RUN.file).exists():
        return Run(folder, target, (), path, goal)
    before = Run.load(folder)
    before.target.require_same(target, f"the request for {folder}")
    if store is None and not (before.store.is_file() and before.store.stat().st_size):
        say(f"{before.store} is missing or empty: all that {folder} holds is measured anew")
    return replace(before, goal=goal, store=path if store else before.store)


def _write(run: Run, store: Store, settings: Settings, unmeasurable: Mapping[str, str]) -> None:
    """Derive the table and the networks' file from the samples: all that this folder was ever asked for and is tried.

    What an earlier request was cut off before is not there; that request goes on with it.
    """
    history = History(store, run.target)
    primitives = history.tried(dict.fromkeys(s for request in run.requests for s in request.primitives()))
    found = collect(history, primitives, run.metrics, FIRST, run.goal)
    unmeasurable = {**left_out(found, run.metrics), **unmeasurable}
    manifest = {
        **stamp(),
        "spaces": list(dict.fromkeys(request.space for request in run.requests)),
        "seeds": sorted({request.seed for request in run.requests}),
        "goal": run.goal,
        "environment": environment(settings),
        **({"unmeasurable": unmeasurable} if unmeasurable else {}),
    }
    CostTable(run.target, cost_rows(found), manifest).save(run.folder / TABLE_FILE)
    networks = history.tried(dict.fromkeys(s for request in run.requests for s in request.sampled()))
    if networks:
        first, again = (collect(history, networks, run.metrics, series, run.goal) for series in (FIRST, REPEAT))
        write_networks(run.folder / NETWORKS_FILE, first, again)
