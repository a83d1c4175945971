"""Every patch's score lies on the map where the patch lies in the image."""

import numpy as np
import pytest
import torch
from torch import Tensor

from components.detection.detector import Composition, grown
from components.detection.upsampling import SIGMA_SHARE, spread_patches

FIELD, STRIDE, SIZE = 32, 4, 96
GRID = (SIZE - FIELD) // STRIDE + 1


def hot(row: int, column: int) -> Tensor:
    """Scores (1, 1, GRID, GRID): one at one cell, zero elsewhere."""
    scores = torch.zeros(1, 1, GRID, GRID)
    scores[0, 0, row, column] = 1.0
    return scores


@pytest.mark.parametrize(("row", "column"), [(8, 8), (7, 10), (9, 6)])
def test_a_hot_patch_peaks_at_its_centre_and_falls_off_alike_in_all_directions(row: int, column: int) -> None:
    """The centre of a patch of even side lies between two pixels: both are highest."""
    found = spread_patches(hot(row, column), FIELD, STRIDE, SIZE, SIZE)[0, 0]
    top, left = row * STRIDE + FIELD // 2 - 1, column * STRIDE + FIELD // 2 - 1
    highest = (found >= found.max() - 1e-6).nonzero().tolist()
    assert highest == [[top + down, left + right] for down in (0, 1) for right in (0, 1)]
    around = found[top - 7 : top + 9, left - 7 : left + 9]
    torch.testing.assert_close(around, around.flip(0))
    torch.testing.assert_close(around, around.flip(1))
    torch.testing.assert_close(around, around.T)


def test_it_is_the_mean_of_all_scores_weighted_by_a_gaussian_around_each_centre() -> None:
    scores = np.random.default_rng(0).normal(size=(GRID, GRID))
    found = spread_patches(torch.from_numpy(scores)[None, None], FIELD, STRIDE, SIZE, SIZE)[0, 0].numpy()
    centres = [15.5 + 4 * cell for cell in range(GRID)]
    sigma = FIELD * SIGMA_SHARE
    for y, x in [(0, 0), (17, 40), (48, 48), (95, 3), (80, 95)]:
        weights = np.array(
            [[np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2)) for cx in centres] for cy in centres]
        )
        assert found[y, x] == pytest.approx((weights * scores).sum() / weights.sum(), abs=1e-5)


@pytest.mark.parametrize(("field", "stride"), [(32, 4), (32, 8), (64, 4), (16, 4)])
def test_equal_scores_give_an_even_map_to_the_very_border(field: int, stride: int) -> None:
    grid = (SIZE - field) // stride + 1
    found = spread_patches(torch.full((2, 1, grid, grid), 3.5), field, stride, SIZE, SIZE)
    assert found.shape == (2, 1, SIZE, SIZE)
    torch.testing.assert_close(found, torch.full_like(found, 3.5))


def test_the_border_takes_after_the_nearest_patches() -> None:
    found = spread_patches(hot(0, 8), FIELD, STRIDE, SIZE, SIZE)[0, 0]
    assert found[0].max() >= found[15].max() > found[30].max()
    assert int(found[0].argmax()) in (47, 48)


def test_a_single_patch_gives_one_value() -> None:
    found = spread_patches(torch.tensor([[[[2.0]]]]), 32, 4, 35, 35)
    torch.testing.assert_close(found, torch.full((1, 1, 35, 35), 2.0))


def test_a_coarse_raster_is_the_fine_map_seen_from_farther() -> None:
    scores = torch.rand(1, 1, GRID, GRID, generator=torch.Generator().manual_seed(0))
    fine = spread_patches(scores, FIELD, STRIDE, SIZE, SIZE)
    coarse = spread_patches(scores, FIELD, STRIDE, SIZE, SIZE // 3)
    torch.testing.assert_close(coarse, fine[:, :, 1::3, 1::3])  # the middle pixel of every three


def test_a_map_of_tiles_is_interpolated_and_one_of_patches_is_spread() -> None:
    distances = np.random.default_rng(0).random((2, GRID * GRID)).astype(np.float32)
    cells = torch.from_numpy(distances).view(2, 1, GRID, GRID)
    tiles = Composition("e", ("b0",), "shared", GRID)
    patches = Composition("e", ("b0",), "shared", GRID, receptive_field=FIELD, stride=STRIDE)
    expected = torch.nn.functional.interpolate(cells, (SIZE, SIZE), mode="bilinear", align_corners=False)
    assert torch.equal(grown(distances, tiles, SIZE, SIZE), expected)
    assert torch.equal(grown(distances, patches, SIZE, SIZE), spread_patches(cells, FIELD, STRIDE, SIZE, SIZE))
