"""Peak activation memory, from the ONNX graph alone."""

from __future__ import annotations

from math import prod
from typing import Any

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
MIB = 2**20
MEMORY, MEASURED_MEMORY = "memory_mib", "measured_memory_mib"


def peak_activation_mib(model: bytes, precision: str = "fp32", batch: int = 1) -> float:
    """The most bytes that inputs, intermediate results and outputs take at one time, in MiB; weights not counted.

    Liveness analysis in the graph's order: a tensor lives from the node that writes it to the last one that reads it,
    an output to the end, and a node's inputs and outputs are there together. No operator is taken to be fused or to
    work in place, so a runtime that does so stays below. Floating-point tensors count in `precision`; `batch` fills an
    open first dimension. Raises `ValueError` where the graph leaves a shape open, or for an unknown precision.
    """
    import onnx

    if precision not in BYTES:
        raise ValueError(f"the width of {precision} is not known, only those of {', '.join(BYTES)}")
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    weights = {tensor.name for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    sizes = {value.name: _size(value, BYTES[precision], batch) for value in values if value.name not in weights}
    end = len(graph.node)
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: end for value in graph.output}
    live = {value.name for value in graph.input if value.name not in weights}
    peak = sum(sizes[name] for name in live)
    for index, node in enumerate(graph.node):
        live |= {name for name in node.output if name}
        missing = live - sizes.keys()
        if missing:
            raise ValueError(f"the shape of {min(missing)!r} does not follow from the graph")
        peak = max(peak, sum(sizes[name] for name in live))
        live = {name for name in live if last.get(name, -1) > index}
    return peak / MIB


def _size(value: Any, float_bytes: int, batch: int) -> int:
    from onnx import TensorProto, helper

    kind = value.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else 0 for side in kind.shape.dim]
    if sides and not sides[0]:
        sides[0] = batch
    if not all(sides):
        raise ValueError(f"the shape of {value.name!r} is open: {sides}")
    floating = kind.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    width = float_bytes if floating else helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return prod(sides) * width
