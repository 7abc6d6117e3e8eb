"""A network as primitives and the edges between them, and its ONNX form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.spaces.onnx_graph import OnnxGraph
from hwnas.spaces.ops import BatchNorm, Conv, Shape
from hwnas.spaces.primitive import Node, Primitive

Arrays = dict[str, NDArray[np.float32]]
BN_EPS = 1e-5


@dataclass(frozen=True)
class GraphNode:
    """A primitive and where its inputs come from: i >= 0 is the output of node i, -1 - j is input j of the network."""

    primitive: Primitive
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        inputs: the network's input shapes for one image, (C, H, W) each.
        nodes: in order of execution; the last one gives the output.
        bn_eps: epsilon of its BatchNorm layers.
    """

    inputs: tuple[Shape, ...]
    nodes: tuple[GraphNode, ...]
    bn_eps: float = BN_EPS

    @property
    def output(self) -> Shape:
        return self.nodes[-1].primitive.output

    @classmethod
    def alone(cls, primitive: Primitive, bn_eps: float = BN_EPS) -> Graph:
        """A network that is one primitive."""
        inputs = tuple(-1 - i for i in range(len(primitive.inputs)))
        return cls(primitive.inputs, (GraphNode(primitive, inputs),), bn_eps)

    @classmethod
    def chain(cls, primitives: Sequence[Primitive], bn_eps: float = BN_EPS) -> Graph:
        """A network in which each primitive reads the one before it."""
        return cls(primitives[0].inputs, tuple(GraphNode(p, (i - 1,)) for i, p in enumerate(primitives)), bn_eps)

    def to_onnx(self, batch: int | None = 1, weights: Sequence[Arrays] | None = None) -> bytes:
        """A serialised ONNX model, BatchNorm folded into the convolution before it.

        Args:
            batch: images in one inference; None leaves it open.
            weights: one mapping `operation.tensor` -> array a node; the primitives' own untrained weights where absent.
        """
        graph = OnnxGraph(self.bn_eps)
        names = [f"input{index or ''}" for index in range(len(self.inputs))]
        outputs: list[str] = []
        for index, node in enumerate(self.nodes):
            arrays = weights[index] if weights is not None else node.primitive.weights()
            inputs = [names[-1 - i] if i < 0 else outputs[i] for i in node.inputs]
            outputs.append(_emit(graph, f"b{index}", node.primitive, inputs, arrays))
        return graph.model(dict(zip(names, self.inputs, strict=True)), outputs[-1], self.output, batch)


def _emit(graph: OnnxGraph, prefix: str, primitive: Primitive, inputs: list[str], arrays: Arrays) -> str:
    values = {f"in{index}": name for index, name in enumerate(inputs)}
    body, position = primitive.body, 0
    while position < len(body):
        node = body[position]
        weights = _of(arrays, node)
        follower = body[position + 1] if position + 1 < len(body) else None
        if (
            isinstance(node.op, Conv)
            and follower
            and isinstance(follower.op, BatchNorm)
            and follower.inputs == (node.name,)
        ):
            weights = _fold(weights, _of(arrays, follower), graph.bn_eps)
            position += 1
        output = node.op.onnx(
            graph, f"{prefix}.{node.name}", [values[v] for v in node.inputs], list(node.shapes), weights
        )
        values[node.name] = values[body[position].name] = output
        position += 1
    return output


def _of(arrays: Arrays, node: Node) -> Arrays:
    prefix = f"{node.name}."
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def _fold(conv: Arrays, bn: Arrays, eps: float) -> Arrays:
    scale = bn["weight"] / np.sqrt(bn["running_var"] + np.float32(eps))
    bias = bn["bias"] + (conv.get("bias", np.float32(0)) - bn["running_mean"]) * scale
    return {"weight": conv["weight"] * scale[:, None, None, None], "bias": bias}
