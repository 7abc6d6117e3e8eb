"""Exact Gaussian processes whose kernel is a sum of fixed kernels with learnt variances.

The variances and the noise are those of greatest marginal likelihood (Rasmussen and Williams 2006, section 5.4.1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from hwnas.core.arrays import Array, Population
from hwnas.core.errors import InputError
from hwnas.predict.base import Arrays, Predictor, predictors
from hwnas.predict.features import in_chunks
from hwnas.predict.kernels import KERNELS, Viewer, grams
from hwnas.predict.likelihood import Factor, factor, left_out, mixture, negative_likelihood, triangles
from hwnas.predict.regression import LOSSES, robust_weights
from hwnas.predict.warp import Warp

STAGES = ((600, 60), (1000, 12), (1500, 6))
"""Rows and steps of each stage in which the variances are learnt."""
STEPS_AGAIN = 20
"""Steps after outliers were found among the rows of a stage."""
LEAST, MOST = float(np.log(1e-7)), float(np.log(1e3))
NEGLIGIBLE = 1e-6
PRIOR_KERNEL, PRIOR_NOISE, PRIOR_SPREAD = -3.0, -5.0, 3.0
ROUNDS = 4
REACH = 5.0
"""Deviations from what the other rows say beyond which a row is an outlier, from which nothing is learnt."""
MOST_NOISE = 100.0
"""Variance, in units of the target's, of the noise of a row that says nothing."""
LEAST_SIZE = 0.05
FEW_TO_REFIT = 250


@predictors.register("gp")
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
            loss: `l2`; `tukey` or `l1`, which reweight the rows by their residuals. Rows of a cost that stand out by
                more than `REACH` deviations are no part of `l2`, and the variances are learnt without them under each
                loss; an accuracy may fall off a cliff that is real.
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
        self._reach = REACH if self.quantity.is_cost else np.inf
        self.viewer, self._refits = Viewer(self.space, self.costs, effects), effects or warp
        self.warp = warp
        self._warp: Warp | None = None

    def _fit(self, genotypes: Population, target: Array) -> None:
        self._take(genotypes, target)
        self._factor, self._alpha = self._condition(self._covariance(), self._target, self._noise)

    def _take(self, genotypes: Population, target: Array) -> None:
        """Take the rows in, and learn the variances from them."""
        if self.warp:
            self._warp = Warp.fit(target)
            target = self._warp.forward(target)
        self.genotypes, self._views = genotypes, self.viewer.fit(genotypes, target)
        self._centre = np.array([target.mean(), target.std() or 1.0])
        self._target = (target - self._centre[0]) / self._centre[1]
        self._magnitude = float(np.abs(target).mean())
        self._noise = self._noise_sizes(target)
        with threadpool_limits(limits=1, user_api="blas"):  # matrices so small keep several threads waiting
            self._variances = self._learn()

    def _noise_sizes(self, target: Array) -> Array:
        """The variance of each row's noise, (n,), relative to that of a row of mean size."""
        return np.maximum(np.abs(target) / self._magnitude, LEAST_SIZE) ** 2 if self.relative else np.ones(len(target))

    def _learn(self) -> Array:
        """Variances of the kernels and of the noise, (kernels + 1,), of greatest likelihood on a subset of the rows.

        Most steps are taken on few rows, the last ones on more, and those on none that stood out before.
        """
        logs = np.append(np.full(len(self.kernels), np.log(0.3)), np.log(0.03))
        order = np.random.default_rng(self.seed).permutation(len(self._target))
        for rows, steps in STAGES:
            chosen, rest = order[:rows], order[rows:]
            logs, trusted = self._climb(logs, chosen, steps)
            if not trusted.all():
                chosen = chosen[trusted]
                logs, trusted = self._climb(logs, chosen, STEPS_AGAIN)
            if len(rest) == 0:
                break
            order = np.concatenate([chosen[trusted], rest])
        return np.asarray(np.exp(logs))

    def _climb(self, start: Array, chosen: NDArray[np.int64], steps: int) -> tuple[Array, NDArray[np.bool_]]:
        """Logarithms of the variances after some steps to a greater likelihood of the `chosen` rows, and which of these
        are no outliers."""
        target, noise = self._target[chosen], self._noise[chosen]
        part = {name: view[chosen] for name, view in self._views.items()}
        stack = triangles(grams(self.kernels, part, part))
        prior = np.append(np.full(len(stack), PRIOR_KERNEL), PRIOR_NOISE)
        found = minimize(
            negative_likelihood,
            start,
            args=(stack, target, noise, prior, PRIOR_SPREAD),
            jac=True,
            method="L-BFGS-B",
            bounds=[(LEAST, MOST)] * len(start),
            options={"maxiter": steps},
        )
        variances = np.exp(found.x)
        covariance = mixture(stack, variances[:-1], len(target))
        errors, spreads = left_out(factor(covariance, variances[-1] * noise), target)
        return np.asarray(found.x), np.abs(errors) <= self._reach * np.sqrt(spreads)

    def _covariance(self) -> Array:
        """Of the rows learnt from, (n, n), without their noise."""
        covariance = np.zeros((len(self._target), len(self._target)))
        used, variances = self._used()
        for variance, gram in zip(variances, grams(used, self._views, self._views), strict=True):
            covariance += variance * gram
        return covariance

    def _condition(self, covariance: Array, target: Array, noise: Array) -> tuple[Factor, Array]:
        """The factored covariance of some rows and their coefficients (n,).

        What the others say of a row decides, in rounds, how noisy it is taken to be.
        """
        own = taken = self._variances[-1] * noise
        factored = factor(covariance, own)
        for _ in range(ROUNDS):
            errors, spreads = left_out(factored, target)
            if self.loss == "l2":
                outliers = np.abs(errors) > self._reach * np.sqrt(spreads - taken + own)
                reweighted = np.where(outliers, MOST_NOISE, own)
            else:
                reweighted = np.minimum(own / robust_weights(errors / np.sqrt(noise), self.loss), MOST_NOISE)
            if np.array_equal(taken, reweighted):
                break
            taken = reweighted
            factored = factor(covariance, taken)
        return factored, cho_solve(factored, target)

    def _used(self) -> tuple[list[tuple[str, str]], Array]:
        kept = self._variances[:-1] > NEGLIGIBLE
        return [kernel for kernel, keep in zip(self.kernels, kept, strict=True) if keep], self._variances[:-1][kept]

    def _predict(self, genotypes: Population) -> Array:
        return in_chunks(self._predict_part, genotypes)

    def _predict_part(self, genotypes: Population) -> Array:
        views, result = self.viewer(genotypes), np.zeros((len(genotypes), *self._alpha.shape[1:]))
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

    def posterior(self, genotypes: Population) -> tuple[Array, Array, float]:
        """Mean (n,) and covariance (n, n) of the scaled target, and the variance of the noise of one measurement.

        Only the model that was fitted knows the covariance; a saved one predicts alone.
        """
        views = self.viewer(genotypes)
        used, variances = self._used()
        cross, own = np.zeros((len(genotypes), len(self._alpha))), np.zeros((len(genotypes),) * 2)
        pairs = zip(variances, grams(used, views, self._views), grams(used, views, views), strict=True)
        for variance, to_rows, among in pairs:
            cross += variance * to_rows
            own += variance * among
        left, unit = own - cross @ cho_solve(self._factor, cross.T), self._centre[1] ** 2
        return self._predict(genotypes), np.asarray(left * unit), float(self._variances[-1] * unit)

    def predictive(self, genotypes: Population) -> tuple[Array, Array]:
        """The scaled target and the deviation of one measurement of it, (n,) each."""
        predicted, covariance, noise = self.posterior(genotypes)
        return predicted, np.sqrt(np.maximum(np.diag(covariance), 0.0) + noise * self._noise_sizes(predicted))

    def _cross_predict(self, genotypes: Population, target: Array, fold: NDArray[np.int64]) -> Array:
        """Predictions of each fold from the other rows, with the variances of all.

        Many rows hide in these variances, and few would be given away: few are refitted.
        """
        if len(target) < FEW_TO_REFIT or self._refits:
            return super()._cross_predict(genotypes, target, fold)
        self._take(genotypes, target)
        covariance, predicted = self._covariance(), np.empty(len(target))
        for part in np.unique(fold):
            asked, others = np.flatnonzero(fold == part), np.flatnonzero(fold != part)
            among = covariance[np.ix_(others, others)]
            _, alpha = self._condition(among, self._target[others], self._noise[others])
            predicted[asked] = covariance[np.ix_(asked, others)] @ alpha
        return np.asarray(predicted * self._centre[1] + self._centre[0])

    def _state(self) -> Arrays:
        learnt = {"variances": self._variances, "alpha": self._alpha, "centre": self._centre}
        if self._warp:
            learnt["warp"] = np.stack([self._warp.values, self._warp.normal])
        return {"genotypes": self.genotypes, **learnt, **self.viewer.to_arrays()}

    def _restore(self, state: Arrays) -> None:
        self._variances, self._alpha, self._centre = state["variances"], state["alpha"], state["centre"]
        if len(self._variances) != len(self.kernels) + 1:
            raise ValueError(f"{len(self._variances)} variances for {len(self.kernels)} kernels")
        self._warp = Warp(*state["warp"]) if self.warp else None
        self.viewer.restore(state)
        self.genotypes = state["genotypes"]
        self._views = self.viewer(self.genotypes)
