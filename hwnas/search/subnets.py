"""A super-network as a source of accuracy: some of its sub-networks are evaluated, and a model is fitted to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.documents import SUBNETS
from hwnas.core.errors import InputError
from hwnas.core.progress import say
from hwnas.predict.auto import choose
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import genotype_groups
from hwnas.predict.metrics import score
from hwnas.search.rows import RowHash
from hwnas.search.source import Source, translation
from hwnas.spaces import SearchSpace
from hwnas.spaces.base import GENE_TYPE

if TYPE_CHECKING:
    from hwnas.train.supernet import Supernet

SUB_NETWORKS = 300
SECONDS = 120.0
FEWEST = 20
SEED = 0
LIKINGS = np.array([1.0, 1 / 3, 3.0, 1 / 10, 10.0])
"""Powers of uniform numbers: a third draws the last choices more often than the first, three the first."""


def supernet_source(
    folder: str, space: SearchSpace, sub_networks: int = SUB_NETWORKS, seconds: float = SECONDS
) -> Source:
    """Accuracy (a fraction) of the sub-networks of a trained super-network.

    Up to `sub_networks` of them, or as many as `seconds` allow, are evaluated when the first accuracy is asked for;
    `predict` is a model fitted to those, chosen by cross-validation, whose rank correlation with sub-networks that it
    did not see is then in `notes`. `exact` evaluates the sub-networks themselves. What was evaluated stays in `folder`,
    for later searches.
    """
    from hwnas.train import load_supernet

    supernet = load_supernet(folder)
    if not supernet.about.get("finished"):
        say(f"{folder}: trained up to step {supernet.about['step']} only; hwnas train-supernet goes on with it")
    move = translation(space, supernet.space, folder)
    kept = _Kept(supernet, folder, move)
    exact = Remembering(kept, len(space.genes))
    fitted = _Fitted(space, exact, kept, sub_networks, seconds)
    where = str(Path(folder).resolve())
    return Source(folder, "accuracy", fitted, exact=exact, asked=exact.asked, supernet=where, notes=fitted.notes)


class _Fitted:
    """An accuracy model of a super-network, fitted when it is first asked."""

    def __init__(self, space: SearchSpace, exact: Remembering, kept: _Kept, sub_networks: int, seconds: float) -> None:
        self.notes: dict[str, Any] = {}
        self._space, self._exact, self._kept = space, exact, kept
        self._sub_networks, self._seconds = sub_networks, seconds

    def __call__(self, population: Population) -> Array:
        return self._predict(population)

    @cached_property
    def _predict(self) -> Callable[[Population], Array]:
        population = self._affordable(spread(self._space, self._sub_networks))
        predict, notes = fitted_accuracy(self._space, population, self._exact(population), SEED)
        self.notes.update(notes)
        if "kendall" in notes:
            tau = f"Kendall tau {notes['kendall']:.2f} on those it did not see"
            say(f"accuracy model of {len(population)} sub-networks: {tau}")
        return predict

    def _affordable(self, population: Population) -> Population:
        """`population` less what cannot be evaluated in time, as the first `FEWEST` new ones tell."""
        new = self._kept.unknown(population)
        started = time.monotonic()
        self._exact(population[new[:FEWEST]])
        each = (time.monotonic() - started) / FEWEST
        left: Population = np.delete(population, new[max(FEWEST, int(self._seconds / each)) :], axis=0)
        return left


class _Kept:
    """The accuracies of a super-network's sub-networks, kept in its folder from one search to the next."""

    def __init__(self, supernet: Supernet, folder: str | Path, move: Callable[[Population], Population]) -> None:
        self._supernet, self._move, self._path = supernet, move, Path(folder) / SUBNETS.file
        settings = supernet.config.model_dump(mode="json", include={"data", "calibration_images", "seed"})
        self._of = {"files": supernet.about["files"], **settings}
        self._known = self._read()

    def __call__(self, population: Population) -> Array:
        before = len(self._known)
        try:
            return self._supernet.accuracy(self._move(population), known=self._known)
        finally:
            if len(self._known) > before:
                with suppress(InputError):
                    SUBNETS.write(self._path, {"of": self._of, "accuracies": self._known})

    def unknown(self, population: Population) -> NDArray[np.int64]:
        """Which of `population` would have to be evaluated."""
        space = self._supernet.space
        names = map(space.format, space.canonical(self._move(population)))
        return np.flatnonzero([name not in self._known for name in names])

    def _read(self) -> dict[str, float]:
        """What an earlier search evaluated; nothing where that was of other weights or other images."""
        try:
            found = SUBNETS.read(self._path)
        except InputError:
            return {}
        known = found.get("accuracies") if found.get("of") == self._of else None
        usable = isinstance(known, dict) and all(isinstance(value, float) for value in known.values())
        return known if usable and known else {}


def fitted_accuracy(
    space: SearchSpace, population: Population, values: Array, seed: int
) -> tuple[Callable[[Population], Array], dict[str, Any]]:
    """An accuracy model fitted to evaluated sub-networks, and how well it ranks those that it did not see.

    A kind is chosen by cross-validation; where the values leave nothing to learn, the model is their mean.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        mean = float(values.mean())
        return lambda genotypes: np.full(len(genotypes), mean), {"sub_networks": len(values), "model": "mean"}
    data = Measurements(space, "accuracy", population, values, genotype_groups(population))
    choice = choose(data, None, "kendall", seed)
    notes = {
        "sub_networks": len(values),
        "model": choice.model.name,
        "kendall": score("kendall", values, choice.predicted),
        "spearman": score("spearman", values, choice.predicted),
    }
    return lambda genotypes: choice.model.predict(genotypes, extrapolate=True), notes


def spread(space: SearchSpace, n: int) -> Population:
    """`n` distinct architectures: the smallest and the largest, then random ones spread evenly over the MACs.

    Genes drawn uniformly hardly ever give a network near either end, where budgets are tight or loose, so many are
    drawn with a liking for the first or the last choices.
    """
    rng = np.random.default_rng(SEED)
    u = rng.random((len(LIKINGS), 10 * n // len(LIKINGS), len(space.choices)))
    liked = (u ** LIKINGS[:, None, None] * space.choices).astype(GENE_TYPE).reshape(-1, len(space.choices))
    pool = space.distinct(np.concatenate([[0 * space.choices, space.choices - 1], liked]))
    macs = space.macs(pool)
    order = np.argsort(macs, kind="stable")
    ends, targets = order[[0, -1]], rng.uniform(macs.min(), macs.max(), n)
    nearest = order[np.minimum(np.searchsorted(macs[order], targets), len(order) - 1)]
    chosen = np.concatenate([ends, nearest, rng.permutation(len(pool))])
    _, first = np.unique(chosen, return_index=True)
    result: Population = pool[chosen[np.sort(first)][:n]]
    return result


class Remembering:
    """A function of populations, asked once a genotype."""

    def __init__(self, function: Callable[[Population], Array], genes: int) -> None:
        self._function, self._hash = function, RowHash(genes)
        self._known: dict[int, float] = {}
        self._rows = np.empty((0, genes), dtype=np.int16)

    def __call__(self, population: Population) -> Array:
        hashes = self._hash(population).tolist()
        new = {key: index for index, key in enumerate(hashes) if key not in self._known}
        if new:
            rows = population[list(new.values())]
            self._known.update(zip(new, self._function(rows).tolist(), strict=True))
            self._rows = np.concatenate([self._rows, rows])
        return np.array([self._known[key] for key in hashes])

    def asked(self) -> Population:
        """The genotypes asked so far, (n, genes)."""
        return self._rows
