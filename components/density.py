"""Densities of normal features: Gaussians kept as sufficient statistics, and a kernel density.

A Gaussian is never fitted to data that must be kept: it is computed from count, mean, scatter and the two higher
moments that Ledoit–Wolf shrinkage needs (`Moments`), and those can be merged and unmerged exactly. So images are
added and removed without a refit, and the density of "all folds but one" costs a merge.

Sources: GDE, Li et al., "CutPaste" (CVPR 2021), section 2.4, and Rippel et al., "Modeling the distribution of
normal data in pre-trained deep features" (ICPR 2020); one Gaussian per location, Defard et al., "PaDiM" (2020);
shrinkage, Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004), and
Chen et al., "Shrinkage algorithms for MMSE covariance estimation" (2010), eq. 23; pairwise merging of moments,
Chan, Golub and LeVeque (1979), here carried to the fourth order.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy import linalg, special
from scipy.linalg import lapack
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from components.errors import UserError

Result = TypeVar("Result")
Layout = Literal["image", "shared", "location", "pooled"]
Covariance = Literal["ledoit-wolf", "oas", "empirical", "ridge", "low-rank"]

# A location whose average variance is below this part of the average over all locations hardly varies at all (a
# plain background); it is raised to that, so that rounding noise there does not drown every other location.
LOCATION_FLOOR = 1e-4
# The least eigenvalue of a shrunk covariance, in parts of its average variance, where shrinkage gives none
# (Ledoit–Wolf does not shrink two observations).
EIGENVALUE_FLOOR = 1e-6
# Eigenvalues below this part of the largest count as zero in the pseudo-inverse.
RANK_TOLERANCE = 1e-12
# Fourth powers of larger values would overflow.
LARGEST_VALUE = 1e60
CHUNK_BYTES = 1 << 24
# Columns that the projection for leading eigenpairs has more than the rank it looks for.
SKETCH_MARGIN = 8


class Scorer(Protocol):
    """What scores features, whatever was fitted: distances (N,) of (N, D), or (N, L) of (N, L, D)."""

    def score(self, X: ArrayLike) -> np.ndarray:
        """Distances; higher is more anomalous."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it holds, by name."""


class Density(Protocol):
    """What learns from features of good images, batch by batch."""

    def add(self, X: ArrayLike) -> Any:
        """Learn from more observations, (N, D) or (N, L, D)."""

    def fit(self, X: Any) -> Any:
        """Forget what was added, then learn from X."""

    def scorer(self) -> Scorer:
        """What scores, after all that was added."""


# Moments -------------------------------------------------------------------------------------------------------


@dataclass
class Moments:
    """Central moments of `count` observations for each of G groups (locations, or one), all float64.

    With d = x - mean: mean (G, D); scatter (G, D, D), the sum of d dᵀ; third (G, D), the sum of ‖d‖² d;
    fourth (G,), the sum of ‖d‖⁴. Where `scatter_summed`, the scatter is the sum over groups, (1, D, D), and third
    and fourth are empty.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray
    third: np.ndarray
    fourth: np.ndarray
    scatter_summed: bool = False

    @classmethod
    def empty(cls, groups: int, dimensions: int, scatter_summed: bool = False) -> Self:
        """Moments of no observation."""
        spreads = 1 if scatter_summed else groups
        higher = 0 if scatter_summed else groups
        scatter = np.zeros((spreads, dimensions, dimensions))
        third, fourth = np.zeros((higher, dimensions)), np.zeros(higher)
        return cls(0, np.zeros((groups, dimensions)), scatter, third, fourth, scatter_summed)

    def copy(self) -> "Moments":
        """A copy that shares no memory."""
        arrays = (self.mean.copy(), self.scatter.copy(), self.third.copy(), self.fourth.copy())
        return Moments(self.count, *arrays, self.scatter_summed)

    def of_groups(self, groups: slice) -> "Moments":
        """A view of some groups: changing its arrays changes these; a summed scatter is viewed whole."""
        scatter = self.scatter if self.scatter_summed else self.scatter[groups]
        arrays = (self.mean[groups], scatter, self.third[groups], self.fourth[groups])
        return Moments(self.count, *arrays, self.scatter_summed)


def central_moments(x: np.ndarray, scatter_summed: bool = False) -> Moments:
    """Moments of x (N, G, D), N >= 1, in two passes over a float64 copy."""
    count, groups, dimensions = x.shape
    d = np.empty((groups, count, dimensions))  # (G, N, D)
    d[...] = x.transpose(1, 0, 2)
    mean = d.mean(axis=1)
    d -= mean[:, None]
    if scatter_summed:
        flat = d.reshape(-1, dimensions)
        return Moments(count, mean, (flat.T @ flat)[None], np.empty((0, dimensions)), np.empty(0), True)
    squares = np.vecdot(d, d)  # (G, N)
    scatter = np.stack([g.T @ g for g in d])
    third = np.matmul(squares[:, None], d)[:, 0]
    return Moments(count, mean, scatter, third, np.vecdot(squares, squares))


def combine(total: Moments, other: Moments, sign: Literal[1, -1]) -> None:
    """Merge (sign 1) `other` into `total`, or unmerge (sign -1) it from `total`, in place and exactly.

    Unmerging is exact up to rounding at the scale of what was held before: outliers of r standard deviations leave,
    when they go, errors of about r² (scatter) and r⁴ (fourth) times the float64 epsilon.
    """
    if total.count == 0 and sign > 0:
        _take_over(total, other)
        return
    count = total.count + sign * other.count
    if count <= 1 and sign < 0:
        _reset_spread(total)
    gap = other.mean - total.mean  # (G, D)
    step = gap * (sign * other.count / count) if count else -total.mean
    if count > 1 or sign > 0:
        _combine_higher(total, other, sign, gap, step)
        (np.add if sign > 0 else np.subtract)(total.scatter, other.scatter, out=total.scatter)
        weight = sign * total.count * other.count / count
        total.scatter += weight * _outer(gap, total.scatter_summed)
    total.mean += step
    total.count = count


def _take_over(total: Moments, other: Moments) -> None:
    """`combine` into nothing; a summed scatter may hold other groups already."""
    total.count = other.count
    total.mean[...], total.third[...], total.fourth[...] = other.mean, other.third, other.fourth
    total.scatter += other.scatter


def _reset_spread(total: Moments) -> None:
    """One observation or none has no spread: leave no rounding residue of what was removed."""
    for moment in (total.scatter, total.third, total.fourth):
        moment[...] = 0


def _combine_higher(total: Moments, other: Moments, sign: int, gap: np.ndarray, step: np.ndarray) -> None:
    """Third and fourth moments about the new mean; needs both scatters as they were."""
    if total.scatter_summed:
        return
    third, fourth = _shifted(total, -step)
    other_third, other_fourth = _shifted(other, gap - step)
    total.third[...] = third + sign * other_third
    total.fourth[...] = fourth + sign * other_fourth


def _shifted(m: Moments, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Third and fourth moments about mean - e, for e (G, D).

    From ‖d + e‖² = ‖d‖² + 2 d·e + ‖e‖², summed with the sum of d zero:
    third + tr(S) e + 2 S e + n ‖e‖² e, and fourth + 4 third·e + 4 eᵀS e + 2 ‖e‖² tr(S) + n ‖e‖⁴.
    """
    square = np.vecdot(e, e)  # (G,)
    trace = np.trace(m.scatter, axis1=1, axis2=2)  # (G,)
    scatter_e = np.matmul(m.scatter, e[..., None])[..., 0]  # (G, D)
    third = m.third + (trace + m.count * square)[:, None] * e + 2 * scatter_e
    fourth = m.fourth + 4 * np.vecdot(m.third, e) + 4 * np.vecdot(e, scatter_e)
    return third, fourth + 2 * square * trace + m.count * square**2


def _outer(gap: np.ndarray, summed: bool) -> np.ndarray:
    """gap gapᵀ for each group (G, D, D), or their sum (1, D, D)."""
    return (gap.T @ gap)[None] if summed else gap[:, :, None] * gap[:, None, :]


def _accumulate(total: Moments, x: np.ndarray, sign: Literal[1, -1]) -> None:
    """Add or remove x (N, G, D) in place, holding about CHUNK_BYTES of float64 at a time."""
    start, count = total.count, total.count
    for groups in _group_blocks(*total.mean.shape):
        block = total.of_groups(groups)
        block.count = start
        rows = max(1, CHUNK_BYTES // (8 * block.mean.size))
        for i in range(0, len(x), rows):
            combine(block, central_moments(x[i : i + rows, groups], total.scatter_summed), sign)
        count = block.count
    total.count = count


def _group_blocks(groups: int, dimensions: int) -> Iterator[slice]:
    """Slices of groups whose (D, D) matrices take about CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // (8 * dimensions**2))
    return (slice(i, min(i + size, groups)) for i in range(0, groups, size))


# Shrinkage -----------------------------------------------------------------------------------------------------


def ledoit_wolf_shrinkage(count: int, scatter: np.ndarray, fourth: np.ndarray) -> np.ndarray:
    """Ledoit–Wolf's optimal shrinkage in [0, 1] for each group, equal to scikit-learn's of the centred data.

    count: observations; scatter (G, D, D); fourth (G,), the sum of ‖d‖⁴. Returns (G,); 0 where D is 1 or nothing
    varies.
    """
    dimensions = scatter.shape[-1]
    if dimensions == 1:
        return np.zeros(len(scatter))
    norm = _squared_norms(scatter) / count**2
    variance = _average_variance(count, scatter)
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
    square = _average_variance(count, scatter) ** 2
    denominator = (count + 1) * (alpha - square / dimensions)
    ratio = np.divide(alpha + square, denominator, out=np.ones_like(alpha), where=denominator > 0)
    return np.minimum(ratio, 1)


def _squared_norms(scatter: np.ndarray) -> np.ndarray:
    """Squared Frobenius norm of each (G, D, D) matrix."""
    return np.array([np.vdot(s, s) for s in scatter])


def _average_variance(count: int, scatter: np.ndarray) -> np.ndarray:
    """Average over features of each group's variance (G,)."""
    return np.trace(scatter, axis1=1, axis2=2) / (count * scatter.shape[-1])


def _shrunk(scatter: np.ndarray, count: int, shrinkage: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """(1 - shrinkage) scatter / count + diagonal I, for groups (G, D, D), (G,), (G,)."""
    covariance = scatter * ((1 - shrinkage) / count)[:, None, None]
    index = np.arange(scatter.shape[-1])
    covariance[:, index, index] += diagonal[:, None]
    return covariance


def _inverse_cholesky(covariance: np.ndarray) -> np.ndarray:
    """Upper triangular W (D, D) with W Wᵀ the inverse of a positive definite covariance."""
    factor, failed = lapack.dpotrf(covariance.T, lower=0, clean=1)
    if failed:
        raise UserError(
            "The covariance of the features is not positive definite in float64: choose a larger ridge, or the "
            "covariance ledoit-wolf."
        )
    inverse, _ = lapack.dtrtri(factor, lower=0)
    return inverse


def _pseudo_whitening(covariance: np.ndarray, rank: int) -> np.ndarray:
    """Upper triangular W (D, D) with W Wᵀ the pseudo-inverse of a covariance of at most this rank."""
    values, vectors = linalg.eigh(covariance)
    kept = (values > values[-1] * max(RANK_TOLERANCE, len(values) * np.finfo(float).eps)) & (values > 0)
    kept[: max(0, len(values) - rank)] = False
    scaled = np.where(kept, vectors / np.sqrt(np.where(kept, values, 1)), 0)
    return linalg.rq(scaled, mode="r")


# Input checks --------------------------------------------------------------------------------------------------


def _checked(X: ArrayLike, ndim: int) -> np.ndarray:
    """X as an array of `ndim` axes of finite real numbers.

    Raises UserError with the place of the first value that is not.
    """
    x = np.asarray(X)
    if x.ndim != ndim or x.dtype.kind not in "fiu":
        axes = "(N, D)" if ndim == 2 else "(N, L, D)"
        raise UserError(f"Features must be real numbers of shape {axes}, but these are {x.dtype} of shape {x.shape}.")
    if x.size == 0:
        return x
    low, high = float(x.min()), float(x.max())  # NaN propagates through both
    if not -LARGEST_VALUE < low <= high < LARGEST_VALUE:
        _refuse_first_bad(x)
    return x


def _refuse_first_bad(x: np.ndarray) -> None:
    for i, sample in enumerate(x):
        bad = ~(np.abs(sample.astype(np.float64)) < LARGEST_VALUE)
        if bad.any():
            place = (i, *(int(p) for p in np.argwhere(bad)[0]))
            named = "sample {}, feature {}" if x.ndim == 2 else "image {}, location {}, feature {}"
            raise UserError(
                f"The features hold {x[place]} at {named.format(*place)}: every feature must be a finite number "
                f"below {LARGEST_VALUE:g}, so check the image and the encoder that made it."
            )


def _each(compute: Callable[[Any], Result], matrices: Sequence[Any] | np.ndarray) -> Iterator[Result]:
    """`compute` of each small matrix, in order; on all cores, with one thread for each, as BLAS loses time on them."""
    if len(matrices) == 1:
        yield compute(matrices[0])
        return
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(compute, matrices)


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


def _pack(matrices: np.ndarray) -> np.ndarray:
    """Upper triangles (G, D (D + 1) / 2) of (G, D, D), row by row."""
    return np.stack([m[np.triu_indices(m.shape[0])] for m in matrices])


def _unpack(packed: np.ndarray, dimensions: int, symmetric: bool) -> np.ndarray:
    """(G, D, D) from upper triangles, mirrored or with zeros below the diagonal."""
    rows, columns = np.triu_indices(dimensions)
    matrices = np.zeros((len(packed), dimensions, dimensions), packed.dtype)
    for matrix, triangle in zip(matrices, packed, strict=True):
        matrix[rows, columns] = triangle
        if symmetric:
            matrix[columns, rows] = triangle
    return matrices


def _require_shapes(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise UserError(f"The stored density is damaged: array '{name}' has shape {found}, not {shape}.")


def _stored_shape(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, int]:
    if name not in arrays or arrays[name].ndim != 2:
        raise UserError(f"The stored density is damaged: it needs an array '{name}' of two axes.")
    rows, columns = arrays[name].shape
    return rows, columns


def _stored_moments(arrays: Mapping[str, np.ndarray], count: int, scatter_summed: bool) -> Moments:
    groups, dimensions = _stored_shape(arrays, "mean")
    shapes = {"scatter": (1 if scatter_summed else groups, dimensions * (dimensions + 1) // 2)}
    higher = {} if scatter_summed else {"third": (groups, dimensions), "fourth": (groups,)}
    _require_shapes(arrays, shapes | higher)
    moments = Moments.empty(groups, dimensions, scatter_summed)
    moments.count = count
    moments.mean[...] = arrays["mean"]
    moments.scatter = _unpack(np.asarray(arrays["scatter"], np.float64), dimensions, symmetric=True)
    for name in higher:
        getattr(moments, name)[...] = arrays[name]
    return moments


# Gaussian ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """Precisions of a low-rank covariance: `inside` (1 or L, k) along its directions, `outside` across them."""

    inside: np.ndarray
    outside: np.floating


class GaussianScorer:
    """What is needed to score with a Gaussian, and nothing else.

    mean: (1, D), or (L, D) for the layouts "location" and "pooled".
    whitening: (1, D, D), or (L, D, D) for "location"; upper triangular W, W Wᵀ being the precision matrix.
    Both in the dtype that scores are computed in.
    low_rank: None; or what makes the covariance low-rank. Then `whitening` holds orthonormal directions U
    (1 or L, D, k), and the squared distance of a deviation d is Σ (Uᵀd)² · inside + ‖d - U Uᵀd‖² · outside.
    """

    def __init__(
        self, layout: Layout, mean: np.ndarray, whitening: np.ndarray, low_rank: "LowRank | None" = None
    ) -> None:
        self.layout = layout
        self.mean = mean
        self.whitening = whitening
        self.low_rank = low_rank

    def score(self, X: ArrayLike) -> np.ndarray:
        """Mahalanobis distances of X: (N,) for (N, D) with the layout "image", else (N, L) for (N, L, D).

        Raises UserError for another shape, another number of locations or features, and values that are not finite.
        """
        x = _checked(X, 2 if self.layout == "image" else 3)
        self._require_fit(x)
        grouped = x[:, None] if x.ndim == 2 else x  # (N, L or 1, D)
        score = self._score_groups if len(self.whitening) > 1 else self._score_rows
        return score(grouped).reshape(x.shape[:-1])

    def _require_fit(self, x: np.ndarray) -> None:
        groups, dimensions = self.mean.shape
        located = self.layout in ("location", "pooled")
        if x.shape[-1] != dimensions or (located and x.shape[1] != groups):
            expected = f"(N, {groups}, {dimensions})" if located else f"(…, {dimensions})"
            raise UserError(f"The density was fitted to features of shape {expected}, not {x.shape}.")

    def _score_rows(self, x: np.ndarray) -> np.ndarray:
        """One whitening for all locations; x (N, L, D)."""
        dtype, dimensions = self.mean.dtype, x.shape[-1]
        scores = np.empty(x.shape[:-1], dtype)  # (N, L)
        step = max(1, CHUNK_BYTES // max(1, dtype.itemsize * x.shape[1] * dimensions))
        for i in range(0, len(x), step):
            d = np.subtract(x[i : i + step], self.mean, dtype=dtype)  # (n, L, D)
            scores[i : i + step] = self._lengths(d.reshape(-1, dimensions), 0).reshape(d.shape[:-1])
        return scores

    def _score_groups(self, x: np.ndarray) -> np.ndarray:
        """A whitening for each location; x (N, L, D)."""
        dtype = self.mean.dtype
        scores = np.empty(x.shape[:-1], dtype)  # (N, L)
        step = max(1, CHUNK_BYTES // max(1, dtype.itemsize * len(x) * x.shape[-1]))
        for i in range(0, x.shape[1], step):
            part = slice(i, i + step)
            d = np.subtract(x[:, part], self.mean[part], dtype=dtype).transpose(1, 0, 2)  # (l, N, D)
            scores[:, part] = self._lengths(np.ascontiguousarray(d), part).T
        return scores

    def _lengths(self, d: np.ndarray, groups: int | slice) -> np.ndarray:
        """Distances (…) of deviations d (…, D) from the means of these groups."""
        directions = self.whitening[groups]
        z = np.matmul(d, directions)  # (…, D or k)
        if self.low_rank is None:
            return np.sqrt(np.vecdot(z, z))
        # The remainder is formed before it is squared: ‖d‖² - ‖z‖² would lose most digits in float32.
        rest = d - np.matmul(z, directions.swapaxes(-1, -2))
        inside = self.low_rank.inside[groups][..., None, :]  # (…, 1, k)
        return np.sqrt((z * z * inside).sum(axis=-1) + np.vecdot(rest, rest) * self.low_rank.outside)

    def narrowed(self, rank: int) -> "GaussianScorer":
        """The scorer of the same low-rank density with this rank, where it is lower; else this one."""
        if self.low_rank is None or rank >= self.low_rank.inside.shape[-1]:
            return self
        directions = np.ascontiguousarray(self.whitening[..., -rank:])  # the leading ones are last
        inside = np.ascontiguousarray(self.low_rank.inside[..., -rank:])
        return GaussianScorer(self.layout, self.mean, directions, replace(self.low_rank, inside=inside))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes: "mean" (1 or L, D), and "whitening" (1 or L, D (D + 1) / 2), upper triangles row by
        row; for a low-rank covariance (1 or L, D, k), with "inside" (1 or L, k) and "outside" (1,)."""
        if self.low_rank is None:
            return {"mean": self.mean, "whitening": _pack(self.whitening)}
        outside = np.array([self.low_rank.outside])
        return {"mean": self.mean, "whitening": self.whitening, "inside": self.low_rank.inside, "outside": outside}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Self:
        """Rebuild from `arrays()` and `GaussianDensity.meta()`; raises UserError where they do not fit together."""
        layout = _known("layout", meta.get("layout"), Layout)
        groups, dimensions = _stored_shape(arrays, "mean")
        matrices = groups if layout == "location" else 1
        if "inside" in arrays:
            rank = arrays["inside"].shape[-1]
            shapes = {"whitening": (matrices, dimensions, rank), "inside": (matrices, rank), "outside": (1,)}
            _require_shapes(arrays, shapes)
            return cls(layout, arrays["mean"], arrays["whitening"], LowRank(arrays["inside"], arrays["outside"][0]))
        _require_shapes(arrays, {"whitening": (matrices, dimensions * (dimensions + 1) // 2)})
        return cls(layout, arrays["mean"], _unpack(arrays["whitening"], dimensions, symmetric=False))


def low_rank_scorer(X: ArrayLike, layout: Layout, ridge: float, rank: int) -> GaussianScorer:
    """The float32 scorer of `GaussianDensity(layout, "low-rank", ridge, rank).fit(X)`, without its (D, D) statistics.

    For X (N, D) or (N, L, D) that is held anyway and of fewer observations than features: the leading eigenvectors
    come from the (N, N) matrix of inner products, which costs a small part. Layouts "image" and "location" only.
    """
    if layout not in ("image", "location"):
        raise ValueError(f"layout must be 'image' or 'location', not {layout!r}")
    x = _checked(X, 2 if layout == "image" else 3)
    grouped = x.reshape(len(x), -1, x.shape[-1]).swapaxes(0, 1)  # (G, N, D)
    mean = grouped.mean(axis=1, dtype=np.float64)  # (G, D)
    pairs = list(_each(lambda pair: _principal(pair[0] - pair[1], rank), list(zip(grouped, mean, strict=True))))
    directions = np.ascontiguousarray(np.stack([vectors for _, vectors in pairs]), np.float32)
    inside = np.stack([(1 / (values + ridge)).astype(np.float32) for values, _ in pairs])
    return GaussianScorer(layout, mean.astype(np.float32), directions, LowRank(inside, np.float32(1 / ridge)))


def _principal(centred: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues (k,) and eigenvectors (D, k) of centredᵀ centred / N, for (N, D); zeros past its rank."""
    count = len(centred)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = np.maximum(values[-rank:], 0), vectors[:, -rank:]
    scale = np.zeros_like(values)
    np.divide(1, np.sqrt(values), out=scale, where=values > RANK_TOLERANCE * max(values[-1], 1e-300))
    return values / count, centred.T @ (vectors * scale)


def _known(name: str, value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise UserError(f"The density's {name} must be one of {', '.join(get_args(choices))}, not {value!r}.")
    return value


class GaussianDensity:
    """A Gaussian density of normal features, kept as sufficient statistics.

    layout: what one Gaussian describes.
        "image": X (N, D), the samples. "shared": X (N, L, D), the vectors of all locations together.
        "location": X (N, L, D), each location by itself. "pooled": X (N, L, D), a mean per location and one
        covariance for all, of the deviations from them.
    covariance: how it is made from the empirical covariance S (maximum likelihood: divided by the count).
        "ledoit-wolf", "oas": shrunk towards the average variance, as scikit-learn does. "ridge": S + ridge I.
        "empirical": S with its pseudo-inverse, which is blind to every direction in which nothing varied.
        "low-rank": the part of S in its `rank` leading eigenvectors, + ridge I (probabilistic PCA: Tipping and
        Bishop, 1999): a few hundred images cannot tell the weaker directions of S from noise.
    ridge: added variance, > 0, in squared feature units; used by "ridge" and "low-rank" only.
    rank: eigenvectors that "low-rank" keeps, at least 1; at most the number of features counts.

    Degenerate data, for "ledoit-wolf" and "oas": where shrinkage leaves eigenvalues below EIGENVALUE_FLOOR of the
    average variance (two observations), and where a location's average variance is below LOCATION_FLOOR of the
    average over locations (features that never vary), a multiple of I lifts them to that floor; when nothing varies
    anywhere, the covariance is I. Scores are therefore always finite, and a change where nothing ever changed
    scores high. Everywhere else the covariance is exactly the shrunk one.

    Statistics are float64 of (L, D, D); only "pooled" without "ledoit-wolf" keeps a single (D, D), because the
    exact fourth moment about changing means needs each location's scatter.
    """

    def __init__(
        self,
        layout: Layout = "image",
        covariance: Covariance = "ledoit-wolf",
        ridge: float = 0.01,
        rank: int = 32,
    ) -> None:
        self.layout: Layout = _known("layout", layout, Layout)
        self.covariance: Covariance = _known("covariance", covariance, Covariance)
        if not 0 < ridge < np.inf:
            raise UserError(f"The density's ridge must be a positive number, not {ridge}.")
        if rank < 1:
            raise UserError(f"The density's rank must be at least 1, not {rank}.")
        self.ridge, self.rank = float(ridge), int(rank)
        self._moments: Moments | None = None
        self._scorer: GaussianScorer | None = None

    # Statistics

    def fit(self, X: np.ndarray | Iterable[np.ndarray]) -> Self:
        """Forget what was added, then add X: an array as the layout says, or an iterable of such arrays.

        An iterable is read once, and only one of its arrays is held at a time. Raises as `add`; then the density is
        as it was before.
        """
        fresh = GaussianDensity(**self.settings())
        chunks: Iterable[np.ndarray] = [np.asarray(X)] if hasattr(X, "__array__") else X
        for chunk in chunks:
            fresh.add(chunk)
        self._moments, self._scorer = fresh._moments, None
        return self

    def add(self, X: ArrayLike) -> Self:
        """Add observations: X (N, D) or (N, L, D), float32 or float64; the same as a refit with them.

        Raises UserError for another shape and for values that are not finite; nothing is added then.
        """
        return self._change(X, 1)

    partial_fit = add

    def remove(self, X: ArrayLike) -> Self:
        """Take away observations that were added before, exactly: the same as a refit without them.

        Whether X was added cannot be seen from the statistics; removing anything else gives a meaningless density.
        Raises UserError as `add`, and when X holds more observations than were added; nothing is removed then.
        """
        return self._change(X, -1)

    def _change(self, X: ArrayLike, sign: Literal[1, -1]) -> Self:
        x = _checked(X, 2 if self.layout == "image" else 3)
        if x.size:
            moments = self._moments_for(x)
            rows = x.reshape(-1, 1, x.shape[-1]) if self.layout in ("image", "shared") else x  # (N, G, D)
            if sign < 0:
                _require_held(moments.count, len(rows))
            _accumulate(moments, rows, sign)
            self._moments, self._scorer = moments, None
        return self

    def _moments_for(self, x: np.ndarray) -> Moments:
        """This density's moments, or empty ones of x's shape; refuses x of another shape."""
        groups, dimensions = 1 if self.layout in ("image", "shared") else x.shape[1], x.shape[-1]
        moments = self._moments
        if moments is None:
            return Moments.empty(groups, dimensions, self._scatter_summed)
        if moments.mean.shape != (groups, dimensions):
            held = f"{moments.mean.shape[0]} × {moments.mean.shape[1]}"
            raise UserError(
                f"Features of {groups} × {dimensions} (locations × features) cannot join a density of {held}."
            )
        return moments

    @property
    def _scatter_summed(self) -> bool:
        return self.layout == "pooled" and self.covariance != "ledoit-wolf"

    def merged(self, other: "GaussianDensity") -> "GaussianDensity":
        """The density of this one's observations and the other's, as a new object."""
        return self.merge([self, other])

    def without(self, other: "GaussianDensity") -> "GaussianDensity":
        """The density of this one's observations without the other's, which must be among them; a new object."""
        return self._combined(other, -1)

    @staticmethod
    def merge(densities: "Sequence[GaussianDensity]") -> "GaussianDensity":
        """The density of all observations of several densities of equal settings, as a new object."""
        if not densities:
            raise UserError("There is no density to merge: give at least one.")
        merged = densities[0]._copy()
        for density in densities[1:]:
            merged._combine(density, 1)
        return merged

    @staticmethod
    def all_but(folds: "Sequence[GaussianDensity]", k: int) -> "GaussianDensity":
        """The density of every fold but the k-th (from 0), for cross-fitting; at least two folds."""
        if len(folds) < 2 or not 0 <= k < len(folds):
            raise UserError(f"There is no density of all but fold {k} of {len(folds)}: give two folds or more.")
        return GaussianDensity.merge([*folds[:k], *folds[k + 1 :]])

    def _combined(self, other: "GaussianDensity", sign: Literal[1, -1]) -> "GaussianDensity":
        result = self._copy()
        result._combine(other, sign)
        return result

    def _combine(self, other: "GaussianDensity", sign: Literal[1, -1]) -> None:
        if other.settings() != self.settings():
            raise UserError(f"Densities of {self.settings()} and {other.settings()} cannot be combined.")
        if other._moments is None:
            return
        mine = self._moments_for(other._moments.mean[None])
        if sign < 0:
            _require_held(mine.count, other._moments.count)
        _combine_blockwise(mine, other._moments, sign)
        self._moments, self._scorer = mine, None

    def _copy(self) -> "GaussianDensity":
        copy = GaussianDensity(**self.settings())
        copy._moments = None if self._moments is None else self._moments.copy()
        return copy

    # Estimates

    @property
    def count(self) -> int:
        """Observations per Gaussian mean: images, or for the layout "shared" images × locations."""
        return 0 if self._moments is None else self._moments.count

    @property
    def location_(self) -> np.ndarray:
        """The mean: (D,), or (L, D) for the layouts "location" and "pooled"; float64."""
        mean = self._defined().mean
        return mean[0] if self.layout in ("image", "shared") else mean

    @property
    def shrinkage_(self) -> float | np.ndarray:
        """The shrinkage in [0, 1]: a number, or (L,) for the layout "location"; 0 for those which do not shrink."""
        shrinkage = self._regularisation()[0]
        return shrinkage if self.layout == "location" else float(shrinkage[0])

    @property
    def covariance_(self) -> np.ndarray:
        """The covariance that scores use: (D, D), or (L, D, D) for the layout "location"; float64."""
        if self.covariance == "low-rank":
            identity = self.ridge * np.eye(self._defined().mean.shape[1])
            covariance = np.stack([(vectors * values) @ vectors.T + identity for values, vectors in self._leading()])
        else:
            scatter, observations, _ = self._spread()
            covariance = _shrunk(scatter, observations, *self._regularisation())
        return covariance if self.layout == "location" else covariance[0]

    def _defined(self) -> Moments:
        """The moments, where there are enough observations for a covariance."""
        least = 1 if self.covariance in ("ridge", "low-rank") else 2
        if self._moments is None or self._moments.count < least:
            raise UserError(
                f"A Gaussian with covariance '{self.covariance}' needs at least {least} observation"
                f"{'s' if least > 1 else ''}, but {self.count} were added: add more images"
                f"{', or choose the covariance ridge' if self.count else ''}."
            )
        return self._moments

    def _spread(self) -> tuple[np.ndarray, int, np.ndarray]:
        """Scatter (G, D, D), its observations, and sums of ‖d‖⁴ (G,), of each covariance."""
        m = self._defined()
        if self.layout != "pooled":
            return m.scatter, m.count, m.fourth
        return m.scatter.sum(axis=0, keepdims=True), m.count * len(m.mean), m.fourth.sum(keepdims=True)

    def _regularisation(self) -> tuple[np.ndarray, np.ndarray]:
        """For each covariance its shrinkage (G,) and what is added to its diagonal (G,)."""
        scatter, observations, fourth = self._spread()
        if self.covariance in ("ridge", "low-rank", "empirical"):
            added = 0.0 if self.covariance == "empirical" else self.ridge
            return np.zeros(len(scatter)), np.full(len(scatter), added)
        if self.covariance == "oas":
            shrinkage = oas_shrinkage(observations, scatter)
        else:
            shrinkage = ledoit_wolf_shrinkage(observations, scatter, fourth)
        variance = _average_variance(observations, scatter)
        return shrinkage, shrinkage * variance + _lift(variance, shrinkage, scatter.shape[-1])

    # Scores

    def score(self, X: ArrayLike, dtype: DTypeLike = np.float64) -> np.ndarray:
        """Mahalanobis distances d of X: (N,) for the layout "image", else (N, L); higher is more anomalous.

        The log-density is -d²/2 - logdet(covariance)/2 - D log(2π)/2, so d orders points as the density does within
        one Gaussian; per location the log-determinants differ, and d (not the density) is the comparable figure.
        dtype: float64, or float32 for speed. Raises UserError for too few observations and as `add`.
        """
        return self.scorer(dtype).score(X)

    def scorer(self, dtype: DTypeLike = np.float32) -> GaussianScorer:
        """The scorer of this density in float32 or float64; computed once and kept until observations change."""
        dtype = np.dtype(dtype)
        if self._scorer is None or self._scorer.mean.dtype != dtype:
            mean = self._defined().mean
            if self.covariance == "low-rank":
                whitening, low_rank = self._low_rank(dtype)
            else:
                whitening, low_rank = self._whitening(dtype), None
            self._scorer = GaussianScorer(self.layout, mean.astype(dtype), whitening, low_rank)
        return self._scorer

    def _whitening(self, dtype: np.dtype) -> np.ndarray:
        """Upper triangular whitening matrices (G, D, D), made in float64 and a block of locations at a time."""
        scatter, observations, _ = self._spread()
        shrinkage, diagonal = self._regularisation()
        invert = self._inverter(observations)
        whitening = np.empty(scatter.shape, dtype)
        for groups in _group_blocks(*scatter.shape[:2]):
            covariance = _shrunk(scatter[groups], observations, shrinkage[groups], diagonal[groups])
            for group, inverse in zip(whitening[groups], _each(invert, covariance), strict=True):
                group[...] = inverse
        return whitening

    def _low_rank(self, dtype: np.dtype) -> tuple[np.ndarray, LowRank]:
        """Leading eigenvectors (G, D, k) of each covariance, and the precisions along and across them."""
        pairs = list(self._leading())
        directions = np.ascontiguousarray(np.stack([vectors for _, vectors in pairs]), dtype)
        inside = np.stack([(1 / (values + self.ridge)).astype(dtype) for values, _ in pairs])
        return directions, LowRank(inside, dtype.type(1 / self.ridge))

    def _leading(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The `rank` leading eigenvalues (k,) and eigenvectors (D, k) of each empirical covariance."""
        scatter, observations, _ = self._spread()
        freedom = observations - (len(self._defined().mean) if self.layout == "pooled" else 1)
        yield from _each(lambda s: leading_eigenpairs(np.divide(s, observations), self.rank, freedom), scatter)

    def _inverter(self, observations: int) -> Callable[[np.ndarray], np.ndarray]:
        if self.covariance != "empirical":
            return _inverse_cholesky
        means = len(self._defined().mean) if self.layout == "pooled" else 1
        return lambda covariance: _pseudo_whitening(covariance, observations - means)

    # Storage

    def settings(self) -> dict[str, Any]:
        """What was given to the constructor."""
        return {"layout": self.layout, "covariance": self.covariance, "ridge": self.ridge, "rank": self.rank}

    def meta(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON; goes with `state_arrays` and with `scoring_arrays`."""
        return {"kind": "gaussian", **self.settings(), "count": self.count}

    def state_arrays(self) -> dict[str, np.ndarray]:
        """The sufficient statistics, float64, from which observations can still be added and removed.

        "mean" (G, D), "scatter" as upper triangles (G or 1, D (D + 1) / 2), and unless the scatter is summed
        "third" (G, D) and "fourth" (G,). Raises UserError when nothing was added.
        """
        m = self._moments
        if m is None:
            raise UserError("The density is empty: add images before it is stored.")
        higher = {} if m.scatter_summed else {"third": m.third.copy(), "fourth": m.fourth.copy()}
        return {"mean": m.mean.copy(), "scatter": _pack(m.scatter), **higher}

    @classmethod
    def from_state_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Self:
        """Rebuild from `state_arrays()` and `meta()`; raises UserError where they do not fit together."""
        density = cls(
            meta.get("layout", ""), meta.get("covariance", ""), meta.get("ridge", np.nan), meta.get("rank", 32)
        )
        count = meta.get("count")
        if not isinstance(count, int) or count < 0:
            raise UserError(f"The stored density is damaged: its count is {count!r}.")
        density._moments = _stored_moments(arrays, count, density._scatter_summed)
        return density

    def scoring_arrays(self) -> dict[str, np.ndarray]:
        """Only what scoring needs, float32: "mean" and "whitening", for `GaussianScorer.from_arrays`."""
        return self.scorer(np.float32).arrays()


def _lift(variance: np.ndarray, shrinkage: np.ndarray, dimensions: int) -> np.ndarray:
    """What must be added to the diagonal (G,) so that no shrunk covariance is (nearly) singular.

    variance, shrinkage: (G,); shrinkage × variance is a lower bound of the eigenvalues (variance itself in one
    dimension).
    """
    scale = variance.mean()
    if scale <= 0:
        return np.ones_like(variance)
    least = variance if dimensions == 1 else shrinkage * variance
    return np.maximum(0, np.maximum(LOCATION_FLOOR * scale - variance, EIGENVALUE_FLOOR * variance - least))


def _combine_blockwise(total: Moments, other: Moments, sign: Literal[1, -1]) -> None:
    """`combine`, with temporaries of a block of groups only."""
    if total.scatter_summed:
        combine(total, other, sign)
        return
    blocks = [(total.of_groups(g), other.of_groups(g)) for g in _group_blocks(*total.mean.shape)]
    for mine, theirs in blocks:
        combine(mine, theirs, sign)
    total.count += sign * other.count


def _require_held(held: int, removed: int) -> None:
    if removed > held:
        raise UserError(f"Cannot remove {removed} observations from a density of {held}.")


# Kernel density ------------------------------------------------------------------------------------------------


class KernelDensity:
    """A Gaussian kernel density of standardised features, with the bandwidth of best cross-validated likelihood.

    It keeps what it was fitted to, and its bandwidth is chosen anew when more is added. folds: of the
    cross-validation (at most the number of samples). grid: bandwidths tried, in multiples of Scott's
    rule n^(-1/(D + 4)); None for 25 from 0.1 to 10, log-spaced. seed: of the split into folds.
    """

    def __init__(self, folds: int = 5, grid: Sequence[float] | None = None, seed: int = 0) -> None:
        self.folds = folds
        self.grid = np.geomspace(0.1, 10, 25) if grid is None else np.asarray(grid, float)
        self.seed = seed
        self._added: list[np.ndarray] = []
        self._state: dict[str, np.ndarray] | None = None
        self._model: Any = None

    def add(self, X: ArrayLike) -> Self:
        """Keep further samples X (N, D); the density is fitted to all of them when it scores. Raises as `fit`."""
        x = _checked(X, 2).astype(np.float64)
        if self._added and x.shape[1] != self._added[0].shape[1]:
            held = self._added[0].shape[1]
            raise UserError(f"Features of {x.shape[1]} dimensions cannot join a kernel density of {held}.")
        self._added.append(x)
        self._state = None
        return self

    def fit(self, X: ArrayLike) -> Self:
        """Fit to X (N, D), N >= 2, float32 or float64; keeps a standardised float64 copy.

        Features are divided by their standard deviation; one that never varies is only centred. Raises UserError for
        fewer than two samples, another shape and values that are not finite.
        """
        x = _checked(X, 2).astype(np.float64)
        if len(x) < 2:
            raise UserError(f"A kernel density needs at least 2 samples, not {len(x)}: add more images.")
        self._added = [x]
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1)
        z = (x - mean) / scale
        bandwidth = self._best_bandwidth(z)
        return self._set({"mean": mean, "scale": scale, "training": z, "bandwidth": np.array([bandwidth])})

    def _best_bandwidth(self, z: np.ndarray) -> float:
        """The bandwidth of greatest held-out log-likelihood; the larger one of equals."""
        bandwidths = np.sort(self.grid * len(z) ** (-1 / (z.shape[1] + 4)))[::-1]
        order = np.random.default_rng(self.seed).permutation(len(z))
        total = np.zeros(len(bandwidths))
        for held_out in np.array_split(order, min(self.folds, len(z))):
            squares = cdist(z[held_out], np.delete(z, held_out, axis=0), "sqeuclidean")
            total += [_kernel_log_density(squares, h, z.shape[1]).sum() for h in bandwidths]
        return float(bandwidths[np.argmax(total)])

    def score(self, X: ArrayLike) -> np.ndarray:
        """Negative log density (N,) of X (N, D), in the original units of X; higher is more anomalous."""
        state = self._fitted("scores")
        mean, scale = state["mean"], state["scale"]
        x = _checked(X, 2)
        if x.shape[1] != len(mean):
            raise UserError(f"The kernel density was fitted to {len(mean)} features, not {x.shape[1]}.")
        if len(x) == 0:
            return np.empty(0)
        return np.log(scale).sum() - self._model.score_samples((x - mean) / scale)

    @property
    def bandwidth_(self) -> float:
        """The chosen bandwidth, in standard deviations."""
        return float(self.state_arrays()["bandwidth"][0])

    def state_arrays(self) -> dict[str, np.ndarray]:
        """ "mean" (D,), "scale" (D,), "training" (N, D) standardised, "bandwidth" (1,), all float64."""
        return dict(self._fitted("is stored"))

    def scorer(self) -> "KernelScorer":
        """The scorer of this density, which holds float32 and needs no scikit-learn."""
        return KernelScorer({name: value.astype(np.float32) for name, value in self._fitted("scores").items()})

    def meta(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        return {"kind": "kernel", "folds": self.folds, "grid": [float(g) for g in self.grid], "seed": self.seed}

    @classmethod
    def from_state_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Self:
        """Rebuild from `state_arrays()` and `meta()`; raises UserError where they do not fit together."""
        _, dimensions = _stored_shape(arrays, "training")
        _require_shapes(arrays, {"mean": (dimensions,), "scale": (dimensions,), "bandwidth": (1,)})
        density = cls(meta["folds"], meta["grid"], meta["seed"])
        density._added = [arrays["training"] * arrays["scale"] + arrays["mean"]]
        return density._set({name: arrays[name] for name in ("mean", "scale", "training", "bandwidth")})

    def _fitted(self, purpose: str) -> dict[str, np.ndarray]:
        """The state, fitted to what was added since; UserError where that is nothing."""
        if self._state is None and self._added:
            self.fit(np.concatenate(self._added))
        if self._state is None:
            raise UserError(f"The kernel density is empty: fit it before it {purpose}.")
        return self._state

    def _set(self, state: dict[str, np.ndarray]) -> Self:
        from sklearn.neighbors import KernelDensity as SklearnKernelDensity  # takes seconds to import

        self._state = state
        self._model = SklearnKernelDensity(bandwidth=float(state["bandwidth"][0])).fit(state["training"])
        return self


class KernelScorer:
    """What is needed to score with a kernel density, and nothing else.

    state: float32 "mean" (D,), "scale" (D,), "training" (N, D) standardised, "bandwidth" (1,), as
    `KernelDensity.state_arrays` names them.
    """

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self.mean, self.scale = state["mean"], state["scale"]
        self.training, self.bandwidth = state["training"], state["bandwidth"]

    def score(self, X: ArrayLike) -> np.ndarray:
        """Negative log density (N,), float64, of X (N, D), as `KernelDensity.score` gives it."""
        x = _checked(X, 2)
        if x.shape[1] != len(self.mean):
            raise UserError(f"The kernel density was fitted to {len(self.mean)} features, not {x.shape[1]}.")
        z = (x.astype(np.float64) - self.mean) / self.scale
        squares = cdist(z, self.training.astype(np.float64), "sqeuclidean")  # (N, M)
        volume = np.log(self.scale.astype(np.float64)).sum()
        return volume - _kernel_log_density(squares, float(self.bandwidth[0]), x.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        return {"mean": self.mean, "scale": self.scale, "training": self.training, "bandwidth": self.bandwidth}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild from `arrays()`; raises UserError where they do not fit together."""
        _, dimensions = _stored_shape(arrays, "training")
        _require_shapes(arrays, {"mean": (dimensions,), "scale": (dimensions,), "bandwidth": (1,)})
        return cls(arrays)


def _kernel_log_density(squares: np.ndarray, bandwidth: float, dimensions: int) -> np.ndarray:
    """Log density (N,) from squared distances (N, M) to M kernels of this bandwidth."""
    exponent = special.logsumexp(-squares / (2 * bandwidth**2), axis=1)
    return exponent - np.log(squares.shape[1]) - dimensions / 2 * np.log(2 * np.pi * bandwidth**2)
