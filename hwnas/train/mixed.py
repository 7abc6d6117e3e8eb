"""The mixed network: every layer holds all blocks it may run, each with weights of its own.

What runs is told by *gates*, one a layer: the number of one choice, or a weighted sum of some of them. FBNet and DARTS
mix all choices, ProxylessNAS two, SPOS runs one: they differ in the gates they draw and in how they learn from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from hwnas.core.errors import InputError
from hwnas.spaces.modules import Network, PrimitiveModule, channels_last
from hwnas.train.choices import Choices
from hwnas.train.elastic import initialise

if TYPE_CHECKING:
    from hwnas.spaces import Primitive, SearchSpace

Gate = int | Mapping[int, Tensor]


class MixedLayer(nn.Module):
    """The blocks that one slot may run, by the choice of its gene; where nothing runs, the identity."""

    def __init__(self, primitives: Sequence[Primitive | None]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() if p is None else PrimitiveModule(p) for p in primitives)

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        if isinstance(gate, int):
            alone: Tensor = self.blocks[gate](x)
            return alone
        parts = [weight * self.blocks[choice](x) for choice, weight in gate.items()]
        mixed: Tensor = reduce(torch.add, parts)
        return mixed


class MixedNetwork(nn.Module):
    """The super-network of a space whose genes each choose the block of one slot.

    Attributes:
        layers: one a slot of the space.
        choices: how probable each choice of each gene is.

    Raises `InputError` where the genes of `space` do something else.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        members = layers_of(space)
        self.genes = [slot.genes[0] if slot.genes else None for slot in space.slots]
        self.layers = nn.ModuleList(map(MixedLayer, members))
        self.choices = Choices(space.choices.tolist())
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = space.bn_eps
        initialise(self, seed)

    def forward(self, images: Tensor, gates: Sequence[Gate]) -> Tensor:
        """Logits (n, classes) for images (n, 3, r, r); `gates` has one entry a gene."""
        x = images
        for layer, gene in zip(self.layers, self.genes, strict=True):
            x = layer(x, 0 if gene is None else gates[gene])
        return x

    def extract(self, row: ArrayLike) -> Network:
        """The network of one genotype on its own, with copies of its weights and BatchNorm statistics."""
        network = self.space.build(row)
        chosen = np.asarray(self.space.canonical(row))[0].tolist()
        running = [
            layer.blocks[0 if gene is None else chosen[gene]]  # type: ignore[index]
            for layer, gene in zip(self.layers, self.genes, strict=True)
        ]
        parts = [block for block in running if isinstance(block, PrimitiveModule)]
        for own, block in zip(network.blocks, parts, strict=True):
            own.load_state_dict(block.state_dict())
        network.to(next(self.parameters()).device)
        channels_last(network)
        return network.train(self.training)


def layers_of(space: SearchSpace) -> list[list[Primitive | None]]:
    """For each slot, the primitive of each choice of its gene (None: nothing runs); one for a slot without a gene.

    Raises `InputError` where a gene does not choose the block of exactly one slot, whatever the others are.
    """
    refusal = InputError(
        f"{space.spec} has genes that do more than choose the block of one layer: one-shot searches by mixed blocks "
        "are for spaces such as fbnet and nasbench-macro; train a super-network (hwnas train-supernet) and search it"
    )
    used = [gene for slot in space.slots for gene in slot.genes]
    chain = all(node.inputs == (i - 1,) for i, node in enumerate(space.graph(0 * space.choices).nodes))
    independent = all(gene.active is None for gene in space.genes) and all(len(slot.genes) < 2 for slot in space.slots)
    if not chain or not independent or sorted(used) != list(range(len(space.genes))):
        raise refusal
    members = []
    for slot in space.slots:
        values = [(value,) for value in space.genes[slot.genes[0]].choices] if slot.genes else [()]
        found = [slot.make(*value) for value in values]
        shapes = {(p.inputs, p.output) for p in found if p is not None}
        if len(shapes) != 1 or (None in found and any(inputs != (output,) for inputs, output in shapes)):
            raise refusal
        members.append(found)
    return members
