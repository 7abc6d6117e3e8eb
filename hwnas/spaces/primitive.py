"""`Primitive`: one block at one shape, described so that equal blocks have equal keys whichever space they come from.

A kind of primitive is one function that writes its body, a short list of operations; parameters, multiply-accumulates,
bytes moved, the PyTorch module and the ONNX graph all follow from that body.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError
from hwnas.core.registry import Registry
from hwnas.spaces.ops import Op, Shape

if TYPE_CHECKING:
    from hwnas.spaces.modules import PrimitiveModule

KEY_VERSION = 1
BYTES_PER_ELEMENT = 4
Value = int | str


@dataclass(frozen=True)
class Node:
    """One operation of a body: its name, the operation, the names of the values it reads and their shapes."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def output(self) -> Shape:
        return self.op.shape(*self.shapes)


class Body:
    """Writes a body: each method call adds an operation and returns the name of its output.

    The inputs are called `in0`, `in1`, ...; the last operation added gives the output.
    """

    def __init__(self, inputs: tuple[Shape, ...]) -> None:
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {f"in{index}": shape for index, shape in enumerate(inputs)}

    def add(self, name: str, op: Op, *inputs: str) -> str:
        node = Node(name, op, inputs, tuple(self.shapes[value] for value in inputs))
        self.nodes.append(node)
        self.shapes[name] = node.output
        return name


KindFunction = Callable[["Primitive", Body], None]
kinds: Registry[KindFunction] = Registry("primitive kind", ("hwnas.spaces.kinds",))


@dataclass(frozen=True)
class Primitive:
    """One block at one shape: what is measured, tabled and looked up.

    Attributes:
        kind: the name of a registered kind (`conv`, `mbconv`, `linear`, ...).
        inputs: shapes of its inputs for one image, (C, H, W) each.
        params: sorted (name, value) pairs. Nothing of batch, precision or runtime belongs here.
    """

    kind: str
    inputs: tuple[Shape, ...]
    params: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, kind: str, *inputs: Shape, **params: Value) -> Primitive:
        """The primitive of `kind` with these input shapes and parameters."""
        return cls(kind, inputs, tuple(sorted(params.items())))

    def __getitem__(self, name: str) -> Value:
        return dict(self.params)[name]

    def number(self, name: str, default: int = 0) -> int:
        """The integer parameter `name`, or `default` where this kind has none of that name."""
        value = dict(self.params).get(name, default)
        return value if isinstance(value, int) else default

    @cached_property
    def key(self) -> str:
        """Canonical text, such as `1:mbconv[24x112x112] act=relu kernel=5 mid=96 out=32 se=0 stride=2`."""
        shapes = "+".join("x".join(map(str, shape)) for shape in self.inputs)
        return " ".join([f"{KEY_VERSION}:{self.kind}[{shapes}]", *(f"{name}={value}" for name, value in self.params)])

    @classmethod
    def from_key(cls, key: str) -> Primitive:
        """The primitive that `key` describes; raises `InputError` for a text that is none, or of another version."""
        head, *pairs = key.split(" ")
        match = re.fullmatch(r"(\d{1,9}):(\w+)\[(\d{1,9}(?:[x+]\d{1,9})*)\]", head)
        if not match or not all(re.fullmatch(r"\w+=[\w.-]+", pair) for pair in pairs):
            raise InputError(f"{key!r} is no primitive's key (such as '1:conv[3x32x32] act=relu out=16')")
        if int(match[1]) != KEY_VERSION:
            raise InputError(f"{key!r} is a key of version {match[1]}; this hwnas reads version {KEY_VERSION}")
        kinds.get(match[2])
        shapes = tuple(tuple(int(side) for side in shape.split("x")) for shape in match[3].split("+"))
        values = dict(pair.split("=", 1) for pair in pairs)
        return cls.of(
            match[2], *shapes, **{name: int(v) if re.fullmatch(r"-?\d{1,18}", v) else v for name, v in values.items()}
        )

    @cached_property
    def body(self) -> tuple[Node, ...]:
        """The operations, in order of execution; raises `InputError` where the parameters make no block."""
        writer = Body(self.inputs)
        try:
            kinds.get(self.kind)(self, writer)
        except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise InputError(f"{self.key!r} describes no {self.kind}: {error}") from error
        return tuple(writer.nodes)

    @property
    def output(self) -> Shape:
        """Shape of the output for one image."""
        return self.body[-1].output

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of its convolutions and linear layers for one image."""
        return sum(node.op.macs(*node.shapes) for node in self.body)

    @cached_property
    def parameters(self) -> int:
        """Learnable parameters, BatchNorm's scale and shift included."""
        return sum(node.op.params(*node.shapes) for node in self.body)

    @cached_property
    def bytes_moved(self) -> int:
        """Bytes read and written at four bytes an element for one image, with BatchNorm and activations fused."""
        elements = sum(
            sum(map(prod, node.shapes)) + prod(node.output) + node.op.params(*node.shapes)
            for node in self.body
            if not node.op.fused
        )
        return BYTES_PER_ELEMENT * elements

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Reproducible untrained weights, keyed `operation.tensor`: He-normal, zero biases, neutral BatchNorm."""
        return dict(_weights(self))

    def build(self) -> PrimitiveModule:
        """A PyTorch module with the weights of `weights()`."""
        from hwnas.spaces.modules import PrimitiveModule

        module = PrimitiveModule(self)
        module.load_arrays(self.weights())
        return module

    def to_onnx(self, batch: int | None = 1) -> bytes:
        """This block alone as a serialised ONNX model with the weights of `weights()`; `batch=None` leaves it open."""
        from hwnas.spaces.graph import Graph

        return Graph.alone(self).to_onnx(batch)


@lru_cache(maxsize=256)
def _weights(primitive: Primitive) -> tuple[tuple[str, NDArray[np.float32]], ...]:
    seed = int.from_bytes(hashlib.sha256(primitive.key.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    arrays = []
    for node in primitive.body:
        for name, shape in node.op.weights(*node.shapes).items():
            if len(shape) > 1:
                array = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / prod(shape[1:])))
            else:
                array = np.full(shape, 1 if name == "running_var" or (name == "weight") else 0, dtype=np.float32)
            array.flags.writeable = False
            arrays.append((f"{node.name}.{name}", array))
    return tuple(arrays)
