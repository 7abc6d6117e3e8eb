"""Commands that choose: train-supernet, train, search, export, verify, report, quickstart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli.shell import MOST_SEED, Json, Seed, Space, app, bounds, columns, show
from hwnas.core.errors import ClaimFailedError, InputError
from hwnas.core.units import UNSUPPORTED

if TYPE_CHECKING:
    from hwnas.train import OneShotConfig

SampleStore = Annotated[
    Path | None,
    typer.Option("--store", exists=True, dir_okay=False, help="sample store of the run behind the cost model"),
]


@app.command("train-supernet")
def train_supernet_command(
    config: Annotated[Path, typer.Argument(help="YAML configuration")],
    out: Annotated[Path, typer.Option("--out", help="checkpoint folder; the same command resumes it")],
    as_json: Json = False,
) -> None:
    """Train a super-network once, to be searched many times."""
    from hwnas.core.config import load_config
    from hwnas.train import SupernetConfig, train_supernet

    supernet = train_supernet(load_config(config, SupernetConfig), out)
    space = supernet.space
    smallest, largest = supernet.accuracy([0 * space.choices, space.choices - 1]).tolist()
    report = {"space": space.spec, "out": str(out), "accuracy_smallest": smallest, "accuracy_largest": largest}
    text = f"{space.spec} in {out}: validation accuracy {smallest:.4f} (smallest network) to {largest:.4f} (largest)"
    show(report, text, as_json)


@app.command("train")
def train_command(
    config: Annotated[Path, typer.Argument(help="YAML configuration")],
    out: Annotated[Path, typer.Option("--out", help="checkpoint folder; the same command resumes it")],
    as_json: Json = False,
) -> None:
    """Train one network, from scratch or from the weights it had in a super-network."""
    from hwnas.core.config import load_config
    from hwnas.train import NetworkConfig, train_network

    accuracy = train_network(load_config(config, NetworkConfig), out).accuracy
    text = f"{out}: accuracy {accuracy['val']:.4f} on validation images, {accuracy['test']:.4f} on test images"
    show({"out": str(out), "accuracy": accuracy}, text, as_json)


@app.command("search")
def search_command(
    out: Annotated[Path, typer.Option("--out", help="folder of the result")],
    space: Annotated[str | None, typer.Option("--space", help="search space, such as ofa-mbv3:width=1.2")] = None,
    accuracy: Annotated[
        str | None, typer.Option("--accuracy", help="super-network, predictor, table:FILE#COLUMN, ofa:FILE")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="data and schedule of a method that trains, such as fbnet")
    ] = None,
    cost: Annotated[list[str], typer.Option("--cost", help="[NAME=]SOURCE: predictor, cost table, note10:FOLDER")] = [],  # noqa: B006
    most: Annotated[list[str], typer.Option("--max", help="budget, such as latency_ms=20")] = [],  # noqa: B006
    least: Annotated[list[str], typer.Option("--min", help="lower bound, such as throughput_ips=100")] = [],  # noqa: B006
    runs_on: Annotated[str | None, typer.Option("--runs-on", help="only what this DPU runs, see fpga check")] = None,
    algorithm: Annotated[str, typer.Option("--algorithm", help="see hwnas registry")] = "auto",
    confidence: Annotated[float | None, typer.Option("--confidence", help="probability that a bound holds")] = None,
    front: Annotated[bool, typer.Option("--front", help="the whole accuracy-cost front")] = False,
    measure: Annotated[int, typer.Option("--measure", min=0, help="finalists measured at most; 0: none")] = 24,
    store: SampleStore = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MOST_SEED, help="seed of every random choice")
    ] = None,
    as_json: Json = False,
) -> None:
    """The most accurate network under budgets, confirmed on this machine where that is the target."""
    from hwnas.search import one_shot_search, search

    budgets = bounds(most, "--max")
    if runs_on:
        cost, budgets = [*cost, f"dpu:{runs_on}"], {**budgets, UNSUPPORTED.name: 0.0}
    asked: dict[str, Any] = {
        "max": budgets,
        "min": bounds(least, "--min"),
        "confidence": confidence,
        "measured": measure,
        "store": store,
        "out": out,
    }
    if config is not None:
        if accuracy is not None or front:
            raise InputError(
                "a search with --config learns what is accurate itself, for one target: leave out "
                f"{'--front' if accuracy is None else '--accuracy'}"
            )
        result = one_shot_search(_one_shot_config(config, space, algorithm, seed), cost, **asked)
    elif space is None or accuracy is None:
        raise InputError("search needs --space and --accuracy, or the --config of a method that trains, such as fbnet")
    else:
        result = search(space, accuracy, cost, algorithm=algorithm, front=front, seed=seed or 0, **asked)
    report = result.to_json()
    show(report, _found(report, out), as_json)
    certificate = report["best"]["certificate"]
    _require([certificate] if certificate else [])


def _one_shot_config(path: Path, space: str | None, algorithm: str, seed: int | None) -> OneShotConfig:
    """The configuration at `path` with what else the command says; raises `InputError` where the two contradict."""
    from hwnas.core.config import load_config
    from hwnas.spaces import get_space
    from hwnas.train import OneShotConfig

    config = load_config(path, OneShotConfig)
    if space is not None and get_space(space) != get_space(config.space):
        raise InputError(f"{path} is of {config.space}, --space says {space}: leave --space out")
    named = {} if algorithm == "auto" else {"algorithm": algorithm}
    return config.model_copy(update={**named, **({} if seed is None else {"seed": seed})})


def _found(report: dict[str, Any], out: Path) -> str:
    best = report["best"]
    costs = ", ".join(f"{name} {value:.5g}" for name, value in best["costs"].items())
    lines = [best["arch"], f"accuracy {best['accuracy']:.5g}, predicted {costs or 'no cost'}"]
    if best["certificate"]:
        lines.append(_certified(best["certificate"]))
    lines += report["notes"]
    return "\n".join([*lines, f"{report['evaluations']} architectures in {report['seconds']:.2f} s; saved to {out}"])


def _certified(certificate: dict[str, Any]) -> str:
    claim = f"{certificate['quantity']} {'<=' if certificate['upper'] else '>='} {certificate['budget']:.5g}"
    if certificate["measured"] is None:
        return f"{claim}: {certificate['status'].replace('_', ' ')}: {certificate['reason']}"
    if certificate["verdict"] == "exact":
        return f"{claim}: {certificate['status']}: counted {certificate['measured']:.5g}"
    low, high = certificate["low"], certificate["high"]
    return f"{claim}: {certificate['status']}: measured {certificate['measured']:.5g} (95 %: {low:.5g} to {high:.5g})"


def _require(certificates: Sequence[dict[str, Any]]) -> None:
    failed = [certificate for certificate in certificates if certificate["status"] == "failed"]
    if failed:
        raise ClaimFailedError(f"{len(failed)} of {len(certificates)} claims failed: {_certified(failed[0])}")


@app.command("verify")
def verify_command(
    runs: Annotated[list[Path], typer.Argument(help="folders of searches")],
    store: SampleStore = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the winners of searches, interleaved, and write their certificates."""
    from hwnas.search import verify

    certificates = [certificate.to_json() for certificate in verify(runs, store=store, seed=seed)]
    show({"certificates": certificates}, "\n".join(map(_certified, certificates)), as_json)
    _require(certificates)


@app.command("export")
def export_command(
    arch: Annotated[str, typer.Argument(help="architecture in the space's notation")],
    space: Space,
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write")],
    supernet: Annotated[
        Path | None, typer.Option("--supernet", "--weights", help="super-network or trained network with the weights")
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="images in one inference, or dynamic")] = "1",
    as_json: Json = False,
) -> None:
    """ONNX of a network, its output compared with PyTorch's."""
    from hwnas.search import export

    if batch != "dynamic" and not (batch.isdecimal() and int(batch) > 0):
        raise InputError(f"--batch {batch}: a positive whole number or dynamic")
    done = export(arch, space, batch=None if batch == "dynamic" else int(batch), supernet=supernet, out=out)
    report = {"out": str(out), "bytes": len(done.model), "difference": done.difference}
    show(report, f"{out}: {len(done.model) / 1e6:.2f} MB, differs from PyTorch by {done.difference:.1e}", as_json)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="folder of a run, a model, a search, or of several of them")],
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; report.html in the folder where absent")] = None,
    as_json: Json = False,
) -> None:
    """One self-contained page on everything that a folder holds."""
    from hwnas.report import write_report

    path = write_report(run, out)
    show({"report": str(path)}, str(path), as_json)


@app.command("quickstart")
def quickstart_command(
    out: Annotated[Path, typer.Option("--out", help="folder of everything it makes")] = Path("quickstart"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The whole job on this machine's CPU in minutes: profile, fit, train, search, verify, report."""
    from hwnas.quickstart import quickstart

    report = quickstart(out, seed=seed)
    head = ["budget (ms)", "predicted", "measured", "95 % interval", "accuracy", "certificate"]
    lines = [
        [
            f"{c['budget']:.3f}",
            f"{c['predicted']:.3f}",
            *(["-", "-"] if c["measured"] is None else [f"{c['measured']:.3f}", f"{c['low']:.3f} to {c['high']:.3f}"]),
            f"{accuracy:.3f}",
            c["status"],
        ]
        for accuracy, c in ((winner["accuracy"], winner["certificate"]) for winner in report["winners"])
    ]
    show(report, columns(head, lines) + f"\n\nopen {report['report']}", as_json)
    _require([winner["certificate"] for winner in report["winners"]])
