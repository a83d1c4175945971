"""Covariances from scatters: how much they are shrunk, the shrunk ones, their whitening, their leading eigenpairs.

Sources: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004); OAS, Chen et
al., "Shrinkage algorithms for MMSE covariance estimation" (2010), eq. 23; leading eigenpairs by a random projection,
Halko, Martinsson and Tropp, "Finding structure with randomness" (2011).
"""

import numpy as np
from scipy import linalg
from scipy.linalg import lapack

from components.errors import UserError

# A location whose average variance is below this part of the average over all locations hardly varies at all (a
# plain background); it is raised to that, so that rounding noise there does not drown every other location.
LOCATION_FLOOR = 1e-4
# The least eigenvalue of a shrunk covariance, in parts of its average variance, where shrinkage gives none
# (Ledoit–Wolf does not shrink two observations).
EIGENVALUE_FLOOR = 1e-6
# Eigenvalues below this part of the largest count as zero in the pseudo-inverse.
RANK_TOLERANCE = 1e-12
# Columns that the projection for leading eigenpairs has more than the rank it looks for.
SKETCH_MARGIN = 8


def ledoit_wolf_shrinkage(count: int, scatter: np.ndarray, fourth: np.ndarray) -> np.ndarray:
    """Ledoit–Wolf's optimal shrinkage in [0, 1] for each group, equal to scikit-learn's of the centred data.

    count: observations; scatter (G, D, D); fourth (G,), the sum of ‖d‖⁴. Returns (G,); 0 where D is 1 or nothing
    varies.
    """
    dimensions = scatter.shape[-1]
    if dimensions == 1:
        return np.zeros(len(scatter))
    norm = _squared_norms(scatter) / count**2
    variance = average_variance(count, scatter)
    beta = (fourth / count - norm) / (count * dimensions)
    delta = norm / dimensions - variance**2
    beta = np.clip(beta, 0, np.maximum(delta, 0))
    return np.divide(beta, delta, out=np.zeros_like(beta), where=beta > 0)


def oas_shrinkage(count: int, scatter: np.ndarray) -> np.ndarray:
    """The oracle approximating shrinkage in [0, 1] for each group, as scikit-learn computes it.

    count: observations; scatter (G, D, D). Returns (G,); 0 where D is 1, 1 where nothing varies.
    """
    dimensions = scatter.shape[-1]
    if dimensions == 1:
        return np.zeros(len(scatter))
    alpha = _squared_norms(scatter) / (count * dimensions) ** 2
    square = average_variance(count, scatter) ** 2
    denominator = (count + 1) * (alpha - square / dimensions)
    ratio = np.divide(alpha + square, denominator, out=np.ones_like(alpha), where=denominator > 0)
    return np.minimum(ratio, 1)


def _squared_norms(scatter: np.ndarray) -> np.ndarray:
    """Squared Frobenius norm of each (G, D, D) matrix."""
    return np.array([np.vdot(s, s) for s in scatter])


def average_variance(count: int, scatter: np.ndarray) -> np.ndarray:
    """Average over features of each group's variance (G,)."""
    return np.trace(scatter, axis1=1, axis2=2) / (count * scatter.shape[-1])


def lift(variance: np.ndarray, shrinkage: np.ndarray, dimensions: int) -> np.ndarray:
    """What must be added to the diagonal (G,) so that no shrunk covariance is (nearly) singular.

    variance, shrinkage: (G,); shrinkage × variance is a lower bound of the eigenvalues (variance itself in one
    dimension).
    """
    scale = variance.mean()
    if scale <= 0:
        return np.ones_like(variance)
    least = variance if dimensions == 1 else shrinkage * variance
    return np.maximum(0, np.maximum(LOCATION_FLOOR * scale - variance, EIGENVALUE_FLOOR * variance - least))


def shrunk(scatter: np.ndarray, count: int, shrinkage: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """(1 - shrinkage) scatter / count + diagonal I, for groups (G, D, D), (G,), (G,)."""
    covariance = scatter * ((1 - shrinkage) / count)[:, None, None]
    index = np.arange(scatter.shape[-1])
    covariance[:, index, index] += diagonal[:, None]
    return covariance


def inverse_cholesky(covariance: np.ndarray) -> np.ndarray:
    """Upper triangular W (D, D) with W Wᵀ the inverse of a positive definite covariance."""
    factor, failed = lapack.dpotrf(covariance.T, lower=0, clean=1)
    if failed:
        raise UserError(
            "The covariance of the features is not positive definite in float64: choose a larger ridge, or the "
            "covariance ledoit-wolf."
        )
    inverse, _ = lapack.dtrtri(factor, lower=0)
    return inverse


def pseudo_whitening(covariance: np.ndarray, rank: int) -> np.ndarray:
    """Upper triangular W (D, D) with W Wᵀ the pseudo-inverse of a covariance of at most this rank."""
    values, vectors = linalg.eigh(covariance)
    kept = (values > values[-1] * max(RANK_TOLERANCE, len(values) * np.finfo(float).eps)) & (values > 0)
    kept[: max(0, len(values) - rank)] = False
    scaled = np.where(kept, vectors / np.sqrt(np.where(kept, values, 1)), 0)
    return linalg.rq(scaled, mode="r")


def leading_eigenpairs(covariance: np.ndarray, rank: int, freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """The `rank` largest eigenvalues (k,), ascending, with eigenvectors (D, k), of a covariance (D, D).

    freedom: a bound of the covariance's own rank (observations less means). Where that is small, a fixed random
    projection finds its range exactly (Halko, Martinsson and Tropp, 2011), and only a small matrix is decomposed.
    """
    dimensions = len(covariance)
    first = max(0, dimensions - rank)
    if 2 * (freedom + SKETCH_MARGIN) > dimensions:
        values, vectors = linalg.eigh(covariance, subset_by_index=(first, dimensions - 1), check_finite=False)
        return np.maximum(values, 0), vectors
    probe = np.random.default_rng(0).standard_normal((dimensions, freedom + SKETCH_MARGIN))
    basis = np.linalg.qr(covariance @ probe)[0]  # (D, m)
    values, small = np.linalg.eigh(basis.T @ covariance @ basis)
    return np.maximum(values[-rank:], 0), basis @ small[:, -rank:]


def principal(centred: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues (k,) and eigenvectors (D, k) of centredᵀ centred / N, for (N, D); zeros past its rank."""
    count = len(centred)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = np.maximum(values[-rank:], 0), vectors[:, -rank:]
    scale = np.zeros_like(values)
    np.divide(1, np.sqrt(values), out=scale, where=values > RANK_TOLERANCE * max(values[-1], 1e-300))
    return values / count, centred.T @ (vectors * scale)
