"""What the network sees: crops at any place, turns, mirrors; and samples whose labels lie where they were changed."""

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, rotate

from components.foundation.draws import SampleKeys
from components.foundation.params import NetworkParams, ViewParams
from components.images.tensors import as_tensor
from components.learning.map_learner import MapTask
from components.synthesis.nsa_params import NsaParams
from components.synthesis.views import draw_views, scored_window, view_of, view_side

SIZE = 64  # a quarter of the views' 256


def keys(count: int, epoch: int = 0) -> SampleKeys:
    return SampleKeys.of(0, "bolt", epoch, np.arange(count))


def coordinates(count: int) -> np.ndarray:
    """Images whose first two channels are each pixel's row and column."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.repeat(np.stack([rows, columns, 0 * rows], axis=-1)[None], count, axis=0).astype(np.uint8)


def test_the_whole_image_is_seen_as_it_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    assert np.array_equal(draw_views(images, keys(3), ViewParams()), images)


def test_a_crop_keeps_its_pixels_and_reaches_every_place_of_the_middle() -> None:
    """Middle 57.5 → 58 of 64 pixels, cut to 56: three places each way, the middle square beginning at pixel 3."""
    view = ViewParams(centre=230, crop=224)
    seen = draw_views(coordinates(200), keys(200), view)
    assert seen.shape == (200, 56, 56, 3)
    tops, lefts = seen[:, 0, 0, 0], seen[:, 0, 0, 1]
    assert set(tops.tolist()) == set(lefts.tolist()) == {3, 4, 5}
    for image, top, left in zip(seen, tops, lefts, strict=True):
        assert np.array_equal(image, coordinates(1)[0, top : top + 56, left : left + 56])


def test_a_view_depends_on_its_key_alone() -> None:
    images, view = coordinates(6), ViewParams(centre=240, crop=200, rotation=10, flip="left-right")
    whole = draw_views(images, keys(6), view)
    one = SampleKeys.of(0, "bolt", 0, np.array([4]))
    assert np.array_equal(draw_views(images[4:5], one, view)[0], whole[4])
    assert not np.array_equal(draw_views(images, keys(6, epoch=1), view), whole)
    assert not np.array_equal(draw_views(images, keys(6), view, "source view"), whole)


@pytest.mark.parametrize("scale", [256, 264])
@pytest.mark.parametrize(("flip", "axis"), [("left-right", 1), ("upside-down", 0)])
def test_half_of_the_views_are_mirrored(flip: Literal["left-right", "upside-down"], axis: int, scale: int) -> None:
    whole = ViewParams(resize=scale, centre=256, crop=256)
    straight = draw_views(coordinates(100), keys(100), whole)
    seen = draw_views(coordinates(100), keys(100), whole.model_copy(update={"flip": flip}))
    mirrored = np.array([np.array_equal(one, np.flip(two, axis)) for one, two in zip(seen, straight, strict=True)])
    assert 30 < mirrored.sum() < 70
    assert np.array_equal(seen[~mirrored], straight[~mirrored])


def test_a_larger_image_is_cut_to_the_same_number_of_pixels() -> None:
    """Textures: resized by 264 / 256, cut to 256: nearly all of the image, a little larger."""
    seen = draw_views(coordinates(50), keys(50), ViewParams(resize=264, centre=264, crop=256))
    assert seen.shape == (50, SIZE, SIZE, 3)
    widths = seen[:, 32, -1, 1].astype(int) - seen[:, 32, 0, 1]
    assert set((widths + 1).tolist()) <= {61, 62, 63}


def test_a_turned_view_is_the_image_turned_about_its_middle() -> None:
    smooth = np.zeros((SIZE, SIZE), np.uint8)
    smooth[20:30, 34:50] = 200
    image = np.repeat(smooth[None, ..., None], 3, axis=-1)
    view = ViewParams(rotation=30)
    angle = 30 * (2 * keys(1).uniform("view", 4)[0, 3] - 1)
    assert abs(angle) > 3
    seen = draw_views(image, keys(1), view)[0, ..., 0].astype(float)
    turned = {sign: rotate(smooth.astype(float), sign * angle, reshape=False, order=1) for sign in (1, -1)}
    errors = {sign: np.abs(seen - other)[4:-4, 4:-4].mean() for sign, other in turned.items()}
    assert min(errors.values()) < 0.5 < max(errors.values())


def test_a_label_lies_where_the_view_was_changed() -> None:
    """Images of unlike grey squares: where a sample differs from the view it was made of, there is the patch."""
    squares = np.random.default_rng(0).integers(40, 216, (5, 8, 8, 1), dtype=np.uint8)
    images = np.ascontiguousarray(
        np.broadcast_to(np.kron(squares, np.ones((1, 8, 8, 1), np.uint8)), (5, SIZE, SIZE, 3))
    )
    view = ViewParams(centre=240, crop=200, rotation=20, flip="upside-down")
    params = NsaParams(label="binary", height_bounds=(0.1, 0.3), width_bounds=(0.1, 0.3))
    task = MapTask(images, np.arange(5), np.arange(5), params, view)
    stray = total = 0
    for epoch in range(8):
        chosen = keys(5, epoch)
        made, labels = task.batch(as_tensor(images), chosen)
        views = draw_views(images, chosen, view)
        assert made.shape == (5, 3, 50, 50)
        assert labels.shape == (5, 50, 50)
        changed = np.asarray(np.abs(made.permute(0, 2, 3, 1).numpy().astype(int) - views).max(axis=-1) > 1)  # (B, c, c)
        for one, label in zip(changed, labels.numpy() > 0, strict=True):
            assert not (label & ~binary_dilation(one, iterations=2)).any()
            stray += (one & ~binary_dilation(label, iterations=2)).sum()  # slivers that the label's median drops
            total += one.sum()
    assert total > 1000
    assert stray < 0.05 * total


@pytest.mark.parametrize("rows", [np.array([1, 4, 5, 9]), np.array([3])])
def test_a_patch_comes_from_another_image_to_learn_from(rows: np.ndarray) -> None:
    task = MapTask(np.zeros((10, 8, 8, 3), np.uint8), rows, np.arange(10), NsaParams(), ViewParams())
    found = {
        (row, source)
        for epoch in range(60)
        for row, source in zip(rows, task.source_rows(SampleKeys.of(0, "bolt", epoch, rows)), strict=True)
    }
    others = {(a, b) for a in rows for b in rows if a != b}
    assert found == (others or {(3, 3)})


def test_continuous_labels_are_differences_in_units_of_four_times_the_midpoint() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    made = {}
    for x0 in (10.0, 60.0):
        params = NsaParams(label="continuous", x0=x0)
        _, made[x0] = MapTask(images, np.arange(4), np.arange(4), params, ViewParams()).batch(
            as_tensor(images), keys(4)
        )
    assert made[60.0].dtype == torch.float32
    assert 0.1 < made[60.0].max() < 1
    assert torch.allclose(made[10.0], (6 * made[60.0]).clamp(max=1.0))


def test_views_by_kind_and_category() -> None:
    params = NetworkParams(
        object_view=ViewParams(crop=224, rotation=5),
        texture_view=ViewParams(flip="left-right"),
        rotated=("screw",),
    )
    assert view_of(params, "object", "screw").rotation == 5
    assert view_of(params, "object", "cable") == ViewParams(crop=224)
    assert view_of(params, "texture", "wood").flip


def test_the_scored_square() -> None:
    assert scored_window(ViewParams(test=224), 256) == 224
    assert scored_window(ViewParams(test=224), SIZE) == 56
    assert scored_window(ViewParams(), SIZE) == scored_window(ViewParams(test=256), SIZE) == 0
    assert view_side(ViewParams(crop=224), 512) == 448
