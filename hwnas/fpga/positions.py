"""Power-of-two scales: a tensor's *position* p means a scale of 2**-p; and the limits that tie positions together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

LOW, HIGH = -128, 127
MAX_SHIFT = 16
MAX_ELTWISE_SHIFT = 15
GATE_OUT = 7
CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ELTWISE = ("Add", "Mul")
SAME_SCALE = ("Relu", "Clip", "LeakyRelu")
SHARED = ("MaxPool", "GlobalMaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity")
SEARCHED = 4


def quantised(values: NDArray[np.float32], position: int) -> NDArray[np.float32]:
    """`values` after rounding to int8 at a scale of 2**-position."""
    scale = np.float32(2.0**-position)
    rounded: NDArray[np.float32] = np.clip(np.round(values / scale), LOW, HIGH).astype(np.float32) * scale
    return rounded


def best_position(values: NDArray[np.float32]) -> int:
    """The position of least squared error, searched from the one that holds the largest value upwards."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0:
        return GATE_OUT
    safe = math.floor(math.log2(HIGH / largest))
    errors = {p: float(np.square(quantised(values, p) - values).sum()) for p in range(safe, safe + SEARCHED)}
    return min(errors, key=lambda p: (errors[p], p))


@dataclass(frozen=True)
class Rule:
    """The verdict on one limit at one node."""

    rule: str
    node: str
    value: str
    allowed: str
    passed: bool

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def within(rule: str, node: str, value: int, least: int, most: int) -> Rule:
    return Rule(rule, node, str(value), f"{least} to {most}", least <= value <= most)


def node_rules(node: onnx.NodeProto, position: dict[str, int]) -> list[Rule]:
    """The shift limits at one node, given the positions of its tensors; nothing where one of them has none."""
    out = position.get(node.output[0])
    ins = [position[name] for name in node.input if name in position]
    if out is None or not ins:
        return []
    if node.op_type in CONVOLUTIONS and len(ins) >= 2:
        shift = ins[0] + ins[1] - out
        rules = [within("shift of the product, w + i - o", node.name, shift, 0, MAX_SHIFT)]
        if len(ins) > 2:
            least = min(0, -(MAX_SHIFT - shift))
            rules.append(within("shift of the bias, w + i - b", node.name, ins[0] + ins[1] - ins[2], least, MAX_SHIFT))
        return rules
    if node.op_type in ELTWISE and len(ins) == 2:
        read = max(ins) - min(ins) if node.op_type == "Add" else 0
        write = (min(ins) if node.op_type == "Add" else sum(ins)) - out
        return [
            within("element-wise read shift", node.name, read, 0, MAX_ELTWISE_SHIFT),
            within("element-wise write shift", node.name, write, -MAX_ELTWISE_SHIFT, MAX_ELTWISE_SHIFT),
        ]
    if node.op_type == "HardSigmoid":
        return [
            within("hard sigmoid input position", node.name, ins[0], 0, 15),
            within("hard sigmoid output position", node.name, out, GATE_OUT, 127),
        ]
    return []


def settle(nodes: Iterable[onnx.NodeProto], position: dict[str, int]) -> None:
    """Move positions until every shift limit holds: outputs follow what the product can give, then bias and weight.

    Nodes are in order of execution, so that an output that was made coarser is seen by the nodes that read it.
    """
    for node in nodes:
        out = node.output[0]
        ins = [name for name in node.input if name in position]
        if out not in position or not ins:
            continue
        if node.op_type in SAME_SCALE + SHARED:
            position[out] = min(position[out], position[ins[0]]) if node.op_type in SHARED else position[out]
            position[ins[0]] = position[out]
        elif node.op_type in CONVOLUTIONS and len(ins) >= 2:
            _settle_convolution(position, ins, out)
        elif node.op_type == "HardSigmoid":
            position[ins[0]] = min(max(position[ins[0]], 0), 15)
            position[out] = GATE_OUT
        elif node.op_type in ELTWISE and len(ins) == 2:
            _settle_eltwise(position, ins, out, node.op_type)


def _settle_convolution(position: dict[str, int], ins: list[str], out: str) -> None:
    data, weight = position[ins[0]], position[ins[1]]
    position[out] = min(position[out], data + weight)
    if data + weight - position[out] > MAX_SHIFT:
        position[ins[1]] = weight = position[out] + MAX_SHIFT - data
    if len(ins) > 2:
        total = data + weight
        least = min(0, -(MAX_SHIFT - (total - position[out])))
        position[ins[2]] = min(max(position[ins[2]], total - MAX_SHIFT), total - least)


def _settle_eltwise(position: dict[str, int], ins: list[str], out: str, kind: str) -> None:
    if kind == "Add":
        lowest = min(position[name] for name in ins)
        for name in ins:
            position[name] = min(position[name], lowest + MAX_ELTWISE_SHIFT)
        total = lowest
    else:
        total = sum(position[name] for name in ins)
    position[out] = min(max(position[out], total - MAX_ELTWISE_SHIFT), total + MAX_ELTWISE_SHIFT)
