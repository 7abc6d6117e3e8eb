"""Cross-layer equalisation: the same float network with channels of more equal range.

With one scale a tensor, channels of small range lose their bits. Where only operations that commute with a positive
factor a channel lie between convolutions (ReLU, pooling, sums, a gate's product), the factor can move from the weights
that give a channel to those that read it (Nagel et al., Data-Free Quantization through Weight Equalization and Bias
Correction, ICCV 2019, section 4.1, here for whole groups of tensors and with the ranges that activations really take).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.float32]
ROUNDS = 4
COMMUTES = ("Relu", "LeakyRelu", "GlobalAveragePool", "AveragePool", "MaxPool", "Identity", "Add")
GATES = ("HardSigmoid", "Sigmoid")
SMALLEST = 1e-6
MOST = 64.0


@dataclass
class Group:
    """Tensors that carry one factor a channel: convolutions that give them and that read them."""

    tensors: list[str] = field(default_factory=list)
    givers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)
    free: bool = True


def equalize(model: onnx.ModelProto, ranges: dict[str, Array]) -> onnx.ModelProto:
    """A model that computes the same with channel ranges evened out.

    Args:
        model: float, BatchNorm folded.
        ranges: largest magnitude of each channel of each tensor, shape (C,), over calibration images.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in result.graph.initializer}
    groups = [group for group in _groups(result, weights) if group.free and group.givers and group.readers]
    spans = {id(g): _span(g, ranges) for g in groups}
    for _ in range(ROUNDS):
        for group in groups:
            span = spans[id(group)]
            if span is not None:
                spans[id(group)] = span / _move(group, span, weights)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return result


def _groups(model: onnx.ModelProto, weights: dict[str, Array]) -> list[Group]:
    """Groups of tensors joined by operations that commute; what anything else touches is not free."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    makers = {name: node for node in model.graph.node for name in node.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    blocked = [value.name for value in (*model.graph.input, *model.graph.output)]
    joins: list[tuple[str, str]] = []
    for node in model.graph.node:
        data = [name for name in node.input if name and name not in weights]
        if node.op_type in COMMUTES and len(data) == len([n for n in node.input if n]):
            joins += [(name, node.output[0]) for name in data]
        elif node.op_type == "Mul" and len(data) == 2 and _gate(data[1], makers):
            joins.append((data[0], node.output[0]))
            blocked.append(data[1])
        elif not (node.op_type == "Conv" and len(data) == 1 and _plain(node, weights, uses)):
            blocked += [*data, *node.output]
    for left, right in joins:
        parent[root(left)] = root(right)
    groups: dict[str, Group] = {}
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            if name and name not in weights and name not in groups.setdefault(root(name), Group()).tensors:
                groups[root(name)].tensors.append(name)
        if node.op_type == "Conv" and node.input[1] in weights:
            groups[root(node.output[0])].givers.append(node)
            groups[root(node.input[0])].readers.append(node)
    for name in blocked:
        groups.setdefault(root(name), Group()).free = False
    return list(groups.values())


def _gate(name: str, makers: dict[str, onnx.NodeProto]) -> bool:
    return name in makers and makers[name].op_type in GATES


def _plain(node: onnx.NodeProto, weights: dict[str, Array], uses: Mapping[str, int]) -> bool:
    """An ordinary or a depthwise convolution whose weights nothing else uses."""
    if node.input[1] not in weights or any(uses[name] > 1 for name in node.input[1:]):
        return False
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    return group == 1 or weights[node.input[1]].shape[:2] == (group, 1)


def _depthwise(node: onnx.NodeProto) -> bool:
    return next((a.i for a in node.attribute if a.name == "group"), 1) > 1


def _span(group: Group, ranges: dict[str, Array]) -> Array | None:
    """Largest magnitude of each channel over the group's tensors; None where they disagree about the channels."""
    known = [ranges[name] for name in group.tensors if name in ranges]
    if not known or len({len(values) for values in known}) != 1:
        return None
    return np.asarray(np.maximum(np.max(known, axis=0), SMALLEST), dtype=np.float32)


def _move(group: Group, span: Array, weights: dict[str, Array]) -> Array:
    """Divide what gives each channel by sqrt(range given / range read), multiply what reads it; returns the factor."""
    read = np.full(len(span), SMALLEST, dtype=np.float32)
    for node in group.readers:
        weight = np.abs(weights[node.input[1]])
        read = np.maximum(read, weight.max(axis=(1, 2, 3)) if _depthwise(node) else weight.max(axis=(0, 2, 3)))
    factor = np.sqrt(span / read)
    factor = np.asarray(np.clip(factor / np.exp(np.mean(np.log(factor))), 1 / MOST, MOST), dtype=np.float32)
    for node in group.givers:
        weights[node.input[1]] = weights[node.input[1]] / factor[:, None, None, None]
        if len(node.input) > 2 and node.input[2]:
            weights[node.input[2]] = weights[node.input[2]] / factor
    for node in group.readers:
        shape = (-1, 1, 1, 1) if _depthwise(node) else (1, -1, 1, 1)
        weights[node.input[1]] = weights[node.input[1]] * factor.reshape(shape)
    return factor
