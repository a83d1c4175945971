"""Samples of the exam: exact masks, bytes that follow from the generator, contrasts that follow from the strength."""

import numpy as np
import pytest
from scipy import ndimage

from components.synthesis.exam_kinds import KINDS, STRENGTHS, UNIT_RANGE, Scene, contrast_unit, make_sample, mean_change

SIDE = 96
EVERYWHERE = np.ones((SIDE, SIDE), bool)
BY_CONTRAST = ("foreign", "stroke", "stain", "specks")


def textured(seed: int, channels: int = 3) -> np.ndarray:
    """A good image uint8 (S, S, 3) with grain and a bright square."""
    generator = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(generator.normal(0, 60, (SIDE, SIDE, channels)), (1.5, 1.5, 0))
    image = np.full((SIDE, SIDE, 3), 110.0) + grain
    image[30:60, 30:60] += 40
    return np.clip(image, 0, 255).astype(np.uint8)


def scene(seed: int = 0, channels: int = 3, unit: float = 12.0) -> Scene:
    return Scene(textured(seed, channels), textured(seed + 100, channels), EVERYWHERE, unit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_outside_of_its_mask_a_sample_is_its_source(kind: str, strength: float) -> None:
    for seed in range(6):
        one = scene(seed)
        image, mask = make_sample(kind, one, np.random.default_rng(seed), strength)
        assert (image.dtype, image.shape, mask.dtype, mask.shape) == (np.uint8, one.image.shape, bool, (SIDE, SIDE))
        np.testing.assert_array_equal(image[~mask], one.image[~mask])
        assert 0 < mask.mean() < 0.25
        assert (image != one.image).any(axis=-1)[mask].mean() > 0.6  # and inside it most pixels changed


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_bytes_and_others_other_places(kind: str) -> None:
    first, again, other = (make_sample(kind, scene(), np.random.default_rng(seed), 2.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_without_colour_sees_defects_without_colour(kind: str) -> None:
    image, mask = make_sample(kind, scene(channels=1), np.random.default_rng(3), 3.0)
    assert mask.any()
    assert not (image[..., :1] != image[..., 1:]).any()


@pytest.mark.parametrize("kind", BY_CONTRAST)
def test_contrast_grows_with_the_strength_and_with_the_category(kind: str) -> None:
    def change(strength: float, unit: float) -> float:
        changes = []
        for seed in range(8):
            one = scene(seed, unit=unit)
            changes.append(mean_change(one.image, *KINDS[kind](one, np.random.default_rng(seed), strength)))
        return float(np.mean(changes))

    faint, plain, strong = (change(strength, 10.0) for strength in STRENGTHS)
    assert faint < plain < strong
    assert change(1.0, 20.0) > 1.3 * faint


def test_defects_lie_where_they_may() -> None:
    where = np.zeros((SIDE, SIDE), bool)
    where[70:80, 20:30] = True
    for seed in range(10):
        one = Scene(textured(seed), textured(seed + 1), where, 12.0)
        _, mask = make_sample("stain", one, np.random.default_rng(seed), 2.0)
        rows, columns = np.nonzero(mask)
        assert abs(rows.mean() - 75) < 15
        assert abs(columns.mean() - 25) < 15


@pytest.mark.parametrize("kind", ["blur", "hole", "warp"])
def test_nothing_is_missing_from_a_plain_surface(kind: str) -> None:
    plain = np.full((SIDE, SIDE, 3), 90, np.uint8)
    image, mask = make_sample(kind, Scene(plain, plain, EVERYWHERE, 12.0), np.random.default_rng(0), 3.0)
    np.testing.assert_array_equal(image, plain)
    assert not mask.any()


def test_the_contrast_unit_is_what_images_differ_by_at_a_place() -> None:
    """Plain images of two levels, equally many: their standard deviation is half the difference."""
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (90, 110, 90, 110)])
    assert contrast_unit(images) == pytest.approx(10.0, rel=1e-3)
    assert contrast_unit(images[:1]) == UNIT_RANGE[0]
    assert contrast_unit(images * np.array([1, 2, 1, 2], np.uint8)[:, None, None, None]) == UNIT_RANGE[1]
