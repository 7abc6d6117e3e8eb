"""Ridge regression in closed form, with its penalty chosen by leave-one-out error and robust losses by reweighting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Array
from hwnas.core.errors import InputError

LOSSES = ("l2", "l1", "tukey")
PENALTIES = np.logspace(-6, 4, 31)
ROUNDS = 12
MAD_TO_SIGMA = 1.4826
TUKEY_REACH = 4.685
EFFECTIVELY_CONSTANT = 1e-9


@dataclass(frozen=True)
class Ridge:
    """`y = offset + x @ weights`."""

    weights: Array
    offset: float

    def predict(self, x: Array) -> Array:
        """Shape (n,) for x of shape (n, d)."""
        result: Array = x @ self.weights + self.offset
        return result

    @classmethod
    def fit(cls, x: Array, y: Array, loss: str = "l2") -> Ridge:
        """Fit standardised columns; `tukey` starts from `l1`, both by iteratively reweighted least squares."""
        if loss not in LOSSES:
            raise InputError(f"loss is {loss!r}, expected one of {', '.join(LOSSES)}")
        model = _weighted(x, y, np.ones(len(y)))
        for stage in {"l2": (), "l1": ("l1",), "tukey": ("l1", "tukey")}[loss]:
            for _ in range(ROUNDS):
                model = _weighted(x, y, robust_weights(y - model.predict(x), stage))
        return model

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {"weights": self.weights, "offset": np.array([self.offset])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Ridge:
        return cls(arrays["weights"], float(arrays["offset"][0]))


def robust_weights(residuals: Array, loss: str) -> Array:
    """Weights, (n,), of reweighted least squares: 1 / |r| for `l1`, Tukey's biweight for `tukey`."""
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(residuals))) + 1e-12
    if loss == "l1":
        return np.asarray(1.0 / np.maximum(np.abs(residuals) / sigma, 0.1))
    return np.asarray(np.maximum(1.0 - (residuals / (TUKEY_REACH * sigma)) ** 2, 0.0) ** 2 + 1e-6)


def _weighted(x: Array, y: Array, weights: Array) -> Ridge:
    """The ridge of least weighted leave-one-out error."""
    weights = weights / weights.mean()
    root = np.sqrt(weights)[:, None]
    mean, offset = np.average(x, axis=0, weights=weights), float(np.average(y, weights=weights))
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    kept = spread > EFFECTIVELY_CONSTANT * (np.abs(mean) + 1)
    scale = np.where(kept, spread, 1.0)
    z = root * ((x - mean) / scale)[:, kept]
    target = root[:, 0] * (y - offset)
    u, s, vt = _thin_svd(z)
    projected = u.T @ target
    centred = root[:, 0] / np.sqrt(len(y))
    best, error = PENALTIES[-1] * len(y), np.inf
    for penalty in PENALTIES * len(y):
        shrink = s**2 / (s**2 + penalty)
        leverage = np.minimum((u**2) @ shrink + centred**2, 1 - 1e-9)
        residual = (target - u @ (shrink * projected)) / (1 - leverage)
        mean_square = float(np.mean(residual**2))
        if mean_square < error:
            best, error = penalty, mean_square
    coefficients = np.zeros(x.shape[1])
    coefficients[kept] = (vt.T @ (s / (s**2 + best) * projected)) / scale[kept]
    return Ridge(coefficients, offset - float(mean @ coefficients))


def _thin_svd(z: Array) -> tuple[Array, Array, Array]:
    """Thin singular value decomposition by the smaller Gram matrix, several times quicker than the direct one."""
    n, d = z.shape
    if min(n, d) == 0:
        return np.zeros((n, 0)), np.zeros(0), np.zeros((0, d))
    values, vectors = np.linalg.eigh(z.T @ z if d <= n else z @ z.T)
    kept = values > values[-1] * 1e-12
    s = np.sqrt(values[kept])
    if d <= n:
        return z @ vectors[:, kept] / s, s, vectors[:, kept].T
    return vectors[:, kept], s, (z.T @ vectors[:, kept] / s).T
