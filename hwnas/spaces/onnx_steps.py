"""ONNX models in a canonical form: a step an operation, whatever the names, the weights' values and the exporter.

BatchNorm and biases are part of the convolution or linear layer before them, which is the same without them. Hard swish
and the mean over an image are one step however they are written; what only renames or flattens is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwnas.core.errors import InputError
from hwnas.spaces.onnx_graph import fixed_batch, load_model
from hwnas.spaces.ops import Shape

COMMUTATIVE = ("Add", "Mul")
PASSED = ("Identity", "Dropout")
FLATTENERS = ("Flatten", "Reshape", "Squeeze")
SHAPERS = ("Reshape", "Squeeze", "Unsqueeze", "Clip", "ReduceMean")
OF_SHAPES = ("Shape", "Size")
"""What these give follows from the shape of their input, which is fixed."""
KEEP_VALUES = ("Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze")
DEFAULTS = {
    "auto_pad": "NOTSET",
    "ceil_mode": 0,
    "count_include_pad": 0,
    "dilations": (1, 1),
    "group": 1,
    "pads": (0, 0, 0, 0),
    "strides": (1, 1),
}
IGNORED = ("epsilon", "momentum", "training_mode", "allowzero", "storage_order", "spatial", "noop_with_empty_axes")
UNCOUNTED = (
    *("Attention", "ConvInteger", "DFT", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv"),
    *("QLinearMatMul", "RNN", "STFT"),
)
"""Operations that multiply and accumulate, and are of no primitive."""
PRECISIONS = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
DIGITS = 4

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        what: its name, the shapes of its inputs for one image, and all else that tells it from others.
        inputs: the values that it reads.
        output: the value that it gives.
        macs: multiply-accumulates for one image; None where they cannot be told.
    """

    what: tuple[Any, ...]
    inputs: tuple[str, ...]
    output: str
    macs: int | None = 0

    @property
    def label(self) -> str:
        """The operation and the shapes that it reads, such as `MaxPool 64x112x112`."""
        return " ".join([self.what[0], *("x".join(map(str, shape)) for shape in self.what[1])])


@dataclass(frozen=True)
class Steps:
    """A model: its steps by the value that they give, in order of execution.

    `batch` is 0 where it is open; `precision` that of most values, `fp16` or `bf16`, else empty.
    """

    steps: dict[str, Step]
    outputs: tuple[str, ...]
    shapes: frozenset[Shape]
    batch: int
    precision: str

    @cached_property
    def readers(self) -> dict[str, set[str]]:
        """The outputs of the steps that read each value."""
        found: dict[str, set[str]] = {}
        for step in self.steps.values():
            for value in step.inputs:
                found.setdefault(value, set()).add(step.output)
        return found


def load_steps(path: str | Path) -> Steps:
    """The canonical form of the model in the file `path`; raises `InputError` where it is none, or has open shapes."""
    model = load_model(path, external_data=False)
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise InputError(f"{path}: its functions cannot be put in place ({error})") from error
    return read_steps(model, str(path))


def read_steps(model: onnx.ModelProto, where: str) -> Steps:
    """The canonical form of a model; raises `InputError` where the shapes of its values do not follow."""
    batch = fixed_batch(model)
    reader = _Reader(_with_shapes(model, where), where)
    for node in reader.graph.node:
        reader.read(node)
    outputs = tuple(reader.name(output.name) for output in reader.graph.output)
    needed: set[str] = set()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in reader.steps and value not in needed:
            needed.add(value)
            pending += reader.steps[value].inputs
    steps = {value: step for value, step in reader.steps.items() if value in needed}
    shapes = (reader.shape(value) for step in steps.values() for value in (*step.inputs, step.output))
    return Steps(steps, outputs, frozenset(shapes), batch, reader.precision)


def _with_shapes(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """`model` with the shape of every value, an open batch taken as one image."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) and not dims[0].dim_value:
            dims[0].dim_value = 1
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise InputError(f"{where}: its shapes cannot be inferred ({str(error).strip().splitlines()[0]})") from error


class _Reader:
    """Turns nodes into steps, one after the other."""

    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self.graph, self.where = model.graph, where
        self.constants: dict[str, onnx.TensorProto | None] = {t.name: t for t in model.graph.initializer}
        self.full: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            if value.type.tensor_type.HasField("shape"):
                self.full.setdefault(value.name, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
        self.alias: dict[str, str] = {}
        self.steps: dict[str, Step] = {}
        self.reads = Counter(name for node in self.graph.node for name in node.input)
        self.reads.update(output.name for output in self.graph.output)

    @property
    def precision(self) -> str:
        values = (*self.graph.input, *self.graph.value_info, *self.graph.output)
        types = Counter(value.type.tensor_type.elem_type for value in values)
        return PRECISIONS.get(types.most_common(1)[0][0], "") if types else ""

    def name(self, value: str) -> str:
        return self.alias.get(value, value)

    def shape(self, value: str) -> Shape:
        """Of one image; raises `InputError` where it is unknown."""
        shape = self.full.get(value)
        if shape is None or 0 in shape[1:]:
            raise InputError(f"{self.where}: the shape of {value!r} is open; export the model with a fixed input size")
        return shape[1:]

    def read(self, node: onnx.NodeProto) -> None:
        graphs = _graphs(node)
        around = dict.fromkeys(name for graph in graphs for name in _outside(graph) if name not in node.input)
        data = [name for name in (*node.input, *around) if name and name not in self.constants]
        if node.op_type in OF_SHAPES or (node.op_type in KEEP_VALUES and node.input[0] in self.constants):
            data = []
        data = data[:1] if node.op_type in SHAPERS else data
        output, before = node.output[0], self.steps.get(self.name(data[0])) if data else None
        self.alias |= dict.fromkeys(node.output[1:], output)
        if graphs or (not data and node.op_type == "DequantizeLinear"):
            self.steps[output] = Step((node.op_type, ()), tuple(map(self.name, data)), output, None)
        elif not data:
            self._constant(node)
        elif node.op_type in PASSED or (node.op_type in FLATTENERS and len(self.full.get(output, ())) == 2):
            self.alias[output] = self.name(data[0])
        elif before is not None and len(data) == 1 and self._completes(node, data[0], before):
            self.alias[output] = before.output
        else:
            what, macs = _FORMS.get(node.op_type, _any)(self, node, data)
            gated = self._gated(data) if node.op_type == "Mul" else None
            if gated is not None:
                what, data = ("HardSwish", (self.shape(gated),), self.shape(gated), (), ()), [gated]
            self.steps[output] = Step(what, tuple(map(self.name, data)), output, macs)

    def _constant(self, node: onnx.NodeProto) -> None:
        """Keep the value of a constant; None where it would have to be computed."""
        tensor = self.constants.get(node.input[0]) if node.op_type in KEEP_VALUES and node.input else None
        for attribute in node.attribute if node.op_type == "Constant" else ():
            value = helper.get_attribute_value(attribute)
            tensor = value if attribute.name == "value" else _tensor(value)
        self.constants |= dict.fromkeys(node.output, tensor)
        if tensor is not None:
            self.full[node.output[0]] = tuple(tensor.dims)

    def _completes(self, node: onnx.NodeProto, value: str, before: Step) -> bool:
        """Whether the node is the BatchNorm or bias of the convolution or linear layer that it alone reads."""
        if before.what[0] not in ("Conv", "Linear") or self.reads[value] != 1:
            return False
        if node.op_type == "Add" and before.what[0] == "Linear":
            width: Shape = before.what[2:3]
            return any(self.full.get(name) == width for name in node.input if name in self.constants)
        return bool(node.op_type == "BatchNormalization")

    def _gated(self, data: list[str]) -> str | None:
        """The x of `x * hard_sigmoid(x)`; None where the product is another."""
        for value, gate in (data, data[::-1]) if len(data) == 2 else ():
            step = self.steps.get(self.name(gate))
            if (
                step is not None
                and step.what == _hard_sigmoid(self.shape(gate), 1 / 6, 0.5)
                and step.inputs == (self.name(value),)
            ):
                return value
        return None

    def known(self, node: onnx.NodeProto) -> tuple[Any, ...]:
        """The constants that the node reads: the value of a single number, the shape of anything else."""
        return tuple(self._known(name) for name in node.input if name in self.constants)

    def _known(self, name: str) -> Any:
        tensor = self.constants[name]
        if tensor is None or prod(tensor.dims) != 1 or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self.full.get(name, ())
        return round(float(numpy_helper.to_array(tensor).reshape(())), DIGITS)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node runs in itself: branches, the bodies of loops."""
    return [graph for attribute in node.attribute for graph in (*attribute.graphs, attribute.g) if graph.node]


def _outside(graph: onnx.GraphProto) -> list[str]:
    """The values that a node's graph reads from around it, or hands on."""
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in node.input]
    read += [name for node in graph.node for inner in _graphs(node) for name in _outside(inner)]
    return [name for name in (*read, *(value.name for value in graph.output)) if name not in own]


def _tensor(value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value))


def _attributes(node: onnx.NodeProto) -> Attributes:
    return {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute if a.name not in IGNORED}


def _plain(value: Any) -> Any:
    """An attribute as something that can be compared."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return round(value, DIGITS)
    return (
        tuple(map(_plain, value))
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, int)
        else str(value)
    )


def _different(attributes: Attributes) -> tuple[Any, ...]:
    """The attributes that differ from their defaults, in a fixed order."""
    return tuple(sorted((name, value) for name, value in attributes.items() if DEFAULTS.get(name) != value))


# one function a form: (what, multiply-accumulates)

What = tuple[tuple[Any, ...], int | None]


def _any(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    shapes, output = [reader.shape(name) for name in data], reader.shape(node.output[0])
    constants = () if node.op_type in SHAPERS else reader.known(node)
    shapes = sorted(shapes) if node.op_type in COMMUTATIVE else shapes
    macs: int | None = None if node.op_type in UNCOUNTED or node.domain not in ("", "ai.onnx") else 0
    if node.op_type == "MatMul":
        macs = prod(output) * shapes[0][-1]
    elif node.op_type == "ConvTranspose" and (weight := reader.full.get(node.input[1])):
        macs = prod(shapes[0]) * prod(weight[1:])
    return (node.op_type, tuple(shapes), output, _different(_attributes(node)), constants), macs


def _conv(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    if len(data) > 1:
        return _any(reader, node, data)
    weight, output = reader.full[node.input[1]], reader.shape(node.output[0])
    attributes = {name: value for name, value in _attributes(node).items() if name != "kernel_shape"}
    return ("Conv", (reader.shape(data[0]),), weight, output, _different(attributes)), prod(output) * prod(weight[1:])


def _linear(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    """A product with constant weights; the input is flat, whatever its shape was."""
    attributes, weight = _attributes(node), reader.full.get(node.input[1] if len(node.input) > 1 else "", ())
    if len(data) > 1 or len(weight) != 2 or data[0] != node.input[0] or attributes.get("transA"):
        return _any(reader, node, data)
    wide, out = weight[::-1] if attributes.get("transB") else weight
    rows = prod(reader.shape(node.output[0])[:-1])
    return ("Linear", ((wide,),), out, rows), rows * wide * out


def _clip(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    attributes = _attributes(node)
    limits = tuple(attributes[name] for name in ("min", "max") if name in attributes) or reader.known(node)
    return ("Clip", (reader.shape(data[0]),), limits), 0


def _sigmoid(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    attributes = _attributes(node)
    return _hard_sigmoid(reader.shape(data[0]), attributes.get("alpha", 0.2), attributes.get("beta", 0.5)), 0


def _hard_sigmoid(shape: Shape, alpha: float, beta: float) -> tuple[Any, ...]:
    return ("HardSigmoid", (shape,), round(alpha, DIGITS), round(beta, DIGITS))


def _mean(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    """The mean over height and width is global average pooling."""
    attributes, shape = _attributes(node), reader.shape(data[0])
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and (tensor := reader.constants.get(node.input[1])) is not None:
        axes = tuple(int(axis) for axis in numpy_helper.to_array(tensor).reshape(-1))
    if len(shape) == 3 and axes is not None and {axis % 4 for axis in axes} == {2, 3}:
        return ("GlobalAveragePool", (shape,)), 0
    return ("ReduceMean", (shape,), reader.shape(node.output[0]), axes), 0


def _pool(reader: _Reader, node: onnx.NodeProto, data: list[str]) -> What:
    return ("GlobalAveragePool", (reader.shape(data[0]),)), 0


_FORMS: dict[str, Callable[[_Reader, onnx.NodeProto, list[str]], What]] = {
    "Clip": _clip,
    "Conv": _conv,
    "Gemm": _linear,
    "GlobalAveragePool": _pool,
    "HardSigmoid": _sigmoid,
    "MatMul": _linear,
    "ReduceMean": _mean,
}
