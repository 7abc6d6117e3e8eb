"""`SearchSpace`: genotypes as rows of small integers, and populations of them as arrays.

A space is written down as *genes* (what can be chosen) and *slots* (where a primitive may run, and which genes decide
which one). Everything else follows from the two: sampling, the canonical form, the list of reachable primitives, and
`blocks`, the array of primitive indices on which every fast path is built.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Population
from hwnas.core.errors import DomainError, InputError, UnknownNameError, shortened
from hwnas.core.registry import Registry
from hwnas.spaces.graph import BN_EPS, Graph
from hwnas.spaces.primitive import Primitive

if TYPE_CHECKING:
    from hwnas.spaces.modules import Network


Option = int | float | str | tuple[int, ...]

GENE_TYPE = np.int16
CHUNK = 65536
MOST = 65536
"""The most that an option of a space may be: images of such sides, and layers so wide, are beyond any device."""


@dataclass(frozen=True)
class Gene:
    """One choice: its name, the values its integers stand for, and when it matters.

    `active = (gene, least)`: it matters only where the choice of that other gene is at least `least`; None: always.
    """

    name: str
    choices: tuple[Any, ...]
    active: tuple[int, int] | None = None

    @property
    def field(self) -> str:
        """The name without its number: `ks` of `ks[3]`."""
        return self.name.partition("[")[0]


@dataclass(frozen=True)
class Slot:
    """A place where a primitive may run.

    `make` takes the values (not the indices) of the genes at `genes` and returns the primitive, or None where nothing
    runs. `searchable` slots are counted as blocks by the two-variable linear model.
    """

    genes: tuple[int, ...]
    make: Callable[..., Primitive | None]
    searchable: bool = True


class SearchSpace(ABC):
    """Base of the search spaces. A subclass gives `genes`, `slots`, `parse_row` and `format`.

    Options of a space are the keyword arguments of its constructor, which passes them on to this class.
    """

    name: ClassVar[str]
    bn_eps: float = BN_EPS

    def __init__(self, **options: Option) -> None:
        self.options = options

    @cached_property
    def spec(self) -> str:
        """The name with the options that differ from the default, as `get_space` reads it back."""
        defaults = option_defaults(type(self))
        changed = [f"{name}={_option_text(value)}" for name, value in self.options.items() if value != defaults[name]]
        return self.name + (":" + ",".join(changed) if changed else "")

    def __repr__(self) -> str:
        return f"<SearchSpace {self.spec}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    # what a subclass writes

    @cached_property
    @abstractmethod
    def genes(self) -> tuple[Gene, ...]:
        """The choices."""

    @cached_property
    @abstractmethod
    def slots(self) -> tuple[Slot, ...]:
        """The places, in order of execution."""

    @abstractmethod
    def parse_row(self, text: str) -> Sequence[int]:
        """Gene indices of one architecture in the community's notation; raises `InputError`."""

    @abstractmethod
    def format(self, row: ArrayLike) -> str:
        """The community's notation for one genotype."""

    def connect(self, row: Population, running: list[Primitive]) -> Graph:
        """The graph of the primitives that run, in order of execution; a chain unless a space says otherwise."""
        return Graph.chain(running, self.bn_eps)

    # populations

    @cached_property
    def choices(self) -> NDArray[np.int64]:
        """Number of choices of each gene, shape (genes,)."""
        return np.array([len(gene.choices) for gene in self.genes])

    @cached_property
    def gates(self) -> tuple[NDArray[np.int64], Population]:
        """For each gene the one that controls it and the least choice of that one, (genes,) each.

        A gene that always matters controls itself, from choice 0 on.
        """
        gates = [gene.active or (index, 0) for index, gene in enumerate(self.genes)]
        return np.array([gate[0] for gate in gates]), np.array([gate[1] for gate in gates], dtype=GENE_TYPE)

    @cached_property
    def size(self) -> int:
        """Number of distinct canonical genotypes."""
        controlled: dict[int, list[Gene]] = {}
        for gene in self.genes:
            if gene.active:
                controlled.setdefault(gene.active[0], []).append(gene)
        total = 1
        for index, gene in enumerate(self.genes):
            if gene.active is None:
                total *= sum(
                    prod(len(g.choices) for g in controlled.get(index, ()) if g.active and choice >= g.active[1])
                    for choice in range(len(gene.choices))
                )
        return total

    def check(self, population: ArrayLike) -> Population:
        """`population` as an (n, genes) array of indices; raises `DomainError` where it is none of this space."""
        array = np.atleast_2d(np.asarray(population))
        if array.ndim != 2 or array.shape[1] != len(self.genes) or not np.issubdtype(array.dtype, np.integer):
            raise DomainError(
                f"a population of {self.spec} is an integer array of shape (n, {len(self.genes)}), "
                f"not {array.dtype} of shape {array.shape}"
            )
        if array.size and (array.min() < 0 or (array.max(axis=0) >= self.choices).any()):
            row, gene = np.argwhere((array < 0) | (array >= self.choices))[0]
            raise DomainError(
                f"genotype {row} of {self.spec}: gene {self.genes[gene].name} is {array[row, gene]}, "
                f"it has {self.choices[gene]} choices"
            )
        return array.astype(GENE_TYPE, copy=False)

    def sample(self, n: int, rng: np.random.Generator | int | None = None) -> Population:
        """`n` canonical genotypes, each gene drawn uniformly; shape (n, genes)."""
        rng = np.random.default_rng(rng)
        columns = [rng.integers(0, choices, n, dtype=GENE_TYPE) for choices in self.choices]
        return self._canonical(np.stack(columns, axis=1))

    def canonical(self, population: ArrayLike) -> Population:
        """Genes that cannot matter set to 0, everything that is executed kept; shape (n, genes)."""
        return self._canonical(self.check(population).copy())

    def _canonical(self, array: Population) -> Population:
        array *= self.matters(array)
        return array

    def matters(self, population: Population) -> NDArray[np.bool_]:
        """Which genes of each genotype matter, shape (n, genes); the others are 0 in the canonical form."""
        controllers, least = self.gates
        return population[:, controllers] >= least

    def distinct(self, population: ArrayLike) -> Population:
        """Canonical genotypes without repeats, in order of first appearance."""
        array = self.canonical(population)
        _, first = np.unique(array, axis=0, return_index=True)
        return array[np.sort(first)]

    def parse(self, text: str) -> Population:
        """One architecture's canonical genotype, shape (genes,)."""
        row: Population = self.parse_many([text])[0]
        return row

    def parse_many(self, texts: Iterable[str]) -> Population:
        """Canonical genotypes of many architectures, shape (n, genes); raises `InputError` naming the first bad one."""
        rows = [self.parse_row(text) for text in texts]
        return self.canonical(np.array(rows, dtype=GENE_TYPE).reshape(len(rows), len(self.genes)))

    # primitives

    @cached_property
    def _catalogue(self) -> tuple[tuple[Primitive, ...], list[NDArray[np.int32]]]:
        """The reachable primitives, and for each slot an array over its genes' choices of indices into them."""
        index: dict[Primitive, int] = {}
        tables = []
        for slot in self.slots:
            shape = tuple(len(self.genes[g].choices) for g in slot.genes)
            values = product(*(self.genes[g].choices for g in slot.genes))
            made = [slot.make(*choice) for choice in values]
            entries = [-1 if p is None else index.setdefault(p, len(index)) for p in made]
            tables.append(np.array(entries, dtype=np.int32).reshape(shape))
        return tuple(index), tables

    @property
    def tables(self) -> list[NDArray[np.int32]]:
        """For each slot, over the choices of its genes, the index into `primitives()` of what runs, -1 for nothing."""
        return self._catalogue[1]

    def primitives(self) -> tuple[Primitive, ...]:
        """Every primitive that some architecture of the space runs, in a fixed order."""
        return self._catalogue[0]

    def blocks(self, population: ArrayLike) -> NDArray[np.int32]:
        """Indices into `primitives()` of what runs in each slot, -1 where nothing does; shape (n, slots)."""
        array = self.check(population)
        result = np.empty((len(array), len(self.slots)), dtype=np.int32)
        for start in range(0, len(array), CHUNK):
            part = slice(start, start + CHUNK)
            columns = np.ascontiguousarray(array[part].T, dtype=np.intp)
            for position, (slot, table) in enumerate(zip(self.slots, self.tables, strict=True)):
                result[part, position] = table[tuple(columns[g] for g in slot.genes)]
        return result

    @cached_property
    def searchable(self) -> NDArray[np.bool_]:
        """Which slots the architecture decides about, shape (slots,)."""
        return np.array([slot.searchable for slot in self.slots])

    def total(self, per_primitive: ArrayLike, population: ArrayLike) -> NDArray[np.float64]:
        """Sum over the blocks that run of a value a primitive, shape (n,): the additive model and every count."""
        values = with_nothing(np.asarray(per_primitive, dtype=np.float64))
        return np.asarray(values[self.blocks(population)].sum(axis=1))

    def macs(self, population: ArrayLike) -> NDArray[np.float64]:
        """Multiply-accumulates of each architecture for one image, shape (n,)."""
        return self.total([p.macs for p in self.primitives()], population)

    def parameters(self, population: ArrayLike) -> NDArray[np.float64]:
        """Learnable parameters of each architecture, shape (n,)."""
        return self.total([p.parameters for p in self.primitives()], population)

    # what a space knows beyond its blocks

    def equal_cost(self, population: ArrayLike) -> Population:
        """A representative of the genotypes whose cost must be the same, shape (n, genes); the canonical one here."""
        return self.canonical(population)

    def features(self, population: ArrayLike) -> NDArray[np.float64]:
        """Features of topology that the multiset of blocks does not tell, shape (n, features); none here."""
        return np.zeros((len(self.check(population)), 0))

    # one network

    def graph(self, row: ArrayLike) -> Graph:
        """The network of one genotype as primitives and their edges."""
        genotype = self.canonical(row)
        indices = self.blocks(genotype)[0]
        return self.connect(genotype[0], [self.primitives()[i] for i in indices if i >= 0])

    def build(self, row: ArrayLike) -> Network:
        """The network of one genotype in PyTorch, untrained."""
        from hwnas.spaces.modules import Network

        return Network(self.graph(row))

    def to_onnx(self, row: ArrayLike, batch: int | None = 1) -> bytes:
        """The untrained network of one genotype as a serialised ONNX model; needs no PyTorch."""
        return self.graph(row).to_onnx(batch)


spaces: Registry[type[SearchSpace]] = Registry(
    "space",
    tuple(f"hwnas.spaces.{module}" for module in ("ofa", "fbnet", "nasbench201", "nasbench_macro", "mnasnet")),
    named=True,
)


def with_nothing(values: ArrayLike, nothing: float = 0.0) -> NDArray[Any]:
    """`values` of primitives, (P, ...), and a last row of `nothing`, which the index -1 of an empty slot finds."""
    array = np.asarray(values)
    return np.concatenate([array, np.full((1, *array.shape[1:]), nothing, dtype=array.dtype)])


def option_defaults(space: type[SearchSpace]) -> dict[str, Option]:
    """The options of a space and their defaults, from its constructor."""
    parameters = inspect.signature(space).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


@lru_cache(maxsize=64)
def get_space(spec: str) -> SearchSpace:
    """The space that `spec` names: `NAME` or `NAME:option=value,...`, lists with slashes (`resolution=160/176`).

    Raises `InputError` where the name, an option or a value is unknown.
    """
    name, _, rest = spec.partition(":")
    space = spaces.get(name)
    defaults = option_defaults(space)
    options = {}
    for part in filter(None, rest.split(",")):
        option, equals, text = part.partition("=")
        if option not in defaults:
            raise UnknownNameError(f"option of {name}", option, defaults)
        if option in options:
            raise InputError(f"{spec}: option {option!r} stands twice")
        if not equals:
            raise InputError(f"{spec}: option {option!r} has no value; write {option}=VALUE")
        options[option] = _read_option(spec, option, text, defaults[option])
    try:
        return space(**options)
    except ValueError as error:
        raise InputError(f"{spec}: {error}") from error


def _read_option(spec: str, option: str, text: str, default: Option) -> Option:
    try:
        value: Option = tuple(map(int, text.split("/"))) if isinstance(default, tuple) else type(default)(text)
    except ValueError as error:
        expected = "integers separated by slashes" if isinstance(default, tuple) else f"a {type(default).__name__}"
        raise InputError(f"{shortened(spec)}: {option} is {shortened(text)!r}, expected {expected}") from error
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, str) and not number <= MOST:
            raise InputError(f"{shortened(spec)}: {option} is {shortened(text)}, and {MOST} is the most")
    return value


def _option_text(value: Option) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def bad_architecture(space: SearchSpace, text: str, reason: str) -> InputError:
    """The error for a text that is no architecture of `space`."""
    return InputError(f"not an architecture of {space.spec}: {reason}, in {shortened(text)!r}")
