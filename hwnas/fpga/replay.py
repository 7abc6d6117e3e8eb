"""An ONNX graph of a DPU's operations in PyTorch, so that its weights can be trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from hwnas.core.errors import InputError

Inputs = Sequence[Tensor]
Attributes = dict[str, Any]
Operation = Callable[[Inputs, Attributes], Tensor]
Hook = Callable[[str, Tensor], Tensor]

ABSENT = ""


class Replay:
    """Runs a graph node by node.

    Attributes:
        constants: the initialisers by name; those that are trained are changed in place.

    Raises `InputError` where a node is of a kind that is not known here.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        self._input = next(value.name for value in graph.input if value.name not in self.constants)
        self._output = graph.output[0].name
        if unknown := unknown_operations(model):
            raise InputError(f"the model cannot be tuned: it holds {', '.join(unknown)}; quantise it with --tune 0")
        self._steps = [
            (
                OPERATIONS[node.op_type],
                list(node.input),
                node.output[0],
                {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute},
            )
            for node in graph.node
        ]

    def __call__(self, images: Tensor, hook: Hook | None = None) -> Tensor:
        """The first output for `images` (n, C, H, W); `hook` changes every named value on its way."""

        def seen(name: str, value: Tensor) -> Tensor:
            return value if hook is None else hook(name, value)

        values = {name: seen(name, value) for name, value in self.constants.items()} | {ABSENT: torch.empty(0)}
        values[self._input] = seen(self._input, images)
        for run, inputs, output, attributes in self._steps:
            values[output] = seen(output, run([values[name] for name in inputs], attributes))
        return values[self._output]


def unknown_operations(model: onnx.ModelProto) -> list[str]:
    """The kinds of nodes that `Replay` cannot run."""
    return sorted({node.op_type for node in model.graph.node if node.op_type not in OPERATIONS})


def _padded(x: Tensor, attributes: Attributes, value: float = 0.0) -> Tensor:
    """`x` with the node's pads, which ONNX gives as all begins, then all ends."""
    pads = attributes.get("pads", [])
    if not any(pads):
        return x
    half = len(pads) // 2
    return F.pad(x, [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])], value=value)


def _conv(x: Inputs, a: Attributes) -> Tensor:
    bias = x[2] if len(x) > 2 and x[2].numel() else None
    return F.conv2d(_padded(x[0], a), x[1], bias, a.get("strides", 1), 0, a.get("dilations", 1), a.get("group", 1))


def _gemm(x: Inputs, a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    product: Tensor = a.get("alpha", 1.0) * (left @ right)
    return product + a.get("beta", 1.0) * x[2] if len(x) > 2 and x[2].numel() else product


def _max_pool(x: Inputs, a: Attributes) -> Tensor:
    return F.max_pool2d(
        _padded(x[0], a, -torch.inf), a["kernel_shape"], a.get("strides", 1), ceil_mode=bool(a.get("ceil_mode"))
    )


def _average_pool(x: Inputs, a: Attributes) -> Tensor:
    pads = a.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise InputError("the model cannot be tuned: an AveragePool pads unevenly; quantise it with --tune 0")
    counted = bool(a.get("count_include_pad"))
    return F.avg_pool2d(x[0], a["kernel_shape"], a.get("strides", 1), pads[:2], bool(a.get("ceil_mode")), counted)


def _flatten(x: Inputs, a: Attributes) -> Tensor:
    return x[0].reshape(x[0].shape[: a.get("axis", 1)].numel(), -1)


def _reshape(x: Inputs, a: Attributes) -> Tensor:
    """The first dimension is the batch, whatever it was exported for."""
    sides = [x[0].shape[i] if side == 0 else side for i, side in enumerate(x[1].tolist())]
    return x[0].reshape(x[0].shape[0], *sides[1:])


def _squeeze(x: Inputs, a: Attributes) -> Tensor:
    axes = x[1].tolist() if len(x) > 1 else a.get("axes", [2, 3])
    return x[0].squeeze(tuple(axes))


def _mean(x: Inputs, a: Attributes) -> Tensor:
    axes = x[1].tolist() if len(x) > 1 else a.get("axes", [2, 3])
    return x[0].mean(tuple(axes), keepdim=bool(a.get("keepdims", 1)))


def _clip(x: Inputs, a: Attributes) -> Tensor:
    low = x[1] if len(x) > 1 and x[1].numel() else a.get("min", -torch.inf)
    high = x[2] if len(x) > 2 and x[2].numel() else a.get("max", torch.inf)
    return x[0].clamp(float(low), float(high))


OPERATIONS: dict[str, Operation] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Add": lambda x, a: x[0] + x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "MatMul": lambda x, a: x[0] @ x[1],
    "Relu": lambda x, a: F.relu(x[0]),
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "HardSigmoid": lambda x, a: (a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5)).clamp(0, 1),
    "Identity": lambda x, a: x[0],
    "GlobalAveragePool": lambda x, a: x[0].mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda x, a: x[0].amax((2, 3), keepdim=True),
    "Concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": lambda x, a: x[0].permute(*a["perm"]),
    "Squeeze": _squeeze,
    "ReduceMean": _mean,
    "Clip": _clip,
}
