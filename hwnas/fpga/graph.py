"""An ONNX graph as the checker sees it: nodes, shapes and constants, weights never copied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from hwnas.core.errors import InputError
from hwnas.spaces import Primitive
from hwnas.spaces.graph import BN_EPS
from hwnas.spaces.onnx_graph import OPSET, OnnxGraph, load_model

SMALL = 4096
TRANSPARENT = ("QuantizeLinear", "DequantizeLinear", "Identity", "Dropout")


@dataclass(frozen=True)
class GraphOp:
    """A node: `inputs` are the tensors that carry data; quantisation and identities are looked through."""

    name: str
    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class OpGraph:
    """Nodes in order of execution, shapes (None where a dimension is open), and constants.

    `constants` maps each constant to its value where that is small, else to None.
    """

    ops: list[GraphOp]
    shapes: dict[str, tuple[int | None, ...]]
    constants: dict[str, NDArray[Any] | None]
    outputs: tuple[str, ...]
    consumers: dict[str, list[int]] = field(default_factory=dict)
    producer: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, op in enumerate(self.ops):
            for name in op.inputs:
                self.consumers.setdefault(name, []).append(index)
            for name in op.outputs:
                self.producer[name] = index

    def shape(self, name: str) -> tuple[int | None, ...]:
        return self.shapes.get(name, ())


def read_onnx(model: str | Path | bytes | onnx.ModelProto) -> OpGraph:
    """The graph of an ONNX model; raises `InputError` where it is unreadable or its shapes contradict each other."""
    return _op_graph(load_model(model), set())


class _Skeleton(OnnxGraph):
    """Collects a graph whose large constants are declared by shape alone."""

    def __init__(self) -> None:
        super().__init__(BN_EPS)
        self.declared: dict[str, tuple[int, ...]] = {}

    def constant(self, name: str, array: NDArray[Any]) -> str:
        if (array.size <= SMALL and np.issubdtype(array.dtype, np.integer)) or array.ndim == 0:
            return super().constant(name, array)
        self.declared[name] = array.shape
        return name

    def proto(self, primitive: Primitive, output: str) -> onnx.ModelProto:
        inputs = {f"in{index}": (1, *shape) for index, shape in enumerate(primitive.inputs)} | self.declared
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, *primitive.output])
        graph = helper.make_graph(self._nodes, "primitive", values, [result], list(self._constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def read_primitive(primitive: Primitive) -> OpGraph:
    """The graph of a primitive, in a millisecond: its weights exist as shapes alone."""
    skeleton = _Skeleton()
    names = {f"in{index}": f"in{index}" for index in range(len(primitive.inputs))}
    output = ""
    for node in primitive.body:
        weights = {name: np.broadcast_to(np.float32(1), shape) for name, shape in node.op.weights(*node.shapes).items()}
        inputs = [names[value] for value in node.inputs]
        output = names[node.name] = node.op.onnx(skeleton, node.name, inputs, list(node.shapes), weights)
    return _op_graph(skeleton.proto(primitive, output), set(skeleton.declared))


def _op_graph(model: onnx.ModelProto, declared: set[str]) -> OpGraph:
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise InputError(f"the model's shapes cannot be inferred: {str(error).splitlines()[0]}") from error
    graph = inferred.graph
    shapes = {info.name: _dims(info) for info in (*graph.input, *graph.output, *graph.value_info)}
    constants: dict[str, NDArray[Any] | None] = dict.fromkeys(declared)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        constants[tensor.name] = numpy_helper.to_array(tensor) if np.prod(tensor.dims) <= SMALL else None
    alias: dict[str, str] = {}
    ops = []
    for index, node in enumerate(graph.node):
        inputs = tuple(alias.get(name, name) for name in node.input)
        if node.op_type == "Constant":
            _add_constant(node, shapes, constants)
        elif node.op_type in TRANSPARENT and not node.domain:
            alias[node.output[0]] = inputs[0]
        else:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            name = node.name or f"{node.op_type}_{index}"
            ops.append(GraphOp(name, node.op_type, node.domain, inputs, tuple(node.output), attributes))
    return OpGraph(ops, shapes, constants, tuple(alias.get(o.name, o.name) for o in graph.output))


def _add_constant(node: onnx.NodeProto, shapes: dict[str, Any], constants: dict[str, NDArray[Any] | None]) -> None:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    array = numpy_helper.to_array(values["value"]) if "value" in values else np.array(next(iter(values.values())))
    shapes[node.output[0]] = array.shape
    constants[node.output[0]] = array if array.size <= SMALL else None


def _dims(info: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim)


def known(dims: Iterable[int | None]) -> bool:
    """Whether every dimension is fixed."""
    return all(dim is not None for dim in dims)
