"""Figures of the gate against closed forms and the plain figures of merit."""

import numpy as np
import pytest
from scipy import stats

from components.evaluation.metrics import auroc, pixel_figures
from components.registry.gate.statistics import (
    Levels,
    Rate,
    auroc_difference,
    count_pixels,
    delong_variance,
    hanley_error,
    least_width,
    more_often,
    pixel_differences,
    pixel_figures_of,
    resamples,
    resolution,
)

LEVELS = Levels.of(0.95, 1)


def binormal(count: int, aurocs: tuple[float, float], correlation: float, seed: int) -> tuple[np.ndarray, ...]:
    """Labels (2 · count,) and the scores of two models with these AUROCs, correlated within each class."""
    generator = np.random.default_rng(seed)
    mixed = np.linalg.cholesky(np.array([[1, correlation], [correlation, 1]])).T
    labels = np.repeat([False, True], count)
    shift = np.sqrt(2) * stats.norm.ppf(aurocs)
    scores = generator.normal(size=(2 * count, 2)) @ mixed + labels[:, None] * shift
    return labels, scores[:, 0], scores[:, 1]


def test_the_difference_is_that_of_the_two_figures() -> None:
    labels, old, new = binormal(40, (0.9, 0.8), 0.5, 0)
    found = auroc_difference(labels, old, new, resamples(labels, 300, 0), LEVELS)
    assert found is not None
    assert (found.champion, found.challenger) == pytest.approx((auroc(labels, old), auroc(labels, new)))
    assert found.low < found.estimate < found.high


def test_delongs_variance_is_that_of_its_definition() -> None:
    labels, old, new = binormal(30, (0.85, 0.8), 0.6, 1)

    def components(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        good, bad = scores[~labels], scores[labels]
        wins = (bad[:, None] > good).astype(float)
        return wins.mean(axis=1), wins.mean(axis=0)

    of_bad, of_good = zip(components(old), components(new), strict=True)
    covariance = np.cov(of_bad) / 30 + np.cov(of_good) / 30  # DeLong 1988, equation 5
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    wins = [(scores[labels][:, None] > scores[~labels]).astype(float) for scores in (old, new)]
    assert delong_variance(wins[1] - wins[0]) == pytest.approx(expected)


def test_a_bootstrap_sample_keeps_the_classes_and_repeats_with_its_seed() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    drawn = resamples(labels, 50, 3)
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    assert (drawn[:, 3:].sum(axis=1) == 2).all()
    assert np.array_equal(drawn, resamples(labels, 50, 3))
    assert not np.array_equal(drawn, resamples(labels, 50, 4))


def test_images_of_one_group_are_drawn_together() -> None:
    drawn = resamples([0, 0, 1, 1], 20, 0, groups=[7, 9, 7, 9])
    assert np.array_equal(drawn[:, 0], drawn[:, 2])
    assert np.array_equal(drawn[:, 1], drawn[:, 3])


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Masks and maps (8, 40, 40); two images are good, one has two regions."""
    generator = np.random.default_rng(0)
    masks = np.zeros((8, 40, 40), bool)
    masks[2:, 5:12, 6:20] = True
    masks[5, 30:33, 30:36] = True
    return masks, generator.normal(size=masks.shape).astype(np.float32) + 1.2 * masks


def test_pixel_figures_of_the_images_as_they_are(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    masks, maps = pixels
    found = pixel_figures_of(count_pixels(masks, maps), np.ones((1, 8), np.float32), 0.3)
    assert np.concatenate(found) == pytest.approx(pixel_figures(masks, maps, 0.3), abs=1e-3)


def test_pixel_figures_of_a_sample_are_those_of_its_images(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    masks, maps = pixels
    rows = np.array([0, 0, 1, 3, 3, 3, 5, 7])
    drawn = np.bincount(rows, minlength=8)[None].astype(np.float32)
    found = pixel_figures_of(count_pixels(masks, maps), drawn, 0.3)
    assert np.concatenate(found) == pytest.approx(pixel_figures(masks[rows], maps[rows], 0.3), abs=2e-3)


def test_maps_of_two_sizes_are_compared(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    masks, maps = pixels
    small = masks[:, ::2, ::2], maps[:, ::2, ::2]
    drawn = resamples(masks.any(axis=(1, 2)), 100, 0)
    found = pixel_differences((masks, small[0]), (maps, small[1]), drawn, 0.3, LEVELS)
    assert found is not None
    expected = pixel_figures(*small)[0], pixel_figures(*small)[1]
    assert (found[0].challenger, found[1].challenger) == pytest.approx(expected, abs=3e-3)


def test_without_defects_there_is_no_figure() -> None:
    labels = np.zeros(5, bool)
    drawn = resamples(labels, 10, 0)
    assert auroc_difference(labels, np.arange(5), np.arange(5), drawn, LEVELS) is None
    nothing = np.zeros((5, 4, 4), bool)
    maps = np.zeros((5, 4, 4), np.float32)
    assert pixel_differences((nothing, nothing), (maps, maps), drawn, 0.3, LEVELS) is None


def test_two_perfect_models_are_not_told_apart_better_than_their_images_allow() -> None:
    labels = np.repeat([False, True], 10)
    scores = labels.astype(float)
    found = auroc_difference(labels, scores, scores, resamples(labels, 200, 0), LEVELS)
    assert found is not None
    assert found.estimate == 0
    # an image that only one model gets wrong may be 26 % of all, of which ten show none with 95 % confidence
    assert found.low == pytest.approx(-(1 - 0.05**0.1) / 2)
    assert least_width(10, 500, 0.95) == least_width(500, 10, 0.95) > least_width(100, 100, 0.95)


def test_the_error_of_a_useless_auroc_is_mann_and_whitneys() -> None:
    assert hanley_error(58, 51, 0.5) == pytest.approx(((58 + 51 + 1) / (12 * 58 * 51)) ** 0.5)


def test_more_images_tell_smaller_losses() -> None:
    assert resolution(20, 20, 0.95) > 0.05 > resolution(100, 100, 0.95)
    assert resolution(0, 20, 0.95) == float("inf")


@pytest.mark.parametrize(("count", "images"), [(0, 20), (3, 20), (20, 20), (7, 500)])
def test_a_rate_has_exact_bounds(count: int, images: int) -> None:
    rate = Rate.of(np.arange(images) < count, 0.95)
    exact = stats.binomtest(count, images).proportion_ci(0.9, "exact")  # two sides of 5 % each
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high))


def test_a_rate_stands_on_one_side_only_where_that_is_shown() -> None:
    assert Rate.of(np.arange(1000) < 5, 0.95).side_of(20) == "within"
    assert Rate.of(np.arange(1000) < 60, 0.95).side_of(20) == "beyond"
    assert Rate.of(np.arange(20) < 0, 0.95).side_of(20) == "not known"
    assert Rate.of([], 0.95).side_of(20) == "not known"


def test_more_often_is_mcnemars_exact_test() -> None:
    old, new = np.zeros(30, bool), np.arange(30) < 5
    assert more_often(old, new) == pytest.approx(0.5**5)
    assert more_often(new, old) == 1
    assert more_often(old, old) == 1


def test_a_model_that_lost_the_margin_is_seldom_shown_to_be_no_worse() -> None:
    trials = 200
    shown = 0
    for seed in range(trials):
        labels, old, new = binormal(60, (0.9, 0.85), 0.7, seed)
        found = auroc_difference(labels, old, new, resamples(labels, 200, seed), LEVELS)
        assert found is not None
        shown += found.low > -0.05
    assert shown <= 18  # 5 % of 200 are 10; more than 18 happen once in a hundred times
