"""Commands that bring in costs: profile, parse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.shell import Json, Seed, Space, app, columns, show
from hwnas.core.errors import InputError


@app.command("profile")
def profile_command(
    space: Space,
    out: Annotated[Path, typer.Option("--out", help="folder of the run; the same command resumes it")],
    device: Annotated[str, typer.Option("--device", help="cpu or gpu")] = "cpu",
    runtime: Annotated[str, typer.Option("--runtime", help="a backend of hwnas registry")] = "onnxruntime",
    precision: Annotated[str, typer.Option("--precision", help="fp32, or what the backend has besides")] = "fp32",
    batch: Annotated[str, typer.Option("--batch", help="images in one inference; several: 1,8,32")] = "1",
    threads: Annotated[int, typer.Option("--threads", help="processor threads of one inference")] = 1,
    networks: Annotated[int, typer.Option("--networks", help="whole networks to measure besides the primitives")] = 0,
    select: Annotated[str, typer.Option("--select", help="how these networks are chosen")] = "random",
    repeats: Annotated[int, typer.Option("--repeats", help="how many are measured twice, for the noise floor")] = 0,
    goal: Annotated[float, typer.Option("--goal", help="relative half-width of the interval to stop at")] = 0.02,
    time_limit: Annotated[float, typer.Option("--time-limit", help="most seconds of timed runs a subject")] = 1.0,
    store: Annotated[Path | None, typer.Option("--store", help="sample store to share with other runs")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure every primitive of a space, and whole networks, on this machine."""
    from hwnas.profile import Effort, Settings, profile_batches

    if not (0 < goal < 1 and time_limit > 0):
        raise InputError(f"--goal {goal} must be between 0 and 1, --time-limit {time_limit} above 0")
    runs = profile_batches(
        space,
        out,
        _batches(batch),
        runtime=runtime,
        settings=Settings(device, precision, threads=threads),
        networks=networks,
        select=select,
        repeats=repeats,
        seed=seed,
        store=store,
        effort=Effort(goal=goal, time_limit_s=time_limit),
    )
    reports = [run.summary() for run in runs]
    head = ["run", "primitives", "networks", "steady", "noisy", "failed", "noise (median)"]
    lines = [
        [
            r["run"],
            *(str(r[key]) for key in ("primitives", "networks", "steady", "noisy", "failed")),
            "-" if r["noise"] is None else f"{100 * r['noise']['median']:.2f} %",
        ]
        for r in reports
    ]
    show({"runs": reports}, f"{runs[0].target}\n" + columns(head, lines), as_json)


def _batches(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--batch {text}: batch sizes are whole numbers joined by commas, such as 1,8,32") from error
