"""Which engine of the DPU runs an operation, or why none does: one function an ONNX operator.

Limits come from the target's file. A rule returns a `Ruling`; a reason names the numbers and the limit they break.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.registry import Registry
from hwnas.fpga.graph import GraphOp, OpGraph
from hwnas.fpga.targets import DpuTarget

CPU = "cpu"
CONV, DEPTHWISE, POOL, ELTWISE, ALU, MEMORY, FUSED = "conv", "depthwise", "pool", "eltwise", "alu", "memory", "fused"
FUSES_ACTIVATION = (CONV, DEPTHWISE, ELTWISE)


@dataclass(frozen=True)
class Ruling:
    """The engine (`cpu` where the DPU has none), the reason where it is the CPU, and what to change then."""

    engine: str
    reason: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Case:
    """An operation with all that its rule may ask for; `engines` are the rulings of the operations before it."""

    op: GraphOp
    graph: OpGraph
    target: DpuTarget
    engines: dict[str, str]

    def shape(self, index: int = 0) -> tuple[int | None, ...]:
        return self.graph.shape(self.op.inputs[index])

    @property
    def output(self) -> tuple[int | None, ...]:
        return self.graph.shape(self.op.outputs[0])

    def constant(self, index: int) -> bool:
        return index < len(self.op.inputs) and self.op.inputs[index] in self.graph.constants

    def value(self, index: int) -> NDArray[Any] | None:
        return self.graph.constants.get(self.op.inputs[index]) if self.constant(index) else None

    def ints(self, name: str, default: list[int]) -> list[int]:
        return [int(v) for v in self.op.attributes.get(name, default)]

    def text(self, name: str, default: str) -> str:
        value = self.op.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def outside(self, limit: str, what: str, *values: int) -> str:
        """The reason where one of `values` breaks `limit`, else the empty text."""
        least, most = self.target.bounds(limit)
        bad = [value for value in values if not least <= value <= most]
        return f"{what} {bad[0]} is outside {least} to {most}" if bad else ""


Rule = Callable[[Case], Ruling]
rules: Registry[Rule] = Registry("operator rule")


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register one function for several operators."""

    def add(function: Rule) -> Rule:
        for kind in kinds:
            rules.register(kind)(function)
        return function

    return add


def first(*reasons: str) -> str:
    return next((reason for reason in reasons if reason), "")


def placed(engine: str, *reasons: str, advice: str = "") -> Ruling:
    """`engine`, or the CPU with the first reason that is not empty."""
    reason = first(*reasons)
    return Ruling(CPU, reason, advice) if reason else Ruling(engine)


def paddings(case: Case, kernel: list[int], stride: list[int], dilation: list[int]) -> list[int]:
    """Top, left, bottom and right padding, `auto_pad` worked out."""
    mode = case.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return case.ints("pads", [0] * 4) if mode == "NOTSET" else [0] * 4
    before, after = [], []
    for side, k, s, d in zip(case.shape()[2:], kernel, stride, dilation, strict=True):
        total = max(0, (ceil((side or 1) / s) - 1) * s + d * (k - 1) + 1 - (side or 1))
        before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        after.append(total - before[-1])
    return before + after


def _pads_of_window(case: Case, pads: list[int]) -> str:
    return first(
        case.outside("pad_before", "top or left padding", *pads[:2]),
        case.outside("pad_after", "bottom or right padding", *pads[2:]),
    )


@rule("Conv")
def conv(case: Case) -> Ruling:
    data, weight = case.shape(), case.graph.shape(case.op.inputs[1])
    if len(data) != 4 or len(weight) != 4:
        return Ruling(
            CPU, f"a convolution over {len(data) - 2} dimensions; the DPU has 2-D ones", "use a 2-D convolution"
        )
    if not case.constant(1):
        return Ruling(CPU, "its weights are computed, not constant", "make the weights constant")
    if None in data[1:]:
        return Ruling(CPU, f"its input has no fixed shape ({data})", "export with fixed height and width")
    group, channels, out = int(case.op.attributes.get("group", 1)), int(data[1] or 0), int(weight[0] or 0)
    kernel, stride = [int(k or 0) for k in weight[2:]], case.ints("strides", [1, 1])
    dilation = case.ints("dilations", [1, 1])
    pads = paddings(case, kernel, stride, dilation)
    shared = first(
        case.outside("channels", "input channels", channels),
        case.outside("channels", "output channels", out),
        case.outside("dilated_channels", "dilation x input channels", max(dilation) * channels),
    )
    if group == channels == out and group > 1:
        return _depthwise(case, kernel, stride, pads, shared)
    if group > 1:
        reason = f"a grouped convolution ({group} groups of {channels} channels)"
        return Ruling(CPU, reason, "use group 1, or a depthwise convolution (groups = input = output channels)")
    covers = all(
        k >= int(side or 0) + a + b for k, side, a, b in zip(kernel, data[2:], pads[:2], pads[2:], strict=True)
    )
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    over = [p for p, k in zip(pads, reach * 2, strict=True) if not 0 <= p <= k]
    lines = prod(kernel) * ceil(channels / case.target.channel_parallel)
    return placed(
        CONV,
        case.outside("conv_kernel", "kernel", *kernel),
        "" if covers else case.outside("conv_stride", "stride", *stride),
        shared,
        case.outside(
            "conv_weights",
            f"kernel {kernel[0]}x{kernel[1]} x ceil({channels} channels / {case.target.channel_parallel}) =",
            lines,
        ),
        f"padding {over[0]} is outside 0 to the dilated kernel, {max(reach)}" if over else "",
        advice="use smaller kernels, strides or channels, or two convolutions in a row",
    )


def _depthwise(case: Case, kernel: list[int], stride: list[int], pads: list[int], shared: str) -> Ruling:
    return placed(
        DEPTHWISE,
        case.outside("depthwise_kernel", "depthwise kernel", *kernel),
        case.outside("depthwise_stride", "depthwise stride", *stride),
        shared,
        case.outside("depthwise_weights", f"depthwise kernel {kernel[0]}x{kernel[1]} =", prod(kernel)),
        _pads_of_window(case, pads),
        advice="use a smaller kernel or padding",
    )


@rule("ConvTranspose")
def conv_transpose(case: Case) -> Ruling:
    data, weight = case.shape(), case.graph.shape(case.op.inputs[1])
    if len(data) != 4 or None in data[1:] or not case.constant(1):
        return Ruling(CPU, "not a 2-D transposed convolution of fixed shape and constant weights")
    group, channels = int(case.op.attributes.get("group", 1)), int(data[1] or 0)
    out = int(weight[1] or 0) * group
    kernel, stride = [int(k or 0) for k in weight[2:]], case.ints("strides", [1, 1])
    least, most = case.target.bounds("deconv_ratio")
    ratios = [k / s for k, s in zip(kernel, stride, strict=True)]
    extra = case.ints("output_padding", [0, 0])
    return placed(
        CONV,
        f"a grouped transposed convolution ({group} groups)" if group > 1 else "",
        f"kernel / stride {min(ratios):g} to {max(ratios):g} is outside {least} to {most}"
        if not all(least <= ratio <= most for ratio in ratios)
        else "",
        f"output padding {max(extra)} is not 0" if any(extra) else "",
        case.outside("channels", "input channels", channels),
        case.outside("channels", "output channels", out),
        advice="use kernel = 2 x stride without output padding, or nearest resizing and a convolution",
    )


@rule("MaxPool", "AveragePool")
def pool(case: Case) -> Ruling:
    kernel = case.ints("kernel_shape", [])
    if len(case.shape()) != 4 or len(kernel) != 2 or None in case.shape()[1:]:
        return Ruling(CPU, "not a 2-D pooling of fixed shape")
    stride, dilation = case.ints("strides", [1, 1]), case.ints("dilations", [1, 1])
    return placed(
        POOL,
        case.outside("pool_kernel", "kernel", *kernel),
        case.outside("pool_stride", "stride", *stride),
        f"dilation {max(dilation)} is not 1" if max(dilation) > 1 else "",
        "several outputs" if len([name for name in case.op.outputs if name]) > 1 else "",
        _pads_of_window(case, paddings(case, kernel, stride, dilation)),
        advice="pool in two steps",
    )


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(case: Case) -> Ruling:
    sides = case.shape()[2:]
    if len(sides) != 2 or None in sides:
        return Ruling(CPU, "not a 2-D pooling of fixed shape", "export with fixed height and width")
    return placed(
        POOL, case.outside("pool_kernel", "kernel", *(int(s or 0) for s in sides)), advice="pool in two steps"
    )


@rule("ReduceMean")
def reduce_mean(case: Case) -> Ruling:
    axes = case.op.attributes.get("axes", case.value(1))
    rank = len(case.shape())
    over = sorted(int(a) % rank for a in axes) if axes is not None and rank else []
    if rank == 4 and over == [2, 3] and case.op.attributes.get("keepdims", 1):
        return global_pool(case)
    return Ruling(CPU, f"a mean over the axes {over or 'unknown'}", "use global average pooling")


@rule("Add", "Mul")
def eltwise(case: Case) -> Ruling:
    constant = next((i for i in (0, 1) if case.constant(i)), None)
    data = case.shape(1 - constant if constant is not None else 0)
    if constant is None:
        shapes = [case.shape(0), case.shape(1)]
        if len(shapes[0]) != len(shapes[1]) or shapes[0][:2] != shapes[1][:2]:
            return Ruling(
                CPU, f"operands of shapes {shapes[0]} and {shapes[1]}", "give both the same batch and channels"
            )
        return placed(ELTWISE, _channels(case, data))
    if case.op.kind == "Mul":
        return placed(DEPTHWISE, _channels(case, data), advice="fold the constant into the convolution before it")
    return placed(ELTWISE, _channels(case, data), advice="fold the constant into the bias of the convolution before it")


def _channels(case: Case, shape: tuple[int | None, ...]) -> str:
    return case.outside("channels", "channels", int(shape[1] or 0)) if len(shape) > 1 else ""


@rule("BatchNormalization")
def batch_norm(case: Case) -> Ruling:
    if _follows(case, (CONV, DEPTHWISE)):
        return Ruling(FUSED)
    return placed(DEPTHWISE, _channels(case, case.shape()))


def _follows(case: Case, engines: tuple[str, ...]) -> bool:
    """Whether the operation reads the only use of what one of `engines` gives."""
    name = case.op.inputs[0]
    alone = len(case.graph.consumers.get(name, ())) == 1 and name not in case.graph.outputs
    return alone and case.engines.get(name) in engines


def _activation(case: Case, name: str, what: str) -> Ruling:
    if name not in case.target.fused_activations.value:
        known = ", ".join(case.target.fused_activations.value)
        return Ruling(CPU, f"{what}; the DPU fuses {known}", "use one of those")
    if _follows(case, FUSES_ACTIVATION):
        return Ruling(FUSED)
    reason = f"{what} that follows no convolution or element-wise operation of its own to be fused with"
    return Ruling(CPU, reason, "put the activation right after a convolution whose output nothing else reads")


@rule("Relu")
def relu(case: Case) -> Ruling:
    return _activation(case, "Relu", "a ReLU")


@rule("Clip")
def clip(case: Case) -> Ruling:
    bounds = [case.op.attributes.get(name) for name in ("min", "max")]
    for position, index in enumerate((1, 2)):
        value = case.value(index) if len(case.op.inputs) > index and case.op.inputs[index] else None
        bounds[position] = float(value.ravel()[0]) if value is not None else bounds[position]
    if bounds[0] != 0 or bounds[1] not in (6, None, np.inf):
        return Ruling(CPU, f"clips to {bounds[0]} and {bounds[1]}; only ReLU and ReLU6 are fused", "use ReLU6 (0 to 6)")
    return _activation(case, "Relu6", "a ReLU6")


@rule("LeakyRelu")
def leaky_relu(case: Case) -> Ruling:
    alpha, wanted = float(case.op.attributes.get("alpha", 0.01)), case.target.leaky_relu_alpha.value
    if np.float32(alpha) != np.float32(wanted):  # type: ignore[arg-type]
        return Ruling(CPU, f"alpha is {alpha:g}; the DPU has exactly {wanted} (26/256)", f"train with alpha {wanted}")
    return _activation(case, "LeakyRelu", "a LeakyReLU")


@rule("HardSigmoid")
def hard_sigmoid(case: Case) -> Ruling:
    alpha, beta = float(case.op.attributes.get("alpha", 0.2)), float(case.op.attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) > 1e-4 or abs(beta - 0.5) > 1e-6:
        return Ruling(CPU, f"alpha {alpha:g}, beta {beta:g}; the DPU has 1/6 and 1/2", "use alpha 1/6 and beta 0.5")
    return _on_the_alu(case)


@rule("HardSwish")
def hard_swish(case: Case) -> Ruling:
    return _on_the_alu(case)


def _on_the_alu(case: Case) -> Ruling:
    if case.op.kind not in case.target.alu_activations.value:
        return Ruling(CPU, f"a {case.op.kind}, which this DPU has not", "use ReLU or ReLU6")
    return placed(ALU, _channels(case, case.shape()))


@rule("Sigmoid")
def sigmoid(case: Case) -> Ruling:
    users = [case.graph.ops[i] for i in case.graph.consumers.get(case.op.outputs[0], ())]
    if any(user.kind == "Mul" and case.op.inputs[0] in user.inputs for user in users):
        return Ruling(CPU, "a SiLU (x times its sigmoid)", "replace SiLU by h-swish and fine-tune")
    return Ruling(CPU, "a sigmoid", "replace the sigmoid by the hard sigmoid and fine-tune")


ADVICE = {
    "Tanh": "replace it by ReLU or the hard sigmoid",
    "Gelu": "replace it by ReLU or h-swish",
    "Erf": "replace GELU by ReLU or h-swish",
    "Mish": "replace it by h-swish",
    "Elu": "replace it by ReLU",
    "PRelu": "replace it by LeakyReLU with alpha 26/256",
    "Softmax": "leave it to the host after the DPU's last subgraph",
    "Transpose": "keep the channel order, or move the permutation to the host",
    "Slice": "read a whole tensor, or use a strided convolution",
    "Split": "use two convolutions in place of one and a split",
    "Sub": "add the negated weights instead",
    "Div": "multiply by the reciprocal constant",
    "InstanceNormalization": "use BatchNorm",
    "LayerNormalization": "use BatchNorm",
}


def no_rule(case: Case) -> Ruling:
    """What no engine runs."""
    if case.op.domain:
        return Ruling(CPU, f"{case.op.kind} is an operator of the domain {case.op.domain}")
    return Ruling(CPU, f"no engine of the DPU runs {case.op.kind}", ADVICE.get(case.op.kind, ""))


@rule("Resize", "Upsample")
def resize(case: Case) -> Ruling:
    mode = case.text("mode", "nearest")
    data, out = case.shape(), case.output
    if len(data) != 4 or None in data[1:] or None in out[1:]:
        return Ruling(CPU, "not a 2-D resizing to a fixed shape")
    scales = [int(b or 0) / int(a or 1) for a, b in zip(data[2:], out[2:], strict=True)]
    aligned = case.text("coordinate_transformation_mode", "half_pixel") == "align_corners"
    if mode == "nearest":
        return placed(MEMORY, "nearest resizing with aligned corners" if aligned else "", _channels(case, data))
    allowed = case.target.bilinear_scales.value
    if mode == "linear" and scales[0] == scales[1] and scales[0] in allowed:  # type: ignore[operator]
        return placed(DEPTHWISE, _channels(case, data))
    reason = f"{mode} resizing by {scales[0]:g} x {scales[1]:g}"
    return Ruling(CPU, reason, f"resize to the nearest, or bilinearly by one of {allowed}")


@rule("Concat")
def concat(case: Case) -> Ruling:
    shapes = [case.shape(i) for i in range(len(case.op.inputs))]
    from_cpu = any(case.engines.get(name) == CPU for name in case.op.inputs)
    axis = int(case.op.attributes.get("axis", 1)) % max(len(shapes[0]), 1)
    if from_cpu and (len(shapes[0]) != 4 or axis != 1):
        reason = f"an input comes from the CPU and the axis is {axis} of {len(shapes[0])} dimensions"
        return Ruling(CPU, reason, "concatenate channels (axis 1 of 4), or keep its inputs on the DPU")
    return Ruling(MEMORY)


@rule("Pad")
def pad(case: Case) -> Ruling:
    mode = case.text("mode", "constant")
    allowed = ("constant", "symmetric")
    return placed(MEMORY, "" if mode in allowed else f"padding mode {mode}", advice="pad with zeros")


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(case: Case) -> Ruling:
    data, out = case.shape(), case.output
    if not data or not out or data[0] != out[0]:
        return Ruling(CPU, f"changes the batch dimension ({data} to {out})", "leave the first dimension as it is")
    return Ruling(MEMORY)


@rule("Gemm", "MatMul")
def gemm(case: Case) -> Ruling:
    if not case.constant(1):
        return Ruling(CPU, "a product of two computed matrices", "make one of them constant")
    a, rest = case.op.attributes, "write it as a plain fully connected layer"
    if case.op.kind == "Gemm" and (a.get("transA", 0) or a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1):
        return Ruling(CPU, "a matrix product with transA, alpha or beta", rest)
    weight = case.graph.shape(case.op.inputs[1])
    if len(weight) != 2 or len(case.shape()) != 2:
        return Ruling(CPU, f"a product of {len(case.shape())} dimensions", rest)
    features, out = (int(w or 0) for w in (weight[::-1] if a.get("transB", 0) else weight))
    image = _flattened(case)
    kernel, channels = (image[1:], image[0]) if image else ((1, 1), features)
    lines = prod(kernel) * ceil(channels / case.target.channel_parallel)
    shown = f"as a {kernel[0]}x{kernel[1]} convolution of {channels} channels:"
    return placed(
        CONV,
        case.outside("conv_kernel", f"{shown} kernel", *kernel),
        case.outside("channels", f"{shown} input channels", channels),
        case.outside("channels", f"{shown} output channels", out),
        case.outside("conv_weights", f"{shown} kernel x channel groups =", lines),
        advice="pool before the fully connected layer, or split it",
    )


def _flattened(case: Case) -> tuple[int, ...] | None:
    """(C, H, W) where the input is a flattened image: the compiler turns the product into a convolution over it."""
    index = case.graph.producer.get(case.op.inputs[0])
    before = case.graph.ops[index] if index is not None else None
    if before is None or before.kind not in ("Flatten", "Reshape"):
        return None
    shape = case.graph.shape(before.inputs[0])
    return tuple(int(s or 0) for s in shape[1:]) if len(shape) == 4 and None not in shape[1:] else None
