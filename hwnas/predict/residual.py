"""Combinations of predictors: one that learns what another leaves, and a weighted mean of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError
from hwnas.predict.base import Arrays, Predictor, predictors, under
from hwnas.predict.intervals import FOLDS, folds_of, genotype_groups

GENTLE = {"rounds": 200, "rate": 0.03, "leaves": 6, "power": 0.0}
BY_LOSS = {"l2": "l2", "l1": "l1", "tukey": "l1"}


def member(owner: Predictor, kind: str, options: Mapping[str, Any]) -> Predictor:
    """An unfitted predictor of `kind` on the space, metric and costs of `owner`."""
    found = predictors.get(kind)
    if isinstance(owner, found) or not found.learns:
        raise InputError(f"predictor {owner.name!r} cannot be made of {kind!r}")
    return found.opened(owner.space, owner.metric, options, owner.costs)


@predictors.register("residual")
class Residual(Predictor):
    """A base model, and a second model of what the base leaves of rows that it has not seen."""

    def configure(self, base: str = "gp", rest: str = "boosting", loss: str = "l2", seed: int = 0) -> None:
        """`base` and `rest` are registered kinds; `loss` is the base's, and the rest is `l1` where it is robust."""
        options = {"loss": loss} if "loss" in predictors.get(base).default_options() else {}
        rest_options: dict[str, Any] = {"loss": BY_LOSS.get(loss, "l2")}
        known = predictors.get(rest).default_options()
        rest_options |= {name: value for name, value in GENTLE.items() if name in known}
        self.base, self.rest, self.seed = member(self, base, options), member(self, rest, rest_options), seed

    def _fit(self, genotypes: Population, target: Array) -> None:
        fold = folds_of(genotype_groups(genotypes), min(FOLDS, len(target)), self.seed)
        left = target - self.base._cross_predict(genotypes, target, fold)
        self.base._fit(genotypes, target)
        self._fit_rest(genotypes, left)

    def _fit_rest(self, genotypes: Population, left: Array) -> None:
        self.size = float(np.abs(left).mean()) or 1.0
        self.rest._fit(genotypes, left / self.size)

    def _predict(self, genotypes: Population) -> Array:
        return self.base._predict(genotypes) + self.size * self.rest._predict(genotypes)

    def _cross_predict(self, genotypes: Population, target: Array, fold: NDArray[np.int64]) -> Array:
        left_out = self.base._cross_predict(genotypes, target, fold)
        left, corrected = target - left_out, left_out.copy()
        for part in np.unique(fold):
            test = fold == part
            self._fit_rest(genotypes[~test], left[~test])
            corrected[test] += self.size * self.rest._predict(genotypes[test])
        return corrected

    def _state(self) -> Arrays:
        parts = (("base.", self.base._state()), ("rest.", self.rest._state()))
        arrays = {prefix + name: array for prefix, state in parts for name, array in state.items()}
        return {"size": np.array([self.size]), **arrays}

    def _restore(self, state: Arrays) -> None:
        self.size = float(state["size"][0])
        self.base._restore(under("base.", state))
        self.rest._restore(under("rest.", state))


@predictors.register("ensemble")
class Ensemble(Predictor):
    """A weighted mean of members."""

    def configure(
        self,
        members: tuple[tuple[str, dict[str, Any], float], ...] = (("gp", {}, 0.6), ("residual", {}, 0.4)),
    ) -> None:
        """`members`: kind, options and weight of each; the weights are taken in proportion.

        Those by default are the two that are good from a hundred rows to thousands; `auto` chooses others and weights.
        """
        self.parts = [member(self, kind, options) for kind, options, _ in members]
        weights = np.array([weight for *_, weight in members], dtype=np.float64)
        if not len(weights) or (weights < 0).any() or weights.sum() <= 0:
            raise InputError("an ensemble needs members with positive weights")
        self.weights = weights / weights.sum()

    def _fit(self, genotypes: Population, target: Array) -> None:
        for part in self.parts:
            part._fit(genotypes, target)

    def _predict(self, genotypes: Population) -> Array:
        return np.asarray(sum(w * part._predict(genotypes) for w, part in zip(self.weights, self.parts, strict=True)))

    def _cross_predict(self, genotypes: Population, target: Array, fold: NDArray[np.int64]) -> Array:
        left_out = [part._cross_predict(genotypes, target, fold) for part in self.parts]
        return np.asarray(self.weights @ np.stack(left_out))

    def _state(self) -> Arrays:
        return {f"{i}.{name}": array for i, part in enumerate(self.parts) for name, array in part._state().items()}

    def _restore(self, state: Arrays) -> None:
        for i, part in enumerate(self.parts):
            part._restore(under(f"{i}.", state))
