"""Densities of normal features: what every kind can do, and Gaussians kept as sufficient statistics.

A Gaussian is never fitted to data that must be kept: it is computed from count, mean, scatter and the two higher
moments that Ledoit–Wolf shrinkage needs (`Moments`), and those can be merged and unmerged exactly. So images are
added and removed without a refit, and the density of "all folds but one" costs a merge.

Sources: GDE, Li et al., "CutPaste" (CVPR 2021), section 2.4, and Rippel et al., "Modeling the distribution of
normal data in pre-trained deep features" (ICPR 2020); one Gaussian per location, Defard et al., "PaDiM" (2020).
Those of the moments, of the shrinkage and of its inverse are in `components.density.moments`, `.shrinkage` and
`.whitening`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from components.density.arrays import checked, pack, require_shapes, stored_shape, unpack
from components.density.moments import CHUNK_BYTES, Moments, accumulate, combine_blockwise, group_blocks
from components.density.shrinkage import (
    average_variance,
    ledoit_wolf_shrinkage,
    lift,
    oas_shrinkage,
    principal,
    shrunk,
)
from components.foundation.blas import one_blas_thread
from components.foundation.errors import UserError

WORTH_THREADS = 1_000_000  # cubed sizes of small matrices: less is computed before a thread has begun
Result = TypeVar("Result")
Layout = Literal["image", "shared", "location", "pooled"]
Covariance = Literal["ledoit-wolf", "oas", "empirical", "ridge", "low-rank"]


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
        x = checked(X, 2 if self.layout == "image" else 3)
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
        z = np.matmul(d, directions)  # Wᵀd, or Uᵀd: (…, D or k)
        if self.low_rank is None:
            return np.sqrt(np.vecdot(z, z))  # dᵀ Σ⁻¹ d = dᵀ W Wᵀ d = ‖Wᵀd‖²
        # The remainder is formed before it is squared: ‖d‖² - ‖z‖² would lose most digits in float32.
        rest = d - np.matmul(z, directions.swapaxes(-1, -2))  # d - U Uᵀd: (…, D)
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
            return {"mean": self.mean, "whitening": pack(self.whitening)}
        outside = np.array([self.low_rank.outside])
        return {"mean": self.mean, "whitening": self.whitening, "inside": self.low_rank.inside, "outside": outside}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Self:
        """Rebuild from `arrays()` and `GaussianDensity.meta()`; raises UserError where they do not fit together."""
        layout = _known("layout", meta.get("layout"), Layout)
        groups, dimensions = stored_shape(arrays, "mean")
        matrices = groups if layout == "location" else 1
        if "inside" in arrays:
            rank = arrays["inside"].shape[-1]
            shapes = {"whitening": (matrices, dimensions, rank), "inside": (matrices, rank), "outside": (1,)}
            require_shapes(arrays, shapes)
            return cls(layout, arrays["mean"], arrays["whitening"], LowRank(arrays["inside"], arrays["outside"][0]))
        require_shapes(arrays, {"whitening": (matrices, dimensions * (dimensions + 1) // 2)})
        return cls(layout, arrays["mean"], unpack(arrays["whitening"], dimensions, symmetric=False))


def low_rank_scorer(X: ArrayLike, layout: Layout, ridge: float, rank: int) -> GaussianScorer:
    """The float32 scorer of `GaussianDensity(layout, "low-rank", ridge, rank).fit(X)`, without its (D, D) statistics.

    For X (N, D) or (N, L, D) that is held anyway and of fewer observations than features: the leading eigenvectors
    come from the (N, N) matrix of inner products, which costs a small part. Layouts "image" and "location" only.

    >>> X = np.array([[-2.0, 0, 0], [2, 0, 0]])  # variance 4 along the first axis, none across it
    >>> scorer = low_rank_scorer(X, "image", ridge=1.0, rank=1)
    >>> scorer.score([[5.0, 0, 0], [0, 2, 0]]).astype(float).round(4).tolist()  # 5 / √(4 + 1), 2 / √1
    [2.2361, 2.0]
    """
    if layout not in ("image", "location"):
        raise ValueError(f"layout must be 'image' or 'location', not {layout!r}")
    x = checked(X, 2 if layout == "image" else 3)
    grouped = x.reshape(len(x), -1, x.shape[-1]).swapaxes(0, 1)  # (G, N, D)
    mean = grouped.mean(axis=1, dtype=np.float64)  # (G, D)
    pairs = list(_each(lambda pair: principal(pair[0] - pair[1], rank), list(zip(grouped, mean, strict=True))))
    directions = np.ascontiguousarray(np.stack([vectors for _, vectors in pairs]), np.float32)
    inside = np.stack([(1 / (values + ridge)).astype(np.float32) for values, _ in pairs])
    return GaussianScorer(layout, mean.astype(np.float32), directions, LowRank(inside, np.float32(1 / ridge)))


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
    average over locations (features that never vary), a multiple of I lifts them to that floor (both floors are in
    `components.density.shrinkage`); when nothing varies anywhere, the covariance is I. Scores are therefore always
    finite, and a change where nothing ever changed scores high. Everywhere else the covariance is exactly the shrunk
    one.

    Statistics are float64 of (L, D, D); only "pooled" without "ledoit-wolf" keeps a single (D, D), because the
    exact fourth moment about changing means needs each location's scatter.

    >>> X = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])  # mean 0, covariance diag(1/2, 2)
    >>> density = GaussianDensity("image", "empirical").fit(X)
    >>> density.score([[0.0, 0], [1, 0], [0, 4]]).round(4).tolist()  # 1 / √(1/2), 4 / √2
    [0.0, 1.4142, 2.8284]

    Removing what was added is the same as never having had it:

    >>> more = np.array([[9.0, 9], [8, 7]])
    >>> density.add(more).count
    6
    >>> bool(np.allclose(density.remove(more).covariance_, [[0.5, 0], [0, 2]]))
    True
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
        x = checked(X, 2 if self.layout == "image" else 3)
        if x.size:
            moments = self._moments_for(x)
            rows = x.reshape(-1, 1, x.shape[-1]) if self.layout in ("image", "shared") else x  # (N, G, D)
            if sign < 0:
                _require_held(moments.count, len(rows))
            accumulate(moments, rows, sign)
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
        """The density of this one's observations without the other's, which must be among them; a new object.

        >>> both, one = (GaussianDensity(covariance="ridge").add(X) for X in ([[1.0], [3.0]], [[3.0]]))
        >>> both.without(one).location_.tolist()
        [1.0]
        """
        return self._combined(other, -1)

    @staticmethod
    def merge(densities: "Sequence[GaussianDensity]") -> "GaussianDensity":
        """The density of all observations of several densities of equal settings, as a new object.

        >>> parts = [GaussianDensity(covariance="ridge").add(X) for X in ([[0.0, 0]], [[2.0, 4]])]
        >>> GaussianDensity.merge(parts).location_.tolist()
        [1.0, 2.0]
        """
        if not densities:
            raise UserError("There is no density to merge: give at least one.")
        merged = densities[0]._copy()
        for density in densities[1:]:
            merged._combine(density, 1)
        return merged

    @staticmethod
    def all_but(folds: "Sequence[GaussianDensity]", k: int) -> "GaussianDensity":
        """The density of every fold but the k-th (from 0), for cross-fitting; at least two folds.

        >>> folds = [GaussianDensity(covariance="ridge").add([[value]]) for value in (1.0, 2.0, 6.0)]
        >>> GaussianDensity.all_but(folds, 1).location_.tolist()  # of 1 and 6
        [3.5]
        """
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
        combine_blockwise(mine, other._moments, sign)
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
            covariance = shrunk(scatter, observations, *self._regularisation())
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
        variance = average_variance(observations, scatter)
        return shrinkage, shrinkage * variance + lift(variance, shrinkage, scatter.shape[-1])

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
        for groups in group_blocks(*scatter.shape[:2]):
            covariance = shrunk(scatter[groups], observations, shrinkage[groups], diagonal[groups])
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
        from components.density.whitening import leading_eigenpairs  # before `_each`, whose limit is of what is loaded

        scatter, observations, _ = self._spread()
        freedom = observations - (len(self._defined().mean) if self.layout == "pooled" else 1)
        yield from _each(lambda s: leading_eigenpairs(np.divide(s, observations), self.rank, freedom), scatter)

    def _inverter(self, observations: int) -> Callable[[np.ndarray], np.ndarray]:
        from components.density.whitening import inverse_cholesky, pseudo_whitening  # before `_each`, as above

        if self.covariance != "empirical":
            return inverse_cholesky
        means = len(self._defined().mean) if self.layout == "pooled" else 1
        return lambda covariance: pseudo_whitening(covariance, observations - means)

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
        return {"mean": m.mean.copy(), "scatter": pack(m.scatter), **higher}

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


def _known(name: str, value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise UserError(f"The density's {name} must be one of {', '.join(get_args(choices))}, not {value!r}.")
    return value


def _require_held(held: int, removed: int) -> None:
    if removed > held:
        raise UserError(f"Cannot remove {removed} observations from a density of {held}.")


def _stored_moments(arrays: Mapping[str, np.ndarray], count: int, scatter_summed: bool) -> Moments:
    groups, dimensions = stored_shape(arrays, "mean")
    shapes = {"scatter": (1 if scatter_summed else groups, dimensions * (dimensions + 1) // 2)}
    higher = {} if scatter_summed else {"third": (groups, dimensions), "fourth": (groups,)}
    require_shapes(arrays, shapes | higher)
    moments = Moments.empty(groups, dimensions, scatter_summed)
    moments.count = count
    moments.mean[...] = arrays["mean"]
    moments.scatter = unpack(np.asarray(arrays["scatter"], np.float64), dimensions, symmetric=True)
    for name in higher:
        getattr(moments, name)[...] = arrays[name]
    return moments


def _each(compute: Callable[[Any], Result], matrices: Sequence[Any] | np.ndarray) -> Iterator[Result]:
    """`compute` of each small matrix, in order; on all cores, with one thread for each, as BLAS loses time on them."""
    if len(matrices) == 1:
        yield compute(matrices[0])
        return
    if isinstance(matrices, np.ndarray) and matrices.size * matrices.shape[-1] < WORTH_THREADS:
        with one_blas_thread():
            yield from map(compute, matrices)
        return
    with one_blas_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(compute, matrices)
