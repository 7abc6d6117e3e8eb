"""The kinds of primitive, each one function that writes the body."""

from __future__ import annotations

from hwnas.spaces.ops import (
    Activation,
    Add,
    AvgPool,
    BatchNorm,
    ChannelShuffle,
    Conv,
    GlobalAvgPool,
    Linear,
    Mul,
    Zeros,
)
from hwnas.spaces.primitive import Body, Primitive, kinds


def _act(body: Body, name: str, function: object, value: str) -> str:
    return value if function == "none" else body.add(name, Activation(str(function)), value)


@kinds.register("conv")
def conv(p: Primitive, body: Body) -> None:
    """Convolution, BatchNorm where `bn` is 1, activation `act` (`none` for none)."""
    x = body.add(
        "conv", Conv(p.number("out"), p.number("kernel", 1), p.number("stride", 1), p.number("groups", 1)), "in0"
    )
    if p.number("bn", 1):
        x = body.add("bn", BatchNorm(), x)
    _act(body, "act", p["act"], x)


@kinds.register("mbconv")
def mbconv(p: Primitive, body: Body) -> None:
    """Inverted residual (MobileNetV2, CVPR 2018): 1x1 to `mid`, depthwise, squeeze-excite, 1x1 to `out`.

    `mid` is 0 where there is no first 1x1; `se` is the squeezed width, 0 where there is none; with `groups` above 1
    both 1x1 convolutions are grouped and the channels shuffled after the first. The shortcut is there where stride is
    1 and channels agree.
    """
    channels = p.inputs[0][0]
    mid, out, groups = p.number("mid") or channels, p.number("out"), p.number("groups", 1)
    x = "in0"
    if p.number("mid"):
        x = body.add("expand", Conv(mid, groups=groups), x)
        x = body.add("expand_bn", BatchNorm(), x)
        x = _act(body, "expand_act", p["act"], x)
        if groups > 1:
            x = body.add("shuffle", ChannelShuffle(groups), x)
    x = body.add("depthwise", Conv(mid, p.number("kernel"), p.number("stride"), groups=mid), x)
    x = body.add("depthwise_bn", BatchNorm(), x)
    x = _act(body, "depthwise_act", p["act"], x)
    if p.number("se"):
        x = _squeeze_excite(body, x, mid, p.number("se"), str(p["gate"]))
    x = body.add("project", Conv(out, groups=groups), x)
    x = body.add("project_bn", BatchNorm(), x)
    if p.number("stride") == 1 and channels == out:
        body.add("shortcut", Add(), x, "in0")


def _squeeze_excite(body: Body, x: str, channels: int, squeezed: int, gate: str) -> str:
    s = body.add("se_pool", GlobalAvgPool(), x)
    s = body.add("se_reduce", Conv(squeezed, bias=True), s)
    s = body.add("se_act", Activation("relu"), s)
    s = body.add("se_expand", Conv(channels, bias=True), s)
    s = body.add("se_gate", Activation(gate), s)
    return body.add("se_scale", Mul(), x, s)


@kinds.register("global_pool")
def global_pool(p: Primitive, body: Body) -> None:
    body.add("pool", GlobalAvgPool(), "in0")


@kinds.register("linear")
def linear(p: Primitive, body: Body) -> None:
    """Fully connected layer with bias on the flattened input."""
    body.add("linear", Linear(p.number("out")), "in0")


@kinds.register("relu_conv_bn")
def relu_conv_bn(p: Primitive, body: Body) -> None:
    """ReLU, convolution, BatchNorm (the order of NAS-Bench-201 and DARTS)."""
    x = body.add("act", Activation("relu"), "in0")
    x = body.add("conv", Conv(p.number("out"), p.number("kernel"), p.number("stride", 1)), x)
    body.add("bn", BatchNorm(), x)


@kinds.register("avg_pool")
def avg_pool(p: Primitive, body: Body) -> None:
    kernel = p.number("kernel")
    body.add("pool", AvgPool(kernel, p.number("stride", 1), kernel // 2), "in0")


@kinds.register("residual_reduction")
def residual_reduction(p: Primitive, body: Body) -> None:
    """NAS-Bench-201's block between stages: two 3x3 convolutions, the first strided, beside average pooling and 1x1."""
    out = p.number("out")
    x = body.add("a_act", Activation("relu"), "in0")
    x = body.add("a_conv", Conv(out, 3, 2), x)
    x = body.add("a_bn", BatchNorm(), x)
    x = body.add("b_act", Activation("relu"), x)
    x = body.add("b_conv", Conv(out, 3), x)
    x = body.add("b_bn", BatchNorm(), x)
    s = body.add("down_pool", AvgPool(2, 2), "in0")
    s = body.add("down_conv", Conv(out), s)
    body.add("shortcut", Add(), x, s)


@kinds.register("bn_relu")
def bn_relu(p: Primitive, body: Body) -> None:
    x = body.add("bn", BatchNorm(), "in0")
    body.add("act", Activation("relu"), x)


@kinds.register("add")
def add(p: Primitive, body: Body) -> None:
    """Sum of all inputs."""
    body.add("add", Add(), *(f"in{index}" for index in range(len(p.inputs))))


@kinds.register("zeros")
def zeros(p: Primitive, body: Body) -> None:
    """Zeros of the input's shape: what a node is that receives nothing."""
    body.add("zeros", Zeros(), "in0")
