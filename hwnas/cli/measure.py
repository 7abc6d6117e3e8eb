"""The command that brings in costs: profile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from hwnas.cli.shell import Json, Seed, Space, app, columns, show
from hwnas.core.errors import InputError, UnavailableError

SHOWN_FAILURES = 5
MEASURED_HERE = (
    *("precision", "threads", "cache", "graphs", "trials", "remote", "key", "repeats", "goal", "time_limit"),
    *("metrics", "power_log", "store", "retry"),
)
"""Options of a measurement, which a bundle or a simulation would ignore."""


@app.command("profile")
def profile_command(
    context: typer.Context,
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
    select: Annotated[str, typer.Option("--select", help="a chooser of hwnas registry: random, transfer")] = "random",
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
    from hwnas.predict.choosers import make_chooser
    from hwnas.profile import Effort, Settings, profile_batches
    from hwnas.profile.elsewhere import ELSEWHERE, profile_elsewhere

    runtime = runtime or ("tvm" if remote else "onnxruntime")
    if not (0 < goal < 1 and 0 < time_limit < math.inf):
        raise InputError(f"--goal {goal} must be between 0 and 1, --time-limit {time_limit} a number above 0")
    choose = make_chooser(select, until, transfer_from or ())
    asked: dict[str, Any] = {"runtime": runtime, "networks": networks, "choose": choose, "seed": seed}
    if device in ELSEWHERE:
        _refuse(context, device)
        done = profile_elsewhere(space, device, _batches(batch), target=target, emit=emit, out=out, **asked)
        show(done.to_json(), _written(done.to_json(), target), as_json)
        return
    if out is None or emit is not None or target is not None:
        raise InputError(f"--device {device} is measured here: give --out, and neither --emit nor --target")
    settings = Settings(
        device, precision, threads=threads, cache=cache, graphs=graphs, trials=trials, remote=remote, key=key
    )
    effort = Effort(goal=goal, time_limit_s=time_limit)
    wanted = [*filter(None, map(str.strip, metrics.split(","))), *(["energy_mj"] if power_log else [])]
    asked |= {"settings": settings, "effort": effort, "metrics": wanted, "power_log": power_log}
    runs = profile_batches(space, out, _batches(batch), repeats=repeats, store=store, retry=retry, **asked)
    request = choose.request(space, networks, seed, repeats)
    outcomes = [choose.outcome(run, request) for run in runs]
    reports = [{**run.summary(), **outcome} for run, outcome in zip(runs, outcomes, strict=True)]
    said = [*filter(None, map(choose.describe, outcomes))]
    show({"runs": reports}, "\n".join([str(runs[0].target), *_profiled(reports, said, wanted)]), as_json)
    if not any(report["steady"] + report["noisy"] for report in reports):
        raise UnavailableError(f"nothing could be measured with {runtime}; the lines above, or --json, say why")


def _refuse(context: typer.Context, device: str) -> None:
    """Raise `InputError` for an option that would change nothing where the device is elsewhere."""
    from hwnas.profile.elsewhere import SIMULATOR

    for option in context.command.params:
        if option.name in MEASURED_HERE and context.params[option.name] != option.default:
            raise InputError(f"{option.opts[0]}: --device {device} measures nothing here; leave it out")
    if (runtime := context.params["runtime"]) not in (None, SIMULATOR):
        raise InputError(f"--runtime {runtime}: --device {device} runs none here; leave it out, or give {SIMULATOR}")


def _profiled(reports: list[dict[str, Any]], outcomes: list[str], metrics: list[str]) -> list[str]:
    """What the runs hold, a line a run; then what their choice came to, what failed, and what cannot be measured."""
    counts = ("primitives", "networks", "steady", "noisy", "failed")
    noises = ["-" if r["noise"] is None else f"{100 * r['noise']['median']:.2f} %" for r in reports]
    rows = [[r["run"], *(str(r[name]) for name in counts), noise] for r, noise in zip(reports, noises, strict=True)]
    reasons = {(name, r["unmeasurable"][name]) for r in reports for name in metrics if name in r["unmeasurable"]}
    unmeasurable = [f"{name}: unmeasurable: {reason}" for name, reason in sorted(reasons)]
    failed = [f"failed: {name}: {reason}" for report in reports for name, reason in report["failures"].items()]
    if len(failed) > SHOWN_FAILURES:
        failed[SHOWN_FAILURES:] = [f"failed: {len(failed) - SHOWN_FAILURES} more (--json lists all)"]
    advice = ["the same command with --retry tries again what failed"] if failed else []
    return [columns(["run", *counts, "noise (median)"], rows), *outcomes, *failed, *advice, *unmeasurable]


def _written(report: dict[str, Any], target: str | None) -> str:
    if report.get("simulated"):
        return f"{report['out']}: simulated costs of {target}"
    counts = f"{report['primitives']} primitives and {report['networks']} networks"
    left_out = f"; {len(report['left_out'])} left out (--json says why)" if report["left_out"] else ""
    return f"{report['out']}: {counts}{left_out}; copy it to the device"


def _batches(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--batch {text}: batch sizes are whole numbers joined by commas, such as 1,8,32") from error
