"""Linear algebra of Gaussian processes whose kernel is a sum of fixed kernels with learnt variances.

No kernel changes its shape while the variances are sought, so that each Gram matrix is computed once, and its lower
triangle kept. That makes a fit several times quicker than a general implementation that rebuilds them at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, blas, cho_solve, lapack

from hwnas.core.arrays import Array

Factor = tuple[Array, bool]

JITTER = 1e-8


def triangles(matrices: Iterable[Array]) -> Array:
    """The lower triangles of symmetric matrices (n, n), one under the other: (matrices, n (n + 1) / 2)."""
    return np.stack([matrix.ravel()[_lower(len(matrix))] for matrix in matrices])


@lru_cache(maxsize=2)
def _lower(n: int) -> NDArray[np.int64]:
    """Where the lower triangle stands in an (n, n) matrix laid out in rows."""
    return np.flatnonzero(np.tri(n, dtype=np.bool_))


def mixture(stack: Array, variances: Array, n: int) -> Array:
    """Sum of the kernels of `stack` (kernels, n (n + 1) / 2) by their `variances`: (n, n), its lower triangle alone."""
    matrix = np.zeros(n * n)
    matrix[_lower(n)] = variances @ stack
    return matrix.reshape(n, n)


def factor(covariance: Array, noise: Array) -> Factor:
    """Cholesky factor of a covariance (n, n), of which the lower triangle is read, with the rows' `noise` added.

    Raises `LinAlgError` where it is not positive definite.
    """
    matrix = covariance.copy()
    matrix[np.diag_indices_from(matrix)] += noise + JITTER
    upper, wrong = lapack.dpotrf(matrix.T, lower=0, overwrite_a=1, clean=0)
    if wrong:
        raise LinAlgError(f"the covariance is not positive definite ({wrong})")
    return upper, False


def inverse(factored: Factor) -> Array:
    """The inverse (n, n) of what was factored, laid out in columns; its upper triangle alone."""
    return np.asarray(lapack.dpotri(factored[0], lower=0)[0])


def left_out(factored: Factor, y: Array) -> tuple[Array, Array]:
    """Error of each row as the others predict it and the variance expected of it, (n,) each (Rasmussen and Williams
    2006, eq. 5.12)."""
    precision = np.diag(inverse(factored))
    return cho_solve(factored, y) / precision, 1 / precision


def negative_likelihood(
    logs: Array, stack: Array, y: Array, noise: Array, prior: Array, spread: float
) -> tuple[float, Array]:
    """Negative log marginal likelihood and its gradient in the logarithms of the variances.

    `stack` (kernels, n (n + 1) / 2) is of `triangles` (Rasmussen and Williams 2006, eq. 5.8 and 5.9). A normal prior
    on the logarithms (`prior` their means, `spread` their deviation) keeps few rows from extremes.
    """
    variances = np.exp(logs)
    try:
        factored = factor(mixture(stack, variances[:-1], len(y)), variances[-1] * noise)
    except LinAlgError:
        return 1e25, np.zeros(len(logs))
    alpha = cho_solve(factored, y, check_finite=False)
    gap = (logs - prior) / spread
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factored[0])).sum()) + 0.5 * float(gap @ gap)
    excess = blas.dsyr(-1.0, alpha, a=inverse(factored), lower=0, overwrite_a=1)
    own = np.diag(excess).copy()
    excess[np.diag_indices_from(excess)] *= 0.5
    slopes = np.append(2.0 * (stack @ excess.T.ravel()[_lower(len(y))]), own @ noise)
    return value, 0.5 * variances * slopes + gap / spread
