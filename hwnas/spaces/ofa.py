"""The spaces of Once-for-All (Cai et al., ICLR 2020): `ofa-mbv3`, and `ofa-mbv2` as in aw_nas (arXiv 2012.10388)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property, partial
from typing import ClassVar

from hwnas.spaces.base import Gene, Slot, spaces
from hwnas.spaces.mobile import conv, div8, linear, mbconv, pool, strided
from hwnas.spaces.notation import JsonSpace, Layout
from hwnas.spaces.primitive import Primitive

KERNELS = (3, 5, 7)
EXPANSIONS = (3, 4, 6)
DEPTHS = (2, 3, 4)
STAGES = 5
SLOTS = 4
RESOLUTIONS = tuple(range(128, 225, 4))
STEM_STRIDE = {"imagenet": 2, "cifar": 1}
STRIDES = {"imagenet": (2, 2, 2, 1, 2), "cifar": (1, 2, 2, 1, 2)}
CIFAR_RESOLUTIONS = (32,)


class OnceForAll(JsonSpace):
    """Five stages of two to four MBConvs; kernel and expansion chosen for each block, depth for each stage.

    Genes: kernel of each of 20 slots, expansion of each, depth of each stage, resolution. `variant=cifar` is hwnas's
    own: stem and first stage of stride 1, as FBNet's and MobileNet's forms for 32x32 images have them.
    """

    stem_act: ClassVar[str]
    first_act: ClassVar[str]
    stage_acts: ClassVar[tuple[str, ...]]
    stage_se: ClassVar[tuple[bool, ...]] = (False,) * STAGES
    elastic_blocks: int = STAGES * SLOTS
    widths: tuple[int, ...]
    resolutions: tuple[int, ...]
    num_classes: int

    def _form(self, variant: str, width: float, resolution: tuple[int, ...], num_classes: int) -> None:
        """Take the options that both spaces have; raises `ValueError` for one that makes no network."""
        if variant not in STRIDES:
            raise ValueError(f"variant is {variant!r}, expected one of {', '.join(STRIDES)}")
        small = variant == "cifar"
        self.stem_stride, self.strides = STEM_STRIDE[variant], STRIDES[variant]
        self.resolutions = CIFAR_RESOLUTIONS if small and resolution == RESOLUTIONS else resolution
        self.num_classes = num_classes
        _check(width, self.resolutions, num_classes, least=8 if small else 32)

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        depth0 = 2 * self.elastic_blocks

        def active(block: int) -> tuple[int, int] | None:
            stage, slot = divmod(block, SLOTS)
            return (depth0 + stage, slot - 1) if stage < STAGES and slot >= DEPTHS[0] else None

        blocks = range(self.elastic_blocks)
        return (
            *(Gene(f"ks[{b}]", KERNELS, active(b)) for b in blocks),
            *(Gene(f"e[{b}]", EXPANSIONS, active(b)) for b in blocks),
            *(Gene(f"d[{s}]", DEPTHS) for s in range(STAGES)),
            Gene("r", self.resolutions),
        )

    @cached_property
    def layout(self) -> Layout:
        n = self.elastic_blocks
        return {
            "ks": list(range(n)),
            "e": list(range(n, 2 * n)),
            "d": list(range(2 * n, 2 * n + STAGES)),
            "r": 2 * n + STAGES,
        }

    @property
    def defaults(self) -> Mapping[str, int]:
        return {"r": self.resolutions[0]} if len(self.resolutions) == 1 else {}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        n, r = self.elastic_blocks, len(self.genes) - 1
        stages = (
            Slot((r, b, n + b, 2 * n + b // SLOTS), partial(self._stage_block, *divmod(b, SLOTS)))
            for b in range(STAGES * SLOTS)
        )
        return (
            Slot((r,), lambda r: conv((3, r, r), self.widths[0], 3, self.stem_stride, self.stem_act), searchable=False),
            Slot((r,), self._first_block, searchable=False),
            *stages,
            *self._head(r),
        )

    def _first_block(self, resolution: int) -> Primitive:
        side = self.side(resolution, 0)
        return mbconv((self.widths[0], side, side), self.widths[1], 3, 1, 0, self.first_act)

    def _stage_block(
        self, stage: int, slot: int, resolution: int, kernel: int, expansion: int, depth: int
    ) -> Primitive | None:
        if slot >= depth:
            return None
        out, stride = self.widths[2 + stage], self.strides[stage] if slot == 0 else 1
        channels = self.widths[1 + stage] if slot == 0 else out
        side = self.side(resolution, stage if slot == 0 else stage + 1)
        mid = div8(channels * expansion)
        se = div8(mid / 4) if self.stage_se[stage] else 0
        return mbconv((channels, side, side), out, kernel, stride, mid, self.stage_acts[stage], se)

    def side(self, resolution: int, stages: int) -> int:
        """Height and width of the features after that many stages."""
        side = strided(resolution, self.stem_stride)
        for stride in self.strides[:stages]:
            side = strided(side, stride)
        return side

    @abstractmethod
    def _head(self, r: int) -> tuple[Slot, ...]: ...


@spaces.register("ofa-mbv3")
class OfaMobileNetV3(OnceForAll):
    """Once-for-All's MobileNetV3 space."""

    stem_act = "h_swish"
    first_act = "relu"
    stage_acts = ("relu", "relu", "h_swish", "h_swish", "h_swish")
    stage_se = (False, True, False, True, True)

    def __init__(
        self,
        width: float = 1.0,
        resolution: tuple[int, ...] = RESOLUTIONS,
        num_classes: int = 1000,
        variant: str = "imagenet",
    ) -> None:
        resolution = tuple(sorted(resolution))
        super().__init__(width=width, resolution=resolution, num_classes=num_classes, variant=variant)
        self._form(variant, width, resolution, num_classes)
        self.widths = tuple(div8(c * width) for c in (16, 16, 24, 40, 80, 112, 160, 960, 1280))

    def _head(self, r: int) -> tuple[Slot, ...]:
        def final_expand(r: int) -> Primitive:
            side = self.side(r, STAGES)
            return conv((self.widths[6], side, side), self.widths[7], act="h_swish")

        return (
            Slot((r,), final_expand, searchable=False),
            Slot((r,), lambda r: pool((self.widths[7], self.side(r, STAGES), self.side(r, STAGES))), searchable=False),
            Slot((), lambda: conv((self.widths[7], 1, 1), self.widths[8], act="h_swish", bn=0), searchable=False),
            Slot((), lambda: linear((self.widths[8], 1, 1), self.num_classes), searchable=False),
        )


@spaces.register("ofa-mbv2")
class OfaMobileNetV2(OnceForAll):
    """Once-for-All's ProxylessNAS-like space on MobileNetV2's widths, the one of aw_nas's experiments."""

    stem_act = first_act = "relu6"
    stage_acts = ("relu6",) * STAGES
    bn_eps = 1e-3

    _WIDTHS: ClassVar[dict[str, tuple[int, ...]]] = {
        "mobilenetv2": (32, 16, 24, 32, 64, 96, 160, 320, 1280),
        "proxyless": (32, 16, 24, 40, 80, 96, 192, 320, 1280),
    }

    def __init__(
        self,
        widths: str = "mobilenetv2",
        width: float = 1.0,
        last_block: str = "fixed",
        resolution: tuple[int, ...] = RESOLUTIONS,
        num_classes: int = 1000,
        variant: str = "imagenet",
    ) -> None:
        resolution = tuple(sorted(resolution))
        super().__init__(
            widths=widths,
            width=width,
            last_block=last_block,
            resolution=resolution,
            num_classes=num_classes,
            variant=variant,
        )
        self._form(variant, width, resolution, num_classes)
        if widths not in self._WIDTHS:
            raise ValueError(f"widths is {widths!r}, expected one of {', '.join(self._WIDTHS)}")
        if last_block not in ("fixed", "elastic"):
            raise ValueError(f"last_block is {last_block!r}, expected fixed or elastic")
        self.widths = tuple(div8(c * width) for c in self._WIDTHS[widths])
        self.elastic_blocks = STAGES * SLOTS + (last_block == "elastic")

    def _head(self, r: int) -> tuple[Slot, ...]:
        def side(r: int) -> int:
            return self.side(r, STAGES)

        def last_block(r: int, kernel: int = 3, expansion: int = 6) -> Primitive:
            mid = div8(self.widths[6] * expansion)
            return mbconv((self.widths[6], side(r), side(r)), self.widths[7], kernel, 1, mid, "relu6")

        elastic = self.elastic_blocks > STAGES * SLOTS
        genes = (r, self.elastic_blocks - 1, 2 * self.elastic_blocks - 1) if elastic else (r,)
        return (
            Slot(genes, last_block, searchable=elastic),
            Slot(
                (r,), lambda r: conv((self.widths[7], side(r), side(r)), self.widths[8], act="relu6"), searchable=False
            ),
            Slot((r,), lambda r: pool((self.widths[8], side(r), side(r))), searchable=False),
            Slot((), lambda: linear((self.widths[8], 1, 1), self.num_classes), searchable=False),
        )


def _check(width: float, resolutions: tuple[int, ...], num_classes: int, least: int) -> None:
    if not 0 < width <= 10:
        raise ValueError(f"width is {width}, expected above 0 and at most 10")
    if len(set(resolutions)) != len(resolutions) or not all(least <= r <= 4096 for r in resolutions):
        shown = "/".join(map(str, resolutions))
        raise ValueError(f"resolution is {shown}, expected distinct sizes from {least} to 4096")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
