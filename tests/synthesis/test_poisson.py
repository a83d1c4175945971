"""Poisson blending against the discrete equation itself, a sparse direct solver and OpenCV."""

import cv2
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.signal import convolve2d

from components.synthesis.poisson import Gradients, blend_mask, blend_rectangle, erode, solve_rectangle, to_uint8

FIVE_POINT = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])


def smooth_image(seed: int, height: int, width: int, sigma: float = 2.0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(3, height, width)), (0, sigma, sigma))
    return (128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def blob(seed: int, height: int, width: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 3)
    return noise > 0


def direct_masked(target: np.ndarray, source: np.ndarray, mask: np.ndarray, gradients: Gradients) -> np.ndarray:
    """One channel of Pérez' equation 7 (and 13 if mixed), written out pixel by pixel and solved sparsely."""
    height, width = mask.shape
    pixels = [(y, x) for y in range(1, height - 1) for x in range(1, width - 1) if mask[y, x]]
    number = {pixel: i for i, pixel in enumerate(pixels)}
    matrix, rhs = scipy.sparse.lil_matrix((len(pixels), len(pixels))), np.zeros(len(pixels))
    for (y, x), i in number.items():
        matrix[i, i] = 4
        for q in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            own, old = source[y, x] - source[q], target[y, x] - target[q]
            rhs[i] += own if gradients == "source" or abs(own) > abs(old) else old
            if q in number:
                matrix[i, number[q]] = -1
            else:
                rhs[i] += target[q]
    result = target.copy()
    result[tuple(np.transpose(pixels))] = scipy.sparse.linalg.spsolve(matrix.tocsc(), rhs)
    return result


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (12, 5), (59, 78), (300, 20)])
def test_rectangle_solution_leaves_no_residual(shape: tuple[int, int]) -> None:
    rhs = np.random.default_rng(0).normal(scale=100, size=(3, *shape))
    v = np.pad(solve_rectangle(rhs), ((0, 0), (1, 1), (1, 1)))
    for plane, wanted in zip(v, rhs, strict=True):
        assert np.abs(convolve2d(plane, FIVE_POINT, "valid") - wanted).max() < 1e-8


def test_patches_of_one_size_are_solved_at_once() -> None:
    rhs = np.random.default_rng(0).normal(scale=100, size=(4, 3, 21, 34))
    np.testing.assert_allclose(solve_rectangle(rhs), [solve_rectangle(each) for each in rhs], atol=1e-9)


def test_float32_is_within_a_hundredth_of_a_grey_level() -> None:
    target, source, mask = smooth_image(0, 200, 160), smooth_image(1, 200, 160, 0.7), np.ones((200, 160), bool)
    single = blend_rectangle(target, source, mask)
    double = blend_rectangle(target, source, mask, dtype=np.float64)
    assert single.dtype == np.float32
    assert np.abs(single - double).max() < 0.01


@given(st.integers(0, 1000), st.integers(3, 14), st.integers(3, 14), st.sampled_from(["source", "mixed"]))
def test_masked_blend_equals_a_sparse_direct_solve(seed: int, height: int, width: int, gradients: Gradients) -> None:
    target, source = smooth_image(seed, height, width), smooth_image(seed + 1, height, width)
    mask = np.random.default_rng(seed).random((height, width)) < 0.7
    blended = blend_mask(target, source, mask, gradients)
    for channel in range(3):
        if mask[1:-1, 1:-1].any():
            wanted = direct_masked(target[channel].astype(float), source[channel].astype(float), mask, gradients)
            np.testing.assert_allclose(blended[channel], wanted, atol=1e-7)


def test_full_rectangle_is_the_same_problem_in_both_domains() -> None:
    target, source, mask = smooth_image(0, 40, 31), smooth_image(1, 40, 31), np.ones((40, 31), bool)
    for gradients in ("source", "mixed"):
        whole = blend_rectangle(target, source, mask, gradients, erosion=0, dtype=np.float64)
        np.testing.assert_allclose(whole, blend_mask(target, source, mask, gradients), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_masked_blend_solves_the_poisson_equation_inside_and_is_the_target_outside(seed: int) -> None:
    target, source, mask = smooth_image(seed, 70, 90), smooth_image(seed + 9, 70, 90), blob(seed, 70, 90)
    mask[[0, -1]] = mask[:, [0, -1]] = False
    blended = blend_mask(target, source, mask)
    for channel in range(3):
        residual = convolve2d(blended[channel] - source[channel], FIVE_POINT, "same")
        assert np.abs(residual[mask]).max() < 1e-8
        assert np.array_equal(blended[channel][~mask], target[channel][~mask])


def test_mixed_gradients_take_the_larger_one_on_each_axis() -> None:
    """One inner pixel: the equation can be written down by hand."""
    target = np.array([[[10, 10, 10], [10, 50, 10], [10, 90, 10]]], np.uint8)
    source = np.array([[[0, 100, 0], [5, 100, 130], [0, 100, 0]]], np.uint8)
    # left edge: source 95 against 40; right: source 30 against -40; up: 0 against 40; down: 0 against 40
    wanted = ((10 + 95) + (10 + 40) + (10 + 40) + (90 - 40)) / 4
    blended = blend_rectangle(target, source, np.ones((3, 3), bool), "mixed", erosion=0, dtype=np.float64)
    assert blended[0, 1, 1] == pytest.approx(wanted)


@pytest.mark.parametrize("gradients", ["source", "mixed", "mixed-opencv"])
def test_masks_at_every_border_and_of_every_size_are_blended(gradients: Gradients) -> None:
    for height, width in [(1, 1), (2, 9), (3, 3), (4, 40), (17, 3)]:
        target, source = smooth_image(0, height, width), smooth_image(1, height, width)
        for mask in (np.ones((height, width), bool), np.zeros((height, width), bool)):
            for blended in (
                blend_rectangle(target, source, mask, gradients),
                blend_mask(target, source, mask, gradients),
            ):
                assert np.isfinite(blended).all()
                for ring in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
                    assert np.array_equal(blended[ring], target[ring])


def test_a_uniformly_brighter_source_changes_nothing() -> None:
    target, mask = smooth_image(0, 30, 30) // 2, blob(0, 30, 30)
    for gradients in ("source", "mixed"):
        assert np.array_equal(to_uint8(blend_rectangle(target, target + 50, mask, gradients)), target)


@given(st.integers(0, 99), st.integers(0, 4))
def test_erosion_equals_scipy(seed: int, radius: int) -> None:
    mask = np.random.default_rng(seed).random((23, 31)) < 0.97
    square = np.ones((2 * radius + 1, 2 * radius + 1), bool)
    assert np.array_equal(erode(mask, radius), binary_erosion(mask, square))


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize(("gradients", "flag"), [("source", cv2.NORMAL_CLONE), ("mixed-opencv", cv2.MIXED_CLONE)])
def test_agrees_with_opencv(shape: str, gradients: Gradients, flag: int) -> None:
    target, source = (image // 2 + 60 for image in (smooth_image(0, 200, 200, 6), smooth_image(1, 61, 79, 3)))
    mask = np.zeros((61, 79), np.uint8)
    if shape == "rectangle":
        mask[1:-1, 1:-1] = 1
    else:
        cv2.ellipse(mask, (39, 30), (38, 29), 0, 0, 360, 1, -1)
    theirs = cv2.seamlessClone(
        source.transpose(1, 2, 0).copy(), target.transpose(1, 2, 0).copy(), 255 * mask, (100, 90), flag
    ).transpose(2, 0, 1)
    # OpenCV works on the mask's bounding box, 59 × 77 pixels, and centres it on the given point
    window, inner = np.s_[:, 90 - 29 : 90 + 30, 100 - 38 : 100 + 39], np.s_[1:-1, 1:-1]
    ours = blend_rectangle(target[window], source[:, 1:-1, 1:-1], mask[inner].astype(bool), gradients)
    value = psnr(np.floor(ours.clip(0, 255)), theirs[window])  # OpenCV cuts decimals off instead of rounding
    print(f"PSNR against seamlessClone, {shape}, {gradients}: {value:.1f} dB")
    assert value > 50
