"""Gradient-boosted trees (LightGBM) on genes, physical features, and the features of the space."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError
from hwnas.predict.base import Arrays, Predictor, predictors
from hwnas.predict.features import in_chunks, physical_features

LEAST_ROWS = 4
OBJECTIVES = {"l2": "regression", "l1": "regression_l1", "huber": "huber"}


@predictors.register("boosting")
class Boosting(Predictor):
    """LightGBM; saved in its own text format."""

    def configure(
        self,
        loss: str = "l2",
        power: float | None = None,
        rounds: int = 500,
        leaves: int = 12,
        rate: float = 0.05,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Options.

        Args:
            loss: `l2`, `l1` or `huber`.
            power: rows weigh as their value to minus this power; None: 2 for `l2` and 1 for the others, so that
                relative errors of a cost count, and 0 for accuracy. A higher one draws the model to the lower values,
                which helps where a device is sometimes slower than it can be.
        """
        if loss not in OBJECTIVES:
            raise InputError(f"loss is {loss!r}, expected one of {', '.join(OBJECTIVES)}")
        default = (2.0 if loss == "l2" else 1.0) if self.quantity.is_cost else 0.0
        self.loss, self.power = loss, default if power is None else power
        self.rounds, self.leaves, self.rate, self.seed, self.threads = rounds, leaves, rate, seed, threads
        self._map = physical_features(self.space, self.costs)

    def _features(self, genotypes: Population) -> Array:
        return np.concatenate([genotypes, self._map(genotypes), self.space.features(genotypes)], axis=1)

    def _fit(self, genotypes: Population, target: Array) -> None:
        import lightgbm

        if len(target) < LEAST_ROWS:
            raise InputError(f"boosting learns from {LEAST_ROWS} measured networks or more, in each fold; measure more")
        x = self._features(genotypes)
        size = np.maximum(np.abs(target) / np.abs(target).mean(), 0.05)
        data = lightgbm.Dataset(x, target, weight=size**-self.power, params={"verbose": -1, "max_bin": 127})
        booster = lightgbm.train(self._parameters(len(target)), data, self.rounds)
        self._load(booster.model_to_string())

    def _parameters(self, rows: int) -> dict[str, Any]:
        return {
            "objective": OBJECTIVES[self.loss],
            "learning_rate": self.rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": int(np.clip(rows // 40, 2, 10)),
            "feature_fraction": 0.4,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "max_bin": 127,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.threads,
            "verbose": -1,
        }

    def _load(self, text: str) -> None:
        import lightgbm

        self.text = text
        self._booster = lightgbm.Booster(model_str=text)

    def _predict(self, genotypes: Population) -> Array:
        return in_chunks(
            lambda part: np.asarray(self._booster.predict(self._features(part), num_threads=self.threads)), genotypes
        )

    def _state(self) -> Arrays:
        return {"text": np.frombuffer(self.text.encode(), dtype=np.uint8)}

    def _restore(self, state: Arrays) -> None:
        import lightgbm

        try:
            self._load(state["text"].tobytes().decode())
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(str(error)) from error
