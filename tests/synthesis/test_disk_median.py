"""The fast medians against scikit-image and OpenCV, bit for bit."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.filters import median
from skimage.morphology import disk

from components.synthesis import disk_median as module
from components.synthesis.disk_median import bounding_box, box_median, disk_median

SIDES = st.integers(1, 30)


@st.composite
def boxes_in_images(draw: st.DrawFn) -> np.ndarray:
    """Zeros with one rectangle of noise anywhere, borders included: few or many levels, sparse or full."""
    height, width = draw(SIDES), draw(SIDES)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    image = np.zeros((height, width), np.uint16)
    box = image[top : draw(st.integers(top, height)), left : draw(st.integers(left, width))]
    box[...] = generator.integers(0, draw(st.sampled_from([2, 20, 766])), box.shape)
    box[generator.random(box.shape) < draw(st.sampled_from([0, 0.3, 0.6]))] = 0
    return image


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(boxes_in_images())
def test_equals_scikit_image(image: np.ndarray) -> None:
    assert np.array_equal(disk_median(image), median(image, disk(5)))


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint16, st.tuples(SIDES, SIDES), elements=st.integers(0, 65535)))
def test_equals_scikit_image_on_arbitrary_values(image: np.ndarray) -> None:
    assert np.array_equal(disk_median(image), median(image, disk(5)))


def test_mean_difference_is_bit_equal_as_float() -> None:
    """The generator's label: the median of sums over three channels, divided by three, is the median of the means."""
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 256, (2, 40, 50, 3))
    mean = np.mean(np.abs(1.0 * one - 1.0 * other), axis=-1)
    assert np.array_equal(disk_median(np.abs(one - other).sum(-1)) / 3, median(mean, disk(5)))


def test_more_than_256_levels_and_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 766, (70, 60))
    monkeypatch.setattr(module, "_STRIP_PIXELS", 1500)
    assert np.array_equal(disk_median(image), median(image, disk(5)))


def test_all_zero_image() -> None:
    assert not disk_median(np.zeros((9, 7), np.uint8)).any()


@settings(deadline=None)
@given(arrays(np.bool_, st.tuples(SIDES, SIDES)), st.sampled_from([3, 5, 7, 15]))
def test_box_median_equals_opencv(mask: np.ndarray, size: int) -> None:
    assert np.array_equal(box_median(mask, size), cv2.medianBlur(mask.astype(np.uint8), size).astype(bool))


def test_bounding_box_holds_all_that_is_not_zero() -> None:
    image = np.zeros((8, 9))
    assert bounding_box(image) is None
    image[2, 6] = image[5, 3] = -1
    assert bounding_box(image) == (slice(2, 6), slice(3, 7))
