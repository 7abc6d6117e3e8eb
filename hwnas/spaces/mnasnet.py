"""`mnasnet`: the MnasNet / EfficientNet-B0 skeleton as Accel-NASBench measured it on FPGAs, GPUs and TPUs."""

from __future__ import annotations

from functools import cached_property, partial

from hwnas.spaces.base import Gene, Slot, spaces
from hwnas.spaces.mobile import conv, linear, mbconv, pool, strided
from hwnas.spaces.notation import JsonSpace, Layout
from hwnas.spaces.primitive import Primitive

CHANNELS = (32, 16, 24, 40, 80, 112, 192, 320)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
BLOCKS = 7
HEAD = 1280
EXPANSIONS = (1, 4, 6)
KERNELS = (3, 5)
LAYERS = (1, 2, 3)
SIXTH_BLOCK_LAYERS = (1, 2, 3, 4)


@spaces.register("mnasnet")
class MnasNet(JsonSpace):
    """Seven blocks; expansion, kernel, number of layers and squeeze-excite chosen for each.

    `act` is the deployed form's ReLU with a hard-sigmoid gate, or `swish` with a sigmoid gate, as trained elsewhere.
    """

    def __init__(self, act: str = "relu", resolution: int = 224, num_classes: int = 1000) -> None:
        super().__init__(act=act, resolution=resolution, num_classes=num_classes)
        if act not in ("relu", "swish"):
            raise ValueError(f"act is {act!r}, expected relu or swish")
        if resolution < 32 or num_classes < 1:
            raise ValueError("resolution must be at least 32 and num_classes at least 1")
        self.act, self.gate = act, "h_sigmoid" if act == "relu" else "sigmoid"
        self.resolution, self.num_classes = resolution, num_classes

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        layers = [SIXTH_BLOCK_LAYERS if block == 5 else LAYERS for block in range(BLOCKS)]
        return (
            *(Gene(f"e[{b}]", EXPANSIONS) for b in range(BLOCKS)),
            *(Gene(f"k[{b}]", KERNELS) for b in range(BLOCKS)),
            *(Gene(f"l[{b}]", layers[b]) for b in range(BLOCKS)),
            *(Gene(f"se[{b}]", (0, 1)) for b in range(BLOCKS)),
        )

    @cached_property
    def layout(self) -> Layout:
        return {name: list(range(i * BLOCKS, (i + 1) * BLOCKS)) for i, name in enumerate(("e", "k", "l", "se"))}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        side = strided(self.resolution, 2)
        slots = [
            Slot(
                (), partial(conv, (3, self.resolution, self.resolution), CHANNELS[0], 3, 2, self.act), searchable=False
            )
        ]
        for block, stride in enumerate(STRIDES):
            genes = (block, BLOCKS + block, 2 * BLOCKS + block, 3 * BLOCKS + block)
            slots.append(
                Slot(genes, partial(self._layer, (CHANNELS[block], side, side), CHANNELS[block + 1], stride, 0))
            )
            side, out = strided(side, stride), CHANNELS[block + 1]
            for layer in range(1, max(self.genes[genes[2]].choices)):
                slots.append(Slot(genes, partial(self._layer, (out, side, side), out, 1, layer)))
        head = (
            partial(conv, (CHANNELS[-1], side, side), HEAD, act=self.act),
            partial(pool, (HEAD, side, side)),
            partial(linear, (HEAD, 1, 1), self.num_classes),
        )
        return (*slots, *(Slot((), make, searchable=False) for make in head))

    def _layer(
        self,
        shape: tuple[int, int, int],
        out: int,
        stride: int,
        layer: int,
        expansion: int,
        kernel: int,
        layers: int,
        se: int,
    ) -> Primitive | None:
        if layer >= layers:
            return None
        mid = shape[0] * expansion if expansion > 1 else 0
        squeezed = max(1, shape[0] // 4) if se else 0
        return mbconv(shape, out, kernel, stride, mid, self.act, squeezed, self.gate)
