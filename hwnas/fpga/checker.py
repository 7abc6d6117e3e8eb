"""Which parts of a network a DPU runs: a ruling a node, the partition into subgraphs, and what to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Population
from hwnas.core.errors import InputError
from hwnas.fpga.graph import OpGraph, read_onnx, read_primitive
from hwnas.fpga.rules import CPU, FUSED, Case, Ruling, no_rule, rules
from hwnas.fpga.targets import DpuTarget
from hwnas.spaces import Primitive, SearchSpace
from hwnas.spaces.base import with_nothing

SAMPLING_ROUNDS = 200


@dataclass(frozen=True)
class NodeReport:
    """One node: the engine that runs it (`cpu` where the DPU cannot), why, what to change, and its subgraph."""

    name: str
    kind: str
    engine: str
    reason: str
    advice: str
    subgraph: int

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Subgraph:
    """Nodes that run on one device without a hand-over in between."""

    index: int
    device: str
    nodes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "device": self.device, "nodes": list(self.nodes)}


@dataclass(frozen=True)
class CheckReport:
    """The verdict on one graph."""

    target: DpuTarget
    nodes: tuple[NodeReport, ...]
    subgraphs: tuple[Subgraph, ...]

    @property
    def fits(self) -> bool:
        """Whether the DPU runs all of it as one subgraph."""
        return len(self.subgraphs) == 1 and self.subgraphs[0].device == "dpu"

    @property
    def on_cpu(self) -> tuple[NodeReport, ...]:
        return tuple(node for node in self.nodes if node.engine == CPU)

    def to_json(self) -> dict[str, Any]:
        devices = Counter(subgraph.device for subgraph in self.subgraphs)
        return {
            "target": self.target.to_json(),
            "fits": self.fits,
            "dpu_subgraphs": devices["dpu"],
            "cpu_subgraphs": devices["cpu"],
            "nodes": [node.to_json() for node in self.nodes],
            "subgraphs": [subgraph.to_json() for subgraph in self.subgraphs],
            "changes": sorted({node.advice for node in self.on_cpu if node.advice}),
        }


def check(model: str | Path | bytes | onnx.ModelProto, target: DpuTarget) -> CheckReport:
    """Check an ONNX model (a path, its bytes, or the loaded model), float or in QDQ form, against a DPU.

    Raises `InputError` where the model cannot be read.
    """
    return check_graph(read_onnx(model), target)


def check_primitive(primitive: Primitive, target: DpuTarget) -> CheckReport:
    """Check one primitive against a DPU."""
    return check_graph(read_primitive(primitive), target)


def check_graph(graph: OpGraph, target: DpuTarget) -> CheckReport:
    """Rule on each node in order of execution, then partition."""
    engines: dict[str, str] = {}
    rulings = []
    for op in graph.ops:
        case = Case(op, graph, target, engines)
        known = op.kind in rules and not op.domain
        ruling: Ruling = rules.get(op.kind)(case) if known else no_rule(case)
        engine = engines[op.inputs[0]] if ruling.engine == FUSED else ruling.engine
        engines.update(dict.fromkeys(op.outputs, engine))
        rulings.append(ruling)
    parts, subgraphs = _partition(graph, [ruling.engine == CPU for ruling in rulings])
    nodes = tuple(
        NodeReport(op.name, op.kind, ruling.engine, ruling.reason, ruling.advice, part)
        for op, ruling, part in zip(graph.ops, rulings, parts, strict=True)
    )
    return CheckReport(target, nodes, subgraphs)


def _partition(graph: OpGraph, on_cpu: list[bool]) -> tuple[list[int], tuple[Subgraph, ...]]:
    """Connected nodes of one device and one level are a subgraph.

    The level of a node counts the hand-overs before it, so that edges never lead back and the subgraphs can run one
    after another.
    """
    levels: list[int] = []
    roots = list(range(len(graph.ops)))

    def root(index: int) -> int:
        while roots[index] != index:
            index = roots[index]
        return index

    for index, op in enumerate(graph.ops):
        before = [graph.producer[name] for name in op.inputs if name in graph.producer]
        levels.append(max((levels[b] + (on_cpu[b] != on_cpu[index]) for b in before), default=0))
        for b in before:
            if on_cpu[b] == on_cpu[index] and levels[b] == levels[index]:
                roots[root(b)] = root(index)
    names = {r: number for number, r in enumerate(dict.fromkeys(root(i) for i in range(len(graph.ops))))}
    parts = [names[root(i)] for i in range(len(graph.ops))]
    members: dict[int, list[int]] = {}
    for index, part in enumerate(parts):
        members.setdefault(part, []).append(index)
    subgraphs = tuple(
        Subgraph(part, "cpu" if on_cpu[nodes[0]] else "dpu", tuple(graph.ops[i].name for i in nodes))
        for part, nodes in sorted(members.items())
    )
    return parts, subgraphs


@lru_cache(maxsize=65536)
def _fits(primitive: Primitive, target_json: str) -> bool:
    return check_primitive(primitive, DpuTarget.model_validate_json(target_json)).fits


def supported(primitives: Iterable[Primitive], target: DpuTarget) -> NDArray[np.bool_]:
    """Which primitives the DPU runs whole, as one subgraph; shape (P,)."""
    key = target.model_dump_json()
    return np.array([_fits(primitive, key) for primitive in primitives], dtype=np.bool_)


def runs_on(space: SearchSpace, population: ArrayLike, target: DpuTarget) -> NDArray[np.bool_]:
    """Which architectures are made of primitives that the DPU runs; shape (n,)."""
    padded = with_nothing(supported(space.primitives(), target), nothing=True)
    return np.asarray(padded[space.blocks(population)].all(axis=1), dtype=np.bool_)


def sample_of(space: SearchSpace, allowed: NDArray[np.bool_], n: int, seed: int) -> Population:
    """`n` distinct architectures made of the `allowed` primitives alone, shape (n, genes).

    Raises `InputError` where they are too few, or too rare among random ones to be found.
    """
    if n > space.size:
        raise InputError(f"{space.spec} has {space.size} networks, {n} were asked for")
    padded = with_nothing(allowed, nothing=True)
    rng = np.random.default_rng(seed)
    found = space.sample(0, rng)
    for _ in range(SAMPLING_ROUNDS):
        if len(found) >= n:
            break
        drawn = space.sample(max(4 * n, 1000), rng)
        fitting = drawn[padded[space.blocks(drawn)].all(axis=1)]
        found = space.distinct(np.concatenate([found, fitting]))
    if len(found) < n:
        raise InputError(
            f"found {len(found)} networks of {space.spec} made of blocks that the DPU runs, {n} were asked for"
        )
    return found[:n]
