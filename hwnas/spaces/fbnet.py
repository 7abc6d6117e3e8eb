"""`fbnet`: the layer-wise space of FBNet (Wu et al., CVPR 2019, table 1), and its CIFAR form from HW-NAS-Bench."""

from __future__ import annotations

from functools import cached_property, partial

from hwnas.spaces.base import Gene, Slot, spaces
from hwnas.spaces.mobile import conv, div8, linear, mbconv, pool, strided
from hwnas.spaces.notation import JsonSpace, Layout
from hwnas.spaces.primitive import Primitive

OPERATIONS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
STEM = 16
CHANNELS = (16, 24, 32, 64, 112, 184, 352)
LAYERS = (1, 4, 4, 4, 4, 4, 1)
STRIDES = {"imagenet": (1, 2, 2, 2, 1, 2, 1), "cifar": (1, 1, 2, 2, 1, 2, 1)}


@spaces.register("fbnet")
class FBNet(JsonSpace):
    """22 layers, nine choices each: kernel, expansion, groups, or to skip the layer.

    `width` scales the channels of stem and layers, rounded to multiples of 8; the head keeps its own.
    """

    def __init__(
        self,
        variant: str = "imagenet",
        head: int = 1504,
        resolution: int = 0,
        num_classes: int = 0,
        width: float = 1.0,
    ) -> None:
        super().__init__(variant=variant, head=head, resolution=resolution, num_classes=num_classes, width=width)
        if variant not in STRIDES:
            raise ValueError(f"variant is {variant!r}, expected one of {', '.join(STRIDES)}")
        if min(head - 1, resolution, num_classes) < 0:
            raise ValueError("head must be positive, resolution and num_classes not negative (0: the variant's own)")
        if not 0 < width <= 10:
            raise ValueError(f"width is {width}, expected above 0 and at most 10")
        cifar = variant == "cifar"
        self.strides, self.stem_stride = STRIDES[variant], 1 if cifar else 2
        self.resolution = resolution or (32 if cifar else 224)
        self.num_classes = num_classes or (100 if cifar else 1000)
        self.head = head
        self.stem, *self.channels = (c if width == 1 else div8(c * width) for c in (STEM, *CHANNELS))

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        return tuple(Gene(f"ops[{layer}]", OPERATIONS) for layer in range(sum(LAYERS)))

    @cached_property
    def layout(self) -> Layout:
        return {"ops": list(range(sum(LAYERS)))}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        side, channels, shape = strided(self.resolution, self.stem_stride), self.stem, (3, *[self.resolution] * 2)
        slots = [Slot((), partial(conv, shape, self.stem, 3, self.stem_stride), searchable=False)]
        for out, layers, first_stride in zip(self.channels, LAYERS, self.strides, strict=True):
            for layer in range(layers):
                stride = first_stride if layer == 0 else 1
                slots.append(Slot((len(slots) - 1,), partial(layer_block, (channels, side, side), out, stride)))
                side, channels = strided(side, stride), out
        head = (
            partial(conv, (channels, side, side), self.head),
            partial(pool, (self.head, side, side)),
            partial(linear, (self.head, 1, 1), self.num_classes),
        )
        return (*slots, *(Slot((), make, searchable=False) for make in head))


def layer_block(shape: tuple[int, int, int], out: int, stride: int, operation: str) -> Primitive | None:
    """The primitive of one layer's choice; None where it is skipped and nothing runs."""
    if operation == "skip":
        return None if stride == 1 and shape[0] == out else conv(shape, out, 1, stride)
    kernel, expansion, *grouped = operation.split("_")
    return mbconv(shape, out, int(kernel[1:]), stride, shape[0] * int(expansion[1:]), groups=2 if grouped else 1)
