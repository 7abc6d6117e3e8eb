"""`Predictor`: a model of what any network of a space costs (or how accurate it is), under scikit-learn's contract.

A kind is a class with `_fit`, `_predict`, and the arrays that `_state` and `_restore` exchange with a saved model.
Checks, the target's transform, the domain of validity and intervals are the same for all and stand here.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import DomainError, InputError, MissingCostError
from hwnas.core.registry import Registry
from hwnas.core.table import CostTable
from hwnas.core.units import LATENCY, THROUGHPUT, Quantity, may_be_zero, quantity_of
from hwnas.predict.intervals import Calibration, cross_fit
from hwnas.predict.scaling import Scaling
from hwnas.spaces import SearchSpace

Arrays = dict[str, NDArray[Any]]

FEWEST_ROWS = 2
BY_CHANCE = 1e-3
MS_PER_S = 1000.0
OWN, COSTS, CALIBRATION = "model.", "costs", "calibration."
"""Names of saved arrays: what a kind learnt, what the primitives cost, what the intervals rest on."""


class Predictor(ABC):
    """Base of the predictors.

    Args:
        space: the search space.
        table: costs of its primitives; kinds with `needs_costs` cannot do without.
        metric: the column that is predicted; its suffix gives the quantity. What is learnt is `Scaling` of it.
        options: those of the kind; see `default_options`.
    """

    name: ClassVar[str] = ""
    needs_costs: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    def __init__(
        self, space: SearchSpace, table: CostTable | None = None, *, metric: str = "latency_ms", **options: Any
    ) -> None:
        self.space = space
        self._open(metric, options, None if table is None else block_costs(space, table, metric))
        if self.needs_costs and self.costs is None:
            raise InputError(f"predictor {self.name!r} needs a cost table; give --table, or choose another --model")

    @classmethod
    def opened(cls, space: SearchSpace, metric: str, options: Mapping[str, Any], costs: Array | None) -> Self:
        """An unfitted predictor of this kind from the costs of `space.primitives()`, (P,), in place of their table."""
        made = cls.__new__(cls)
        made.space = space
        made._open(metric, dict(options), costs)
        return made

    def clone(self) -> Self:
        """An unfitted predictor with the same options and costs."""
        return self.opened(self.space, self.metric, self.options, self.costs)

    def _open(self, metric: str, options: dict[str, Any], costs: Array | None) -> None:
        known = self.default_options()
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InputError(
                f"predictor {self.name!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
            )
        self.metric, self.options, self.costs = metric, {**known, **options}, costs
        self.quantity: Quantity = quantity_of(metric)
        self.fixed = np.full(len(self.space.genes), -1, dtype=np.int16)
        self.calibration: Calibration | None = None
        self.scaling = Scaling(self.quantity)
        self._training: tuple[Population, Array] | None = None
        self.configure(**self.options)

    @classmethod
    def default_options(cls) -> dict[str, Any]:
        """Names and defaults of the kind's options: the keyword arguments of its `configure`."""
        parameters = inspect.signature(cls.configure).parameters.values()
        return {p.name: p.default for p in parameters if p.name != "self"}

    def configure(self) -> None:  # noqa: B027
        """The kind's options as keyword arguments with defaults; called with them before every fit or restore."""

    # what a kind writes

    @abstractmethod
    def _fit(self, genotypes: Population, target: Array) -> None:
        """Fit canonical genotypes (n, genes) to the scaled target (n,), whose mean magnitude is about 1."""

    @abstractmethod
    def _predict(self, genotypes: Population) -> Array:
        """The scaled target, shape (n,)."""

    @abstractmethod
    def _state(self) -> Arrays:
        """What was learnt, as named arrays; text is stored as bytes (uint8)."""

    @abstractmethod
    def _restore(self, state: Arrays) -> None:
        """Take back what `_state` gave."""

    def _seen(self, population: Population) -> Population:
        """The genotypes (n, genes) that bound the domain of validity."""
        return population

    # the contract

    def fit(self, genotypes: ArrayLike, y: ArrayLike) -> Self:
        """Learn from measured networks.

        Args:
            genotypes: (n, genes) population of the space.
            y: (n,) the metric, finite; a cost must not be negative, a throughput must be positive.

        Raises `InputError` for values that nobody can learn from, `DomainError` for a population of another space.
        """
        population, values = self.space.canonical(genotypes), check_values(y, self.quantity, self.metric)
        if len(population) != len(values):
            raise InputError(f"{len(population)} architectures and {len(values)} values of {self.metric}")
        if self.learns:
            check_learnable(values, self.metric)
            self.fixed = held_constant(self.space, self._seen(population))
            self.scaling = self.scaling.fit(values)
        self.configure(**self.options)
        self._fit(population, self.scaling.forward(values))
        self._training, self.calibration = (population, values), None
        return self

    def predict(self, genotypes: ArrayLike, *, extrapolate: bool = False) -> Array:
        """The metric of each genotype, shape (n,), in the metric's unit.

        Raises `DomainError` where a gene that training held constant differs (`held_constant`), unless `extrapolate`.
        """
        population = self.space.canonical(genotypes)
        if not extrapolate:
            self.check_domain(population)
        return self.scaling.backward(self._predict(population))

    def interval(
        self, genotypes: ArrayLike, coverage: float = 0.9, *, extrapolate: bool = False
    ) -> tuple[Array, Array]:
        """Ends of an interval that holds the measured value with probability `coverage`, (n,) each.

        Cross-conformal: calibrated on predictions for rows that the predicting model had not seen.
        """
        prediction = self.predict(genotypes, extrapolate=extrapolate)
        low, high = self.calibrated().interval(prediction, coverage)
        return (np.maximum(low, 0.0) if self.quantity.is_cost else low), high

    def cross_predict(self, genotypes: ArrayLike, y: ArrayLike, fold: NDArray[np.int64]) -> Array:
        """Predictions, (n,), of each row by this kind fitted to the other folds; this one stays unfitted."""
        population, values = self.space.canonical(genotypes), check_values(y, self.quantity, self.metric)
        model = self.clone()
        if model.learns:
            check_learnable(values, self.metric)
            model.scaling = model.scaling.fit(values)
        return model.scaling.backward(model._cross_predict(population, model.scaling.forward(values), fold))

    def _cross_predict(self, genotypes: Population, target: Array, fold: NDArray[np.int64]) -> Array:
        """`cross_predict` of the scaled target; a kind that can do better than one fit a fold overrides it."""
        left_out = np.empty(len(target))
        for part in np.unique(fold):
            test = fold == part
            if self.learns and np.ptp(target[~test]) == 0:
                left_out[test] = target[~test].mean()
                continue
            self.configure(**self.options)
            self._fit(genotypes[~test], target[~test])
            left_out[test] = self._predict(genotypes[test])
        return left_out

    @property
    def has_intervals(self) -> bool:
        """Whether it knows measured networks to take an interval from."""
        return self.calibration is not None or self._training is not None

    def calibrated(self) -> Calibration:
        """The calibration of the intervals; made at the first call, by refitting on parts of the training rows."""
        if self.calibration is None:
            if self._training is None:
                raise InputError(f"predictor {self.name!r} has no measured networks to take an interval from; fit it")
            population, values = self._training
            self.calibration = Calibration.of(values, cross_fit(self, population, values))
        return self.calibration

    def to_arrays(self) -> Arrays:
        """All that was learnt, as named arrays: the kind's own, the costs, and the intervals' calibration."""
        arrays = {f"{OWN}{name}": array for name, array in self._state().items()}
        if self.costs is not None:
            arrays[COSTS] = self.costs
        if self.has_intervals:
            arrays |= {f"{CALIBRATION}{name}": array for name, array in self.calibrated().to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, space: SearchSpace, metric: str, options: Mapping[str, Any], arrays: Arrays) -> Self:
        """The fitted predictor that gave `arrays` by `to_arrays`, but for its scaling and domain of validity."""
        made = cls.opened(space, metric, options, arrays.get(COSTS))
        made._restore(under(OWN, arrays))
        if calibration := under(CALIBRATION, arrays):
            made.calibration = Calibration.from_arrays(calibration)
        return made

    def save(self, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the fitted model to `folder`; see `hwnas.predict.store.save_predictor`."""
        from hwnas.predict.store import save_predictor

        save_predictor(self, folder, provenance)

    def check_domain(self, population: Population) -> None:
        """Raise `DomainError` where a gene that training held constant differs."""
        if (self.fixed < 0).all():
            return
        outside = (self.fixed >= 0) & (population != self.fixed) & self.space.matters(population)
        if outside.any():
            row, gene = np.argwhere(outside)[0]
            held = self.space.genes[gene]
            raise DomainError(
                f"{held.name} was {held.choices[self.fixed[gene]]} in all networks that the model learnt from, "
                f"and is {held.choices[population[row, gene]]} in architecture {row}; measure networks with other "
                "values, or ask for extrapolation (extrapolate)"
            )

    def block_sum(self, genotypes: Population) -> Array:
        """Sum of the table's costs over the blocks that run, shape (n,); raises `MissingCostError` for an unknown."""
        costs = self.costs
        if costs is None:
            raise InputError(f"predictor {self.name!r} has no cost table")
        total = self.space.total(costs, genotypes)
        if np.isnan(total).any():
            used = np.unique(self.space.blocks(genotypes))
            primitives = self.space.primitives()
            missing = [primitives[i].key for i in used if i >= 0 and np.isnan(costs[i])]
            raise MissingCostError(missing, self.metric, "the cost table")
        return total


predictors: Registry[type[Predictor]] = Registry(
    "predictor",
    tuple(f"hwnas.predict.{module}" for module in ("linear", "neural", "gp", "boosting", "residual", "transfer")),
    named=True,
)


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def held_constant(space: SearchSpace, population: Population) -> Population:
    """The value of each gene that the population holds constant, -1 for the others; shape (genes,).

    A gene with c choices that matters in n rows has one value in all of them by chance with probability c^(1 - n) in
    a random population; it counts as held constant where that is below `BY_CHANCE`.
    """
    matters = space.matters(population)
    most = np.where(matters, population, -1).max(axis=0)
    least = np.where(matters, population, np.iinfo(np.int16).max).min(axis=0)
    chance = space.choices.astype(float) ** (1 - matters.sum(axis=0))
    return np.where((most == least) & (chance < BY_CHANCE), most, -1).astype(np.int16)


def block_costs(space: SearchSpace, table: CostTable, metric: str) -> Array:
    """Costs of `space.primitives()`, shape (P,), NaN where the table has none; seconds an image for a throughput.

    Raises `InputError` where the table has no fitting column or knows none of the primitives.
    """
    column = table_column(table, metric)
    rows = (table.rows.get(primitive.key, {}).get(column) for primitive in space.primitives())
    costs = np.array([np.nan if cost is None else cost.value for cost in rows])
    if quantity_of(metric) == THROUGHPUT:
        costs = costs / (MS_PER_S * table.target.batch)
    if np.isnan(costs).all():
        raise InputError(f"{table.name} has {column} for none of the primitives of {space.spec}")
    return costs


def table_column(table: CostTable, metric: str) -> str:
    """The table's column that adds up to `metric`: of the same name, else the only one of its quantity.

    A throughput is made of latencies.
    """
    wanted = quantity_of(metric)
    if metric in table.metrics and wanted != THROUGHPUT:
        return metric
    wanted = LATENCY if wanted == THROUGHPUT else wanted
    fitting = [column for column in table.metrics if quantity_of(column) == wanted]
    if len(fitting) != 1:
        raise InputError(
            f"{table.name} has {'no' if not fitting else 'several'} columns of {wanted.name} to predict {metric} from; "
            f"it has {', '.join(table.metrics) or 'none'}"
        )
    return fitting[0]


ALL_RIGHT = 100.0
"""The most that an accuracy can be, in percent."""


def check_values(y: ArrayLike, quantity: Quantity, metric: str) -> Array:
    """`y` as floats; raises `InputError` naming the first value that is no measurement."""
    values = np.asarray(y, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"{metric} must be one value an architecture, not an array of shape {values.shape}")
    bad = ~np.isfinite(values)
    if quantity.is_cost:
        least = 0.0 if may_be_zero(metric) else np.finfo(float).tiny
        bad |= values < least
    else:
        bad |= (values < 0) | (values > ALL_RIGHT)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{metric} of row {row} is {values[row]:g}, which no measurement gives; remove the row")
    return values


def check_learnable(values: Array, metric: str) -> None:
    """Raise `InputError` for too few values, or values that are all the same."""
    if len(values) < FEWEST_ROWS:
        raise InputError(f"{len(values)} measured networks are too few to fit {metric}: {FEWEST_ROWS} are the least")
    if np.ptp(values) == 0:
        raise InputError(f"{metric} is {values[0]:g} in all {len(values)} rows: there is nothing to learn")
