"""Whether a QDQ model is one that a DPU takes: each rule and its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hwnas.core.errors import InputError
from hwnas.fpga.positions import CONVOLUTIONS, ELTWISE, Rule, node_rules
from hwnas.spaces.onnx_graph import load_model

QDQ = ("QuantizeLinear", "DequantizeLinear")


class NotQuantisedError(InputError):
    """A model without a QDQ pair, such as one in which nothing could be quantised."""


def validate(model: str | Path | bytes | onnx.ModelProto) -> list[Rule]:
    """Every rule that the model is subject to, broken ones included.

    Rules of a QDQ pair: int8, zero point 0, one scale a tensor, the scale a power of two. Rules of a node: all its
    data and its bias are quantised, and the shifts between their positions stay in the DPU's range.
    Raises `InputError` where the model cannot be read, `NotQuantisedError` where it holds no QDQ pair.
    """
    proto = load_model(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    rules: list[Rule] = []
    position: dict[str, int] = {}
    pairs = [node for node in proto.graph.node if node.op_type in QDQ]
    if not pairs:
        raise NotQuantisedError("the model holds no QuantizeLinear or DequantizeLinear: not quantised in QDQ form")
    for node in pairs:
        rules += _pair_rules(node, constants, position)
    for node in proto.graph.node:
        if node.op_type in CONVOLUTIONS or node.op_type in ELTWISE or node.op_type == "HardSigmoid":
            data = [name for name in node.input if name]
            bare = [name for name in data if name not in position]
            rules.append(Rule("every operand is quantised", node.name, ", ".join(bare) or "all", "all", not bare))
            rules += node_rules(node, _positions_at(node, position))
    return rules


def _pair_rules(
    node: onnx.NodeProto, constants: dict[str, NDArray[np.generic]], position: dict[str, int]
) -> list[Rule]:
    """Rules of one QuantizeLinear or DequantizeLinear; records the position of what it reads and gives."""
    scale = constants.get(node.input[1])
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None:
        return [Rule("constant scale", node.name, "computed", "constant", False)]
    value = float(np.asarray(scale, dtype=np.float64).ravel()[0])
    exponent = -np.log2(value) if value > 0 else np.nan
    power = bool(np.isfinite(exponent) and abs(exponent - round(exponent)) < 1e-9)
    kind = str(zero.dtype) if zero is not None else "uint8"
    offset = int(np.asarray(zero).ravel()[0]) if zero is not None else 0
    if power:
        position[node.output[0]] = position[node.input[0]] = round(exponent)
    return [
        Rule("one scale a tensor", node.name, str(scale.size), "1", scale.size == 1),
        Rule("power-of-two scale", node.name, f"{value:g}", "2**-p", power),
        Rule("8-bit signed integers", node.name, kind, "int8", kind == "int8"),
        Rule("zero point 0", node.name, str(offset), "0", offset == 0),
    ]


def _positions_at(node: onnx.NodeProto, position: dict[str, int]) -> dict[str, int]:
    """Positions of a node's own tensors; its output takes that of the QuantizeLinear that reads it."""
    found = {name: position[name] for name in node.input if name in position}
    if node.output[0] in position:
        found[node.output[0]] = position[node.output[0]]
    return found
