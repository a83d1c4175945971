"""A paired comparison in the exam: marks as scikit-learn has them, and how often one of two equal detectors wins."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from components.detection.beyond_chance import ERROR, Answers, compare, mark_of, visibility

KINDS = ("stain", "stroke", "warp")
AREA = 50


def answers(generator: np.random.Generator, images: int = 40, shift: float = 2.5, share: float = 0.8) -> list[Answers]:
    """Two equally good detectors: scores of mean 0 and `shift`, correlated by `share`, and each sample like its source.

    shift 2.5 is an AUROC of .96.
    """
    whole = generator.normal(size=images)  # what is odd about an image is odd about its samples

    def scored(mean: float) -> list[np.ndarray]:
        common = 0.5 * whole + generator.normal(size=images)
        own = generator.normal(size=(2, images)) * np.sqrt(1.25)
        return [mean + (np.sqrt(share) * common + np.sqrt(1 - share) * one) / np.sqrt(1.25) for one in own]

    good, samples = scored(0.0), {kind: scored(shift) for kind in KINDS}
    found = {kind: 1 / (1 + np.exp(-np.array(scored(2.0)))) for kind in KINDS}
    areas = {kind: np.full(images, float(AREA)) for kind in KINDS}
    return [
        Answers(good[i], {k: v[i] for k, v in samples.items()}, {k: v[i] for k, v in found.items()}, areas)
        for i in range(2)
    ]


def better(one: Answers, by: float) -> Answers:
    return replace(one, samples={kind: scores + by for kind, scores in one.samples.items()})


def test_the_mark_is_the_mean_of_image_and_pixel_auroc() -> None:
    one, _ = answers(np.random.default_rng(0))
    weights = {"stain": 0.3, "warp": 0.1}
    image = [
        roc_auc_score([0] * 40 + [1] * 40, np.concatenate([one.good, one.samples[kind]])) for kind in ("stain", "warp")
    ]
    pixel = [one.found[kind].mean() for kind in ("stain", "warp")]
    expected = (np.average(image, weights=[3, 1]) + np.average(pixel, weights=[3, 1])) / 2
    assert mark_of(one, weights)[0] == pytest.approx(expected)
    no_map = replace(one, found={})
    assert mark_of(no_map, weights)[0] == pytest.approx(np.average(image, weights=[3, 1]))


def test_an_image_drawn_twice_counts_twice_and_what_was_not_changed_counts_nothing() -> None:
    one, _ = answers(np.random.default_rng(1), images=6)
    unchanged = np.array([False, True, False, False, False, False])
    one = replace(
        one,
        samples={kind: np.where(unchanged, np.nan, scores) for kind, scores in one.samples.items()},
        found={kind: np.where(unchanged, np.nan, values) for kind, values in one.found.items()},
    )
    times = np.array([[2.0, 1, 0, 1, 1, 1]])
    rows = [0, 0, 1, 3, 4, 5]
    drawn = [row for row in rows if row != 1]
    labels = [0] * 6 + [1] * 5
    image = roc_auc_score(labels, np.concatenate([one.good[rows], one.samples["stain"][drawn]]))
    pixel = one.found["stain"][drawn].mean()
    assert mark_of(one, {"stain": 1.0}, times)[0] == pytest.approx((image + pixel) / 2)


def test_kinds_that_none_can_see_have_no_weight() -> None:
    one, other = answers(np.random.default_rng(2))
    blind = replace(one, samples={**one.samples, "warp": one.good - 1, "stain": np.full(40, np.nan)})
    assert set(visibility(one, other)) == set(KINDS)
    assert set(visibility(blind, blind)) == {"stroke"}


def allowed(exams: int) -> float:
    """The stated share with three standard errors of so many simulated exams."""
    return ERROR + 3 * float(np.sqrt(ERROR * (1 - ERROR) / exams))


@pytest.mark.slow
@pytest.mark.parametrize("images", [10, 40])
def test_of_two_equal_detectors_the_second_wins_as_rarely_as_is_said(images: int) -> None:
    wins = 0
    for seed in range(600):
        generator = np.random.default_rng(seed)
        first, second = answers(generator, images)
        wins += compare(first, second, visibility(first, second), generator, draws=200).is_better
    assert wins / 600 <= allowed(600)


@pytest.mark.slow
@pytest.mark.parametrize("marks", [2, 16])
def test_the_best_of_many_marks_wins_no_more_often_when_other_images_chose_it(marks: int) -> None:
    """Of `marks` equal detectors the one that is best on other images is compared once."""
    wins = 0
    for seed in range(300):
        generator = np.random.default_rng(seed)
        elsewhere = [answers(generator, 20)[1] for _ in range(marks)]
        here = [answers(generator, 20) for _ in range(marks)]
        by_mark = [float(mark_of(one, dict.fromkeys(KINDS, 1.0))[0]) for one in elsewhere]
        first, second = here[int(np.argmax(by_mark))]
        wins += compare(first, second, visibility(first, second), generator, draws=200).is_better
    assert wins / 300 <= allowed(300)


def test_what_is_clearly_better_wins_and_what_is_clearly_worse_is_said_to_be() -> None:
    generator = np.random.default_rng(3)
    first, second = answers(generator, images=60, shift=1.0)
    weights = visibility(first, second)
    up, down = (compare(first, better(second, by), weights, generator) for by in (1.0, -1.0))
    assert up.is_better
    assert not up.is_worse
    assert down.is_worse
    assert up.low < up.difference < up.high
    assert compare(first, first, weights, generator).difference == 0.0
    assert not compare(first, first, weights, generator).is_better


def test_equal_generators_give_equal_intervals() -> None:
    first, second = answers(np.random.default_rng(4))
    weights = visibility(first, second)
    made = [compare(first, second, weights, np.random.default_rng(7)) for _ in range(2)]
    assert made[0] == made[1]
