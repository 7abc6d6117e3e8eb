"""Features of architectures, all of them sums over groups of genes.

A *gene group* is a set of genes that decide some slots together. What a group adds to a feature is a table over its
genes' joint choices, so that the features of a population are a few table look-ups, with no loop over architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import log2, prod

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.spaces import Primitive, SearchSpace
from hwnas.spaces.base import with_nothing
from hwnas.spaces.ops import Activation, Add, AvgPool, Conv, GlobalAvgPool, Linear, Mul, Shape
from hwnas.spaces.primitive import Node

Genes = tuple[int, ...]

CHUNK = 16384
LOCAL_SHARE = 0.5
BALANCES = (3.0, 10.0, 30.0)
LANES = (16, 32)


@dataclass(frozen=True)
class GeneGroup:
    """`slots` that the same `genes` decide, and `blocks` (J, slots) of each joint choice; J runs as `product` does."""

    genes: Genes
    slots: NDArray[np.int64]
    grid: Population
    blocks: NDArray[np.int32]


@dataclass(frozen=True)
class Lookups:
    """Features that are sums of tables: `tables[i]` (J, columns) is looked up by the joint choice of `genes[i]`."""

    genes: tuple[Genes, ...]
    strides: tuple[NDArray[np.int64], ...]
    tables: tuple[NDArray[np.float32], ...]
    columns: int

    def __call__(self, population: Population) -> Array:
        """Features of each genotype, shape (n, columns)."""
        result = np.zeros((len(population), self.columns), dtype=np.float32)
        for genes, strides, table in zip(self.genes, self.strides, self.tables, strict=True):
            result += table[population[:, genes].astype(np.int64) @ strides]
        return result.astype(np.float64)


@dataclass(frozen=True)
class OneHot:
    """Indicator features: the columns of each set of genes stand side by side."""

    parts: tuple[Lookups, ...]
    columns: int

    def __call__(self, population: Population) -> Array:
        """Features of each genotype, shape (n, columns), 0 or 1."""
        result = np.empty((len(population), self.columns))
        start = 0
        for part in self.parts:
            result[:, start : start + part.columns] = part(population)
            start += part.columns
        return result


@lru_cache(maxsize=32)
def gene_groups(space: SearchSpace) -> tuple[GeneGroup, ...]:
    """The gene groups of a space, in order of their first slot."""
    by_genes: dict[Genes, list[int]] = {}
    for position, slot in enumerate(space.slots):
        by_genes.setdefault(tuple(slot.genes), []).append(position)
    made = []
    for genes, slots in by_genes.items():
        grid = joint_choices(space, genes)
        made.append(GeneGroup(genes, np.array(slots), grid, space.blocks(grid)[:, slots]))
    return tuple(made)


def joint_choices(space: SearchSpace, genes: Genes) -> Population:
    """Genotypes (J, genes of the space) that hold every joint choice of `genes` and 0 elsewhere."""
    choices = np.array(list(product(*(range(space.choices[g]) for g in genes))), dtype=np.int16)
    grid = np.zeros((prod(int(space.choices[g]) for g in genes), len(space.genes)), dtype=np.int16)
    if genes:
        grid[:, list(genes)] = choices
    return grid


def lookups(space: SearchSpace, tables: Sequence[tuple[Genes, Array]]) -> Lookups:
    """Join tables over joint choices into features."""
    strides = [
        np.array([prod(int(space.choices[g]) for g in genes[i + 1 :]) for i in range(len(genes))], dtype=np.int64)
        for genes, _ in tables
    ]
    columns = tables[0][1].shape[1]
    return Lookups(
        tuple(genes for genes, _ in tables),
        tuple(strides),
        tuple(table.astype(np.float32) for _, table in tables),
        columns,
    )


def in_chunks(function: Callable[[Population], Array], population: Population) -> Array:
    """`function` of the whole population, a bounded number of rows at a time."""
    if len(population) <= CHUNK:
        return function(population)
    return np.concatenate([function(population[i : i + CHUNK]) for i in range(0, len(population), CHUNK)])


# indicators


@lru_cache(maxsize=32)
def choice_features(space: SearchSpace) -> OneHot:
    """Indicators of every gene's choice (none where the gene cannot matter) and of what runs in every slot.

    A gene that decides most slots at once, as a resolution does, is left out of the second kind: its own indicator
    stands for it.
    """
    parts = [_gene_indicator(space, gene) for gene in range(len(space.genes))]
    return _one_hot([*parts, *(_group_indicator(space, group) for group in gene_groups(space))])


@lru_cache(maxsize=32)
def position_features(space: SearchSpace) -> tuple[OneHot, ...]:
    """`choice_features` of each group by itself, in order, without genes that decide most slots."""
    positions = []
    for group in gene_groups(space):
        own = [_gene_indicator(space, gene) for gene in _local(space, group)]
        positions.append(_one_hot([*own, _group_indicator(space, group)]))
    return tuple(position for position in positions if position.columns)


def _one_hot(parts: Sequence[Lookups | None]) -> OneHot:
    kept = [part for part in parts if part is not None]
    return OneHot(tuple(kept), sum(part.columns for part in kept))


def _local(space: SearchSpace, group: GeneGroup) -> Genes:
    """The group's genes without those that decide most slots of the space."""
    most = LOCAL_SHARE * len(space.slots)
    return tuple(gene for gene in group.genes if sum(gene in slot.genes for slot in space.slots) <= most)


def _group_indicator(space: SearchSpace, group: GeneGroup) -> Lookups | None:
    local = _local(space, group)
    return _slot_indicator(space, local, group) if len(local) > 1 or (local and len(group.slots) > 1) else None


def _gene_indicator(space: SearchSpace, gene: int) -> Lookups | None:
    choices, active = len(space.genes[gene].choices), space.genes[gene].active
    if choices < 2:
        return None
    if active is None:
        return lookups(space, [((gene,), np.eye(choices))])
    controller, least = active
    grid = joint_choices(space, (controller, gene))
    table = np.eye(choices)[grid[:, gene]] * (grid[:, controller] >= least)[:, None]
    return lookups(space, [((controller, gene), table)])


def _slot_indicator(space: SearchSpace, local: Genes, group: GeneGroup) -> Lookups | None:
    grid = joint_choices(space, local)
    blocks = space.blocks(grid)[:, group.slots]
    columns = [blocks[:, s] == b for s in range(blocks.shape[1]) for b in np.unique(blocks[:, s])]
    table = np.unique(np.array(columns, dtype=np.float64).T, axis=1)
    table = table[:, (table.min(axis=0) != table.max(axis=0))]
    return lookups(space, [(local, table)]) if table.shape[1] else None


# physical features


def physical_features(space: SearchSpace, costs: Array | None = None) -> Lookups:
    """Sums over the blocks of what they do: MACs, bytes, operations by kind; then the chief ones by stage.

    The first `total_columns(space)` columns are of the whole network, the last of them the sum of `costs` (P,) where
    all of them are given: with one that is missing a sum would count it as nothing. A stage is a run of slots at one
    spatial scale.
    """
    quantities = _quantities(space)
    known = costs is not None and not np.isnan(costs).any()
    cost = costs[:, None] if costs is not None and known else np.zeros((len(quantities), 1))
    whole = with_nothing(np.concatenate([quantities, cost], axis=1))
    staged = np.concatenate([whole[:, : len(STAGE_QUANTITIES)], whole[:, -1:]], axis=1)
    stage = slot_stages(space)
    tables = []
    for group in gene_groups(space):
        parts = [staged[group.blocks][:, stage[group.slots] == number].sum(axis=1) for number in range(stage.max() + 1)]
        tables.append((group.genes, np.concatenate([whole[group.blocks].sum(axis=1), *parts], axis=1)))
    return lookups(space, tables)


def total_columns(space: SearchSpace) -> int:
    """How many columns of `physical_features` are of the whole network."""
    return int(_quantities(space).shape[1]) + 1


def slot_stages(space: SearchSpace) -> NDArray[np.int64]:
    """The spatial scale of each slot, shape (slots,): how often the input was halved before its output."""
    sides = np.ones(len(space.slots))
    for group in gene_groups(space):
        for column, slot in enumerate(group.slots):
            outputs = [space.primitives()[b].output for b in np.unique(group.blocks[:, column]) if b >= 0]
            sides[slot] = max((shape[1] for shape in outputs if len(shape) == 3), default=1)
    scale = np.round([log2(sides.max() / side) for side in sides])
    return np.unique(scale, return_inverse=True)[1].reshape(-1)


STAGE_QUANTITIES = ("macs", "bytes", "depthwise macs", "blocks")


@lru_cache(maxsize=32)
def _quantities(space: SearchSpace) -> Array:
    """What each primitive does, shape (P, quantities), `STAGE_QUANTITIES` first; MACs, bytes, elements in millions."""
    return np.array([_primitive_quantities(primitive) for primitive in space.primitives()])


def _primitive_quantities(primitive: Primitive) -> list[float]:
    totals = np.sum([_node_quantities(node) for node in primitive.body], axis=0)
    depthwise = sum(node.op.macs(*node.shapes) for node in primitive.body if _is_depthwise(node))
    counts = [primitive.macs / 1e6, primitive.bytes_moved / 1e6, depthwise / 1e6, 1.0]
    return [*counts, primitive.parameters / 1e6, *totals]


def _is_depthwise(node: Node) -> bool:
    return isinstance(node.op, Conv) and node.op.groups == node.shapes[0][0] and node.op.groups > 1


def _node_quantities(node: Node) -> list[float]:
    op, shape, output = node.op, node.shapes[0], node.output
    macs, params = op.macs(*node.shapes) / 1e6, op.params(*node.shapes) / 1e6
    moved = 0.0 if op.fused else (sum(map(prod, node.shapes)) + prod(output)) / 1e6
    conv = op if isinstance(op, Conv) else None
    kernel, depthwise = conv.kernel if conv else 0, _is_depthwise(node)
    return [
        float(not op.fused),
        float(depthwise),
        float(kernel > 1),
        float(conv is not None and not depthwise and conv.groups > 1),
        float(isinstance(op, GlobalAvgPool | Mul)),
        float(isinstance(op, Add)),
        float(isinstance(op, AvgPool)),
        float(isinstance(op, Activation)),
        float(isinstance(op, Linear)),
        macs * (kernel == 1),
        *(macs * (depthwise and kernel == size) for size in (3, 5, 7)),
        macs * (kernel > 1 and not depthwise),
        prod(output) / 1e6 if isinstance(op, Activation) and op.function not in ("relu", "relu6") else 0.0,
        moved * depthwise,
        moved * isinstance(op, Add | Mul | AvgPool),
        moved,
        *(max(macs, balance * (moved + params)) for balance in BALANCES),
        *(_padded_macs(conv, shape, output, lanes) if conv else 0.0 for lanes in LANES),
    ]


def _padded_macs(conv: Conv, shape: Shape, output: Shape, lanes: int) -> float:
    """MACs (millions) with the channels of each group rounded up to what a vector unit of `lanes` works on at once."""
    across = -(-(shape[0] // conv.groups) // lanes) * lanes if conv.groups == 1 else shape[0] // conv.groups
    return across * (-(-conv.out // lanes) * lanes) * conv.kernel**2 * prod(output[1:]) / 1e6


# sequences of blocks


@lru_cache(maxsize=32)
def configuration(space: SearchSpace) -> Array:
    """Each primitive's configuration, shape (P, features): shapes in and out, kernel, stride, expanded and squeezed
    width, groups, MACs and bytes (logarithms of what spans magnitudes), and its kind."""
    kinds = sorted({primitive.kind for primitive in space.primitives()})
    return np.array([_configuration(primitive, kinds) for primitive in space.primitives()])


def _configuration(p: Primitive, kinds: list[str]) -> list[float]:
    sizes = [p.inputs[0][0], p.inputs[0][-1], p.output[0], p.output[-1], p.number("mid"), p.number("se"), len(p.inputs)]
    logs = [log2(1 + size) for size in (*sizes, p.macs, p.bytes_moved, p.parameters)]
    plain = [p.number("kernel", 1), p.number("stride", 1), p.number("groups", 1), p.macs / 1e7, p.bytes_moved / 1e6]
    return [*logs, *map(float, plain), *(float(p.kind == kind) for kind in kinds)]


def block_sequence(space: SearchSpace, costs: Array | None, population: Population) -> NDArray[np.float32]:
    """What runs in each slot, shape (n, slots, features), zeros where nothing does; the last feature is its cost."""
    features = configuration(space)
    extra = np.ones((len(features), 1)) if costs is None else np.stack([np.ones(len(features)), costs], axis=1)
    table = np.concatenate([features, extra], axis=1).astype(np.float32)
    sequence: NDArray[np.float32] = with_nothing(table)[space.blocks(population)]
    return sequence
