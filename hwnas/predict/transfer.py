"""Few measurements on a new device, with the help of other devices' full tables.

What the other devices would take for a network is predicted from their tables, so that these need not hold the
networks that are measured or asked for. A Gaussian process on those predicted costs, on what the network does and on
its choices then learns the new device; how much to trust which is first learnt on the other devices, each in turn
playing the new one (leave-one-device-out, after HELP, NeurIPS 2021, and MultiPredict, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from scipy.optimize import minimize

from hwnas.core.arrays import Array, Population
from hwnas.core.columns import column_names, read_columns
from hwnas.core.errors import InputError
from hwnas.core.progress import progress
from hwnas.core.units import THROUGHPUT, quantity_of
from hwnas.predict.base import Arrays, Predictor, predictors
from hwnas.predict.data import parse_archs
from hwnas.predict.features import in_chunks
from hwnas.predict.gp import LEAST, LEAST_SIZE, MOST, GaussianProcess
from hwnas.predict.kernels import Kernel, Views, grams
from hwnas.predict.likelihood import JITTER, factor, mixture, negative_likelihood, triangles
from hwnas.predict.metrics import score
from hwnas.predict.residual import under
from hwnas.spaces import SearchSpace

SOURCE_ROWS = 1000
PRACTICE_ROWS = 40
PRACTICE_DEVICES = 12
CANDIDATES = 2000
JUDGED = 500
PRIOR_SPREAD = 1.0
FEWEST_VALUES = 0.5
KERNELS: tuple[Kernel, ...] = (
    ("choices", "linear"),
    ("choices", "one"),
    ("physical", "linear"),
    ("sources", "linear"),
    ("sources", "long"),
    ("sources", "middle"),
    ("totals", "long"),
    ("typical", "linear"),
)
PRIOR = np.append(np.full(len(KERNELS), -3.0), -5.0)


@dataclass(frozen=True)
class SourceTable:
    """Costs of networks on other devices: `population` (n, genes) and `costs` (n, devices), each of mean about 1."""

    population: Population
    costs: Array
    devices: tuple[str, ...]


def read_sources(paths: Sequence[str | Path], space: SearchSpace, metric: str, seed: int = 0) -> list[SourceTable]:
    """Read tables of measured networks: every column of `metric`'s quantity is a device, but `metric` itself.

    Raises `InputError` where a table has no such column.
    """
    quantity = quantity_of(metric)
    tables = []
    for name in paths:
        path = Path(name)
        columns = [c for c in column_names(path) if _is_quantity(c, quantity.name) and c != metric]
        read = read_columns(path, ["arch", *columns], required=("arch",))
        costs = np.array([[np.nan if v is None else v for v in read[c]] for c in columns], dtype=np.float64).T
        if not columns:
            raise InputError(f"{path} has no column of {quantity.name} but {metric} to transfer from")
        full = np.isfinite(costs).mean(axis=0) >= FEWEST_VALUES
        devices = tuple(c for c, keep in zip(columns, full, strict=True) if keep)
        costs = 1 / costs[:, full] if quantity == THROUGHPUT else costs[:, full]
        rows = np.flatnonzero(np.isfinite(costs).all(axis=1) & (costs > 0).all(axis=1))
        if len(rows) < 2 or not devices:
            raise InputError(f"{path} has too few rows with a value in every column of {quantity.name}")
        rows = np.random.default_rng(seed).permutation(rows)[:SOURCE_ROWS]
        keep = np.zeros(len(costs), dtype=bool)
        keep[rows] = True
        population = parse_archs(space, read["arch"], path, keep)
        tables.append(SourceTable(population, costs[keep] / costs[keep].mean(axis=0), devices))
    return tables


def _is_quantity(column: str, name: str) -> bool:
    try:
        return quantity_of(column).name == name
    except InputError:
        return False


class SourceCosts:
    """Predicts the costs of a table's devices: one Gaussian process whose kernel all devices share."""

    def __init__(self, space: SearchSpace) -> None:
        self.model = GaussianProcess(space, relative=False)

    def fit(self, table: SourceTable) -> Self:
        """Learn the kernel from the devices' mean cost, and each device's coefficients."""
        typical = table.costs.mean(axis=1)
        self.model._fit(table.population, typical)
        centred = (table.costs - self.model._centre[0]) / self.model._centre[1]
        noise = self.model._variances[-1] * self.model._noise
        self.model._alpha = cho_solve(factor(self.model._covariance(), noise), centred)
        return self

    def __call__(self, genotypes: Population) -> Array:
        """Costs (n, devices), each of mean about 1 over the space."""
        return self.model._predict(genotypes)


@predictors.register("transfer")
class Transfer(Predictor):
    """Gaussian process on other devices' predicted costs and on the network itself; give it `learn_sources` first."""

    def configure(self, seed: int = 0) -> None:
        self.seed = seed
        self._plain = GaussianProcess(self.space, relative=self.quantity.is_cost, kernels="offset+additive+totals")
        if not hasattr(self, "_sources"):
            self._sources: list[SourceCosts] = []
            self._prior = PRIOR

    def learn_sources(self, tables: Sequence[SourceTable]) -> Self:
        """Learn what other devices take, and from them how to learn a new one."""
        self._sources = []
        with progress("learn what other devices take", len(tables) + 1) as task:
            for table in tables:
                self._sources.append(SourceCosts(self.space).fit(table))
                task.advance(note=", ".join(table.devices[:3]))
            self._prior = self._practise(tables)
            task.advance(note="how to learn a new one")
        return self

    def clone(self) -> Self:
        other = super().clone()
        other._sources, other._prior = self._sources, self._prior
        return other

    def _seen(self, population: Population) -> Population:
        return np.concatenate([population, *(source.model._genotypes for source in self._sources)])

    def _source_costs(self, genotypes: Population) -> Array:
        parts = [source(genotypes) for source in self._sources]
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(genotypes), 0))

    def _views(self, genotypes: Population) -> Views:
        views = self._plain._viewer(genotypes)
        return {**views, **source_views(self._source_costs(genotypes), *self._scaling)}

    def _fit(self, genotypes: Population, target: Array) -> None:
        costs = self._source_costs(genotypes)
        views = self._plain._viewer.fit(genotypes, target)
        self._scaling = source_scaling(costs)
        self._rows, self._genotypes = {**views, **source_views(costs, *self._scaling)}, genotypes
        self._centre = np.array([target.mean(), target.std() or 1.0])
        y = (target - self._centre[0]) / self._centre[1]
        size = np.maximum(np.abs(target) / np.abs(target).mean(), LEAST_SIZE)
        noise = size**2 if self.quantity.is_cost else np.ones(len(y))
        stack = triangles(grams(KERNELS, self._rows, self._rows))
        self._variances = _maximise([(stack, y, noise)], self._prior, PRIOR_SPREAD)
        covariance = mixture(stack, self._variances[:-1], len(y))
        self._alpha = cho_solve(factor(covariance, self._variances[-1] * noise), y)

    def _predict(self, genotypes: Population) -> Array:
        return in_chunks(self._predict_part, genotypes)

    def _predict_part(self, genotypes: Population) -> Array:
        return np.asarray((self._cross(genotypes) @ self._alpha) * self._centre[1] + self._centre[0])

    def _cross(self, genotypes: Population) -> Array:
        views = self._views(genotypes)
        terms = zip(self._variances, grams(KERNELS, views, self._rows), strict=False)
        return np.asarray(sum(variance * gram for variance, gram in terms))

    def _practise(self, tables: Sequence[SourceTable]) -> Array:
        """Variances that suit the source devices best, each predicted from the others; logarithms, (kernels + 1,)."""
        tasks = []
        rng = np.random.default_rng(self.seed)
        for number, table in enumerate(tables):
            for device in rng.permutation(len(table.devices))[:PRACTICE_DEVICES]:
                rows = rng.permutation(len(table.costs))[:PRACTICE_ROWS]
                views = self._practice_views(table.population[rows], number, int(device))
                target = table.costs[rows, device]
                y = (target - target.mean()) / target.std()
                stack = triangles(grams(KERNELS, views, views))
                tasks.append((stack, y, np.maximum(target / target.mean(), LEAST_SIZE) ** 2))
        return np.asarray(np.log(_maximise(tasks, PRIOR, 3.0)))

    def _practice_views(self, genotypes: Population, table: int, device: int) -> Views:
        parts = [source(genotypes) for source in self._sources]
        parts[table] = np.delete(parts[table], device, axis=1)
        costs = np.concatenate(parts, axis=1)
        views = self._plain._viewer.fit(genotypes, np.zeros(len(genotypes)))
        return {**views, **source_views(costs, *source_scaling(costs))}

    def choose_rows(self, candidates: Population, n: int) -> NDArray[np.int64]:
        """Which `n` of `candidates` (m, genes) to measure: greedily the one whose cost is least certain given those
        chosen, which maximises the determinant of their covariance (D-optimal)."""
        views = self._plain._viewer.fit(candidates, np.zeros(len(candidates)))
        costs = self._source_costs(candidates)
        views = {**views, **source_views(costs, *source_scaling(costs))}
        variances = np.exp(self._prior)
        covariance = sum(v * gram for v, gram in zip(variances, grams(KERNELS, views, views), strict=False))
        return greedy_variance(np.asarray(covariance), float(variances[-1]), n)

    def pick(self, n: int, seed: int = 0) -> Population:
        """The `n` of many random networks, (n, genes), that `choose_rows` takes; fewer begin with the same ones."""
        candidates = self.space.distinct(self.space.sample(CANDIDATES, seed))
        return candidates[self.choose_rows(candidates, n)]

    def _state(self) -> Arrays:
        names = ("genotypes", "variances", "alpha", "centre", "prior")
        arrays = {name: np.asarray(getattr(self, f"_{name}")) for name in names}
        for number, source in enumerate(self._sources):
            arrays |= {f"source{number}.{name}": array for name, array in source.model._state().items()}
        return {**arrays, "scaling": np.stack(self._scaling), **self._plain._viewer.to_arrays()}

    def _restore(self, state: Arrays) -> None:
        for name in ("genotypes", "variances", "alpha", "centre", "prior"):
            setattr(self, f"_{name}", state[name])
        self._scaling = (state["scaling"][0], state["scaling"][1])
        self._plain._viewer.restore(state)
        while part := under(f"source{len(self._sources)}.", state):
            source = SourceCosts(self.space)
            source.model._restore(part)
            self._sources.append(source)
        self._rows = self._views(self._genotypes)


def pick_for_transfer(
    space: SearchSpace, metric: str, n: int, tables: Sequence[str | Path], seed: int = 0
) -> Population:
    """The `n` networks, (n, genes), to measure on a new device that other devices' `tables` help to predict."""
    return Transfer(space, metric=metric).learn_sources(read_sources(tables, space, metric, seed)).pick(n, seed)


def source_scaling(costs: Array) -> tuple[Array, Array]:
    """Mean and scale of each device's cost, (devices,) each."""
    spread = costs.std(axis=0)
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1.0), 0.0)
    return costs.mean(axis=0), scale


def source_views(costs: Array, mean: Array, scale: Array) -> Views:
    """`sources`: the devices' standardised costs, (n, devices); `typical`: their mean, (n, 1); mean square 1 each."""
    standard = (costs - mean) * scale
    devices = max(costs.shape[1], 1)
    typical = standard.mean(axis=1, keepdims=True) if costs.shape[1] else np.zeros((len(costs), 1))
    return {"sources": standard / np.sqrt(devices), "typical": typical}


def greedy_variance(covariance: Array, noise: float, n: int) -> NDArray[np.int64]:
    """`n` rows of `covariance` (m, m), each of the greatest variance left by those before it."""
    left = np.diag(covariance).copy()
    columns: list[Array] = []
    chosen: list[int] = []
    for _ in range(min(n, len(left))):
        free = left.copy()
        free[chosen] = -np.inf
        best = int(np.argmax(free))
        chosen.append(best)
        column = covariance[:, best] - sum((c * c[best] for c in columns), np.zeros(len(left)))
        column = column / np.sqrt(max(left[best], 0.0) + noise + JITTER)
        columns.append(column)
        left = np.maximum(left - column**2, 0.0)
    return np.array(chosen, dtype=np.int64)


def _maximise(tasks: Sequence[tuple[Array, Array, Array]], prior: Array, spread: float) -> Array:
    """Variances of greatest posterior density over `tasks` of (kernel stack, target, noise sizes)."""

    def objective(logs: Array) -> tuple[float, Array]:
        parts = [negative_likelihood(logs, *task, prior, np.inf) for task in tasks]
        gap = (logs - prior) / spread
        value = sum(part[0] for part in parts) + 0.5 * float(gap @ gap)
        return value, np.asarray(sum(part[1] for part in parts) + gap / spread)

    bounds = [(LEAST, MOST)] * len(prior)
    found = minimize(objective, np.clip(prior, LEAST, MOST), jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(np.exp(found.x))


def expected_accuracy(model: Transfer, tables: Sequence[SourceTable], rows: int, seed: int = 0) -> dict[str, float]:
    """What to expect on a new device from `rows` measurements: mean MAPE (percent) and Spearman correlation over the
    source devices, each learnt from `rows` of its own and all the other devices."""
    rng = np.random.default_rng(seed)
    practised = [(n, int(d)) for n, t in enumerate(tables) for d in rng.permutation(len(t.devices))[:PRACTICE_DEVICES]]
    found = []
    with progress("practise on the other devices", len(practised)) as task:
        for number, device in practised:
            table = tables[number]
            order = rng.permutation(len(table.costs))
            learnt, judged = order[:rows], order[rows : rows + JUDGED]
            if len(judged) >= 2:
                practice = model.clone()
                practice._sources = list(model._sources)
                practice._sources[number] = _without(model._sources[number], device)
                practice._fit(table.population[learnt], table.costs[learnt, device])
                predicted, truth = practice._predict(table.population[judged]), table.costs[judged, device]
                found.append([score("mape", truth, predicted), score("spearman", truth, predicted)])
            task.advance(note=table.devices[device])
    mape, spearman = np.mean(found, axis=0) if found else (float("nan"), float("nan"))
    return {"mape": float(mape), "spearman": float(spearman)}


def _without(source: SourceCosts, device: int) -> SourceCosts:
    other = SourceCosts.__new__(SourceCosts)
    other.model = GaussianProcess.__new__(GaussianProcess)
    other.model.__dict__.update(source.model.__dict__)
    other.model._alpha = np.delete(source.model._alpha, device, axis=1)
    return other
