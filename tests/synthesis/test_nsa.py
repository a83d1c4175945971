"""The NSA generator against the paper's definitions, written out with scikit-image and OpenCV on whole images."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.stats
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.filters import median
from skimage.morphology import disk

from components.foundation.draws import SampleKeys
from components.foundation.errors import UserError
from components.synthesis import nsa
from components.synthesis.boxes import Box
from components.synthesis.nsa import (
    OBJECT_RULE,
    SIZE_RULE,
    NoPatchError,
    NsaImage,
    NsaSample,
    nsa_batch,
    nsa_sample,
    prepare,
    resize_bilinear,
)
from components.synthesis.nsa_derive import derive_params, sample_statistics, sample_warnings
from components.synthesis.nsa_params import PAPER_SETTINGS, Label, Method, NsaParams

SHARED = Path(os.environ.get("FLAWLINE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
TEXTURE, OBJECT = PAPER_SETTINGS["carpet"], replace(PAPER_SETTINGS["bottle"], k=1 / 6, x0=10)


def texture(seed: int, height: int = 192, width: int = 160) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (2, 2, 0))
    return (120 + 35 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def disc(seed: int, height: int = 192, width: int = 160, radius: float = 0.36) -> np.ndarray:
    """A dark textured disc on white, somewhere near the middle."""
    image = texture(seed, height, width) // 2
    shift = np.random.default_rng(seed).uniform(-3, 3, 2)
    y, x = np.ogrid[:height, :width]
    image[np.hypot(y - height / 2 - shift[0], x - width / 2 - shift[1]) > radius * min(height, width)] = 250
    return image


@cache
def pool(params: NsaParams) -> list[NsaImage]:
    make = texture if params.background is None else disc
    return [prepare(make(seed), params) for seed in range(5)]


def batch(params: NsaParams, count: int, seed: int = 0) -> list[NsaSample]:
    return nsa_batch(pool(params), np.arange(5), SampleKeys.cycled(seed, "made", 0, np.arange(5), count), params)


def target(index: int, params: NsaParams) -> np.ndarray:
    return pool(params)[index % 5].image


@pytest.mark.parametrize("params", [TEXTURE, OBJECT, replace(OBJECT, method="fpi", label="factor")])
def test_same_keys_give_the_same_bytes_in_any_batch_and_order(params: NsaParams) -> None:
    pictures = pool(params)
    keys = SampleKeys.cycled(3, "made", 1, np.arange(5), 12)
    whole = nsa_batch(pictures, np.arange(5), keys, params)
    order = np.array([7, 2, 11, 0])
    parts = [nsa_batch(pictures, np.arange(5), keys[part], params) for part in (order[:1], order[1:])]
    for index, sample in zip(order, parts[0] + parts[1], strict=True):
        assert sample.image.tobytes() == whole[index].image.tobytes()
        assert sample.label.tobytes() == whole[index].label.tobytes()
    other = nsa_batch(pictures, np.arange(5), SampleKeys.cycled(4, "made", 1, np.arange(5), 12), params)
    assert any(not np.array_equal(one.image, two.image) for one, two in zip(whole, other, strict=True))


@pytest.mark.parametrize("label", ["binary", "continuous", "logistic"])
def test_label_is_the_papers_definition(label: Label) -> None:
    params = replace(TEXTURE, label=label)
    for index, sample in enumerate(batch(params, 15)):
        difference = np.mean(np.abs(1.0 * sample.image - 1.0 * target(index, params)), axis=-1)
        mask = cv2.medianBlur((difference > 1).astype(np.uint8), 5)
        x = median(difference * mask, disk(5))
        wanted = {"binary": mask, "continuous": x, "logistic": mask / (1 + np.exp(-params.k * (x - params.x0)))}
        assert np.array_equal(sample.mask, mask.astype(bool))
        np.testing.assert_allclose(sample.label, wanted[label], rtol=1e-6, atol=1e-7)
        assert sample.changed == (sample.patches > 0)


def test_object_patches_reach_the_target_and_only_what_changed_is_labelled() -> None:
    for index, sample in enumerate(batch(OBJECT, 30)):
        picture = pool(OBJECT)[index % 5]
        assert picture.object_mask is not None
        if sample.changed:
            assert (sample.mask & picture.object_mask).any()
        changed = (sample.image != picture.image).any(axis=-1).astype(np.uint8)
        assert not sample.label[cv2.dilate(changed, np.ones((5, 5))) == 0].any()  # the label's filter reaches 2 pixels


Placed = list[tuple[Box, np.ndarray]]


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Where each patch of the samples made since went, with the object mask (h, w) that it brought along."""
    found: Placed = []
    blend = nsa._Work._blend

    def note(work: Any, box: Box, patch: np.ndarray, on_object: np.ndarray) -> None:
        found.append((box, on_object))
        blend(work, box, patch, on_object)

    monkeypatch.setattr(nsa._Work, "_blend", note)
    return found


@pytest.mark.parametrize("category", ["bottle", "metal_nut"])
def test_every_patch_keeps_both_rules(category: str, placed: Placed) -> None:
    row = PAPER_SETTINGS[category]
    params = replace(OBJECT, min_object=row.min_object, min_overlap=0.5, patches=4)
    shares, overlaps = [], []
    for index in range(40):
        placed.clear()
        batch_of_one = nsa_batch(pool(OBJECT), np.arange(5), SampleKeys.of(0, "made", index // 5, [index % 5]), params)
        assert len(placed) >= batch_of_one[0].patches
        there = pool(OBJECT)[index % 5].object_mask
        assert there is not None
        for box, on_object in placed:
            shares.append(on_object.mean())
            overlaps.append((on_object & there[box.window]).sum() / on_object.sum())
    assert row.min_object < min(shares) < row.min_object + 0.1
    assert 0.5 < min(overlaps) < 0.7


@pytest.mark.parametrize("faithful", [False, True])
def test_labels_of_overlapping_patches_are_joined_or_overwritten(faithful: bool, placed: Placed) -> None:
    params = replace(OBJECT, patches=6, label="binary", faithful=faithful)
    differ = 0
    for index in range(40):
        placed.clear()
        (sample,) = nsa_batch(pool(params), np.arange(5), SampleKeys.of(0, "made", index // 5, [index % 5]), params)
        picture = pool(params)[index % 5]
        assert picture.object_mask is not None
        assert len(placed) == sample.patches
        joined, overwritten = np.zeros((2, *sample.mask.shape), bool)
        for box, on_object in placed:
            joined[box.window] |= on_object | picture.object_mask[box.window]
            overwritten[box.window] = on_object | picture.object_mask[box.window]
        difference = np.abs(1.0 * sample.image - 1.0 * picture.image).mean(axis=-1)
        wanted, other = (
            cv2.medianBlur(((difference > 1) & covered).astype(np.uint8), 5)
            for covered in ((overwritten, joined) if faithful else (joined, overwritten))
        )
        assert np.array_equal(sample.mask, wanted.astype(bool))
        differ += not np.array_equal(wanted, other)
    assert differ


def test_number_of_patches_and_their_sizes_follow_the_paper() -> None:
    params = replace(TEXTURE, method="fpi", label="factor", height_bounds=(0.03, 0.4), factor_bounds=(1, 1), patches=1)
    pictures = [prepare(np.full((256, 256, 3), level, np.uint8), params) for level in (0, 200)]
    samples = nsa_batch(pictures, np.arange(2), SampleKeys.cycled(0, "flat", 0, [0], 400), params)
    inside = [np.argwhere(s.mask) for s in samples]
    heights = np.array([np.ptp(i[:, 0]) + 1 for i in inside if len(i) and i[:, 0].min() > 0 and i[:, 0].max() < 255])
    limit = 0.15  # patches up to this half-height are rarely cut off by the image's border
    small = heights[heights < 2 * limit * 256] / 512
    gamma = scipy.stats.gamma(2, loc=0.03, scale=0.05)
    wanted = [gamma.ppf(q * gamma.cdf(limit)) for q in (0.25, 0.5, 0.75)]
    np.testing.assert_allclose(np.quantile(small, (0.25, 0.5, 0.75)), wanted, atol=0.015)
    four = nsa_batch(pictures, np.arange(2), SampleKeys.cycled(0, "flat", 0, [0], 400), replace(params, patches=4))
    assert np.mean([sample.patches for sample in four]) == pytest.approx(2.5, abs=0.15)


def test_fpi_is_linear_interpolation_with_the_other_image() -> None:
    params = replace(TEXTURE, method="fpi", label="factor", patches=1)
    pictures = pool(params)[:2]
    for sample in nsa_batch(pictures, np.arange(2), SampleKeys.cycled(0, "made", 0, [0], 10), params):
        factor = sample.label.max()
        assert 0.05 <= factor <= 0.95
        old, new = (picture.image[sample.mask].astype(float) for picture in pictures)
        changed = (sample.image != pictures[0].image).any(-1)[sample.mask]
        wanted = (old + factor * (new - old))[changed]
        assert np.abs(sample.image[sample.mask][changed] - wanted).max() <= 0.5 + 1e-3


def test_pii_scales_the_poisson_correction_by_its_factor() -> None:
    params = replace(TEXTURE, method="pii", label="factor", patches=1, factor_bounds=(1, 1))
    full, half = batch(params, 8), batch(replace(params, factor_bounds=(0.5, 0.5)), 8)
    for index, (one, other) in enumerate(zip(full, half, strict=True)):
        old = target(index, params).astype(float)
        inside = (one.image > 0) & (one.image < 255)  # where nothing was clipped
        assert np.abs((one.image - old) / 2 - (other.image - old))[inside].max() <= 0.75 + 1e-3
        assert other.label.max() == (0.5 if other.changed else 0)


def test_grey_images_are_blended_in_one_plane_with_the_same_result() -> None:
    grey = [np.repeat(texture(seed)[..., :1], 3, axis=2) for seed in range(2)]
    one_plane = [prepare(image, TEXTURE) for image in grey]
    three = [replace(p, planes=np.repeat(p.planes, 3, axis=0)) for p in one_plane]
    assert one_plane[0].planes.shape[0] == 1
    keys = SampleKeys.of(0, "grey", 0, [5])
    pairs = [(one_plane[0], one_plane[1]), (three[0], three[1]), (one_plane[0], three[1])]
    samples = [nsa_sample(into, out_of, keys, TEXTURE) for into, out_of in pairs]
    for sample in samples[1:]:
        assert np.array_equal(sample.image, samples[0].image)
        assert np.array_equal(sample.label, samples[0].label)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(32, 90), st.integers(32, 90),
    st.sampled_from(sorted(PAPER_SETTINGS)), st.sampled_from(["nsa", "fpi", "pii"]), st.booleans(),
)  # fmt: skip
def test_any_size_category_and_method_works(
    seed: int, height: int, width: int, category: str, method: Method, exact_mask: bool
) -> None:
    label: Label = "logistic" if method == "nsa" else "factor"
    params = replace(PAPER_SETTINGS[category], method=method, label=label, exact_mask=exact_mask)
    make = texture if params.background is None else disc
    if (round(params.height_bounds[1] * height) - 2) * (round(params.width_bounds[1] * width) - 2) < 50:
        with pytest.raises(UserError, match=SIZE_RULE):
            prepare(make(seed, height, width), params)
        return
    pictures = [prepare(make(seed + i, height, width), params) for i in range(2)]
    for sample in nsa_batch(pictures, np.arange(2), SampleKeys.cycled(seed, category, 0, np.arange(2), 4), params):
        assert sample.image.shape == (height, width, 3)
        assert sample.image.dtype == np.uint8
        assert sample.label.dtype == np.float32
        assert np.isfinite(sample.label).all()
        assert (sample.label[~sample.mask] == 0).all()


def test_category_without_any_object_stays_unchanged_and_the_rule_is_named() -> None:
    pictures = [prepare(np.full((64, 64, 3), level, np.uint8), OBJECT) for level in (200, 201)]
    samples = nsa_batch(pictures, np.arange(2), SampleKeys.cycled(0, "empty", 0, np.arange(2), 6), OBJECT)
    for index, sample in enumerate(samples):
        assert np.array_equal(sample.image, pictures[index % 2].image)
        assert not sample.changed
        assert not sample.label.any()
        assert set(sample.refused) == {OBJECT_RULE}
        assert sample.tries % OBJECT.tries == 0
    (warning,) = sample_warnings(pictures, samples, "empty")
    assert OBJECT_RULE in warning
    assert sample_statistics(samples)["refused_tries"] == 1


def test_one_image_serves_as_its_own_source_with_a_warning() -> None:
    pictures = pool(TEXTURE)[:1]
    samples = nsa_batch(pictures, np.arange(1), SampleKeys.cycled(0, "lonely", 0, [0], 4), TEXTURE)
    assert any(sample.changed for sample in samples)
    (warning,) = sample_warnings(pictures, samples, "lonely")
    assert "one good image" in warning


def test_too_small_images_and_impossible_settings_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="at least 50 pixels"):
        prepare(texture(0, 16, 16), TEXTURE)
    with pytest.raises(UserError, match="height_bounds"):
        replace(TEXTURE, height_bounds=(0.4, 0.1))
    with pytest.raises(UserError, match="factor"):
        replace(TEXTURE, label="factor")
    with pytest.raises(UserError, match="no good image"):
        nsa_batch([], np.arange(0), SampleKeys.of(0, "none", 0, [0]), TEXTURE)


@pytest.mark.parametrize("size", [(40, 30), (17, 61), (31, 31)])
def test_resize_agrees_with_opencv(size: tuple[int, int]) -> None:
    image = texture(0, 31, 40)
    ours = resize_bilinear(np.ascontiguousarray(image.transpose(2, 0, 1)), *size).transpose(1, 2, 0)
    theirs = cv2.resize(image, size[::-1])
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_paper_table() -> None:
    assert len(PAPER_SETTINGS) == 15
    screw, carpet, pill = (PAPER_SETTINGS[name] for name in ("screw", "carpet", "pill"))
    assert (screw.k, screw.x0, screw.min_object, screw.patches, screw.width_bounds) == (1, 3, 0.5, 4, (0.03, 0.12))
    assert (carpet.gradients, carpet.resize_bounds, carpet.background, carpet.patches) == ("mixed", (0.5, 2), None, 4)
    assert (pill.background, pill.tolerance, pill.height_bounds, pill.x0) == (20, 20, (0.03, 0.2), 7)


def test_settings_are_derived_from_good_images() -> None:
    params, statistics = derive_params([disc(seed) for seed in range(12)], "discs")
    assert statistics.kind == "object"
    assert statistics.aligned
    assert params.background == 250
    assert 20 < params.tolerance < 180
    assert params.gradients == "source"
    assert params.width_bounds[1] == pytest.approx(0.45 * 2 * 0.36, abs=0.03)
    assert params == derive_params([disc(seed) for seed in range(12)], "discs")[0]
    params, statistics = derive_params([texture(seed) for seed in range(12)], "weave")
    assert (statistics.kind, params.background, params.gradients) == ("texture", None, "mixed")
    flat, statistics = derive_params([np.full((64, 64, 3), 9, np.uint8)] * 2, "flat")
    assert statistics.differences == ()
    assert flat.background is None


def brushed(seed: int, side: int = 128) -> np.ndarray:
    """A texture whose contrast differs from place to place and from image to image, such as metal in uneven light."""
    generator = np.random.default_rng(seed)
    contrast = gaussian_filter(generator.normal(size=(side, side)), side / 4)
    contrast = np.exp(0.5 * contrast / contrast.std() + 0.3 * generator.normal())
    return (120 + 0.4 * contrast[..., None] * (texture(seed, side, side) - 120.0)).clip(0, 255).astype(np.uint8)


def test_textures_that_look_the_same_everywhere_are_blended_with_mixed_gradients_and_others_are_not() -> None:
    uneven, measured = derive_params([brushed(seed) for seed in range(12)], "metal")
    assert (measured.kind, uneven.gradients) == ("texture", "source")
    assert measured.unevenness > 4
    noise = np.random.default_rng(0).integers(90, 160, (12, 96, 96, 1), dtype=np.uint8).repeat(3, axis=3)
    _, measured = derive_params(list(noise), "noise")
    assert measured.unevenness == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("photograph", [skimage.data.brick, skimage.data.gravel, skimage.data.grass])
@pytest.mark.parametrize("side", [96, 256])
def test_a_photographed_texture_takes_mixed_gradients(photograph: Callable[[], np.ndarray], side: int) -> None:
    corners = np.random.default_rng(0).integers(0, 512 - side, (12, 2))
    tiles = [photograph()[y : y + side, x : x + side, None].repeat(3, axis=2) for y, x in corners]
    params, measured = derive_params(tiles, "photograph")
    assert (measured.kind, params.gradients) == ("texture", "mixed")
    assert 0.8 < measured.unevenness < 2.3


def test_flat_images_are_uniform() -> None:
    for side in (24, 40):
        _, measured = derive_params([np.full((side, side, 3), 90, np.uint8)] * 2, "flat")
        assert measured.unevenness == 1


@pytest.mark.parametrize("side", [5, 12, 16])
def test_settings_of_images_smaller_than_the_smallest_patch_are_refused_with_the_rule(side: int) -> None:
    for images in ([texture(seed, side, side) for seed in range(3)], [disc(seed, side, side) for seed in range(3)]):
        with pytest.raises(NoPatchError, match=SIZE_RULE):
            derive_params(images, "tiny")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared inspection images are not on this machine")
@pytest.mark.parametrize("category", ["bottle", "screw"])
def test_derived_settings_come_near_the_papers(category: str) -> None:
    files = sorted((SHARED / "mvtec" / category / "train" / "good").iterdir())[::5]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    derived, paper = derive_params(images, category)[0], PAPER_SETTINGS[category]
    own, theirs = (np.stack([prepare(i, p).object_mask for i in images]) for p in (derived, paper))  # type: ignore[misc]
    assert np.logical_and(own, theirs).sum() / np.logical_or(own, theirs).sum() > 0.85
    assert derived.width_bounds == pytest.approx(paper.width_bounds, abs=0.02)
    assert (derived.min_object, derived.patches, derived.gradients) == (
        paper.min_object, paper.patches, paper.gradients,
    )  # fmt: skip
    assert 0.5 < derived.x0 / paper.x0 < 2
    assert 0.4 < derived.k / paper.k < 2.5  # it rises steeply where defects are faint: the screw, of .4 to 1
