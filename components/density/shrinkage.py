"""Covariances from scatters: how much they are shrunk, and the shrunk ones.

Sources: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004); OAS, Chen et
al., "Shrinkage algorithms for MMSE covariance estimation" (2010), eq. 23.
"""

import numpy as np

# A location whose average variance is below this part of the average over all locations hardly varies at all (a
# plain background); it is raised to that, so that rounding noise there does not drown every other location.
LOCATION_FLOOR = 1e-4
# The least eigenvalue of a shrunk covariance, in parts of its average variance, where shrinkage gives none
# (Ledoit–Wolf does not shrink two observations).
EIGENVALUE_FLOOR = 1e-6
# Eigenvalues below this part of the largest count as zero in the pseudo-inverse.
RANK_TOLERANCE = 1e-12


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


def principal(centred: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues (k,) and eigenvectors (D, k) of centredᵀ centred / N, for (N, D); zeros past its rank."""
    count = len(centred)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = np.maximum(values[-rank:], 0), vectors[:, -rank:]
    scale = np.zeros_like(values)
    np.divide(1, np.sqrt(values), out=scale, where=values > RANK_TOLERANCE * max(values[-1], 1e-300))
    return values / count, centred.T @ (vectors * scale)
