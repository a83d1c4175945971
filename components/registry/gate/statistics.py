"""What two models differ by on the same images, with what can and what cannot be said of it.

All differences are challenger minus champion, paired: both have scored the same images. Bounds are one-sided, each at
its own confidence. Sources: DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated ROC
curves" (Biometrics 1988); Hanley, McNeil, "The meaning and use of the area under a ROC curve" (Radiology 1982); Efron,
Tibshirani, "An introduction to the bootstrap" (1993), chapters 13 and 16; Clopper, Pearson (Biometrika 1934); McNemar
(Psychometrika 1947), in its exact form.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from components.evaluation.metrics import region_shares

BINS = 2000  # of false-positive rates, by which pixel figures of a resample are had without sorting pixels anew
PLANNED_AUROC, PLANNED_CORRELATION = 0.9, 0.5  # of the models whose difference so many images are to tell
CHUNK = 250  # resamples at a time


@dataclass(frozen=True)
class Difference:
    """One figure of both models, and what their difference may be.

    Attributes:
        champion, challenger: the figure of each.
        low, high: bounds that the difference lies above and below, each with `confidence`.
        worse_below: the difference is shown to be below zero where this bound, at the stricter confidence of one among
            several comparisons, is.
    """

    champion: float
    challenger: float
    low: float
    high: float
    worse_below: float

    @property
    def estimate(self) -> float:
        """Challenger minus champion."""
        return self.challenger - self.champion


@dataclass(frozen=True)
class Levels:
    """How sure bounds are: of one comparison by itself, and of one among all that may reject."""

    confidence: float
    strict: float

    @classmethod
    def of(cls, confidence: float, comparisons: int) -> "Levels":
        """For so many comparisons the chance that any rejects an equal model is at most 1 - confidence (Bonferroni)."""
        return cls(confidence, 1 - (1 - confidence) / max(1, comparisons))


def resamples(labels: ArrayLike, count: int, seed: int, groups: ArrayLike | None = None) -> NDArray[np.float32]:
    """How often each image is in each of `count` bootstrap samples: (count, N) float32.

    labels: (N,); images are drawn within each label. groups: (N,) ints of images that are drawn together, such as a
    good image and the synthetic samples made from it; labels do not matter then.

    >>> drawn = resamples([0, 0, 0, 1, 1], count=100, seed=0)
    >>> drawn.shape, set(drawn[:, :3].sum(axis=1)) == {3.0}, set(drawn[:, 3:].sum(axis=1)) == {2.0}
    ((100, 5), True, True)
    """
    generator = np.random.default_rng(seed)
    kinds = np.asarray(labels)
    drawn = np.zeros((count, len(kinds)), np.float32)
    if groups is not None:
        _, places = np.unique(np.asarray(groups), return_inverse=True)
        return _draws(int(places.max()) + 1, count, generator)[:, places] if len(places) else drawn
    for kind in np.unique(kinds):
        (members,) = np.nonzero(kinds == kind)
        drawn[:, members] = _draws(len(members), count, generator)
    return drawn


def auroc_difference(
    labels: ArrayLike,
    champion: ArrayLike,
    challenger: ArrayLike,
    drawn: NDArray[np.float32],
    levels: Levels,
    *,
    delong: bool = True,
) -> Difference | None:
    """Of image AUROC. labels (N,): True for a defect; scores (N,); drawn: of `resamples`. None without both classes.

    Bounds are the wider of DeLong's and the bootstrap's, and never nearer than so few images allow (`least_width`).
    delong: false where images are not independent.

    >>> labels = [False] * 50 + [True] * 50
    >>> old, new = np.r_[np.arange(50), np.arange(10, 60)], np.r_[np.arange(50), np.arange(40, 90)]
    >>> found = auroc_difference(labels, old, new, resamples(labels, 500, seed=0), Levels.of(0.95, 1))
    >>> round(found.champion, 2), round(found.challenger, 2), found.low > 0  # better, and beyond chance
    (0.68, 0.98, True)
    """
    defect = np.asarray(labels).astype(bool)
    if defect.all() or not defect.any():
        return None
    placed = [_placements(np.asarray(scores, np.float64), defect) for scores in (champion, challenger)]  # (D, G) each
    moved = placed[1] - placed[0]
    spread = sqrt(delong_variance(moved)) if delong else None
    values = _weighted_means(moved, drawn[:, defect], drawn[:, ~defect])  # (R,)
    counts = (int((~defect).sum()), int(defect.sum()))
    return _bounded(float(placed[0].mean()), float(placed[1].mean()), values, spread, counts, levels)


def delong_variance(placements: NDArray[np.floating]) -> float:
    """Variance of the mean of placements (D, G): of an AUROC where they are 0, ½ and 1, of a difference of two else.

    >>> delong_variance(np.array([[1.0, 0.0], [1.0, 0.0]]))  # of AUROC 1/2, all of it from the two good images
    0.25
    """
    of_defects, of_good = placements.mean(axis=1), placements.mean(axis=0)
    parts = [values.var(ddof=1) / len(values) for values in (of_defects, of_good) if len(values) > 1]
    return float(sum(parts))


@dataclass(frozen=True)
class PixelCounts:
    """Of each image, how many of its pixels lie in each bin of false-positive rates, from the highest score down.

    Attributes:
        good: (N, B) good pixels. found: (N, B) defective pixels. overlap: (N, B) the same
            as shares of their regions.
    """

    good: NDArray[np.float32]
    found: NDArray[np.float32]
    overlap: NDArray[np.float32]


def count_pixels(masks: NDArray[np.bool_], maps: NDArray[np.floating], bins: int = BINS) -> PixelCounts:
    """Count the pixels of maps (N, H, W) with masks (N, H, W), one image at a time: maps may be mapped from a file.

    The bins' edges are quantiles of good pixels, spread over all images, so that each holds about as many.

    >>> masks, maps = np.array([[[True, False, False]]]), np.array([[[0.9, 0.5, 0.1]]])
    >>> counts = count_pixels(masks, maps, bins=2)  # the edge is the good pixels' median, 0.3
    >>> counts.good.tolist(), counts.found.tolist()
    ([[1.0, 1.0]], [[1.0, 0.0]])
    """
    edges = _edges(masks, maps, bins)
    good, found, overlap = (np.zeros((len(maps), len(edges) + 1), np.float32) for _ in range(3))
    for row, (mask, values) in enumerate(zip(masks, maps, strict=True)):
        place = len(edges) - np.searchsorted(edges, values, side="left")  # (H, W); 0 for the highest scores
        good[row] = np.bincount(place[~mask], minlength=len(edges) + 1)
        if mask.any():
            found[row] = np.bincount(place[mask], minlength=len(edges) + 1)
            overlap[row] = np.bincount(place[mask], region_shares(mask)[0], minlength=len(edges) + 1)
    return PixelCounts(good, found, overlap)


def pixel_figures_of(
    counts: PixelCounts, drawn: NDArray[np.float32], fpr_limit: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel AUROC (R,) and AUPRO (R,) of samples in which image n is `drawn[r, n]` times; `metrics.pixel_figures`.

    Within a bin pixels count as tied, which changes either figure by about 1 / BINS at most.

    >>> maps = np.random.default_rng(0).normal(size=(2, 64, 64))
    >>> masks = np.zeros((2, 64, 64), bool)
    >>> masks[0, :8, :8], maps[0, :8, :8] = True, maps[0, :8, :8] + 2  # the second image is good
    >>> pixel, pro = pixel_figures_of(count_pixels(masks, maps), np.ones((1, 2), np.float32), 0.3)
    >>> from components.evaluation.metrics import pixel_figures
    >>> bool(np.allclose((pixel[0], pro[0]), pixel_figures(masks, maps, 0.3), atol=1e-3))
    True
    """
    aurocs, aupros = [], []
    for start in range(0, len(drawn), CHUNK):
        times = drawn[start : start + CHUNK]
        false = _rates(times @ counts.good)  # (r, B + 1): false-positive rate up to and with each bin
        aurocs.append(_area(false, _rates(times @ counts.found), 1.0))
        aupros.append(_area(false, _rates(times @ counts.overlap), fpr_limit))
    return np.concatenate(aurocs), np.concatenate(aupros)


def pixel_differences(
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    maps: tuple[NDArray[np.floating], NDArray[np.floating]],
    drawn: NDArray[np.float32],
    fpr_limit: float,
    levels: Levels,
) -> tuple[Difference, Difference] | None:
    """Of pixel AUROC and of AUPRO; masks and maps of champion and challenger, (N, H, W) each; drawn (R, N).

    The two may be of different sizes. None without good and defective pixels.

    >>> masks, maps = np.array([[[True, False, False]]] * 2), np.array([[[0.9, 0.5, 0.1]]] * 2)
    >>> once = np.ones((9, 2), np.float32)
    >>> pixel, pro = pixel_differences((masks, masks), (maps, maps), once, 0.3, Levels.of(0.95, 2))
    >>> pixel.estimate, pro.estimate
    (0.0, 0.0)
    """
    defective = np.array([mask.any() for mask in masks[0]], dtype=bool)
    if not all(any(mask.any() for mask in own) and any(not mask.all() for mask in own) for own in masks):
        return None
    all_once = np.concatenate([np.ones((1, len(defective)), np.float32), drawn])
    old, new = (
        pixel_figures_of(count_pixels(own, values), all_once, fpr_limit)
        for own, values in zip(masks, maps, strict=True)
    )
    numbers = (int((~defective).sum()), int(defective.sum()))
    pixel, pro = (
        _bounded(float(one[0]), float(two[0]), two[1:] - one[1:], None, numbers, levels)
        for one, two in zip(old, new, strict=True)
    )
    return pixel, pro


def least_width(good: int, defects: int, confidence: float) -> float:
    """What a bound lies away from the estimate at least, however alike the two models are on these images.

    Images that only one model gets wrong, of which none was seen among n, may be 1 - (1 - confidence)^(1 / n) of all;
    each costs half its weight, as where it then ranks is not known. Without good images, such as where each region's
    surroundings are the good pixels, defects alone count.

    >>> round(least_width(59, 1000, 0.95), 4)  # (1 - 0.05^(1/59)) / 2
    0.0248
    """
    fewest = min(number for number in (good, defects) if number)
    return float(-np.expm1(np.log1p(-confidence) / fewest) / 2)


def resolution(good: int, defects: int, confidence: float) -> float:
    """The smallest loss of AUROC that so many images can tell from none, for two models as they usually are.

    By Hanley and McNeil's standard error at an AUROC of 0.9, for scores whose errors correlate by 0.5. Infinite
    without both classes.

    >>> round(resolution(100, 100, 0.95), 3), round(resolution(20, 100, 0.95), 3)
    (0.037, 0.048)
    """
    if not good or not defects:
        return float("inf")
    return float(stats.norm.ppf(confidence) * sqrt(2 * (1 - PLANNED_CORRELATION)) * hanley_error(good, defects))


def hanley_error(good: int, defects: int, auroc: float = PLANNED_AUROC) -> float:
    """Standard error of an AUROC, by Hanley and McNeil (1982).

    >>> round(hanley_error(100, 100), 4)
    0.0226
    """
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (defects - 1) * (q1 - auroc**2) + (good - 1) * (q2 - auroc**2)
    return sqrt(variance / (good * defects))


@dataclass(frozen=True)
class Rate:
    """How often something happened to images, with one-sided Clopper-Pearson bounds; all rates in [0, 1]."""

    count: int
    images: int
    low: float
    high: float

    @classmethod
    def of(cls, happened: ArrayLike, confidence: float) -> "Rate":
        """Of a mask (N,); without images nothing is known."""
        mask = np.asarray(happened).astype(bool)
        count, images = int(mask.sum()), len(mask)
        low = float(stats.beta.ppf(1 - confidence, count, images - count + 1)) if count else 0.0
        high = float(stats.beta.ppf(confidence, count + 1, images - count)) if count < images else 1.0
        return cls(count, images, low, high)

    def side_of(self, per_1000: float) -> str:
        """On which side of a rate it is: "within", "beyond" or "not known"."""
        if self.low > per_1000 / 1000:
            return "beyond"
        return "within" if self.images and self.high <= per_1000 / 1000 else "not known"

    def exceeds(self, per_1000: float, risk: float) -> bool:
        """Whether it is shown to be beyond a rate, where the chance to say so of one at that rate is at most `risk`."""
        return bool(self.images and stats.binom.sf(self.count - 1, self.images, per_1000 / 1000) < risk)


def more_often(champion: ArrayLike, challenger: ArrayLike) -> float:
    """One-sided p-value that something happens to the challenger no more often: masks (N,); McNemar's exact test.

    >>> more_often([False] * 9, [True] * 5 + [False] * 4)  # five of five that differ: 1 / 2⁵
    0.03125
    """
    old, new = np.asarray(champion).astype(bool), np.asarray(challenger).astype(bool)
    only_new, either = int((new & ~old).sum()), int((new ^ old).sum())
    return float(stats.binomtest(only_new, either, 0.5, "greater").pvalue) if either else 1.0


def _bounded(
    champion: float,
    challenger: float,
    values: NDArray[np.floating],
    spread: float | None,
    counts: tuple[int, int],
    levels: Levels,
) -> Difference:
    """Bounds of a difference from its bootstrap values (R,), its standard error, and the images there are."""
    estimate = challenger - champion

    def width(confidence: float, sign: int) -> float:
        reach = sign * (float(np.quantile(values, confidence if sign > 0 else 1 - confidence)) - estimate)
        known = float(stats.norm.ppf(confidence)) * spread if spread is not None else 0.0
        return max(reach, known, least_width(*counts, confidence))

    return Difference(
        champion,
        challenger,
        low=estimate - width(levels.confidence, -1),
        high=estimate + width(levels.confidence, 1),
        worse_below=estimate + width(levels.strict, 1),
    )


def _draws(members: int, count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw `members` of themselves, with replacement, `count` times: how often each was drawn, (count, members)."""
    chosen = generator.integers(0, members, (count, members)) + np.arange(count)[:, None] * members
    return np.bincount(chosen.ravel(), minlength=count * members).reshape(count, members).astype(np.float32)


def _placements(scores: NDArray[np.float64], defect: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(D, G): 1 where the defect scores above the good image, ½ where they tie, else 0."""
    bad, good = scores[defect][:, None], scores[~defect][None]
    return np.asarray((bad > good) + 0.5 * (bad == good), np.float32)


def _weighted_means(
    values: NDArray[np.float32], of_defects: NDArray[np.float32], of_good: NDArray[np.float32]
) -> NDArray[Any]:
    """Means (R,) of values (D, G) in which row d counts `of_defects[r, d]` times and column g `of_good[r, g]` times."""
    total = np.einsum("rg,rg->r", of_defects @ values, of_good, dtype=np.float64)
    size = of_defects.sum(axis=1, dtype=np.float64) * of_good.sum(axis=1, dtype=np.float64)
    return np.divide(total, size, out=np.full(len(size), values.mean(dtype=np.float64)), where=size > 0)


def _edges(masks: NDArray[np.bool_], maps: NDArray[np.floating], bins: int) -> NDArray[np.floating]:
    """Ascending edges, no two alike, between bins of about equally many good pixels; of a spread of them where many."""
    step = max(1, masks.size // 4_000_000)
    good = np.concatenate([values[~mask][::step] for mask, values in zip(masks, maps, strict=True)])
    return np.unique(np.quantile(good, np.arange(1, bins) / bins))


def _rates(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Counts (r, B) as shares, summed up from the first bin: (r, B + 1), from 0 to 1."""
    summed = np.cumsum(counts, axis=1, dtype=np.float64)
    shares = summed / np.maximum(summed[:, -1:], 1e-12)
    return np.concatenate([np.zeros((len(counts), 1)), shares], axis=1)


def _area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """Normalised area (r,) below the lines through the points (x, y), (r, B + 1) each, as far as x = limit."""
    left, right, low, high = x[:, :-1], x[:, 1:], y[:, :-1], y[:, 1:]
    width = np.clip(limit - left, 0, right - left)
    slope = np.divide(high - low, right - left, out=np.zeros_like(left), where=right > left)
    return np.asarray((width * (low + slope * width / 2)).sum(axis=1) / limit)
