"""Windows that hold rectangles: all of them, without overlap, and far ones in windows of their own."""

import numpy as np
import pytest

from components.synthesis.boxes import Box, disjoint_windows

SHAPE = (300, 400)


def random_boxes(seed: int, count: int) -> list[Box]:
    """Rectangles of 1 to 60 pixels a side inside an image of SHAPE."""
    rng = np.random.default_rng(seed)
    sides = rng.integers(1, 61, (count, 2))
    corners = (rng.random((count, 2)) * (np.array(SHAPE) - sides + 1)).astype(int)
    return [Box(*corner, *side) for corner, side in zip(corners.tolist(), sides.tolist(), strict=True)]


def painted(boxes: list[Box]) -> np.ndarray:
    """How many of the boxes cover each pixel: (H, W)."""
    counts = np.zeros(SHAPE, int)
    for box in boxes:
        counts[box.window] += 1
    return counts


@pytest.mark.parametrize("seed", range(20))
def test_windows_hold_all_boxes_and_do_not_overlap(seed: int) -> None:
    boxes = random_boxes(seed, 1 + seed % 6)
    windows = disjoint_windows(boxes)
    covered = painted(windows)
    assert covered.max() == 1
    assert not np.any((painted(boxes) > 0) & (covered == 0))


def test_far_boxes_keep_windows_of_their_own_and_near_ones_share_one() -> None:
    near, beside, far = Box(0, 0, 20, 20), Box(5, 25, 20, 20), Box(280, 380, 20, 20)
    assert disjoint_windows([near, beside]) == [Box(0, 0, 25, 45)]
    assert sorted(disjoint_windows([near, far, beside])) == [Box(0, 0, 25, 45), far]


def test_a_margin_ends_at_the_image() -> None:
    assert Box(3, 390, 10, 10).grown(5, SHAPE) == Box(0, 385, 18, 15)
    assert Box(100, 100, 10, 10).grown(5, SHAPE) == Box(95, 95, 20, 20)


def test_a_box_names_its_pixels_of_planes() -> None:
    planes = np.arange(2 * 6 * 8).reshape(2, 6, 8)
    box = Box(1, 2, 3, 4)
    np.testing.assert_array_equal(planes[box.window_of_planes], planes[:, 1:4, 2:6])
    assert planes[0][box.window].size == box.area == 12
