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

    >>> X = np.random.default_rng(0).standard_normal((20, 5))
    >>> d = X - X.mean(axis=0)
    >>> fourth = np.array([(np.vecdot(d, d) ** 2).sum()])
    >>> from sklearn.covariance import ledoit_wolf_shrinkage as reference
    >>> bool(np.isclose(ledoit_wolf_shrinkage(20, (d.T @ d)[None], fourth)[0], reference(X)))
    True
    """
    dimensions = scatter.shape[-1]
    if dimensions == 1:
        return np.zeros(len(scatter))
    # In the paper's norm, ‖A‖² = tr(A Aᵀ) / D; S is the empirical covariance.
    norm = _squared_norms(scatter) / count**2  # tr(S Sᵀ)
    variance = average_variance(count, scatter)  # μ: the target is μ I
    # b̄² of the paper: how far the covariances d dᵀ of single observations scatter about S, Σ ‖d dᵀ - S‖² / n².
    beta = (fourth / count - norm) / (count * dimensions)
    delta = norm / dimensions - variance**2  # d² of the paper: ‖S - μ I‖²
    beta = np.clip(beta, 0, np.maximum(delta, 0))  # b² = min(b̄², d²); the shrinkage is b² / d²
    return np.divide(beta, delta, out=np.zeros_like(beta), where=beta > 0)


def oas_shrinkage(count: int, scatter: np.ndarray) -> np.ndarray:
    """The oracle approximating shrinkage in [0, 1] for each group, as scikit-learn computes it.

    count: observations; scatter (G, D, D). Returns (G,); 0 where D is 1, 1 where nothing varies.

    >>> X = np.random.default_rng(0).standard_normal((20, 5))
    >>> d = X - X.mean(axis=0)
    >>> from sklearn.covariance import oas
    >>> bool(np.isclose(oas_shrinkage(20, (d.T @ d)[None])[0], oas(X)[1]))
    True
    """
    dimensions = scatter.shape[-1]
    if dimensions == 1:
        return np.zeros(len(scatter))
    alpha = _squared_norms(scatter) / (count * dimensions) ** 2  # mean square of the entries of S: tr(S²) / D²
    square = average_variance(count, scatter) ** 2  # (tr(S) / D)²
    denominator = (count + 1) * (alpha - square / dimensions)  # eq. 23 without its factor 2 / D, as scikit-learn
    ratio = np.divide(alpha + square, denominator, out=np.ones_like(alpha), where=denominator > 0)
    return np.minimum(ratio, 1)


def _squared_norms(scatter: np.ndarray) -> np.ndarray:
    """Squared Frobenius norm of each (G, D, D) matrix."""
    return np.array([np.vdot(s, s) for s in scatter])


def average_variance(count: int, scatter: np.ndarray) -> np.ndarray:
    """Average over features of each group's variance (G,).

    >>> average_variance(10, np.array([[[20.0, 5], [5, 60]]])).tolist()  # (2 + 6) / 2
    [4.0]
    """
    return np.trace(scatter, axis1=1, axis2=2) / (count * scatter.shape[-1])


def lift(variance: np.ndarray, shrinkage: np.ndarray, dimensions: int) -> np.ndarray:
    """What must be added to the diagonal (G,) so that no shrunk covariance is (nearly) singular.

    variance, shrinkage: (G,); shrinkage × variance is a lower bound of the eigenvalues (variance itself in one
    dimension).

    >>> lift(np.array([1.0, 1.0]), np.array([0.1, 0.0]), dimensions=3).tolist()  # the second may be singular
    [0.0, 1e-06]
    """
    scale = variance.mean()
    if scale <= 0:
        return np.ones_like(variance)
    least = variance if dimensions == 1 else shrinkage * variance
    return np.maximum(0, np.maximum(LOCATION_FLOOR * scale - variance, EIGENVALUE_FLOOR * variance - least))


def shrunk(scatter: np.ndarray, count: int, shrinkage: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """(1 - shrinkage) scatter / count + diagonal I, for groups (G, D, D), (G,), (G,).

    >>> shrunk(np.array([[[4.0, 2], [2, 8]]]), 2, np.array([0.5]), np.array([1.0])).tolist()
    [[[2.0, 0.5], [0.5, 3.0]]]
    """
    covariance = scatter * ((1 - shrinkage) / count)[:, None, None]
    index = np.arange(scatter.shape[-1])
    covariance[:, index, index] += diagonal[:, None]
    return covariance


def principal(centred: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues (k,) and eigenvectors (D, k) of centredᵀ centred / N, for (N, D); zeros past its rank.

    >>> values, vectors = principal(np.array([[-2.0, 0, 0], [2, 0, 0]]), rank=1)
    >>> values.round(9).tolist(), np.abs(vectors).round(9).T.tolist()
    ([4.0], [[1.0, 0.0, 0.0]])
    """
    count = len(centred)
    # X Xᵀ u = λ u gives XᵀX (Xᵀu) = λ (Xᵀu): the (N, N) matrix has the eigenvalues of the (D, D) one.
    values, vectors = np.linalg.eigh(centred @ centred.T)  # (N,), ascending; (N, N)
    values, vectors = np.maximum(values[-rank:], 0), vectors[:, -rank:]
    scale = np.zeros_like(values)  # ‖Xᵀu‖ = √λ makes the eigenvectors of unit length
    np.divide(1, np.sqrt(values), out=scale, where=values > RANK_TOLERANCE * max(values[-1], 1e-300))
    return values / count, centred.T @ (vectors * scale)
