"""What the MobileNet-like spaces share: channel rounding, spatial sizes and the usual primitives."""

from __future__ import annotations

from hwnas.spaces.ops import Shape
from hwnas.spaces.primitive import Primitive


def div8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and never below 0.9 `channels` (MobileNet's rounding)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def strided(side: int, stride: int) -> int:
    """Height or width after a convolution of odd kernel k, padded by k // 2."""
    return (side - 1) // stride + 1


def conv(shape: Shape, out: int, kernel: int = 1, stride: int = 1, act: str = "relu", bn: int = 1) -> Primitive:
    return Primitive.of("conv", shape, out=out, kernel=kernel, stride=stride, act=act, bn=bn)


def mbconv(
    shape: Shape,
    out: int,
    kernel: int,
    stride: int,
    mid: int,
    act: str = "relu",
    se: int = 0,
    gate: str = "h_sigmoid",
    groups: int = 1,
) -> Primitive:
    """`mid` 0 leaves the first 1x1 out, `se` 0 the squeeze-excite; see the kind `mbconv`."""
    extra: dict[str, int | str] = {}
    if se:
        extra["gate"] = gate
    if groups > 1:
        extra["groups"] = groups
    return Primitive.of("mbconv", shape, out=out, kernel=kernel, stride=stride, mid=mid, act=act, se=se, **extra)


def pool(shape: Shape) -> Primitive:
    return Primitive.of("global_pool", shape)


def linear(shape: Shape, out: int) -> Primitive:
    return Primitive.of("linear", shape, out=out)
