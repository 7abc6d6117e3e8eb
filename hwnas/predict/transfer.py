"""Few measurements on a new device, with the help of other devices' full tables.

What the other devices would take for a network is predicted from their tables, so that these need not hold the
networks that are measured or asked for. A Gaussian process on those predicted costs, on what the network does and on
its choices then learns the new device; how much to trust which is first learnt on the other devices, each in turn
playing the new one (leave-one-device-out, after HELP, NeurIPS 2021, and MultiPredict, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from scipy.optimize import minimize

from hwnas.core.arrays import Array, Population
from hwnas.core.progress import progress
from hwnas.predict.base import Arrays, Predictor, predictors, under
from hwnas.predict.features import in_chunks
from hwnas.predict.gp import LEAST, LEAST_SIZE, MOST
from hwnas.predict.kernels import Kernel, Viewer, Views, grams
from hwnas.predict.likelihood import JITTER, factor, mixture, negative_likelihood, triangles
from hwnas.predict.metrics import score
from hwnas.predict.sources import SourceCosts, SourceTable, read_sources
from hwnas.spaces import SearchSpace

PRACTICE_ROWS = 40
PRACTICE_DEVICES = 12
CANDIDATES = 2000
JUDGED = 500
PRIOR_SPREAD = 1.0
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


@predictors.register("transfer")
class Transfer(Predictor):
    """Gaussian process on other devices' predicted costs and on the network itself; give it `learn_sources` first."""

    def _open(self, metric: str, options: dict[str, Any], costs: Array | None) -> None:
        self._sources: list[SourceCosts] = []
        self._prior = PRIOR
        super()._open(metric, options, costs)

    def configure(self, seed: int = 0) -> None:
        self.seed = seed
        self._viewer = Viewer(self.space, None)

    def learn_sources(self, tables: Sequence[SourceTable]) -> Self:
        """Learn what other devices take, and from them how to learn a new one."""
        self._sources = []
        with progress("learn what other devices take", len(tables) + 1) as task:
            for table in tables:
                self._sources.append(SourceCosts(self.space).learn(table))
                task.advance(note=", ".join(table.devices[:3]))
            self._prior = self._practise(tables)
            task.advance(note="how to learn a new one")
        return self

    def clone(self) -> Self:
        other = super().clone()
        other._sources, other._prior = self._sources, self._prior
        return other

    def _seen(self, population: Population) -> Population:
        return np.concatenate([population, *(source.genotypes for source in self._sources)])

    def _source_costs(self, genotypes: Population) -> Array:
        parts = [source(genotypes) for source in self._sources]
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(genotypes), 0))

    def _views(self, genotypes: Population) -> Views:
        views = self._viewer(genotypes)
        return {**views, **source_views(self._source_costs(genotypes), *self._source_scaling)}

    def _fit(self, genotypes: Population, target: Array) -> None:
        costs = self._source_costs(genotypes)
        views = self._viewer.fit(genotypes, target)
        self._source_scaling = source_scaling(costs)
        self._rows, self._genotypes = {**views, **source_views(costs, *self._source_scaling)}, genotypes
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
        views = self._viewer.fit(genotypes, np.zeros(len(genotypes)))
        return {**views, **source_views(costs, *source_scaling(costs))}

    def choose_rows(self, candidates: Population, n: int) -> NDArray[np.int64]:
        """Which `n` of `candidates` (m, genes) to measure: greedily the one whose cost is least certain given those
        chosen, which maximises the determinant of their covariance (D-optimal)."""
        views = self._viewer.fit(candidates, np.zeros(len(candidates)))
        costs = self._source_costs(candidates)
        views = {**views, **source_views(costs, *source_scaling(costs))}
        variances = np.exp(self._prior)
        covariance = sum(v * gram for v, gram in zip(variances, grams(KERNELS, views, views), strict=False))
        return greedy_variance(np.asarray(covariance), float(variances[-1]), n)

    def pick(self, n: int, seed: int = 0) -> Population:
        """The `n` of many random networks, (n, genes), that `choose_rows` takes; fewer begin with the same ones."""
        candidates = self.space.distinct(self.space.sample(CANDIDATES, seed))
        return candidates[self.choose_rows(candidates, n)]

    def expected_accuracy(self, tables: Sequence[SourceTable], rows: int, seed: int = 0) -> dict[str, float] | None:
        """What to expect on a new device from `rows` measurements: mean MAPE (percent) and Spearman correlation over
        the source devices, each learnt from `rows` of its own and all the other devices.

        Somewhat too good: the kernels and the few numbers that practice chose have seen the device that is judged. None
        where the tables hold too few networks to say.
        """
        rng = np.random.default_rng(seed)
        order = [rng.permutation(len(table.devices))[:PRACTICE_DEVICES].tolist() for table in tables]
        practised = [(number, device) for number, devices in enumerate(order) for device in devices]
        found = []
        with progress("practise on the other devices", len(practised)) as task:
            for number, device in practised:
                table = tables[number]
                drawn = rng.permutation(len(table.costs))
                learnt, judged = drawn[:rows], drawn[rows : rows + JUDGED]
                if len(judged) >= 2:
                    model = self._new_to(number, device)
                    model._fit(table.population[learnt], table.costs[learnt, device])
                    predicted, truth = model._predict(table.population[judged]), table.costs[judged, device]
                    found.append([score("mape", truth, predicted), score("spearman", truth, predicted)])
                task.advance(note=table.devices[device])
        if not found:
            return None
        mape, spearman = np.mean(found, axis=0).tolist()
        return {"mape": mape, "spearman": spearman}

    def _new_to(self, table: int, device: int) -> Self:
        """This one unfitted, to which one of its source devices is a new one."""
        other = self.clone()
        other._sources = [s.without(device) if number == table else s for number, s in enumerate(self._sources)]
        return other

    def _state(self) -> Arrays:
        names = ("genotypes", "variances", "alpha", "centre", "prior")
        arrays = {name: np.asarray(getattr(self, f"_{name}")) for name in names}
        for number, source in enumerate(self._sources):
            arrays |= {f"source{number}.{name}": array for name, array in source._state().items()}
        return {**arrays, "scaling": np.stack(self._source_scaling), **self._viewer.to_arrays()}

    def _restore(self, state: Arrays) -> None:
        for name in ("genotypes", "variances", "alpha", "centre", "prior"):
            setattr(self, f"_{name}", state[name])
        self._source_scaling = (state["scaling"][0], state["scaling"][1])
        self._viewer.restore(state)
        while part := under(f"source{len(self._sources)}.", state):
            source = SourceCosts(self.space)
            source._restore(part)
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
