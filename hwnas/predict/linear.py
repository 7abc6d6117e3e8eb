"""Additive models: the plain sum of a cost table, its two corrections, and tables fitted to whole networks."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.predict.base import Arrays, Predictor, predictors
from hwnas.predict.features import choice_features, in_chunks, physical_features
from hwnas.predict.regression import Ridge


@predictors.register("sum")
class Sum(Predictor):
    """The sum of the blocks' costs in the table. Fits nothing; fails where a cost is missing."""

    needs_costs = True
    learns = False

    def _fit(self, genotypes: Population, target: Array) -> None:
        self.block_sum(genotypes)

    def _predict(self, genotypes: Population) -> Array:
        return self.block_sum(genotypes)

    def _state(self) -> Arrays:
        return {}

    def _restore(self, state: Arrays) -> None:
        pass


class _LeastSquares(Predictor):
    """Least squares in a few columns and an intercept; minimum norm where rows do not determine them."""

    @abstractmethod
    def _columns(self, genotypes: Population) -> Array: ...

    def _design(self, genotypes: Population) -> Array:
        columns = self._columns(genotypes)
        return np.concatenate([columns, np.ones((len(columns), 1))], axis=1)

    def _fit(self, genotypes: Population, target: Array) -> None:
        design = self._design(genotypes)
        scale = np.abs(design).max(axis=0)
        scale[scale == 0] = 1.0
        self.coefficients = np.linalg.lstsq(design / scale, target, rcond=None)[0] / scale

    def _predict(self, genotypes: Population) -> Array:
        result: Array = self._design(genotypes) @ self.coefficients
        return result

    def _state(self) -> Arrays:
        return {"coefficients": self.coefficients}

    def _restore(self, state: Arrays) -> None:
        self.coefficients = state["coefficients"]


@predictors.register("linear1")
class Linear1(_LeastSquares):
    """Linear in the sum of the blocks' costs."""

    needs_costs = True

    def _columns(self, genotypes: Population) -> Array:
        return self.block_sum(genotypes)[:, None]


@predictors.register("linear2")
class Linear2(_LeastSquares):
    """Linear in the sum of the blocks' costs and the number of searchable blocks that run."""

    needs_costs = True

    def _columns(self, genotypes: Population) -> Array:
        running = (self.space.blocks(genotypes)[:, self.space.searchable] >= 0).sum(axis=1)
        return np.stack([self.block_sum(genotypes), running], axis=1)


@predictors.register("flops")
class Flops(_LeastSquares):
    """Linear in the multiply-accumulates: the baseline that every model has to beat."""

    def _columns(self, genotypes: Population) -> Array:
        return self.space.macs(genotypes)[:, None]


class _RidgeBase(Predictor):
    """Ridge regression with the penalty of least leave-one-out error."""

    loss: str

    def configure(self, loss: str = "l2") -> None:
        """`loss`: `l2`; `tukey` or `l1`, which drift and outliers hurt less."""
        self.loss = loss

    @abstractmethod
    def _features(self, genotypes: Population) -> Array: ...

    def _fit(self, genotypes: Population, target: Array) -> None:
        self.ridge = Ridge.fit(self._features(genotypes), target, self.loss)

    def _predict(self, genotypes: Population) -> Array:
        return in_chunks(lambda part: self.ridge.predict(self._features(part)), genotypes)

    def _state(self) -> Arrays:
        return self.ridge.to_arrays()

    def _restore(self, state: Arrays) -> None:
        self.ridge = Ridge.from_arrays(state)


@predictors.register("ridge")
class AdditiveRidge(_RidgeBase):
    """Additive over the choices of genes and blocks: a cost table fitted to whole networks."""

    def _features(self, genotypes: Population) -> Array:
        return choice_features(self.space)(genotypes)


@predictors.register("physical")
class PhysicalRidge(_RidgeBase):
    """Additive over what the blocks do (MACs, bytes, operations by kind and by stage), and their costs if known."""

    def configure(self, loss: str = "l2") -> None:
        super().configure(loss)
        self._map = physical_features(self.space, self.costs)

    def _features(self, genotypes: Population) -> Array:
        return self._map(genotypes)
