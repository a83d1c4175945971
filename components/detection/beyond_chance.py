"""Whether one detector is better than another in the exam beyond chance: a paired bootstrap over its images.

Both have scored the same good images and the same samples made from these. An image and its samples are drawn together,
as they resemble each other. Source: Efron, Tibshirani, "An Introduction to the Bootstrap" (1993), section 12.4
(Student's interval with the bootstrap's standard error); good images and defects are resampled alike: Bertail,
Clémençon, Vayatis, "On bootstrapping the ROC curve" (NIPS 2008).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
ERROR = 0.05


@dataclass(frozen=True)
class Answers:
    """What one detector said of the images that sit the exam.

    Attributes:
        good: (M,) image scores of the good images.
        samples: kind to (M,) image scores of the sample made from each of them; NaN where nothing was changed.
        found: kind to (M,): of a sample's changed pixels, the share of unchanged pixels of the kind's samples that they
            exceed on average (ties count half); NaN where nothing was changed. Empty without a map.
        areas: kind to (M,): how many pixels were changed.
    """

    good: Floats
    samples: Mapping[str, Floats]
    found: Mapping[str, Floats]
    areas: Mapping[str, Floats]


@dataclass(frozen=True)
class Comparison:
    """How much better the second of two detectors is, with an interval.

    Attributes:
        first, second: their marks.
        low, high: bounds of the difference second − first: it is above `low` with probability 1 − ERROR, and likewise
            below `high`.
        images: how many images sat the exam.
        kinds: of samples that counted.
    """

    first: float
    second: float
    low: float
    high: float
    images: int
    kinds: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def is_better(self) -> bool:
        """Whether the second is better beyond chance."""
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the second is worse beyond chance."""
        return self.high < 0


def mark_of(answers: Answers, weights: Mapping[str, float], times: Floats | None = None) -> Floats:
    """The mark, or one for each of B draws: the mean of image and pixel AUROC, each a weighted mean over kinds.

    times: (B, M) how often each image was drawn; each once where None. Returns (B,), or (1,). Without a map the image
    AUROC alone.

    >>> answers = Answers(np.array([0.0, 1.0]), {"stain": np.array([0.5, 2.0])}, {}, {})  # three of four pairs
    >>> mark_of(answers, {"stain": 1.0}).tolist()
    [0.75]
    >>> mark_of(answers, {"stain": 1.0}, np.array([[2.0, 0.0], [0.0, 2.0]])).tolist()  # only the first, only the second
    [1.0, 1.0]
    """
    drawn = np.ones((1, len(answers.good))) if times is None else times
    image = _mean_over_kinds({kind: _auroc(answers.good, answers.samples[kind], drawn) for kind in weights}, weights)
    pixels = {
        kind: _pixel(answers.found[kind], answers.areas[kind], drawn) for kind in weights if kind in answers.found
    }
    return image if not pixels else (image + _mean_over_kinds(pixels, weights)) / 2


def compare(
    first: Answers, second: Answers, weights: Mapping[str, float], generator: np.random.Generator, draws: int = DRAWS
) -> Comparison:
    """Compare two detectors by the kinds that have a weight, with `draws` bootstrap draws of the images.

    >>> good = np.arange(40.0)
    >>> one, two = (Answers(good, {"stain": good + shift}, {}, {}) for shift in (2.0, 30.0))
    >>> [bool(compare(one, other, {"stain": 1.0}, np.random.default_rng(0)).is_better) for other in (one, two)]
    [False, True]
    """
    from scipy import stats  # half a second to import, and no part of scoring

    count = len(first.good)
    times = generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)  # (B, M)
    differences = mark_of(second, weights, times) - mark_of(first, weights, times)
    marks = float(mark_of(first, weights)[0]), float(mark_of(second, weights)[0])
    error = float(differences.std()) * np.sqrt(count / max(count - 1, 1))  # of n images it is a little too small
    reach = error * float(stats.t.ppf(1 - ERROR, max(count - 1, 1)))
    difference = marks[1] - marks[0]
    return Comparison(*marks, difference - reach, difference + reach, count, tuple(weights))


def visibility(*answers: Answers) -> dict[str, float]:
    """The weight of each kind: the detectors' mean image AUROC beyond 0.5; kinds that none can see are left out.

    >>> good = np.array([0.0, 1.0])  # nobody tells blur from it
    >>> visibility(Answers(good, {"stain": np.array([2.0, 3.0]), "blur": np.array([0.0, 1.0])}, {}, {}))
    {'stain': 0.5}
    """
    once = np.ones((1, len(answers[0].good)))
    means = {
        kind: float(np.mean([_auroc(one.good, one.samples[kind], once)[0] for one in answers])) - 0.5
        for kind, scores in answers[0].samples.items()
        if np.isfinite(scores).any()
    }
    return {kind: weight for kind, weight in means.items() if weight > 0}


def _auroc(good: Floats, samples: Floats, times: Floats) -> Floats:
    """AUROC (B,) of samples (M,) against good images (M,), each counted as often as `times` (B, M) says."""
    there = np.isfinite(samples)
    above = (samples[there][:, None] > good) + 0.5 * (samples[there][:, None] == good)  # (m, M)
    drawn = times[:, there]
    pairs = drawn.sum(axis=1) * times.sum(axis=1)
    wins = ((drawn @ above) * times).sum(axis=1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)


def _pixel(found: Floats, areas: Floats, times: Floats) -> Floats:
    """Pixel AUROC (B,): the mean of `found` (M,), each image with its area and as often as `times` (B, M) says."""
    there = np.isfinite(found)
    weights = times[:, there] * areas[there]
    total = weights.sum(axis=1)
    return np.where(total > 0, weights @ found[there] / np.maximum(total, 1e-9), 0.5)


def _mean_over_kinds(values: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """The weighted mean (B,) over kinds; 0.5, a guess, of none."""
    if not values:
        return np.array([0.5])
    return np.average(np.stack(list(values.values())), axis=0, weights=[weights[kind] for kind in values])
