"""A population as the kernels of a Gaussian process see it, and those kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.predict.embedding import block_features
from hwnas.predict.features import choice_features, physical_features, position_features, total_columns
from hwnas.predict.regression import Ridge
from hwnas.spaces import SearchSpace

Views = dict[str, Array]
Kernel = tuple[str, str]

LENGTHS = {"short": 0.7, "middle": 2.0, "long": 6.0}
KERNELS: dict[str, Sequence[Kernel]] = {
    "offset": (("choices", "one"),),
    "additive": (("choices", "linear"), ("physical", "linear"), ("near", "linear"), ("far", "linear")),
    "pairs": (("choices", "square"), ("choices", "rough"), ("positions", "adjacent")),
    "logs": (("logs", "linear"), ("logs", "short"), ("logs", "middle")),
    "smooth": (("physical", "middle"), ("physical", "long"), *(("genes", length) for length in LENGTHS)),
    "totals": tuple(("totals", length) for length in LENGTHS),
    "weighed": tuple(("weighed", length) for length in LENGTHS),
}
BLOCK_LENGTHS = {"near": 2.0, "far": 6.0}
LOG_FLOOR = 0.05
LEAST_RELEVANCE = 0.1
EFFECTIVELY_CONSTANT = 1e-9


class Viewer:
    """Views of a population, each (n, d), centred and scaled so that the training rows' squared norms average 1.

    `positions` is (n, positions, d), what is chosen in each position of the network, and its norms average 1 in each.

    `physical`: what the blocks do; `logs`: the same in logarithms; `totals`: those of the whole network alone;
    `genes`: the choices as ordinals; `weighed`: each gene scaled by its weight in a linear fit, or, with `effects`,
    each choice as what it adds in one; `choices`: indicators;
    `near`, `far`: the features of `embedding.block_features` at two lengths.
    """

    def __init__(self, space: SearchSpace, costs: Array | None, effects: bool = False) -> None:
        self.space, self.effects = space, effects
        self._physical, self._choices = physical_features(space, costs), choice_features(space)
        self._blocks = {name: block_features(space, length) for name, length in BLOCK_LENGTHS.items()}
        self.scaling: dict[str, tuple[Array, Array]] = {}

    def fit(self, genotypes: Population, target: Array) -> Views:
        """Learn the scaling from training rows, and give their views."""
        physical = self._raw_physical(genotypes)
        magnitude = np.abs(physical).mean(axis=0)
        self.scaling["magnitude"] = (magnitude, np.where(magnitude > 0, magnitude, 1.0))
        places = np.tile(np.arange(self.space.choices.max(), dtype=np.float64), (len(self.space.genes), 1))
        if self.effects:
            places = gene_effects(self.space, genotypes, target)
        self.scaling["places"] = (places, places)
        for name, raw in self._raw(genotypes).items():
            mean, spread = raw.mean(axis=0), raw.std(axis=0)
            kept = spread > EFFECTIVELY_CONSTANT * (np.abs(mean) + 1)
            if name in ("choices", "positions", *BLOCK_LENGTHS) or (name == "weighed" and self.effects):
                scale = kept / np.maximum(np.sqrt((spread**2).sum(axis=-1, keepdims=True)), 1e-12)
            else:
                scale = kept / np.where(kept, spread, 1.0) / np.sqrt(max(int(kept.sum()), 1))
            if name == "weighed" and not self.effects:
                scale = scale * _relevance((raw - mean) * scale, target)
            self.scaling[name] = (mean, scale)
        return self(genotypes)

    def __call__(self, genotypes: Population) -> Views:
        raw = self._raw(genotypes)
        return {name: (raw[name] - mean) * scale for name, (mean, scale) in self.scaling.items() if name in raw}

    def to_arrays(self) -> dict[str, Array]:
        return {f"view.{name}": np.stack(pair) for name, pair in self.scaling.items()}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        self.scaling = {
            name.removeprefix("view."): (pair[0], pair[1]) for name, pair in arrays.items() if name.startswith("view.")
        }

    def _raw_physical(self, genotypes: Population) -> Array:
        return np.concatenate([self._physical(genotypes), self.space.features(genotypes)], axis=1)

    def _raw(self, genotypes: Population) -> Views:
        physical = self._raw_physical(genotypes)
        logs = np.log(LOG_FLOOR + physical / self.scaling["magnitude"][1])
        ordinals = genotypes.astype(np.float64)
        return {
            "physical": physical,
            "logs": logs,
            "totals": logs[:, : total_columns(self.space)],
            "genes": ordinals,
            "weighed": self.scaling["places"][0][np.arange(genotypes.shape[1]), genotypes],
            "choices": self._choices(genotypes),
            "positions": self._in_positions(genotypes),
            **{name: features(genotypes) for name, features in self._blocks.items()},
        }

    def _in_positions(self, genotypes: Population) -> Array:
        positions = position_features(self.space)
        result = np.zeros((len(genotypes), len(positions), max((each.columns for each in positions), default=0)))
        for number, position in enumerate(positions):
            result[:, number, : position.columns] = position(genotypes)
        return result


def _relevance(x: Array, target: Array) -> Array:
    """Scale of each column, (d,), mean square 1, by the size of its coefficient in a ridge regression."""
    weights = np.abs(Ridge.fit(x, target).weights)
    weights = weights + LEAST_RELEVANCE * weights.mean() + 1e-12
    return np.asarray(weights / np.sqrt(np.mean(weights**2)))


def gene_effects(space: SearchSpace, genotypes: Population, target: Array) -> Array:
    """What each choice of each gene adds to the target in a ridge regression, shape (genes, most choices)."""
    effects = np.zeros((len(space.genes), int(space.choices.max())))
    used = [(gene, choice) for gene, choices in enumerate(space.choices) for choice in range(choices)]
    indicators = np.stack([genotypes[:, gene] == choice for gene, choice in used], axis=1).astype(np.float64)
    for (gene, choice), weight in zip(used, Ridge.fit(indicators, target).weights, strict=True):
        effects[gene, choice] = weight
    return effects


def grams(kernels: Sequence[Kernel], a: Views, b: Views) -> Iterator[Array]:
    """The Gram matrix (n, m) of each kernel between two populations; views that follow each other are shared."""
    seen, inner, squares = "", np.zeros((0, 0)), np.zeros((0, 0))
    for view, shape in kernels:
        if shape == "adjacent":
            yield adjacent(a[view], b[view])
            continue
        if view != seen:
            seen, inner = view, a[view] @ b[view].T
            squares = (a[view] ** 2).sum(axis=1)[:, None] + (b[view] ** 2).sum(axis=1)[None] - 2 * inner
            squares = np.maximum(squares, 0.0)
        yield _shape(shape, inner, squares)


def _shape(shape: str, inner: Array, squares: Array) -> Array:
    if shape == "one":
        return np.ones_like(inner)
    if shape == "linear":
        return inner
    if shape == "square":
        return np.asarray(inner**2)
    if shape == "rough":
        return np.asarray(np.exp(-np.sqrt(squares)))
    return matern(squares, LENGTHS[shape])


def adjacent(a: Array, b: Array) -> Array:
    """Kernel (n, m) of functions of two positions that follow each other, from (n, positions, d), (m, positions, d).

    It is the mean over such pairs of the product of their linear kernels: a block may cost more or less after another.
    """
    total, before = np.zeros((len(a), len(b))), np.zeros((0, 0))
    for position in range(a.shape[1]):
        inner = a[:, position] @ b[:, position].T
        if position:
            total += before * inner
        before = inner
    return np.asarray(total / max(a.shape[1] - 1, 1))


def matern(squares: Array, length: float) -> Array:
    """Matern kernel of smoothness 5/2 from squared distances (Rasmussen and Williams 2006, eq. 4.17)."""
    r = np.sqrt(5 * squares) / length
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))
