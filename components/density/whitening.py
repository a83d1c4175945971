"""What a covariance is inverted by: its whitening, or its leading eigenpairs. By SciPy, which scoring does without.

Source of the leading eigenpairs by a random projection: Halko, Martinsson and Tropp, "Finding structure with
randomness" (2011).
"""

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from components.density.shrinkage import RANK_TOLERANCE
from components.foundation.errors import UserError

# Columns that the projection for leading eigenpairs has more than the rank it looks for.
SKETCH_MARGIN = 8


def inverse_cholesky(covariance: np.ndarray) -> np.ndarray:
    """Upper triangular W (D, D) with W Wᵀ the inverse of a positive definite covariance.

    >>> covariance = np.array([[4.0, 2], [2, 5]])
    >>> W = inverse_cholesky(covariance)
    >>> (W @ W.T @ covariance).round(9).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    factor, failed = lapack.dpotrf(covariance.T, lower=0, clean=1)
    if failed:
        raise UserError(
            "The covariance of the features is not positive definite in float64: choose a larger ridge, or the "
            "covariance ledoit-wolf."
        )
    inverse, _ = lapack.dtrtri(factor, lower=0)
    return inverse


def pseudo_whitening(covariance: np.ndarray, rank: int) -> np.ndarray:
    """Upper triangular W (D, D) with W Wᵀ the pseudo-inverse of a covariance of at most this rank.

    >>> W = pseudo_whitening(np.array([[4.0, 0], [0, 0]]), rank=1)  # nothing varied along the second axis
    >>> (W @ W.T).round(9).tolist()
    [[0.25, 0.0], [0.0, 0.0]]
    """
    values, vectors = linalg.eigh(covariance)  # ascending
    kept = (values > values[-1] * max(RANK_TOLERANCE, len(values) * np.finfo(float).eps)) & (values > 0)
    kept[: max(0, len(values) - rank)] = False
    scaled = np.where(kept, vectors / np.sqrt(np.where(kept, values, 1)), 0)
    return linalg.rq(scaled, mode="r")  # scaled = R Q with Q orthogonal, so that R Rᵀ = scaled scaledᵀ


def leading_eigenpairs(covariance: np.ndarray, rank: int, freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """The `rank` largest eigenvalues (k,), ascending, with eigenvectors (D, k), of a covariance (D, D).

    freedom: a bound of the covariance's own rank (observations less means). Where that is small, a fixed random
    projection finds its range exactly (Halko, Martinsson and Tropp, 2011), and only a small matrix is decomposed.

    >>> values, vectors = leading_eigenpairs(np.diag([1.0, 9, 4]), rank=2, freedom=3)
    >>> values.round(9).tolist(), np.abs(vectors).round(9).T.tolist()
    ([4.0, 9.0], [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    """
    dimensions = len(covariance)
    first = max(0, dimensions - rank)
    if 2 * (freedom + SKETCH_MARGIN) > dimensions:
        values, vectors = linalg.eigh(covariance, subset_by_index=(first, dimensions - 1), check_finite=False)
        return np.maximum(values, 0), vectors
    # Any random combinations of its columns, a few more than its rank, span its range.
    probe = np.random.default_rng(0).standard_normal((dimensions, freedom + SKETCH_MARGIN))
    basis = np.linalg.qr(covariance @ probe)[0]  # (D, m)
    values, small = np.linalg.eigh(basis.T @ covariance @ basis)
    return np.maximum(values[-rank:], 0), basis @ small[:, -rank:]
