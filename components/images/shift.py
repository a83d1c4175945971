"""Do two sets of images differ in a measure, or could chance have split them so?

The rank-sum test of Mann and Whitney ("On a test of whether one of two random variables is stochastically larger than
the other", Annals of Mathematical Statistics, 1947), by permutation where images are few: if chance alone split them, a
p-value of at most p has probability p or less, whatever the measure's distribution. With two kinds of parts, few images
or little spread, a rule in deviations of single images is not right.
"""

import numpy as np
from numpy.typing import ArrayLike

PERMUTED = 2000  # values, up to which splits are drawn; of more the normal approximation is as good
SPLITS = 9999


def shift_p_value(one: ArrayLike, other: ArrayLike, seed: int = 0) -> float:
    """The two-sided p-value, in (0, 1], of two sets of values, (N,) and (M,), being split by chance alone.

    seed: of the splits that are drawn. Raises ValueError where one is empty.

    >>> shift_p_value([1, 2, 3], [1.5, 2.5]) > 0.5
    True
    """
    from scipy import stats  # half a second to import

    values = [np.asarray(own, np.float64).ravel() for own in (one, other)]
    if not all(own.size for own in values):
        raise ValueError("there must be values in both sets")
    if min(own.size for own in values) == 1:  # one image says nothing of a set
        return 1.0
    if sum(own.size for own in values) > PERMUTED:
        return _unless_equal(stats.mannwhitneyu(*values, alternative="two-sided", method="asymptotic").pvalue)
    ranks = np.split(stats.rankdata(np.concatenate(values)), [values[0].size])
    options = {"vectorized": True, "n_resamples": SPLITS, "batch": 1000, "rng": np.random.default_rng(seed)}
    return _unless_equal(stats.permutation_test(ranks, _rank_sum, **options).pvalue)


def _rank_sum(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    """Mann and Whitney's statistic but for a constant."""
    return np.asarray(one.sum(axis=axis))


def _unless_equal(p_value: float) -> float:
    return float(p_value) if np.isfinite(p_value) else 1.0  # all values are equal
