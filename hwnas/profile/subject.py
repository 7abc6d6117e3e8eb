"""`Subject`: what is measured, in words short enough to send to a worker and to keep as a key of the store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from numpy.typing import ArrayLike

from hwnas.core.errors import InputError
from hwnas.spaces import Primitive, SearchSpace, get_space

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["primitive", "network", "onnx"]


def kind_of(id: str) -> str:
    """`primitive` or `network`: what the subject of this id is as far as drift goes; an ONNX model is a network."""
    return "primitive" if id.startswith("primitive ") else "network"


@dataclass(frozen=True)
class Subject:
    """A primitive, a network of a space, or a given ONNX model.

    Attributes:
        kind: which of the three.
        name: the primitive's key, the architecture's text, or the digest of the model.
        space: the space of a network.
        path: where a given model lies; no part of what it is.
    """

    kind: Kind
    name: str
    space: str = ""
    path: str = field(default="", compare=False)

    @classmethod
    def primitive(cls, primitive: Primitive) -> Subject:
        return cls("primitive", primitive.key)

    @classmethod
    def network(cls, space: SearchSpace, row: ArrayLike) -> Subject:
        return cls("network", space.format(row), space.spec)

    @classmethod
    def model(cls, path: str | Path) -> Subject:
        """The ONNX model in the file `path`; raises `InputError` where it cannot be read."""
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"cannot read ONNX model {path}: {error.strerror or error}") from error
        return cls("onnx", digest, path=str(path))

    @property
    def id(self) -> str:
        """The text under which its samples are stored."""
        return f"{self.kind} {self.space + ' ' if self.space else ''}{self.name}"

    @property
    def space_of(self) -> SearchSpace:
        return get_space(self.space)

    def to_onnx(self, batch: int) -> bytes:
        """The serialised ONNX model, with reproducible weights where they are not given."""
        if self.kind == "primitive":
            return Primitive.from_key(self.name).to_onnx(batch)
        if self.kind == "network":
            return self.space_of.to_onnx(self.space_of.parse(self.name), batch)
        return Path(self.path).read_bytes()

    def build(self) -> nn.Module:
        """The PyTorch module with the same weights; raises `InputError` for a given ONNX model, which has none."""
        if self.kind == "primitive":
            return Primitive.from_key(self.name).build()
        if self.kind == "network":
            return self.space_of.build(self.space_of.parse(self.name))
        raise InputError(f"{self.path} is an ONNX model, which PyTorch does not run; measure it with onnxruntime")

    def input_shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Shapes of its inputs, (batch, C, H, W) each; raises `InputError` for a given ONNX model."""
        if self.kind == "primitive":
            inputs = Primitive.from_key(self.name).inputs
        elif self.kind == "network":
            inputs = self.space_of.graph(self.space_of.parse(self.name)).inputs
        else:
            raise InputError(f"{self.path}: the inputs of an ONNX model are known to the runtime that loads it")
        return [(batch, *shape) for shape in inputs]
