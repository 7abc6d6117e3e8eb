"""The elastic network: one set of weights, the largest primitives', that every network of a space reads in part.

Once-for-All (Cai et al., ICLR 2020): a narrower block uses the first channels, a smaller kernel is the centre of the
larger one times a learned matrix, a shallower stage runs the first of its blocks. BatchNorm's statistics are shared
while training and re-estimated for each sub-network that is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from hwnas.core.errors import InputError
from hwnas.spaces.modules import Network, PrimitiveModule, channels_last
from hwnas.spaces.ops import BatchNorm, Conv, Linear, Op, Shape
from hwnas.spaces.primitive import Node, Primitive

if TYPE_CHECKING:
    from hwnas.spaces import SearchSpace

BN_MOMENTUM = 0.1

EXPANDED_CHANNELS = {
    "expand.weight": 0,
    "expand_bn.weight": 0,
    "expand_bn.bias": 0,
    "expand_bn.running_mean": 0,
    "expand_bn.running_var": 0,
    "depthwise.weight": 0,
    "depthwise_bn.weight": 0,
    "depthwise_bn.bias": 0,
    "depthwise_bn.running_mean": 0,
    "depthwise_bn.running_var": 0,
    "se_reduce.weight": 1,
    "se_expand.weight": 0,
    "se_expand.bias": 0,
    "project.weight": 1,
}
SQUEEZED_CHANNELS = {"se_reduce.weight": 0, "se_reduce.bias": 0, "se_expand.weight": 1}


class ElasticBlock(PrimitiveModule):
    """The weights of one slot: its largest primitive's, and a matrix for each step from a kernel to a smaller one."""

    def __init__(self, primitives: Iterable[Primitive]) -> None:
        self.members = tuple(dict.fromkeys(primitives))
        super().__init__(max(self.members, key=lambda p: p.parameters))
        self.transforms = nn.ParameterDict()
        self._kernels: dict[str, list[int]] = {}
        for node in self.primitive.body:
            if isinstance(node.op, Conv):
                self._add_transforms(node.name)

    def _add_transforms(self, name: str) -> None:
        ops = [node.op for member in self.members for node in member.body if node.name == name]
        kernels = sorted({op.kernel for op in ops if isinstance(op, Conv)}, reverse=True)
        self._kernels[name] = kernels
        for larger, smaller in pairwise(kernels):
            self.transforms[f"{name}_{larger}to{smaller}"] = nn.Parameter(torch.eye(smaller**2))

    def tensors(self, primitive: Primitive) -> dict[str, Tensor]:
        """The part of the weights that `primitive` uses, keyed `operation.tensor`; views where they can be."""
        return {
            f"{operation}.{name}": self._part(operation, getattr(self._modules[operation], name), shape)
            for operation, name, shape in _weight_shapes(primitive)
        }

    def _part(self, operation: str, tensor: Tensor, shape: Shape) -> Tensor:
        if tensor.shape == shape:
            return tensor
        part = tensor[tuple(slice(size) for size in shape[:2])]
        return part if part.shape == shape else self._shrink(operation, part, shape[-1])

    def _shrink(self, name: str, weight: Tensor, kernel: int) -> Tensor:
        for larger, smaller in pairwise(self._kernels[name]):
            if larger == kernel:
                break
            edge = (larger - smaller) // 2
            centre = weight[:, :, edge : edge + smaller, edge : edge + smaller].flatten(2)
            weight = F.linear(centre, self.transforms[f"{name}_{larger}to{smaller}"])
            weight = weight.reshape(*weight.shape[:2], smaller, smaller)
        return weight

    def run(self, primitive: Primitive, bn_eps: float, *inputs: Tensor) -> Tensor:
        """The output of `primitive` with its part of the weights; in training BatchNorm's statistics move along."""
        tensors = self.tensors(primitive)
        values = {f"in{index}": value for index, value in enumerate(inputs)}
        for node in primitive.body:
            arguments = [values[name] for name in node.inputs]
            values[node.name] = _apply(node, tensors, arguments, self.training, bn_eps)
        return values[node.name]

    def sort_channels(self, opened: Iterable[int]) -> None:
        """Reorder the expanded channels by the L1 norm of the weights that read them, most important first.

        Channels stay on their side of every width in `opened` (channels that narrower blocks already use), so that the
        outputs of those blocks keep their value. The squeezed channels are sorted likewise, all together. A block that
        may run without an expansion keeps its order, which is that of its inputs.
        """
        state = self.tensors(self.primitive)
        expanded = all(any(node.name == "expand" for node in member.body) for member in self.members)
        if not expanded or "project.weight" not in state or "depthwise.weight" not in state:
            return
        _reorder(state, EXPANDED_CHANNELS, _order(state["project.weight"], opened))
        if "se_expand.weight" in state:
            squeezed = {p.number("se") for p in self.members if p.number("mid") in set(opened)}
            _reorder(state, SQUEEZED_CHANNELS, _order(state["se_expand.weight"], squeezed))


def _order(readers: Tensor, opened: Iterable[int]) -> Tensor:
    importance = readers.detach().abs().sum(dim=(0, 2, 3))
    edges = [0, *sorted(width for width in set(opened) if 0 < width < len(importance)), len(importance)]
    parts = [left + importance[left:right].argsort(descending=True, stable=True) for left, right in pairwise(edges)]
    return torch.cat(parts)


def _reorder(state: Mapping[str, Tensor], axes: Mapping[str, int], order: Tensor) -> None:
    with torch.no_grad():
        for name, axis in axes.items():
            if name in state:
                state[name].copy_(state[name].index_select(axis, order))


def _apply(node: Node, tensors: Mapping[str, Tensor], inputs: list[Tensor], training: bool, eps: float) -> Tensor:
    op, x = node.op, inputs[0]

    def own(name: str) -> Tensor | None:
        return tensors.get(f"{node.name}.{name}")

    if isinstance(op, Conv):
        return F.conv2d(x, tensors[f"{node.name}.weight"], own("bias"), op.stride, op.kernel // 2, 1, op.groups)
    if isinstance(op, BatchNorm):
        mean, variance = own("running_mean"), own("running_var")
        return F.batch_norm(x, mean, variance, own("weight"), own("bias"), training, BN_MOMENTUM, eps)
    if isinstance(op, Linear):
        return F.linear(x.flatten(1), tensors[f"{node.name}.weight"], own("bias"))
    result: Tensor = _weightless(op, node.shapes)(*inputs)
    return result


@lru_cache(maxsize=4096)
def _weight_shapes(primitive: Primitive) -> tuple[tuple[str, str, Shape], ...]:
    """(operation, tensor, shape) of everything a primitive learns or tracks."""
    return tuple(
        (node.name, name, shape) for node in primitive.body for name, shape in node.op.weights(*node.shapes).items()
    )


@lru_cache(maxsize=4096)
def _weightless(op: Op, shapes: tuple[Shape, ...]) -> nn.Module:
    return op.module(*shapes)


def initialise(network: nn.Module, seed: int) -> None:
    """He's initialisation of convolutions, small weights of linear layers, zero biases: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class ElasticNetwork(nn.Module):
    """The super-network of `space`: `blocks[i]` serves slot i of the space.

    Raises `InputError` where the blocks of a slot do not lie within its largest one.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        row = space.choices - 1
        if any(node.inputs != (index - 1,) for index, node in enumerate(space.graph(row).nodes)):
            raise InputError(f"{space.spec} is no chain of blocks: it has no elastic super-network")
        self.blocks = nn.ModuleList(_elastic_block(space, slot) for slot in range(len(space.slots)))
        initialise(self, seed)

    def running(self, row: ArrayLike) -> list[tuple[ElasticBlock, Primitive]]:
        """The blocks that one genotype runs, in order, each with the primitive it runs as."""
        primitives = self.space.primitives()
        indices = self.space.blocks(row)[0]
        return [(self.blocks[i], primitives[index]) for i, index in enumerate(indices) if index >= 0]  # type: ignore[misc]

    def forward(self, images: Tensor, row: ArrayLike) -> Tensor:
        """Logits (n, classes) of the sub-network `row` for images (n, 3, r, r)."""
        x = images
        for block, primitive in self.running(row):
            x = block.run(primitive, self.space.bn_eps, x)
        return x

    def extract(self, row: ArrayLike) -> Network:
        """The sub-network `row` on its own, with copies of its weights and of the shared BatchNorm statistics."""
        network = self.space.build(row)
        parts = self.running(row)
        with torch.no_grad():
            for own, (block, primitive) in zip(network.blocks, parts, strict=True):
                state = own.state_dict()
                for name, tensor in block.tensors(primitive).items():
                    state[name].copy_(tensor)
        network.to(next(self.parameters()).device)
        channels_last(network)
        return network.train(self.training)

    def sort_channels(self, opened: Iterable[int]) -> None:
        """Sort the expanded channels of every block by importance; `opened` are expansions already in use."""
        ratios = set(opened)
        for block, members in zip(self.blocks, _expansions(self.space), strict=True):
            block.sort_channels({p.number("mid") for ratio, p in members if ratio in ratios})  # type: ignore[operator]


def _members(space: SearchSpace, slot: int) -> list[tuple[dict[str, object], Primitive]]:
    """Every primitive of a slot with the values of the genes that give it."""
    genes = [space.genes[g] for g in space.slots[slot].genes]
    found = []
    for values in product(*(gene.choices for gene in genes)):
        primitive = space.slots[slot].make(*values)
        if primitive is not None:
            found.append(({g.field: v for g, v in zip(genes, values, strict=True)}, primitive))
    return found


def _expansions(space: SearchSpace) -> list[list[tuple[object, Primitive]]]:
    return [[(v.get("e"), p) for v, p in _members(space, slot)] for slot in range(len(space.slots))]


def _elastic_block(space: SearchSpace, slot: int) -> ElasticBlock:
    block = ElasticBlock(primitive for _, primitive in _members(space, slot))
    own = {(operation, name): shape for operation, name, shape in _weight_shapes(block.primitive)}
    for primitive in block.members:
        for operation, name, shape in _weight_shapes(primitive):
            whole = own.get((operation, name), ())
            if len(whole) != len(shape) or any(a < b for a, b in zip(whole, shape, strict=True)):
                raise InputError(
                    f"{space.spec} has no elastic super-network: {primitive.key!r} does not lie within "
                    f"{block.primitive.key!r}"
                )
    return block
