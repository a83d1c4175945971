"""One density for each level: the sum of their distances, whatever they are."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from components.density.levelwise import LevelwiseDensity, split_levels
from components.detection.detector import Composition
from components.foundation.errors import UserError

WIDTHS = (3, 2, 5)
SHARED = Composition("e", ("b0", "b1", "b2"), "shared", grid=2, widths=WIDTHS)


def features(count: int, seed: int) -> np.ndarray:
    """(count, 4, 10): the levels correlate, which their own Gaussians do not see."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, 4, 10)) @ generator.normal(size=(10, 10))).astype(np.float32)


def test_the_score_is_the_sum_of_the_levels_mahalanobis_distances() -> None:
    good, other = features(60, 0), features(5, 1)
    found = SHARED.density().fit(good).scorer().score(other)
    expected = np.zeros((5, 4))
    for start, width in zip((0, 3, 5), WIDTHS, strict=True):
        own = slice(start, start + width)
        fitted = LedoitWolf().fit(good[..., own].reshape(-1, width))
        for place in np.ndindex(5, 4):
            expected[place] += mahalanobis(other[place][own], fitted.location_, fitted.precision_)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_batches_give_the_same_density_as_all_at_once() -> None:
    good, other = features(30, 0), features(5, 1)
    once, batched = SHARED.density().fit(good), SHARED.density()
    for piece in np.split(good, [7, 20]):
        batched.add(piece)
    np.testing.assert_allclose(batched.scorer().score(other), once.scorer().score(other), rtol=1e-5)


@pytest.mark.parametrize("layout", ["location", "shared", "image"])
def test_the_cheap_way_for_few_images_is_the_same_density(layout: str) -> None:
    composition = Composition("e", SHARED.levels, layout, 2, "low-rank", widths=WIDTHS, rank=2)  # type: ignore[arg-type]
    good, other = features(4, 0), features(5, 1)
    if layout == "image":
        good, other = good[:, 0], other[:, 0]
    np.testing.assert_allclose(
        composition.scorer_of(good).score(other), composition.density().fit(good).scorer().score(other), rtol=1e-3
    )


@pytest.mark.parametrize("estimator", ["gaussian", "kernel"])
def test_a_scorer_comes_back_from_its_arrays(estimator: str) -> None:
    composition = Composition("e", SHARED.levels, "image", estimator=estimator, widths=WIDTHS)  # type: ignore[arg-type]
    good, other = features(30, 0)[:, 0], features(5, 1)[:, 0]
    scorer = composition.density().fit(good).scorer()
    again = composition.stored_scorer(scorer.arrays())
    np.testing.assert_array_equal(again.score(other), scorer.score(other))


def test_features_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 \+ 2 \+ 5 features, but 9"):
        split_levels(np.zeros((2, 9)), WIDTHS)
    with pytest.raises(UserError):
        LevelwiseDensity((3,), [SHARED.by_level()[0].density()]).add(np.zeros((2, 4, 4)))
