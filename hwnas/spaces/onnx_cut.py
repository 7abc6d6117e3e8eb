"""Cuts any ONNX model into primitives, by matching the sub-graph that each primitive writes of itself.

From the model's output back, every step that is not taken yet is tried as the output of a primitive, the longest
primitives first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx

from hwnas.spaces.graph import Graph
from hwnas.spaces.onnx_steps import COMMUTATIVE, Step, Steps, load_steps, read_steps
from hwnas.spaces.primitive import Primitive

ACTIVATIONS = ("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid")

Bound = dict[str, str]


@dataclass(frozen=True)
class Unknown:
    """Operations that no primitive explains: which, how many, and their share of the multiply-accumulates that count.

    The share is None for operations whose multiply-accumulates cannot be told.
    """

    operation: str
    count: int
    macs_share: float | None


@dataclass(frozen=True)
class Cut:
    """A model as primitives, in order of execution, and what is left of it, the greatest share first.

    `batch` is how many images it takes at a time, 0 where that is open; `precision` is `fp16` or `bf16` where most of
    its values are, else empty.
    """

    primitives: tuple[Primitive, ...]
    unknown: tuple[Unknown, ...]
    batch: int
    precision: str

    @property
    def unknown_share(self) -> float | None:
        """Share of the multiply-accumulates that no primitive explains; None where it cannot be told."""
        return _sum(each.macs_share for each in self.unknown)


def cut(path: str | Path, known: Iterable[Primitive]) -> Cut:
    """The ONNX model in the file `path` as primitives out of `known`; raises `InputError` where it cannot be read."""
    model = load_steps(path)
    fitting = [p for p in sorted(known, key=lambda p: p.key) if {*p.inputs, p.output} <= model.shapes]
    patterns = sorted(((p, pattern_of(p)) for p in fitting), key=lambda pair: -len(pair[1].steps))
    taken: set[str] = set()
    found: list[Primitive] = []
    for value in reversed(model.steps):
        match = None if value in taken else _longest(model, patterns, value, taken)
        if match is not None:
            found.append(match[0])
            taken |= match[1]
    return Cut(tuple(reversed(found)), _unknown(model, taken), model.batch, model.precision)


def _unknown(model: Steps, taken: set[str]) -> tuple[Unknown, ...]:
    total = sum(step.macs or 0 for step in model.steps.values()) or 1
    rest = [step for value, step in model.steps.items() if value not in taken]
    counts = Counter(step.label for step in rest)
    shares = {label: _sum(step.macs and step.macs / total for step in rest if step.label == label) for label in counts}
    found = [Unknown(label, counts[label], shares[label]) for label in counts]
    return tuple(sorted(found, key=lambda each: (each.macs_share is not None, -(each.macs_share or 0))))


def _sum(parts: Iterable[float | None]) -> float | None:
    """None where a part is not known."""
    given = list(parts)
    known = [part for part in given if part is not None]
    return sum(known) if len(known) == len(given) else None


def pattern_of(primitive: Primitive) -> Steps:
    """The canonical form of what `primitive` writes of itself."""
    weights = {
        f"{node.name}.{name}": np.zeros(shape, dtype=np.float32)
        for node in primitive.body
        for name, shape in node.op.weights(*node.shapes).items()
    }
    return read_steps(onnx.load_from_string(Graph.alone(primitive).to_onnx(1, [weights])), primitive.key)


def _longest(
    model: Steps, patterns: Sequence[tuple[Primitive, Steps]], value: str, taken: set[str]
) -> tuple[Primitive, set[str]] | None:
    """The primitive of the longest pattern that gives `value` out of steps not taken, and those steps."""
    for primitive, pattern in patterns:
        for bound in _unify(pattern, model, [(pattern.outputs[0], value)], {}):
            steps = {bound[name] for name in pattern.steps}
            if value in steps and all(_free(model, model.steps[step], steps, value, taken) for step in steps):
                return primitive, steps
    return None


def _free(model: Steps, step: Step, steps: set[str], value: str, taken: set[str]) -> bool:
    """Whether nothing outside of `steps`, which give `value`, has or reads `step`.

    An activation of what comes in may be shared: exporters merge those that are equal.
    """
    if step.output == value:
        return step.output not in taken
    if step.what[0] in ACTIVATIONS and not steps & set(step.inputs):
        return True
    within = model.readers.get(step.output, set()) <= steps and step.output not in model.outputs
    return within and step.output not in taken


def _unify(pattern: Steps, model: Steps, pairs: list[tuple[str, str]], bound: Bound) -> Iterator[Bound]:
    """All ways to name the pattern's values by the model's, in which each of `pairs` belongs together."""
    if not pairs:
        yield bound
        return
    (name, value), rest = pairs[0], pairs[1:]
    wanted, given = pattern.steps.get(name), model.steps.get(value)
    if name in bound:
        if bound[name] == value:
            yield from _unify(pattern, model, rest, bound)
    elif wanted is None:
        yield from _unify(pattern, model, rest, {**bound, name: value})
    elif given is not None and given.what == wanted.what and len(given.inputs) == len(wanted.inputs):
        for order in permutations(given.inputs) if given.what[0] in COMMUTATIVE else [given.inputs]:
            more = list(zip(wanted.inputs, order, strict=True))
            yield from _unify(pattern, model, more + rest, {**bound, name: value})
