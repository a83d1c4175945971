"""One density for each level of the encoder, their distances summed.

Source: Rippel, Mertens and Merhof, "Modeling the distribution of normal data in pre-trained deep features for anomaly
detection" (ICPR 2020), section III: a Gaussian for each level, the sum of the levels' Mahalanobis distances as score.
The distance of features that follow their Gaussian has nearly the same spread whatever their dimension (that of the χ
distribution), so that every level counts alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from components.density.gaussian import Density, Scorer
from components.foundation.errors import UserError


class LevelwiseDensity:
    """Densities of several levels, each of its own features among concatenated ones.

    widths: how many features each level has, in the order in which they are concatenated. densities: one for each.

    >>> from components.density.gaussian import GaussianDensity
    >>> X = np.array([[1.0, 3], [-1, -3]])  # two levels of one feature, of variances 1 and 9
    >>> levels = [GaussianDensity("image", "empirical"), GaussianDensity("image", "empirical")]
    >>> LevelwiseDensity((1, 1), levels).fit(X).scorer().score([[2.0, 3.0]]).tolist()  # 2/1 + 3/3
    [3.0]
    """

    def __init__(self, widths: Sequence[int], densities: Sequence[Density]) -> None:
        self.widths, self.densities = tuple(widths), tuple(densities)

    def fit(self, X: ArrayLike) -> Self:
        """Fit each level's density to its part of X, (N, ΣD) or (N, L, ΣD)."""
        for density, features in zip(self.densities, split_levels(X, self.widths), strict=True):
            density.fit(features)
        return self

    def add(self, X: ArrayLike) -> Self:
        """Add each level's part of X, (N, ΣD) or (N, L, ΣD), to its density."""
        for density, features in zip(self.densities, split_levels(X, self.widths), strict=True):
            density.add(features)
        return self

    def scorer(self) -> "LevelwiseScorer":
        """The levels' scorers together."""
        return LevelwiseScorer(self.widths, [density.scorer() for density in self.densities])


class LevelwiseScorer:
    """Scorers of several levels, whose distances are summed."""

    def __init__(self, widths: Sequence[int], scorers: Sequence[Scorer]) -> None:
        self.widths, self.scorers = tuple(widths), tuple(scorers)

    def score(self, X: ArrayLike) -> np.ndarray:
        """Sums over levels of distances: (N,) of X (N, ΣD), (N, L) of X (N, L, ΣD)."""
        pieces = split_levels(X, self.widths)
        total = self.scorers[0].score(pieces[0])
        for scorer, features in zip(self.scorers[1:], pieces[1:], strict=True):
            total = total + scorer.score(features)
        return total

    def arrays(self) -> dict[str, np.ndarray]:
        """The scorers' arrays, each with its level's number before its name: "0.mean", "0.whitening", "1.mean", …"""
        return {
            f"{number}.{name}": value
            for number, scorer in enumerate(self.scorers)
            for name, value in scorer.arrays().items()
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], widths: Sequence[int], load: Callable[[dict[str, Any]], Scorer]
    ) -> Self:
        """Rebuild from `arrays()`; `load` rebuilds the scorer of one level."""
        prefixes = [f"{number}." for number in range(len(widths))]
        return cls(
            widths,
            [
                load({name.removeprefix(p): value for name, value in arrays.items() if name.startswith(p)})
                for p in prefixes
            ],
        )


def split_levels(X: ArrayLike, widths: Sequence[int]) -> list[np.ndarray]:
    """The features (…, D) of each level among concatenated ones (…, ΣD); UserError where they do not add up.

    >>> [part.tolist() for part in split_levels([[1, 2, 3]], (2, 1))]
    [[[1, 2]], [[3]]]
    """
    x = np.asarray(X)
    if x.shape[-1] != sum(widths):
        raise UserError(f"The levels have {' + '.join(map(str, widths))} features, but {x.shape[-1]} were given.")
    return np.split(x, np.cumsum(widths)[:-1], axis=-1)
