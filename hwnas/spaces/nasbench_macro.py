"""`nasbench-macro`: the space of NAS-Bench-Macro (Su et al., CVPR 2021), on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike

from hwnas.spaces.base import Gene, SearchSpace, Slot, bad_architecture, spaces
from hwnas.spaces.mobile import conv, linear, mbconv, pool, strided
from hwnas.spaces.primitive import Primitive

STEM = 32
CHANNELS = (64, 128, 256)
LAYERS = (2, 3, 3)
HEAD = 1280
OPERATIONS = ("identity", "mb3_k3", "mb6_k5")


@spaces.register("nasbench-macro")
class NasBenchMacro(SearchSpace):
    """Eight layers, each the identity, an MBConv of expansion 3 and kernel 3, or one of expansion 6 and kernel 5."""

    def __init__(self, resolution: int = 32, num_classes: int = 10) -> None:
        super().__init__(resolution=resolution, num_classes=num_classes)
        if resolution < 8 or num_classes < 1:
            raise ValueError("resolution must be at least 8 and num_classes at least 1")
        self.resolution, self.num_classes = resolution, num_classes

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        return tuple(Gene(f"layer[{layer}]", OPERATIONS) for layer in range(sum(LAYERS)))

    def parse_row(self, text: str) -> Sequence[int]:
        digits = text.strip()
        if len(digits) != len(self.genes) or any(digit not in "012" for digit in digits):
            raise bad_architecture(self, text, f"{len(self.genes)} digits of 0, 1 and 2 are expected")
        return [int(digit) for digit in digits]

    def format(self, row: ArrayLike) -> str:
        return "".join(str(int(gene)) for gene in np.asarray(row))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        side, channels = self.resolution, STEM
        slots = [Slot((), partial(conv, (3, side, side), STEM, 3), searchable=False)]
        for out, layers in zip(CHANNELS, LAYERS, strict=True):
            for layer in range(layers):
                stride = 2 if layer == 0 else 1
                slots.append(Slot((len(slots) - 1,), partial(layer_block, (channels, side, side), out, stride)))
                side, channels = strided(side, stride), out
        head = (
            partial(conv, (channels, side, side), HEAD),
            partial(pool, (HEAD, side, side)),
            partial(linear, (HEAD, 1, 1), self.num_classes),
        )
        return (*slots, *(Slot((), make, searchable=False) for make in head))


def layer_block(shape: tuple[int, int, int], out: int, stride: int, operation: str) -> Primitive | None:
    """The primitive of one layer's choice; None where it is the identity and nothing runs."""
    if operation == "identity":
        return None if stride == 1 and shape[0] == out else conv(shape, out, 1, stride, act="none")
    expansion, kernel = (3, 3) if operation == "mb3_k3" else (6, 5)
    return mbconv(shape, out, kernel, stride, shape[0] * expansion)
