"""Figures of merit for detection and localisation.

Conventions used throughout: a label of 1 (True) means defective and 0 (False) good; a higher score is more
anomalous; an alarm is `score > threshold`. A figure that needs both classes is `None` (JSON null) when one of
them is absent, so that a category without any defective image can be evaluated by the same code.
Scores and maps must be finite; a NaN or an infinity raises ValueError, because every figure would be
meaningless.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve of scores (N,) against labels (N,); ties count one half.

    It is the probability that a defective image scores above a good one (Mann-Whitney U / (n_good * n_defect)).
    None unless there is at least one good and one defective item.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])  # of four pairs three are in order, and one is a tie
    0.875
    """
    is_defect, values = _labelled(labels, scores)
    good, defect = values[~is_defect], values[is_defect]
    if not good.size or not defect.size:
        return None
    return _area_from_rates(*_exceedance_rates(np.sort(good), defect))


def pixel_auroc(masks: NDArray[np.bool_], maps: NDArray[np.floating]) -> float | None:
    """Exact area under the ROC curve over all pixels of all images.

    masks: (N, H, W) bool, True where defective (all False for a good image); maps: (N, H, W) float.
    None unless there are good and defective pixels.

    >>> masks, maps = np.array([[[False, True], [False, False]]]), np.array([[[0.1, 0.9], [0.2, 0.3]]])
    >>> pixel_auroc(masks, maps)
    1.0
    """
    return pixel_figures(masks, maps)[0]


def aupro(masks: NDArray[np.bool_], maps: NDArray[np.floating], fpr_limit: float = 0.3) -> float | None:
    """Exact normalised area under the per-region-overlap curve (AU-PRO), in [0, 1].

    masks: (N, H, W) bool; maps: (N, H, W) float. The curve gives, for every threshold, the fraction of each
    defect region that is found, averaged over regions (8-connected components), against the fraction of all
    good pixels that are wrongly marked. It is joined linearly between successive thresholds, integrated over
    false-positive rates [0, fpr_limit] and divided by fpr_limit (Bergmann et al., IJCV 2021, section 5.1.2).
    None unless there are good and defective pixels. ValueError if fpr_limit is not in (0, 1].

    >>> masks = np.array([[[True, False, True, True]]])  # two regions, of one pixel and of two
    >>> maps = np.array([[[0.9, 0.5, 0.8, 0.1]]])  # the first is found, and half of the second, before a false alarm
    >>> aupro(masks, maps)
    0.75
    """
    return pixel_figures(masks, maps, fpr_limit)[1]


def pixel_figures(
    masks: NDArray[np.bool_], maps: NDArray[np.floating], fpr_limit: float = 0.3
) -> tuple[float, float] | tuple[None, None]:
    """(`pixel_auroc`, `aupro`) for the price of one: sorting the good pixels is nearly all of it.

    500 maps of 256 x 256 in float32 take two to four seconds on one core, and 300 MB beside masks and maps.

    >>> masks = np.array([[[True, False, True, True]]])
    >>> pixel_figures(masks, np.array([[[0.9, 0.5, 0.8, 0.1]]]))
    (0.6666666666666667, 0.75)
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must lie in (0, 1], not {fpr_limit}")
    inside = _checked_masks(masks, maps)
    good, found = maps[~inside], maps[inside]
    if not good.size or not found.size:
        return None, None
    good.sort()
    above, at_least = _exceedance_rates(good, found)  # of each defective pixel: (P,), (P,)
    # The overlap curve is the weighted mean of the pixels' ramps, and so is the area below it.
    overlap = np.dot(_region_weights(inside), _area_below_ramp(above, at_least, fpr_limit)) / fpr_limit
    return _area_from_rates(above, at_least), float(overlap)


def roc_curve(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.floating]] | None:
    """The ROC curve as (false-positive rates, true-positive rates, thresholds), each of shape (T,).

    Thresholds fall from the highest score, where nothing alarms, to just under the lowest, where everything
    does; point t holds the rates of `score > thresholds[t]`, one point per distinct score and one more.
    None unless both classes are present.

    >>> false_rate, true_rate, thresholds = roc_curve([0, 1, 1], [0.2, 0.1, 0.7])
    >>> false_rate.tolist(), true_rate.tolist(), thresholds.round(3).tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0], [0.7, 0.2, 0.1, 0.1])
    """
    is_defect, values = _labelled(labels, scores)
    good, defect = np.sort(values[~is_defect]), np.sort(values[is_defect])
    if not good.size or not defect.size:
        return None
    distinct = np.unique(values)[::-1]
    thresholds = np.append(distinct, _just_below(distinct[-1]))
    return _share_above(good, thresholds), _share_above(defect, thresholds), thresholds


def f1_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """F1 of the alarms `scores > threshold` with the defective class as positive; None unless both are present.

    >>> f1_at([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.3], threshold=0.5)  # precision 1/2, recall 1/2
    0.5
    """
    is_defect, values = _labelled(labels, scores)
    if is_defect.all() or not is_defect.any():
        return None
    alarm = values.astype(np.float64) > threshold
    hits = np.count_nonzero(alarm & is_defect)
    return float(2 * hits / (np.count_nonzero(alarm) + np.count_nonzero(is_defect)))


def f1_max(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float] | tuple[None, None]:
    """The best F1 over all thresholds and a threshold that attains it, as (f1, threshold).

    It looks at the labels, so it is an upper bound for reports and never a threshold to serve. The threshold
    is halfway between two observed scores; among equally good ones the highest. (None, None) unless both
    classes are present.

    >>> f1_max([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.3])  # 0.3 … 0.7 alarm: precision 2/3, recall 1
    (0.8, 0.2)
    """
    curve = roc_curve(labels, scores)
    if curve is None:
        return None, None
    false_rate, true_rate, thresholds = curve
    n_defect = np.count_nonzero(np.asarray(labels))
    n_good = np.size(labels) - n_defect
    hits, false_alarms = np.rint(true_rate * n_defect), np.rint(false_rate * n_good)
    f1 = 2 * hits / (hits + false_alarms + n_defect)
    best = int(np.argmax(f1))  # the first of equals, hence the highest threshold; never 0, where F1 is 0
    return float(f1[best]), _halfway(thresholds[best], thresholds[best - 1])


def false_alarm_rate(good_scores: ArrayLike, threshold: float) -> float | None:
    """Share of good scores (N,) that are above the threshold; None when there are none.

    >>> false_alarm_rate([0.1, 0.2, 0.5, 0.9], threshold=0.5)
    0.25
    """
    values = _finite(good_scores).astype(np.float64)
    return float(np.mean(values > threshold)) if values.size else None


def bootstrap_interval(
    metric: Callable[..., float | None],
    labels: ArrayLike,
    *arrays: NDArray,
    seed: int,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of `metric(labels, *arrays)`, as (low, high).

    labels: (N,); arrays: each of first dimension N, resampled together by the same indices, so a metric of two
    detectors' scores gives a paired interval. Resampling is with replacement within each label, so that every
    one of the n resamples keeps the class sizes and a metric that needs both classes stays defined.
    None when the metric is None on any resample. A perfect separation gives an interval of zero width: the
    bootstrap cannot see what the sample does not hold (Efron and Tibshirani 1993, chapter 13).

    >>> labels, scores = [0] * 50 + [1] * 50, np.r_[np.arange(50), np.arange(20, 70)]
    >>> low, high = bootstrap_interval(auroc, labels, scores, seed=0, n=200)
    >>> low < auroc(labels, scores) < high
    True
    """
    kinds = np.asarray(labels)
    strata = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n):
        chosen = np.concatenate([rng.choice(members, members.size) for members in strata] or [kinds.astype(int)])
        value = metric(kinds[chosen], *(array[chosen] for array in arrays))
        if value is None:
            return None
        values.append(value)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(scores: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(scores)
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite: there is a NaN or an infinity among them")
    return values


def _labelled(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    is_defect, values = np.asarray(labels).astype(bool), _finite(scores)
    if is_defect.ndim != 1 or is_defect.shape != values.shape:
        raise ValueError(f"labels {is_defect.shape} and scores {values.shape} must both be (N,)")
    return is_defect, values


def _checked_masks(masks: NDArray[np.bool_], maps: NDArray[np.floating]) -> NDArray[np.bool_]:
    inside = np.asarray(masks, dtype=bool)
    if inside.ndim != 3 or inside.shape != maps.shape:
        raise ValueError(f"masks {inside.shape} and maps {maps.shape} must both be (N, H, W)")
    _finite(maps)
    return inside


def _exceedance_rates(
    sorted_good: NDArray[np.floating], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each score (M,), the shares of good values strictly above it and at least as high: the two
    false-positive rates between which the ROC curve climbs when the threshold passes this score."""
    order = np.argsort(scores)  # neighbouring searches then touch neighbouring memory: ten times faster
    rates = np.empty((2, scores.size))
    rates[0, order] = sorted_good.size - np.searchsorted(sorted_good, scores[order], side="right")
    rates[1, order] = sorted_good.size - np.searchsorted(sorted_good, scores[order], side="left")
    rates /= sorted_good.size
    return rates[0], rates[1]


def _area_from_rates(above: NDArray[np.float64], at_least: NDArray[np.float64]) -> float:
    """1 - the mean false-positive rate at which a defective item is found; half-way where good ones tie with it."""
    return float(1 - (np.mean(above) + np.mean(at_least)) / 2)


def _area_below_ramp(start: NDArray[np.float64], end: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Integral over [0, limit] of ramps that rise linearly from 0 at `start` to 1 at `end` and stay there.

    The overlap curve is a weighted sum of one such ramp per defective pixel (a step where no good pixel ties
    with it), so that its area needs no list of thresholds and the cut at the limit is exact.
    """
    width = end - start
    climbed = np.clip(limit - start, 0, width)  # how far into the slope the limit reaches
    slope = np.divide(1, width, out=np.zeros_like(width), where=width > 0)
    return climbed**2 * slope / 2 + np.clip(limit - end, 0, None)  # the triangle, and the plateau behind it


def region_shares(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Of each pixel of a mask (H, W), in the order of `values[mask]`, the share of its region; how many regions.

    >>> region_shares(np.array([[True, True, False, True]]))
    (array([0.5, 0.5, 1. ]), 2)
    """
    numbered, count = ndimage.label(mask, structure=EIGHT_CONNECTED)
    region = numbered[mask]
    return 1 / np.bincount(region)[region], count


def _region_weights(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weight of each defective pixel, in the order of `maps[masks]`: 1 / (its region's area * regions)."""
    shares, counts = zip(*(region_shares(mask) for mask in masks if mask.any()), strict=True)
    return np.concatenate(shares) / sum(counts)


def _share_above(sorted_values: NDArray[np.floating], thresholds: NDArray[np.floating]) -> NDArray[np.float64]:
    return 1 - np.searchsorted(sorted_values, thresholds, side="right") / sorted_values.size


def _just_below(value: np.floating) -> np.floating:
    return np.nextafter(value, value.dtype.type(-np.inf))


def _halfway(low: np.floating, high: np.floating) -> float:
    """A value in [low, high) near the middle, exact in the scores' own precision: rounding must not push it
    up to `high`, which has to stay above it."""
    middle = low + (high - low) / 2
    return float(middle if middle < high else low)
