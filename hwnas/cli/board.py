"""Commands for devices that only return files: parse, fpga check, fpga quantize, fpga calibrate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hwnas.cli.shell import Json, app, columns, show
from hwnas.core.errors import ClaimFailedError, InputError

fpga_app = typer.Typer(
    help="What a DPU can run, quantisation for it, and its cost model.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(fpga_app, name="fpga")

Dpu = Annotated[str, typer.Option("--target", help="a DPU, such as zcu102-b4096, or the YAML file of one")]


@app.command("parse")
def parse_command(
    paths: Annotated[list[Path], typer.Argument(help="logs, or folders of logs")],
    out: Annotated[Path, typer.Option("--out", help="TABLE.csv to write")],
    space: Annotated[str | None, typer.Option("--space", help="space whose primitives the table is to hold")] = None,
    form: Annotated[str, typer.Option("--format", help="auto, or a log format of hwnas registry")] = "auto",
    mapping: Annotated[
        Path | None, typer.Option("--mapping", help="YAML: the columns of a CSV that no reader knows")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="leave refused logs out instead of stopping")
    ] = False,
    as_json: Json = False,
) -> None:
    """Turn the logs of a device into a cost table."""
    from hwnas.core.config import load_config
    from hwnas.parse import ColumnMapping, parse
    from hwnas.spaces import get_space

    chosen = get_space(space) if space else None
    columns_of = load_config(mapping, ColumnMapping) if mapping else None
    parsed = parse(paths, form, chosen, None, columns_of, keep_going)
    written = ", ".join(map(str, parsed.save(out)))
    report = parsed.to_json()
    lines = [f"{report['n_records']} records, {report['n_primitives']} primitives; written to {written}"]
    if chosen and (missing := len(chosen.primitives()) - report["n_primitives"]):
        lines.append(f"{missing} of the {len(chosen.primitives())} primitives of {chosen.spec} are in no log")
    lines += [f"matches no primitive: {name}" for name in report["unmatched"]]
    lines += [f"has a throughput but no latency: {key}" for key in report["without_latency"]]
    lines += [f"not read: {path}" for path in report["unread"]]
    show(report, "\n".join([*lines, *report["refused"]]), as_json)


@fpga_app.command("check")
def check_command(
    model: Annotated[Path, typer.Argument(help="ONNX model")], target: Dpu, as_json: Json = False
) -> None:
    """Which engine of a DPU runs each node, what goes to the CPU and why, and what to change."""
    from hwnas.fpga import check, get_target

    report = check(model, get_target(target)).to_json()
    rows = [
        [node["name"], node["kind"], node["engine"], str(node["subgraph"]), node["reason"]] for node in report["nodes"]
    ]
    parts = f"{report['dpu_subgraphs']} DPU and {report['cpu_subgraphs']} CPU subgraphs"
    text = [
        columns(["node", "operation", "engine", "subgraph", "reason"], rows),
        f"\n{'fits' if report['fits'] else 'does not fit'} {target}: {parts}",
        *report["changes"],
    ]
    show(report, "\n".join(text), as_json)


@fpga_app.command("quantize")
def quantize_command(
    model: Annotated[Path, typer.Argument(help="ONNX model in float")],
    out: Annotated[Path, typer.Option("--out", help="ONNX file to write")],
    data: Annotated[str, typer.Option("--data", help="a data set of hwnas registry to calibrate on")],
    path: Annotated[Path | None, typer.Option("--path", help="the files of that data set")] = None,
    images: Annotated[int, typer.Option("--images", min=8, help="how many of its images are used")] = 1024,
    tune: Annotated[
        int | None, typer.Option("--tune", min=0, help="steps of fine-tuning; by itself where below 20 dB without")
    ] = None,
    as_json: Json = False,
) -> None:
    """INT8 with power-of-two scales and the DPU's limits, calibrated on real images."""
    from hwnas.fpga.quantize import quantize

    pixels, labels = _images(model, data, path, images)
    report = quantize(model, pixels, out, labels, tune=tune).to_json()
    top1 = f"top-1 {report['top1_float']:.2f} % in float, {report['top1_int8']:.2f} % in INT8"
    broken = f"{len(report['rules_broken'])} of {report['rules_checked']} rules broken"
    tuned = f"tuned for {report['tuned']} steps, " if report["tuned"] else ""
    text = f"{out}: {tuned}{report['snr_db']:.1f} dB, {top1}, {broken}"
    show(report, text, as_json)
    if not report["valid"]:
        raise ClaimFailedError(
            f"{out} breaks {len(report['rules_broken'])} limits of the DPU: {report['rules_broken'][0]}"
        )


def _images(model: Path, name: str, path: Path | None, count: int) -> tuple[Any, Any]:
    """Training images of a data set, preprocessed as training does, shape (n, 3, H, W), and their labels.

    A model that says what it was trained on gets them normalised as then; raises `InputError` for other classes.
    """
    import json

    import numpy as np
    import torch

    from hwnas.spaces.onnx_graph import load_model
    from hwnas.train import DataConfig
    from hwnas.train.batches import Normaliser, resize, to_device
    from hwnas.train.data import load_data

    proto = load_model(model)
    graph, told = proto.graph, {each.key: each.value for each in proto.metadata_props}
    shape, output = (
        [d.dim_value for d in value[0].type.tensor_type.shape.dim] for value in (graph.input, graph.output)
    )
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or len(output) != 2 or not (shape[2] and output[1]):
        raise InputError(f"{model}: a classifier of square colour images is expected, its input is {shape}")
    classes = output[1]
    found = load_data(DataConfig(name=name, path=path), shape[-1], classes)
    named = json.loads(told.get("hwnas.classes", "null"))
    if named not in (None, list(found.classes)):
        raise InputError(
            f"{model} tells {named} apart, {path or name} has {list(found.classes)}; give the same classes"
        )
    if "hwnas.mean" in told and "hwnas.std" in told:
        found = replace(found, mean=json.loads(told["hwnas.mean"]), std=json.loads(told["hwnas.std"]))
    rows = np.random.default_rng(0).permutation(len(found.train))[:count]
    cpu = torch.device("cpu")
    pixels = to_device(torch.from_numpy(found.train.read(rows)), cpu)
    return Normaliser(found, cpu)(resize(pixels, shape[-1])).numpy(), found.train.labels[rows]


@fpga_app.command("calibrate")
def calibrate_command(
    table: Annotated[Path, typer.Argument(help="measured cost table, or Parquet/CSV with a column arch")],
    target: Dpu,
    out: Annotated[Path, typer.Option("--out", help="JSON file of the coefficients")],
    space: Annotated[
        str | None, typer.Option("--space", help="space of the architectures, where there are any")
    ] = None,
    metric: Annotated[str, typer.Option("--metric", help="latency column")] = "latency_ms",
    as_json: Json = False,
) -> None:
    """Fit the cycle model of a DPU to measurements."""
    from hwnas.fpga import calibrate_file, get_target
    from hwnas.spaces import get_space

    report = calibrate_file(table, get_target(target), out, get_space(space) if space else None, metric).to_json()
    text = f"{out}: fitted to {report['n']} measurements, held-out MAPE {report['held_out_mape']:.2f} %"
    if assumed := report["provenance"]["assumed"]:
        text += f"; not measured, and taken from the model that ships: {', '.join(assumed)}"
    show(report, text, as_json)
