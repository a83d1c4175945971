"""Thresholds from good images only, with what they promise.

The scores must come from good images that had no part in fitting the detector (held-out), and the parts seen
later must resemble them (exchangeable): the promises hold for any score and any distribution, and for no
shifted one. An alarm is `score > threshold`; ties only make a promise safer.

Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005), for the marginal guarantee;
Vovk, "Conditional validity of inductive conformal predictors" (ACML 2012), and the order statistics of Wilks
(1941), for the training-conditional one.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, expm1, log, log1p

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.foundation.errors import UserError


@dataclass(frozen=True)
class Threshold:
    """A threshold and its promise.

    value: the `rank`-th smallest (from 1) of the `n` held-out good scores; alarm when `score > value`.
    requested: the false-alarm probability that was asked for, in (0, 1).
    guaranteed: the one that is promised; larger than `requested` when n is too small, else at most equal.
    confidence: of the promise, or None for the marginal one (an average over held-out sets).
    """

    value: float
    n: int
    rank: int
    requested: float
    guaranteed: float
    confidence: float | None = None

    @property
    def met(self) -> bool:
        """Whether the promise is as strong as requested."""
        return self.guaranteed <= self.requested


def split_conformal_threshold(good_scores: ArrayLike, alpha: float) -> Threshold:
    """The ceil((n + 1)(1 - alpha))-th smallest of the held-out good scores (n,).

    A further good part then alarms with probability at most alpha, over the draw of the held-out images and
    of the part together. With n < 1 / alpha - 1 images this rank does not exist: the threshold is the maximum
    and `guaranteed` is 1 / (n + 1).
    Raises UserError without scores, ValueError for alpha outside (0, 1) or scores that are not finite.

    >>> scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    >>> split_conformal_threshold(scores, alpha=0.2).value  # rank ⌈(9 + 1) (1 - 0.2)⌉ = 8
    0.8
    >>> split_conformal_threshold(scores, alpha=0.01).guaranteed  # too few: 1 / (9 + 1)
    0.1
    """
    ordered = _ordered(good_scores)
    n = len(ordered)
    rank = min(n, ceil((n + 1) * (1 - _exact(alpha, "alpha"))))
    return Threshold(float(ordered[rank - 1]), n, rank, alpha, float(Fraction(n + 1 - rank, n + 1)))


def confident_threshold(good_scores: ArrayLike, alpha: float, confidence: float = 0.95) -> Threshold:
    """The lowest held-out good score (n,) above which, with this confidence, at most alpha of good parts lie.

    "With this confidence" is over the draw of the held-out images; the rate is that of all parts to come.
    The rate above the r-th smallest of n scores is Beta(n + 1 - r, r) distributed. With fewer than
    `needed_images(alpha, confidence)` the threshold is the maximum and `guaranteed` says what it promises.
    Raises as `split_conformal_threshold`.

    >>> found = confident_threshold(range(1, 60), alpha=0.05)  # 59 scores: the maximum promises 5 % at 95 %
    >>> found.value, found.guaranteed <= 0.05
    (59.0, True)
    """
    ordered = _ordered(good_scores)
    n = len(ordered)
    rank = conditional_rank(n, alpha, confidence)
    if rank is None:
        return Threshold(float(ordered[-1]), n, n, alpha, _best_rate(n, confidence), confidence)
    bound = min(alpha, rate_bound(n, rank, confidence))  # they meet, but for rounding, where n is just enough
    return Threshold(float(ordered[rank - 1]), n, rank, alpha, bound, confidence)


def conditional_rank(n: int, alpha: float, confidence: float) -> int | None:
    """The smallest rank r (from 1) such that P(Beta(n + 1 - r, r) <= alpha) >= confidence; None if n is too small.

    In other words n - r is the largest number of held-out scores that may lie above the threshold.

    >>> conditional_rank(59, 0.05, 0.95), conditional_rank(58, 0.05, 0.95)
    (59, None)
    >>> conditional_rank(93, 0.05, 0.95)  # one score may lie above the threshold (Wilks' second order)
    92
    """
    if n < needed_images(alpha, confidence):
        return None
    risk = float(1 - _exact(confidence, "confidence"))
    from scipy import special  # half a second to import, and no part of scoring

    # P(at most k of n good scores lie in the highest alpha of their distribution), for every k
    allowed = np.flatnonzero(special.bdtr(np.arange(n), n, alpha) <= risk)
    return n - int(allowed.max(initial=0))


def rate_bound(n: int, rank: int, confidence: float) -> float:
    """The false-alarm rate that is not exceeded, at this confidence, with the threshold at the rank-th of n.

    >>> round(rate_bound(59, 59, 0.95), 4)  # 1 - 0.05^(1/59)
    0.0495
    """
    if rank == n:
        return _best_rate(n, confidence)
    from scipy import special

    return float(special.betaincinv(n + 1 - rank, rank, confidence))


def needed_images(alpha: float, confidence: float) -> int:
    """Fewest held-out good images whose maximum is a threshold with a false-alarm rate of at most alpha at
    this confidence: the smallest n with (1 - alpha)^n <= 1 - confidence.

    >>> needed_images(0.05, 0.95), needed_images(0.02, 0.95)
    (59, 149)
    """
    _exact(alpha, "alpha")
    risk = float(1 - _exact(confidence, "confidence"))
    # The factor lets exact solutions, such as alpha 1/2 at 75 %, survive the logarithms' rounding.
    return max(1, ceil(log(risk) / log1p(-alpha) * (1 - 1e-12)))


def p_values(calibration_scores: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Conformal p-values (M,) of scores (M,) against held-out good scores (n,), in [1 / (n + 1), 1].

    p = (1 + number of held-out scores >= the score) / (n + 1). A good part has p <= alpha with probability at
    most alpha, and p <= alpha exactly when the score is above `split_conformal_threshold(..., alpha)`,
    provided that n is large enough for alpha.

    >>> p_values([1, 2, 3, 4], [0.5, 3, 9]).tolist()  # (1 + 4) / 5, (1 + 2) / 5, (1 + 0) / 5
    [1.0, 0.6, 0.2]
    """
    ordered = _ordered(calibration_scores)
    below = np.searchsorted(ordered, _finite(scores), side="left")
    return (1 + len(ordered) - below) / (len(ordered) + 1)


def tail_limit(calibration_scores: ArrayLike, level: float) -> float:
    """A score that good images exceed about as rarely as `level` says, though it may lie beyond all held-out ones (n,).

    For levels below 1 / (n + 1), where p-values say nothing. The k scores above the (k + 1)-th largest, k a quarter of
    all, are taken for an exponential tail (peaks over a threshold: Pickands, "Statistical inference using extreme order
    statistics", 1975): with m the mean of their excesses, the limit lies m ln((k + 1) / ((n + 1) level)) above that
    score. It is an extrapolation, no promise: as m is estimated, good images exceed it with probability
    (k + 1) / (n + 1) (1 + ln(…) / k)^-k where the tail is exponential, such as 1.9 % for a level of 1 % and n = 24, and
    less often where it is lighter. At least the largest score; that score itself for fewer than two.
    Raises as `split_conformal_threshold`.

    >>> scores = -np.log(1 - (np.arange(1, 41) - 0.5) / 40)  # an exponential distribution of mean 1
    >>> 4.0 < tail_limit(scores, level=0.01) < 5.5  # it exceeds log 100 = 4.6 in one of 100
    True
    """
    ordered = _ordered(calibration_scores)
    n = len(ordered)
    if n < 2:
        return float(ordered[-1])
    k = min(n - 1, max(2, n // 4))
    base = ordered[n - 1 - k]  # the (k + 1)-th largest, which is exceeded with probability (k + 1) / (n + 1)
    mean = float(np.mean(ordered[n - k :] - base))  # of the excesses: the exponential tail's only parameter
    share = (k + 1) / ((n + 1) * float(_exact(level, "level")))  # how much more often the base is exceeded
    return max(float(ordered[-1]), float(base) + mean * log(share))  # exp(-(x - base) / mean) = 1 / share, solved for x


def _exact(probability: float, name: str) -> Fraction:
    """The probability as the decimal that was written, so that 10 * (1 - 0.1) is 9 and its ceiling not 10."""
    if not 0 < probability < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, not {probability}")
    return Fraction(str(float(probability)))


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite: there is a NaN or an infinity among them")
    return values


def _ordered(good_scores: ArrayLike) -> NDArray[np.float64]:
    values = _finite(good_scores).ravel()
    if not values.size:
        raise UserError("No threshold can be set without held-out good images: hold out at least one.")
    return np.sort(values)


def _best_rate(n: int, confidence: float) -> float:
    """1 - (1 - confidence)^(1 / n), the rate that the maximum of n scores promises; 1.0 for no image."""
    risk = float(1 - _exact(confidence, "confidence"))
    return -expm1(log(risk) / n) if n else 1.0
