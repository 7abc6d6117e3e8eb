"""Commands that bring in costs: profile, parse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli.shell import Json, Seed, Space, app, columns, finite, show
from hwnas.core.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from hwnas.predict.choosers import Aim
    from hwnas.profile import Run
    from hwnas.profile.run import Chooser
    from hwnas.spaces.base import Population

AT_MOST = 1000
TRANSFER = "transfer"
SHOWN_FAILURES = 5


@app.command("profile")
def profile_command(
    space: Space,
    out: Annotated[Path | None, typer.Option("--out", help="folder of the run; the same command resumes it")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, gpu, fpga or file")] = "cpu",
    target: Annotated[
        str | None, typer.Option("--target", help="the DPU of --device fpga, such as zcu102-b4096")
    ] = None,
    emit: Annotated[Path | None, typer.Option("--emit", help="bundle to write for a device that returns files")] = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="a backend of hwnas registry: onnxruntime, or tvm with --remote")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or what the backend has besides")] = "fp32",
    batch: Annotated[str, typer.Option("--batch", help="images in one inference; several: 1,8,32")] = "1",
    threads: Annotated[int, typer.Option("--threads", help="processor threads of one inference")] = 1,
    cache: Annotated[
        str, typer.Option("--cache", help="warm, or cold: a GPU's L2 is flushed before each run")
    ] = "warm",
    graphs: Annotated[bool, typer.Option("--graphs", help="replay inferences as CUDA graphs")] = False,
    trials: Annotated[
        int, typer.Option("--trials", help="schedules to try for each kernel (TVM); 0: untuned kernels")
    ] = 0,
    remote: Annotated[str, typer.Option("--remote", help="HOST:PORT of a TVM RPC tracker, to measure its boards")] = "",
    key: Annotated[str, typer.Option("--key", help="the boards' name at the tracker")] = "",
    networks: Annotated[int, typer.Option("--networks", help="whole networks to measure besides the primitives")] = 0,
    select: Annotated[str, typer.Option("--select", help="how they are chosen: random, or transfer")] = "random",
    transfer_from: Annotated[
        list[Path] | None, typer.Option("--transfer-from", help="networks measured on other devices, for transfer")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", help="measure networks until within_10=0.95 or such; --networks is the most"),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="how many are measured twice, for the noise floor")] = 0,
    goal: Annotated[float, typer.Option("--goal", help="relative half-width of the interval to stop at")] = 0.02,
    time_limit: Annotated[float, typer.Option("--time-limit", help="most seconds of timed runs a subject")] = 1.0,
    metrics: Annotated[
        str, typer.Option("--metrics", help="of latency_ms, memory_mib and energy_mj")
    ] = "latency_ms,memory_mib",
    power_log: Annotated[
        Path | None, typer.Option("--power-log", help="log of an external meter (time,watts) to read energy from")
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", help="sample store to share with other runs")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="try again what has failed before")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure every primitive of a space, and whole networks: here, or by a bundle for a device that returns files."""
    from hwnas.profile import Effort, Settings, profile_batches

    runtime = runtime or ("tvm" if remote else "onnxruntime")
    if not (0 < goal < 1 and time_limit > 0):
        raise InputError(f"--goal {goal} must be between 0 and 1, --time-limit {time_limit} above 0")
    choice = Choice.of(space, networks, select, transfer_from or [], until, seed)
    if device in ("fpga", "file"):
        if choice.aim or choice.label not in ("random", TRANSFER) or (device == "fpga" and choice.choose):
            raise InputError(f"--device {device} measures nothing here: leave --until and --select {select} out")
        wanted = Elsewhere(space, device, runtime, target, emit, out, choice)
        _elsewhere(wanted, networks, _batches(batch), seed, as_json)
        return
    if out is None or emit is not None or target is not None:
        raise InputError(f"--device {device} is measured here: give --out, and neither --emit nor --target")
    asked = [*filter(None, map(str.strip, metrics.split(","))), *(["energy_mj"] if power_log else [])]
    runs = profile_batches(
        space,
        out,
        _batches(batch),
        runtime=runtime,
        settings=Settings(
            device, precision, threads=threads, cache=cache, graphs=graphs, trials=trials, remote=remote, key=key
        ),
        networks=choice.networks,
        select=choice.label,
        choose=choice.choose,
        repeats=repeats,
        seed=seed,
        store=store,
        effort=Effort(goal=goal, time_limit_s=time_limit),
        metrics=asked,
        power_log=power_log,
        retry=retry,
    )
    reports = [{**run.summary(), **choice.outcome(run, seed)} for run in runs]
    show({"runs": reports}, "\n".join([str(runs[0].target), *_profiled(reports, asked)]), as_json)


def _profiled(reports: list[dict[str, Any]], metrics: list[str]) -> list[str]:
    """What the runs hold, a line a run; then what their choice came to, what failed, and what cannot be measured."""
    counts = ("primitives", "networks", "steady", "noisy", "failed")
    noises = ["-" if r["noise"] is None else f"{100 * r['noise']['median']:.2f} %" for r in reports]
    rows = [[r["run"], *(str(r[name]) for name in counts), noise] for r, noise in zip(reports, noises, strict=True)]
    outcomes = [text for report in reports for text in _outcome_lines(report)]
    reasons = {(name, r["unmeasurable"][name]) for r in reports for name in metrics if name in r["unmeasurable"]}
    unmeasurable = [f"{name}: unmeasurable: {reason}" for name, reason in sorted(reasons)]
    failed = [f"failed: {name}: {reason}" for report in reports for name, reason in report["failures"].items()]
    if len(failed) > SHOWN_FAILURES:
        failed[SHOWN_FAILURES:] = [f"failed: {len(failed) - SHOWN_FAILURES} more (--json lists all)"]
    advice = ["the same command with --retry tries again what failed"] if failed else []
    return [columns(["run", *counts, "noise (median)"], rows), *outcomes, *failed, *advice, *unmeasurable]


@dataclass(frozen=True)
class Choice:
    """How the networks are chosen: by a registered selection, or by a chooser for `--until` or `--select transfer`."""

    space: str
    networks: int
    label: str
    choose: Chooser | None = None
    aim: Aim | None = None
    tables: tuple[Path, ...] = ()

    @classmethod
    def of(cls, spec: str, networks: int, select: str, tables: list[Path], until: str | None, seed: int) -> Choice:
        """Raises `InputError` for options that do not go together."""
        from hwnas.profile.run import selections

        if select != TRANSFER and select not in selections:
            raise UnknownNameError("selection", select, [*selections, TRANSFER])
        if (select == TRANSFER) != bool(tables):
            raise InputError("--select transfer and --transfer-from TABLE go together: give both or neither")
        if until is None and select != TRANSFER:
            return cls(spec, networks, select)
        if until is not None and select != "random":
            raise InputError(f"--until picks the networks itself: leave --select {select} out")
        from hwnas.predict import choosers
        from hwnas.spaces import get_space

        space = get_space(spec)
        if until is not None:
            aim = choosers.Aim.parse(until)
            return cls(spec, networks or AT_MOST, f"until {until}", choosers.until(space, aim, seed), aim)
        if networks < 1:
            raise InputError("--select transfer: say how many networks to measure (--networks 10)")
        return cls(spec, networks, select, choosers.for_transfer(space, tables, seed), tables=tuple(tables))

    def picked(self, seed: int) -> Population | None:
        """The networks of `--select transfer` for a device that is not measured here; None for random ones."""
        from hwnas.predict import pick_for_transfer
        from hwnas.profile.run import METRIC
        from hwnas.spaces import get_space

        if not self.tables:
            return None
        return pick_for_transfer(get_space(self.space), METRIC, self.networks, self.tables, seed)

    def outcome(self, run: Run, seed: int) -> dict[str, Any]:
        """What the choice came to: `until` where the aim stands, `expected` the accuracy of the transfer."""
        from hwnas.spaces import get_space

        if self.aim is None and not self.tables:
            return {}
        from hwnas.predict import choosers

        space = get_space(self.space)
        if self.aim is not None:
            return {"until": self.aim.report(choosers.progress_in(run, space, self.aim), run.networks().num_rows)}
        expected = choosers.expected_of_transfer(space, self.tables, self.networks, seed)
        return {"expected": {name: finite(value) for name, value in expected.items()}}


def _outcome_lines(report: dict[str, Any]) -> list[str]:
    from hwnas.predict.choosers import LEAST_NETWORKS

    lines = []
    if until := report.get("until"):
        shown = "-" if until["value"] is None else f"{until['value']:.4g} (surely {until['surely']:.4g})"
        more = "more --networks may help" if until["n"] >= LEAST_NETWORKS else f"it takes {LEAST_NETWORKS} to say"
        state = "met" if until["met"] else f"not met; {more}"
        lines.append(f"{until['score']} {shown} after {until['n']} networks; {until['aim']:g} is asked for: {state}")
    if (expected := report.get("expected")) and None not in expected.values():
        lines.append(
            "to expect of fit-predictor --transfer-from, going by the devices of the tables: "
            f"MAPE {expected['mape']:.2f} %, Spearman {expected['spearman']:.3f}"
        )
    return lines


@dataclass(frozen=True)
class Elsewhere:
    """What is asked of a device that this machine cannot run: a bundle to copy there, or a simulation."""

    space: str
    device: str
    runtime: str
    target: str | None
    emit: Path | None
    out: Path | None
    choice: Choice


def _elsewhere(asked: Elsewhere, networks: int, batches: list[int], seed: int, as_json: bool) -> None:
    """A bundle for a board (`--emit`), or a simulated run (`--runtime dpu-sim --out`)."""
    from hwnas.fpga import get_target, simulate_run
    from hwnas.fpga.bundle import emit_bundle
    from hwnas.profile.bundle import emit_files
    from hwnas.spaces import get_space

    space = get_space(asked.space)
    if (asked.target is None) == (asked.device == "fpga"):
        raise InputError(
            f"--device {asked.device}: {'give --target' if asked.device == 'fpga' else 'it has no --target'}"
        )
    if len(batches) > 1:
        raise InputError("--batch: a bundle has one batch size")
    if asked.runtime == "dpu-sim" and asked.target and asked.out and not asked.emit:
        run = simulate_run(space, get_target(asked.target), asked.out, networks, seed)
        show(run.to_json(), f"{asked.out}: simulated costs of {asked.target}", as_json)
        return
    if asked.emit is None or asked.out is not None:
        raise InputError(f"--device {asked.device}: give --emit BUNDLE (or --target DPU --runtime dpu-sim --out RUN)")
    if asked.target:
        report = emit_bundle(space, get_target(asked.target), asked.emit, networks, seed).to_json()
    else:
        report = emit_files(space, asked.emit, networks, batches[0], seed, asked.choice.picked(seed)).to_json()
    text = f"{asked.emit}: {report['primitives']} primitives and {report['networks']} networks; copy it to the device"
    show(report, text, as_json)


def _batches(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--batch {text}: batch sizes are whole numbers joined by commas, such as 1,8,32") from error
