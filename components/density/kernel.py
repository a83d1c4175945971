"""A kernel density of normal features, its bandwidth chosen by cross-validation.

Sources: Parzen, "On estimation of a probability density function and mode" (1962); the bandwidth of greatest held-out
likelihood, Duin, "On the choice of smoothing parameters for Parzen estimators of probability density functions"
(1976); the rule that the tried bandwidths are multiples of, Scott, "Multivariate density estimation" (1992).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from components.density.arrays import checked, require_shapes, stored_shape
from components.foundation.errors import UserError


class KernelDensity:
    """A Gaussian kernel density of standardised features, with the bandwidth of best cross-validated likelihood.

    It keeps what it was fitted to, and its bandwidth is chosen anew when more is added. folds: of the
    cross-validation (at most the number of samples). grid: bandwidths tried, in multiples of Scott's
    rule n^(-1/(D + 4)); None for 25 from 0.1 to 10, log-spaced. seed: of the split into folds.

    >>> X = np.random.default_rng(0).standard_normal((200, 2))
    >>> density = KernelDensity().fit(X)
    >>> near, far = density.score([[0.0, 0.0], [6.0, 6.0]])
    >>> bool(near < far)
    True
    >>> bool(abs(near - np.log(2 * np.pi)) < 0.5)  # of the normal itself it would be log 2π at its mean
    True
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
        x = checked(X, 2).astype(np.float64)
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
        x = checked(X, 2).astype(np.float64)
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
            squares = _squared_distances(z[held_out], np.delete(z, held_out, axis=0))
            total += [_kernel_log_density(squares, h, z.shape[1]).sum() for h in bandwidths]
        return float(bandwidths[np.argmax(total)])

    def score(self, X: ArrayLike) -> np.ndarray:
        """Negative log density (N,) of X (N, D), in the original units of X; higher is more anomalous."""
        state = self._fitted("scores")
        mean, scale = state["mean"], state["scale"]
        x = checked(X, 2)
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
        _, dimensions = stored_shape(arrays, "training")
        require_shapes(arrays, {"mean": (dimensions,), "scale": (dimensions,), "bandwidth": (1,)})
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
        x = checked(X, 2)
        if x.shape[1] != len(self.mean):
            raise UserError(f"The kernel density was fitted to {len(self.mean)} features, not {x.shape[1]}.")
        z = (x.astype(np.float64) - self.mean) / self.scale
        squares = _squared_distances(z, self.training.astype(np.float64))  # (N, M)
        volume = np.log(self.scale.astype(np.float64)).sum()
        return volume - _kernel_log_density(squares, float(self.bandwidth[0]), x.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        return {"mean": self.mean, "scale": self.scale, "training": self.training, "bandwidth": self.bandwidth}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Rebuild from `arrays()`; raises UserError where they do not fit together."""
        _, dimensions = stored_shape(arrays, "training")
        require_shapes(arrays, {"mean": (dimensions,), "scale": (dimensions,), "bandwidth": (1,)})
        return cls(arrays)


def _squared_distances(z: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """(N, M) of (N, D) and (M, D)."""
    from scipy.spatial.distance import cdist  # a part of a second to import, and most detectors have no kernel density

    return cdist(z, kernels, "sqeuclidean")


def _kernel_log_density(squares: np.ndarray, bandwidth: float, dimensions: int) -> np.ndarray:
    """Log density (N,) from squared distances (N, M) to M kernels of this bandwidth."""
    from scipy import special

    exponent = special.logsumexp(-squares / (2 * bandwidth**2), axis=1)  # log Σ exp(-‖z - zᵢ‖² / 2h²): (N,)
    # Over M kernels, each a Gaussian whose integral is (2π h²)^(D/2).
    return exponent - np.log(squares.shape[1]) - dimensions / 2 * np.log(2 * np.pi * bandwidth**2)
