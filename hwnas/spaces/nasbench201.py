"""`nasbench201`: the cell space of NAS-Bench-201 (Dong and Yang, ICLR 2020)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Population
from hwnas.spaces.base import Gene, SearchSpace, Slot, bad_architecture, spaces
from hwnas.spaces.graph import Graph, GraphNode
from hwnas.spaces.mobile import conv, linear, pool, strided
from hwnas.spaces.ops import Shape
from hwnas.spaces.primitive import Primitive

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NODES = 4
CHANNELS = (16, 32, 64)
CELLS = 5


@spaces.register("nasbench201")
class NasBench201(SearchSpace):
    """One cell of four nodes and six edges, repeated five times in each of three stages.

    An operation whose output reaches nothing is still part of the network, as it was executed in the published
    measurements; a node sums what its edges bring, and is zeros where they bring nothing.
    """

    def __init__(self, resolution: int = 32, num_classes: int = 10) -> None:
        super().__init__(resolution=resolution, num_classes=num_classes)
        if resolution < 8 or resolution % 4 or num_classes < 1:
            raise ValueError("resolution must be a multiple of 4, at least 8, and num_classes at least 1")
        self.resolution, self.num_classes = resolution, num_classes

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        return tuple(Gene(f"edge{source}->{target}", OPERATIONS) for source, target in EDGES)

    def parse_row(self, text: str) -> Sequence[int]:
        nodes = text.strip().split("+")
        if len(nodes) != NODES - 1:
            raise bad_architecture(self, text, "three nodes joined by '+' are expected")
        row = []
        for target, node in enumerate(nodes, start=1):
            edges = re.fullmatch("".join(rf"\|(\w+)~{source}" for source in range(target)) + r"\|", node)
            if not edges:
                raise bad_architecture(self, text, f"node {target} must list its edges as |OPERATION~NODE|...|")
            for operation in edges.groups():
                if operation not in OPERATIONS:
                    raise bad_architecture(self, text, f"{operation!r} is none of {', '.join(OPERATIONS)}")
                row.append(OPERATIONS.index(operation))
        return row

    def format(self, row: ArrayLike) -> str:
        operations = {edge: OPERATIONS[int(gene)] for edge, gene in zip(EDGES, np.asarray(row), strict=True)}
        nodes = (
            "|".join(f"{operations[source, target]}~{source}" for source in range(target)) for target in range(1, NODES)
        )
        return "+".join(f"|{node}|" for node in nodes)

    def _sides(self) -> tuple[int, ...]:
        return (self.resolution, strided(self.resolution, 2), strided(strided(self.resolution, 2), 2))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        side = self._sides()
        slots = [Slot((), partial(conv, (3, side[0], side[0]), CHANNELS[0], 3, act="none"), searchable=False)]
        for stage, channels in enumerate(CHANNELS):
            if stage:
                before = (CHANNELS[stage - 1], side[stage - 1], side[stage - 1])
                slots.append(
                    Slot((), partial(Primitive.of, "residual_reduction", before, out=channels), searchable=False)
                )
            slots += _cell_slots((channels, side[stage], side[stage])) * CELLS
        last = (CHANNELS[-1], side[-1], side[-1])
        head = (
            partial(Primitive.of, "bn_relu", last),
            partial(pool, last),
            partial(linear, (CHANNELS[-1], 1, 1), self.num_classes),
        )
        return (*slots, *(Slot((), make, searchable=False) for make in head))

    def equal_cost(self, population: ArrayLike) -> Population:
        """The smaller of a cell and its copy with the two middle nodes swapped, where no edge joins them."""
        array = self.canonical(population)
        swapped = array[:, [1, 0, 2, 3, 5, 4]]
        wins = np.zeros(len(array), dtype=bool)
        for gene in reversed(range(array.shape[1])):
            wins = (swapped[:, gene] < array[:, gene]) | ((swapped[:, gene] == array[:, gene]) & wins)
        apart = array[:, EDGES.index((1, 2))] == OPERATIONS.index("none")
        return np.where((apart & wins)[:, None], swapped, array)

    def features(self, population: ArrayLike) -> NDArray[np.float64]:
        """See `cell_features`."""
        return cell_features(self.check(population))

    def connect(self, row: Population, running: list[Primitive]) -> Graph:
        queue, nodes = iter(running), []

        def run(*inputs: int) -> int:
            nodes.append(GraphNode(next(queue), inputs))
            return len(nodes) - 1

        x = run(-1)
        for stage in range(len(CHANNELS)):
            x = run(x) if stage else x
            for _ in range(CELLS):
                x = _connect_cell(row, x, run)
        for _ in range(3):
            x = run(x)
        return Graph(running[0].inputs, tuple(nodes), self.bn_eps)


PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))


def cell_features(population: Population) -> NDArray[np.float64]:
    """What is executed in a cell and what of it reaches the output, shape (n, features).

    For each operation: how many edges have it, how many of those receive something other than zeros, and how many lie
    on a path that carries the input to the output. Then the number of such paths, the longest and shortest in
    operations that compute, whether anything reaches the output, and for each of the four paths its operations.
    """
    alive = population != OPERATIONS.index("none")
    fed = _nodes_fed(alive)
    on_path = np.zeros_like(alive)
    paths = np.stack([alive[:, path].all(axis=1) for path in PATHS], axis=1)
    for number, path in enumerate(PATHS):
        on_path[:, path] |= paths[:, [number]]
    receives = np.stack([fed[:, source] for source, _ in EDGES], axis=1)
    counts = [
        ((population == operation) & mask).sum(axis=1)
        for operation in range(1, len(OPERATIONS))
        for mask in (alive, alive & receives, on_path)
    ]
    computes = population >= OPERATIONS.index("nor_conv_1x1")
    lengths = np.stack([computes[:, path].sum(axis=1) for path in PATHS], axis=1)
    longest = np.where(paths, lengths, 0).max(axis=1)
    shortest = np.where(paths, lengths, len(PATHS)).min(axis=1)
    along = [
        ((population[:, path] == operation).sum(axis=1) * paths[:, number])
        for number, path in enumerate(PATHS)
        for operation in range(1, len(OPERATIONS))
    ]
    merged = [alive[:, _edges_into(target)].sum(axis=1) for target in range(1, NODES)]
    rows = [*counts, paths.sum(axis=1), longest, shortest, paths.any(axis=1), *along, *merged]
    return np.stack(rows, axis=1).astype(np.float64)


def _nodes_fed(alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which nodes receive anything of the cell's input, shape (n, nodes)."""
    fed = np.zeros((len(alive), NODES), dtype=bool)
    fed[:, 0] = True
    for gene, (source, target) in enumerate(EDGES):
        fed[:, target] |= alive[:, gene] & fed[:, source]
    return fed


def _edges_into(target: int) -> list[int]:
    return [gene for gene, edge in enumerate(EDGES) if edge[1] == target]


def _cell_slots(shape: Shape) -> list[Slot]:
    slots = []
    for target in range(1, NODES):
        genes = _edges_into(target)
        slots += [Slot((gene,), partial(_edge, shape)) for gene in genes]
        slots.append(Slot(tuple(genes), partial(_node, shape), searchable=False))
    return slots


def _edge(shape: Shape, operation: str) -> Primitive | None:
    if operation in ("none", "skip_connect"):
        return None
    if operation == "avg_pool_3x3":
        return Primitive.of("avg_pool", shape, kernel=3, stride=1)
    return Primitive.of("relu_conv_bn", shape, out=shape[0], kernel=int(operation[-1]), stride=1)


def _node(shape: Shape, *operations: str) -> Primitive | None:
    terms = sum(operation != "none" for operation in operations)
    if terms == 0:
        return Primitive.of("zeros", shape)
    return Primitive.of("add", *[shape] * terms) if terms > 1 else None


def _connect_cell(row: Population, x: int, run: Callable[..., int]) -> int:
    values = [x]
    for target in range(1, NODES):
        terms = []
        for gene in _edges_into(target):
            operation, source = OPERATIONS[int(row[gene])], values[EDGES[gene][0]]
            if operation != "none":
                terms.append(source if operation == "skip_connect" else run(source))
        values.append(terms[0] if len(terms) == 1 else run(*(terms or [x])))
    return values[-1]
