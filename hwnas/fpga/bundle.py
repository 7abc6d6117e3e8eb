"""A bundle: everything that a person with a board needs to turn a search space into logs that `parse` reads.

OUT/hwnas_bundle.json    which model is which primitive or architecture, and the MD5 of each compiled model
OUT/onnx/ID.onnx         quantised, in QDQ form
OUT/models.json          the same models for blocks.py, which builds them in PyTorch for vai_q_pytorch
OUT/arch.json            the DPU's fingerprint, for vai_c_xir
OUT/compile.sh           quantise and compile in the Vitis AI container
OUT/copy_and_run.sh      copy to the board, run there, bring OUT/logs back
OUT/board/               the runner and the power sampler
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hwnas.core.bundle import BundleReport, claim, finish
from hwnas.core.errors import InputError
from hwnas.core.files import data_folder, write_json
from hwnas.core.progress import progress
from hwnas.fpga.checker import check_primitive, sample_of, supported
from hwnas.fpga.demand import block_demand
from hwnas.fpga.quantize import quantize
from hwnas.fpga.targets import DpuTarget
from hwnas.fpga.validate import NotQuantisedError
from hwnas.spaces import Graph, Primitive, SearchSpace
from hwnas.spaces.graph import BN_EPS
from hwnas.spaces.ops import Activation, Add, AvgPool, BatchNorm, Conv, GlobalAvgPool, Linear, Mul, Op
from hwnas.spaces.primitive import Node

CALIBRATION_INPUTS = 8


def emit_bundle(
    space: SearchSpace,
    target: DpuTarget,
    out: str | Path,
    networks: int = 0,
    seed: int = 0,
    images: ArrayLike | None = None,
) -> BundleReport:
    """Write the bundle of a space for a DPU.

    Every primitive that the DPU runs whole becomes a model of its own; the others are listed with the reason. An
    interrupted emission goes on where it stood, since models that are there are not made again.

    Args:
        networks: number of sampled architectures, made of supported primitives alone, to add as whole models.
        images: (n, C, H, W) float32 to calibrate the networks on; random features where None, and always for single
            blocks: what a model costs on a DPU does not depend on the values of its weights or scales.

    Raises `InputError` where `out` is not empty and no bundle of the same space, DPU, networks and seed.
    """
    folder = Path(out)
    identity = {"space": space.spec, "target": target.to_json(), "networks": networks, "seed": seed}
    subjects, left_out = _subjects(space, target, networks, seed)
    claim(folder, identity)
    models: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, Any]] = {}
    with progress(f"models for {target.name}", len(subjects)) as task:
        for name, subject in subjects.items():
            try:
                _emit_model(folder / "onnx" / f"{name}.onnx", subject, images)
            except NotQuantisedError as error:
                if "primitive" not in subject.entry:
                    raise
                left_out[subject.entry["primitive"]] = f"not quantised by itself: {error}"
            else:
                models[name] = subject.entry
                sources[name] = _describe(subject.graph)
            task.advance(note=name)
    write_json(folder / "models.json", sources)
    write_json(folder / "arch.json", {"fingerprint": target.fingerprint})
    _copy_scripts(folder)
    return finish(folder, identity, models, left_out)


@dataclass(frozen=True)
class _Subject:
    graph: Graph
    entry: dict[str, Any]


def _subjects(
    space: SearchSpace, target: DpuTarget, networks: int, seed: int
) -> tuple[dict[str, _Subject], dict[str, str]]:
    fits = supported(space.primitives(), target)
    reasons = [_reason(primitive, ok, target) for primitive, ok in zip(space.primitives(), fits, strict=True)]
    left_out = {primitive.key: why for primitive, why in zip(space.primitives(), reasons, strict=True) if why}
    if all(reasons):
        raise InputError(f"the DPU {target.name} runs no primitive of {space.spec}; see `hwnas fpga check`")
    subjects = {}
    for index, primitive in enumerate(space.primitives()):
        if not reasons[index]:
            graph = Graph.alone(primitive, space.bn_eps)
            subjects[f"p{index:05d}"] = _Subject(graph, {"primitive": primitive.key})
    mask = np.array([not why for why in reasons])
    for index, row in enumerate(sample_of(space, mask, networks, seed)):
        subjects[f"n{index:05d}"] = _Subject(space.graph(row), {"arch": space.format(row)})
    return subjects, left_out


def _reason(primitive: Primitive, fits: bool, target: DpuTarget) -> str:
    """Why a primitive is no model of the bundle; empty where it is one."""
    if len(primitive.inputs) > 1:
        return "a block of several inputs"
    if not fits:
        report = check_primitive(primitive, target)
        return report.on_cpu[0].reason if report.on_cpu else f"{len(report.subgraphs)} DPU subgraphs"
    try:
        block_demand([primitive], target)
    except InputError as error:
        return str(error)
    return ""


def _emit_model(path: Path, subject: _Subject, images: ArrayLike | None) -> None:
    if path.exists():
        return
    graph = subject.graph
    if images is None or "arch" not in subject.entry:
        rng = np.random.default_rng(0)
        images = rng.standard_normal((CALIBRATION_INPUTS, *graph.inputs[0])).astype(np.float32)
    quantize(graph.to_onnx(None), images, path)


def _describe(graph: Graph) -> dict[str, Any]:
    """The network as blocks.py reads it: operations in order, each with the names of the values it takes."""
    outputs: list[str] = []
    ops = []
    for index, node in enumerate(graph.nodes):
        names = {f"in{j}": f"in{-1 - i}" if i < 0 else outputs[i] for j, i in enumerate(node.inputs)}
        for step in node.primitive.body:
            inputs = [names[name] for name in step.inputs]
            names[step.name] = f"b{index}.{step.name}"
            ops.append({"name": names[step.name], "inputs": inputs, **_operation(step, graph.bn_eps)})
        outputs.append(names[node.primitive.body[-1].name])
    return {"shapes": [list(shape) for shape in graph.inputs], "ops": ops}


_SIMPLE: dict[type[Op], str] = {GlobalAvgPool: "global_avg_pool", Add: "add", Mul: "mul"}


def _operation(step: Node, bn_eps: float = BN_EPS) -> dict[str, Any]:
    op, channels = step.op, step.shapes[0][0]
    if isinstance(op, Conv):
        fields = {"kernel": op.kernel, "stride": op.stride, "groups": op.groups, "bias": op.bias}
        return {"op": "conv", "in": channels, "out": op.out, **fields}
    if isinstance(op, BatchNorm):
        return {"op": "batch_norm", "channels": channels, "eps": bn_eps}
    if isinstance(op, Linear):
        return {"op": "linear", "in": int(np.prod(step.shapes[0])), "out": op.out, "bias": op.bias}
    if isinstance(op, AvgPool):
        return {"op": "avg_pool", "kernel": op.kernel, "stride": op.stride, "padding": op.padding}
    if isinstance(op, Activation):
        return {"op": op.function}
    return {"op": _SIMPLE[type(op)]}


def _copy_scripts(folder: Path) -> None:
    with data_folder("fpga") as source:
        for path in _scripts(source / "bundle"):
            final = folder / path.relative_to(source / "bundle")
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, final)
            if path.suffix == ".sh" or path.name == "run.py":
                final.chmod(0o755)


def _scripts(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".sh", ".md"))
