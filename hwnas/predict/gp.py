"""Exact Gaussian processes whose kernel is a sum of fixed kernels with learnt variances.

The variances and the noise are those of greatest marginal likelihood (Rasmussen and Williams 2006, eq. 5.8 and 5.9).
Because no kernel changes its shape while they are sought, each Gram matrix is computed once, which makes the fit
several times quicker than a general implementation that rebuilds them at every step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, lapack
from scipy.optimize import minimize

from hwnas.core.errors import InputError
from hwnas.predict.base import Array, Arrays, Predictor, register
from hwnas.predict.features import in_chunks
from hwnas.predict.kernels import KERNELS, Viewer, grams
from hwnas.predict.regression import LOSSES, robust_weights
from hwnas.predict.warp import Warp

STAGES = ((600, 60), (1000, 12), (1500, 6))
"""Rows and steps of each stage in which the variances are learnt."""
JITTER = 1e-8
LEAST, MOST = float(np.log(1e-7)), float(np.log(1e3))
NEGLIGIBLE = 1e-6
PRIOR_KERNEL, PRIOR_NOISE, PRIOR_SPREAD = -3.0, -5.0, 3.0
ROBUST_ROUNDS = 4
LEAST_SIZE = 0.05
FEW_TO_REFIT = 250


@register("gp")
class GaussianProcess(Predictor):
    """Additive in blocks and choices, with their pairs, and smooth in what the network does; for thousands of rows."""

    def configure(
        self,
        loss: str = "l2",
        relative: bool = True,
        kernels: str = "all",
        effects: bool = False,
        warp: bool = False,
        seed: int = 0,
    ) -> None:
        """Options.

        Args:
            loss: `l2`; `tukey` or `l1`, which reweight the rows by their residuals.
            relative: the noise of a cost grows in proportion to it.
            effects: place each choice of a gene by what it adds in a linear fit. It helps where genes have few choices
                and rows are many; being fitted to the target, it is cross-validated by refitting.
            warp: learn the target's normal scores (`warp.Warp`) instead of its values. It helps where it levels off, as
                accuracy does.
            kernels: groups of `kernels.KERNELS` joined by `+`, or `all`.
        """
        groups = tuple(KERNELS) if kernels == "all" else tuple(kernels.split("+"))
        if loss not in LOSSES or not set(groups) <= set(KERNELS):
            raise InputError(f"loss is one of {', '.join(LOSSES)}, and kernels are {', '.join(KERNELS)}, joined by +")
        self.kernels = sorted(kernel for group in groups for kernel in KERNELS[group])
        self.loss, self.relative, self.seed = loss, relative and self.quantity.is_cost and not warp, seed
        self._viewer, self._refits = Viewer(self.space, self.costs, effects), effects or warp
        self.warp = warp
        self._warp: Warp | None = None

    def _fit(self, genotypes: NDArray[np.int16], target: Array) -> None:
        if self.warp:
            self._warp = Warp.fit(target)
            target = self._warp.forward(target)
        self._genotypes, self._views = genotypes, self._viewer.fit(genotypes, target)
        self._centre = np.array([target.mean(), target.std() or 1.0])
        self._target = (target - self._centre[0]) / self._centre[1]
        self._magnitude = float(np.abs(target).mean())
        noise = self._noise_sizes(target)
        self._variances = self._learn(noise)
        self._solve(noise)

    def _noise_sizes(self, target: Array) -> Array:
        """The variance of each row's noise, (n,), relative to that of a row of mean size."""
        return np.maximum(np.abs(target) / self._magnitude, LEAST_SIZE) ** 2 if self.relative else np.ones(len(target))

    def _learn(self, noise: Array) -> Array:
        """Variances of the kernels and of the noise, (kernels + 1,), of greatest likelihood on a subset of the rows.

        Most steps are taken on few rows, the last ones on more.
        """
        logs = np.append(np.full(len(self.kernels), np.log(0.3)), np.log(0.03))
        order = np.random.default_rng(self.seed).permutation(len(noise))
        for rows, steps in STAGES:
            logs = self._climb(logs, order[:rows], noise, steps)
            if rows >= len(order):
                break
        return np.asarray(np.exp(logs))

    def _climb(self, start: Array, chosen: NDArray[np.int64], noise: Array, steps: int) -> Array:
        """Logarithms of the variances after some steps to a greater likelihood of the `chosen` rows."""
        target = self._target[chosen]
        if self.loss != "l2":
            target = np.clip(target, *np.percentile(target, [2, 98]))
        part = {name: view[chosen] for name, view in self._views.items()}
        stack = np.stack([gram.ravel() for gram in grams(self.kernels, part, part)])
        prior = np.append(np.full(len(stack), PRIOR_KERNEL), PRIOR_NOISE)
        found = minimize(
            negative_likelihood,
            start,
            args=(stack, target, noise[chosen], prior, PRIOR_SPREAD),
            jac=True,
            method="L-BFGS-B",
            bounds=[(LEAST, MOST)] * len(start),
            options={"maxiter": steps},
        )
        return np.asarray(found.x)

    def _solve(self, noise: Array) -> None:
        covariance = np.zeros((len(noise), len(noise)))
        used, variances = self._used()
        for variance, gram in zip(variances, grams(used, self._views, self._views), strict=True):
            covariance += variance * gram
        scale = self._variances[-1] * noise
        self._factor = _factor(covariance, scale)
        for _ in range(ROBUST_ROUNDS if self.loss != "l2" else 0):
            left_out = cho_solve(self._factor, self._target) / np.diag(_inverse(self._factor))
            weights = robust_weights(left_out / np.sqrt(noise), self.loss)
            self._factor = _factor(covariance, np.minimum(scale / weights, 1e4))
        self._alpha = cho_solve(self._factor, self._target)

    def _used(self) -> tuple[list[tuple[str, str]], Array]:
        kept = self._variances[:-1] > NEGLIGIBLE
        return [kernel for kernel, keep in zip(self.kernels, kept, strict=True) if keep], self._variances[:-1][kept]

    def _predict(self, genotypes: NDArray[np.int16]) -> Array:
        return in_chunks(self._predict_part, genotypes)

    def _predict_part(self, genotypes: NDArray[np.int16]) -> Array:
        views, result = self._viewer(genotypes), np.zeros((len(genotypes), *self._alpha.shape[1:]))
        used, variances = self._used()
        rest = []
        for (view, shape), variance in zip(used, variances, strict=True):
            if shape == "linear":
                result += views[view] @ (variance * (self._views[view].T @ self._alpha))
            else:
                rest.append(((view, shape), variance))
        for gram, (_, variance) in zip(grams([kernel for kernel, _ in rest], views, self._views), rest, strict=True):
            result += gram @ (variance * self._alpha)
        result = result * self._centre[1] + self._centre[0]
        return np.asarray(self._warp.backward(result) if self._warp else result)

    def covariance(self, genotypes: NDArray[np.int16]) -> tuple[Array, float]:
        """Posterior covariance (n, n) and noise variance of the target, whose mean magnitude in training is 1."""
        views = self._viewer(genotypes)
        used, variances = self._used()
        cross, own = np.zeros((len(genotypes), len(self._alpha))), np.zeros((len(genotypes),) * 2)
        pairs = zip(variances, grams(used, views, self._views), grams(used, views, views), strict=True)
        for variance, to_rows, among in pairs:
            cross += variance * to_rows
            own += variance * among
        posterior = own - cross @ cho_solve(self._factor, cross.T)
        return np.asarray(posterior * self._centre[1] ** 2), float(self._variances[-1] * self._centre[1] ** 2)

    def predictive(self, genotypes: NDArray[np.int16]) -> tuple[Array, Array]:
        """The target and the deviation of one measurement of it, (n,) each, in units of its mean in training."""
        covariance, noise = self.covariance(genotypes)
        predicted = self._predict(genotypes)
        return predicted, np.sqrt(np.maximum(np.diag(covariance), 0.0) + noise * self._noise_sizes(predicted))

    def _cross_predict(self, genotypes: NDArray[np.int16], target: Array, fold: NDArray[np.int64]) -> Array:
        """Left-out predictions of every fold from one factorisation (Rasmussen and Williams 2006, section 5.4.2).

        The variances are those of all rows, which many rows hide and few would give away: few are refitted.
        """
        if len(target) < FEW_TO_REFIT or self._refits:
            return super()._cross_predict(genotypes, target, fold)
        self._fit(genotypes, target)
        inverse = _inverse(self._factor)
        left_out = np.empty(len(target))
        for part in np.unique(fold):
            rows = np.flatnonzero(fold == part)
            left_out[rows] = self._target[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], self._alpha[rows])
        return np.asarray(left_out * self._centre[1] + self._centre[0])

    def _state(self) -> Arrays:
        learnt = {"variances": self._variances, "alpha": self._alpha, "centre": self._centre}
        if self._warp:
            learnt["warp"] = np.stack([self._warp.values, self._warp.normal])
        return {"genotypes": self._genotypes, **learnt, **self._viewer.to_arrays()}

    def _restore(self, state: Arrays) -> None:
        self._variances, self._alpha, self._centre = state["variances"], state["alpha"], state["centre"]
        if len(self._variances) != len(self.kernels) + 1:
            raise ValueError(f"{len(self._variances)} variances for {len(self.kernels)} kernels")
        self._warp = Warp(*state["warp"]) if self.warp else None
        self._viewer.restore(state)
        self._genotypes = state["genotypes"]
        self._views = self._viewer(self._genotypes)


def _factor(covariance: Array, noise: Array) -> tuple[Array, bool]:
    matrix = covariance.copy()
    matrix[np.diag_indices_from(matrix)] += noise + JITTER
    factor: tuple[Array, bool] = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    return factor


def _inverse(factor: tuple[Array, bool]) -> Array:
    inverse, _ = lapack.dpotri(factor[0], lower=1)
    lower = np.tril(inverse)
    return np.asarray(lower + np.tril(lower, -1).T)


def negative_likelihood(
    logs: Array, stack: Array, y: Array, noise: Array, prior: Array, spread: float
) -> tuple[float, Array]:
    """Negative log marginal likelihood and its gradient in the logarithms of the variances; `stack` is (kernels, n n).

    A normal prior on the logarithms (`prior` their means, `spread` their deviation) keeps few rows from extremes.
    """
    variances = np.exp(logs)
    try:
        factor = _factor((variances[:-1] @ stack).reshape(len(y), len(y)), variances[-1] * noise)
    except LinAlgError:
        return 1e25, np.zeros(len(logs))
    alpha = cho_solve(factor, y, check_finite=False)
    gap = (logs - prior) / spread
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum()) + 0.5 * float(gap @ gap)
    excess = _inverse(factor) - np.outer(alpha, alpha)
    slopes = np.append(stack @ excess.ravel(), np.diag(excess) @ noise)
    return value, 0.5 * variances * slopes + gap / spread
