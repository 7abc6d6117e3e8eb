"""The operations that primitives are made of: everything hwnas knows of one stands in its class.

Shapes are those of one image, (C, H, W) or (C,). An operation gives its output shape, weights, multiply-accumulates,
the PyTorch module that computes it, and the ONNX nodes that do the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from hwnas.spaces.onnx_graph import OnnxGraph

Shape = tuple[int, ...]
Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Op(ABC):
    """Base of the operations; `fused` ones are folded into the operation before them by every deployment runtime."""

    fused: ClassVar[bool] = False

    def shape(self, *inputs: Shape) -> Shape:
        """The output's shape."""
        return inputs[0]

    def weights(self, *inputs: Shape) -> dict[str, Shape]:
        """Names and shapes of the tensors that training learns or tracks, as PyTorch names them."""
        return {}

    def params(self, *inputs: Shape) -> int:
        """Learnable parameters."""
        return sum(prod(shape) for name, shape in self.weights(*inputs).items() if not name.startswith("running"))

    def macs(self, *inputs: Shape) -> int:
        """Multiply-accumulates for one image; counted for convolutions and linear layers alone, as the field does."""
        return 0

    @abstractmethod
    def module(self, *inputs: Shape) -> nn.Module:
        """A PyTorch module that takes the inputs as positional arguments."""

    @abstractmethod
    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        """Add nodes called `name` to `graph`; returns the name of the output tensor."""


@dataclass(frozen=True)
class Conv(Op):
    """2-D convolution, padded by kernel // 2."""

    out: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        if min(self.out, self.kernel, self.stride, self.groups) < 1 or self.out % self.groups:
            raise ValueError(f"no convolution has {self}")

    def shape(self, *inputs: Shape) -> Shape:
        channels, height, width = inputs[0]
        if channels % self.groups:
            raise ValueError(f"{channels} channels do not part into {self.groups} groups")
        pad = self.kernel // 2
        return (self.out, *((side + 2 * pad - self.kernel) // self.stride + 1 for side in (height, width)))

    def weights(self, *inputs: Shape) -> dict[str, Shape]:
        weight: Shape = (self.out, inputs[0][0] // self.groups, self.kernel, self.kernel)
        return {"weight": weight, "bias": (self.out,)} if self.bias else {"weight": weight}

    def macs(self, *inputs: Shape) -> int:
        return prod(self.shape(*inputs)) * (inputs[0][0] // self.groups) * self.kernel**2

    def module(self, *inputs: Shape) -> nn.Module:
        from torch import nn

        return nn.Conv2d(
            inputs[0][0], self.out, self.kernel, self.stride, self.kernel // 2, groups=self.groups, bias=self.bias
        )

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        tensors = [graph.constant(f"{name}.{key}", weights[key]) for key in ("weight", "bias") if key in weights]
        return graph.node(
            "Conv",
            name,
            [*inputs, *tensors],
            kernel_shape=[self.kernel] * 2,
            strides=[self.stride] * 2,
            pads=[self.kernel // 2] * 4,
            group=self.groups,
        )


@dataclass(frozen=True)
class BatchNorm(Op):
    """Batch normalisation over channels."""

    fused: ClassVar[bool] = True

    def weights(self, *inputs: Shape) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (inputs[0][0],))

    def module(self, *inputs: Shape) -> nn.Module:
        from torch import nn

        return nn.BatchNorm2d(inputs[0][0])

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        tensors = [
            graph.constant(f"{name}.{key}", weights[key]) for key in ("weight", "bias", "running_mean", "running_var")
        ]
        return graph.node("BatchNormalization", name, [*inputs, *tensors], epsilon=graph.bn_eps)


_ONNX_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "h_swish": ("HardSwish", {}),
    "h_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "sigmoid": ("Sigmoid", {}),
}


@dataclass(frozen=True)
class Activation(Op):
    """`relu`, `relu6`, `h_swish`, `h_sigmoid`, `sigmoid` or `swish`."""

    function: str
    fused: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.function not in ("relu", "relu6", "h_swish", "h_sigmoid", "sigmoid", "swish"):
            raise ValueError(f"unknown activation {self.function!r}")

    def module(self, *inputs: Shape) -> nn.Module:
        from torch import nn

        return {
            "relu": nn.ReLU,
            "relu6": nn.ReLU6,
            "h_swish": nn.Hardswish,
            "h_sigmoid": nn.Hardsigmoid,
            "sigmoid": nn.Sigmoid,
            "swish": nn.SiLU,
        }[self.function]()

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        if self.function == "relu6":
            return graph.node("Clip", name, [*inputs, graph.scalar("zero", 0.0), graph.scalar("six", 6.0)])
        if self.function == "swish":
            return graph.node("Mul", name, [*inputs, graph.node("Sigmoid", f"{name}.gate", inputs)])
        kind, attributes = _ONNX_ACTIVATIONS[self.function]
        return graph.node(kind, name, inputs, **attributes)


@dataclass(frozen=True)
class GlobalAvgPool(Op):
    """Mean over height and width: (C, H, W) -> (C, 1, 1)."""

    def shape(self, *inputs: Shape) -> Shape:
        return (inputs[0][0], 1, 1)

    def module(self, *inputs: Shape) -> nn.Module:
        from torch import nn

        return nn.AdaptiveAvgPool2d(1)

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        return graph.node("GlobalAveragePool", name, inputs)


@dataclass(frozen=True)
class AvgPool(Op):
    """Average pooling; padded places are left out of the mean."""

    kernel: int
    stride: int
    padding: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        channels, height, width = inputs[0]
        return (channels, *((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in (height, width)))

    def module(self, *inputs: Shape) -> nn.Module:
        from torch import nn

        return nn.AvgPool2d(self.kernel, self.stride, self.padding, count_include_pad=False)

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        return graph.node(
            "AveragePool",
            name,
            inputs,
            kernel_shape=[self.kernel] * 2,
            strides=[self.stride] * 2,
            pads=[self.padding] * 4,
            count_include_pad=0,
        )


@dataclass(frozen=True)
class Linear(Op):
    """Fully connected layer on the flattened input."""

    out: int
    bias: bool = True

    def shape(self, *inputs: Shape) -> Shape:
        return (self.out,)

    def weights(self, *inputs: Shape) -> dict[str, Shape]:
        weight: Shape = (self.out, prod(inputs[0]))
        return {"weight": weight, "bias": (self.out,)} if self.bias else {"weight": weight}

    def macs(self, *inputs: Shape) -> int:
        return self.out * prod(inputs[0])

    def module(self, *inputs: Shape) -> nn.Module:
        from hwnas.spaces.layers import FlatLinear

        return FlatLinear(prod(inputs[0]), self.out, bias=self.bias)

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        flat = graph.node("Flatten", f"{name}.flat", inputs) if len(shapes[0]) > 1 else inputs[0]
        tensors = [graph.constant(f"{name}.{key}", weights[key]) for key in ("weight", "bias") if key in weights]
        return graph.node("Gemm", name, [flat, *tensors], transB=1)


@dataclass(frozen=True)
class Add(Op):
    """Element-wise sum of all inputs."""

    def module(self, *inputs: Shape) -> nn.Module:
        from hwnas.spaces.layers import Sum

        return Sum()

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        total = inputs[0]
        for position, term in enumerate(inputs[1:], start=1):
            total = graph.node("Add", name if position == len(inputs) - 1 else f"{name}.{position}", [total, term])
        return total


@dataclass(frozen=True)
class Mul(Op):
    """Element-wise product of two inputs, the second broadcast over height and width."""

    def module(self, *inputs: Shape) -> nn.Module:
        from hwnas.spaces.layers import Product

        return Product()

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        return graph.node("Mul", name, inputs)


@dataclass(frozen=True)
class Zeros(Op):
    """Zeros of the input's shape."""

    def module(self, *inputs: Shape) -> nn.Module:
        from hwnas.spaces.layers import ZerosLike

        return ZerosLike()

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        return graph.node("Mul", name, [*inputs, graph.scalar("zero", 0.0)])


@dataclass(frozen=True)
class ChannelShuffle(Op):
    """Interleave the channels of `groups` groups (ShuffleNet, CVPR 2018)."""

    groups: int

    def module(self, *inputs: Shape) -> nn.Module:
        from torch import nn

        return nn.ChannelShuffle(self.groups)

    def onnx(self, graph: OnnxGraph, name: str, inputs: list[str], shapes: list[Shape], weights: Weights) -> str:
        channels, height, width = shapes[0]
        split = graph.constant(f"{name}.split", np.array([0, self.groups, channels // self.groups, height, width]))
        whole = graph.constant(f"{name}.whole", np.array([0, channels, height, width]))
        grouped = graph.node("Reshape", f"{name}.grouped", [*inputs, split])
        swapped = graph.node("Transpose", f"{name}.swapped", [grouped], perm=[0, 2, 1, 3, 4])
        return graph.node("Reshape", name, [swapped, whole])
