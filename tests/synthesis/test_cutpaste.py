"""Synthetic defects, measured by what was pasted: in a coordinate image each pixel's colour says whence it comes."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from torchvision.transforms import functional

from components.foundation.draws import SampleKeys, uniform
from components.foundation.errors import UserError
from components.synthesis.cutpaste import (
    AugmentParams,
    ConfettiParams,
    CutoutParams,
    PatchParams,
    ScarParams,
    augment,
    confetti,
    cutout,
    cutpaste,
    rotation,
    scar,
    three_way,
)
from components.synthesis.jitter import draw_jitter, jitter_patches

SAMPLES = 1000
P_VALUE = 1e-3  # fixed seeds: passes or fails for good


class Paste(NamedTuple):
    """What one sample shows: where pixels went (rows, columns) and where they came from."""

    target: np.ndarray  # (P, 2)
    source: np.ndarray  # (P, 2)

    @property
    def source_size(self) -> tuple[int, int]:
        height, width = np.ptp(self.source, axis=0) + 1
        return int(height), int(width)

    @property
    def target_size(self) -> tuple[int, int]:
        height, width = np.ptp(self.target, axis=0) + 1
        return int(height), int(width)

    def angle(self) -> float:
        """Degrees counter-clockwise by which the pixels were turned: the best rotation (Kabsch), rows point down."""
        source, target = (points - points.mean(axis=0) for points in (self.source, self.target))
        cross = (source[:, 1] * target[:, 0] - source[:, 0] * target[:, 1]).sum()
        return float(-np.degrees(np.arctan2(cross, (source * target).sum())))


def coordinates(count: int, height: int = 256, width: int = 256) -> torch.Tensor:
    """Images (count, 3, height, width): red is the row, green the column."""
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    image[0] = torch.arange(height)[:, None]
    image[1] = torch.arange(width)
    return image.expand(count, -1, -1, -1).contiguous()


def measure(before: torch.Tensor, after: torch.Tensor) -> list[Paste]:
    """Find the pixels that changed, and read where they came from."""
    pastes = []
    for old, new in zip(before, after, strict=True):
        target = (old != new).any(dim=0).nonzero().numpy()
        pastes.append(Paste(target, new[:2].permute(1, 2, 0).numpy()[target[:, 0], target[:, 1]].astype(int)))
    return pastes


def keys(count: int, seed: int = 0, epoch: int = 0) -> SampleKeys:
    return SampleKeys.of(seed, "bottle", epoch, np.arange(count))


def noise(count: int, height: int = 48, width: int = 40, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def cases() -> dict[str, Callable[[torch.Tensor, SampleKeys], tuple[torch.Tensor, ...]]]:
    return {
        "cutpaste": cutpaste,
        "turned cutpaste": lambda x, k: cutpaste(x, k, PatchParams(rotation=(-90, 90))),
        "scar": scar,
        "cutout": cutout,
        "confetti": confetti,
        "rotation": rotation,
        "augment": lambda x, k: (augment(x, k, AugmentParams(0.04, 0.1)),),
    }


# Draws


def test_draws_are_splitmix64_of_the_key() -> None:
    """Against whole-number arithmetic written out by the definition."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    base = int.from_bytes(hashlib.blake2b(b"2:-76:bottle4:scar", digest_size=8).digest(), "little")
    state = mix((mix((base + 3) % 2**64) + 11) % 2**64)
    expected = [(mix((state + k * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for k in (1, 2, 3)]
    assert uniform(-7, ("bottle", "scar"), 3, 11, 3).tolist() == [expected]


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform(0, ("bottle", "scar"), np.repeat([0, 1], 4000), np.tile(np.arange(4000), 2), 6)  # (8000, 6)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert all(stats.kstest(column, "uniform").pvalue > P_VALUE for column in draws.T)
    neighbours = np.hstack([draws[:-1], draws[1:], uniform(1, ("bottle", "scar"), 0, np.arange(7999), 6)])
    correlation = np.corrcoef(neighbours.T) - np.eye(18)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(neighbours))
    assert np.abs(np.corrcoef(draws[:4000].T, draws[4000:].T)[:6, 6:]).max() < 5 / np.sqrt(4000)
    pairs = np.histogram2d(draws[:-1, 0], draws[1:, 0], bins=8)[0].ravel()
    assert stats.chisquare(pairs).pvalue > P_VALUE


def test_draws_differ_by_every_part_of_the_key() -> None:
    parts = [(0, ("a", "bc"), 0, 0), (1, ("a", "bc"), 0, 0), (0, ("ab", "c"), 0, 0), (0, ("a", "bc"), 1, 0)]
    parts += [(0, ("a", "bc"), 0, 1), (10, ("a", "bc"), 0, 0)]
    draws = [uniform(*part, count=1).item() for part in parts]
    assert len(set(draws)) == len(parts)


# Reproducibility


@pytest.mark.parametrize("name", cases())
def test_sample_is_the_same_in_any_batch_order_and_layout(name: str) -> None:
    make, images, count = cases()[name], noise(70, 40), 70
    images[::3] = images[::3, :1]  # some grey ones
    untouched = images.clone()
    whole = make(images, keys(count))
    order = torch.from_numpy(np.random.default_rng(1).permutation(count))
    shuffled = SampleKeys.of(0, "bottle", 0, order.numpy())
    in_other_order = make(images[order], shuffled)
    in_other_layout = make(images.contiguous(memory_format=torch.channels_last), keys(count))
    for one, other, striped in zip(whole, in_other_order, in_other_layout, strict=True):
        assert torch.equal(one[order], other)
        assert torch.equal(one, striped)
    for row in (0, 1, 69):
        alone = make(images[row : row + 1], SampleKeys.of(0, "bottle", 0, [row]))
        assert all(torch.equal(one[row : row + 1], other) for one, other in zip(whole, alone, strict=True))
    assert torch.equal(images, untouched)
    assert in_other_layout[0].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(whole[0], make(images, keys(count, epoch=1))[0])
    assert len(make(images[:0], keys(0))[0]) == 0


def test_three_way_is_normal_then_cutpaste_then_scar() -> None:
    images = noise(5, 64, 64)
    result = three_way(images, keys(5), PatchParams(jitter=0.2), ScarParams(jitter=0.3))
    patched, scarred = cutpaste(images, keys(5), PatchParams(jitter=0.2)), scar(images, keys(5), ScarParams(jitter=0.3))
    assert torch.equal(result.images, torch.cat([images, patched.images, scarred.images]))
    assert torch.equal(result.masks, torch.cat([torch.zeros_like(patched.masks), patched.masks, scarred.masks]))
    assert result.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


# CutPaste


@settings(max_examples=40, deadline=None)
@given(st.integers(16, 256), st.integers(16, 256), st.integers(0, 2**40))
def test_patch_is_a_whole_rectangle_from_elsewhere(height: int, width: int, seed: int) -> None:
    images = coordinates(3, height, width)
    result = cutpaste(images, keys(3, seed), PatchParams(jitter=0))
    for paste, mask in zip(measure(images, result.images), result.masks, strict=True):
        tall, wide = paste.target_size
        assert len(paste.target) == tall * wide  # nothing cut off, nothing missed
        assert paste.source_size == (tall, wide)
        shift = paste.target - paste.source
        assert (shift == shift[0]).all()
        assert shift[0].any()
        half_pixels = (tall + wide) / 2  # what rounding the sides can do
        assert 0.02 * height * width - half_pixels <= tall * wide <= 0.15 * height * width + half_pixels
        assert torch.equal(mask.nonzero(), torch.from_numpy(paste.target))


def test_patch_follows_the_papers_distributions() -> None:
    images = coordinates(SAMPLES)
    pastes = measure(images, cutpaste(images, keys(SAMPLES), PatchParams(jitter=0)).images)
    sizes = np.array([paste.target_size for paste in pastes])
    area, aspect = sizes.prod(axis=1) / 256**2, sizes[:, 0] / sizes[:, 1]
    assert stats.kstest(area, stats.uniform(0.02, 0.13).cdf).pvalue > P_VALUE
    aspect_cdf = lambda a: np.clip((a - 0.3) / 0.7, 0, 1) / 2 + np.clip((a - 1) / 2.3, 0, 1) / 2  # noqa: E731
    assert stats.kstest(aspect, aspect_cdf).pvalue > P_VALUE
    dither = np.random.default_rng(0).random((2, SAMPLES, 2))
    source = (np.array([paste.source.min(axis=0) for paste in pastes]) + dither[0]) / (257 - sizes)
    target = (np.array([paste.target.min(axis=0) for paste in pastes]) + dither[1]) / (257 - sizes)
    corners = np.hstack([source, target])  # (SAMPLES, 4), uniform in 0..1
    assert all(stats.kstest(column, "uniform").pvalue > P_VALUE for column in corners.T)
    assert np.abs(np.corrcoef(corners.T) - np.eye(4)).max() < 5 / np.sqrt(SAMPLES)


def test_turned_patch_has_the_angle_and_fits() -> None:
    images = coordinates(300)
    result = cutpaste(images, keys(300), PatchParams(jitter=0, rotation=(20, 60)))
    pastes = measure(images, result.images)
    angles = np.array([paste.angle() for paste in pastes])
    assert stats.kstest(angles, stats.uniform(20, 40).cdf).pvalue > P_VALUE
    for paste, mask in zip(pastes, result.masks, strict=True):
        area = np.prod(paste.source_size)
        assert abs(int(mask.sum()) - area) <= 1 + 0.75 * sum(paste.source_size)  # whole, but for its outline
        assert mask.numpy()[paste.target[:, 0], paste.target[:, 1]].all()
        assert int(mask.sum()) - len(paste.target) <= 9  # those around a fixed point of the turn stay where they were


def test_turn_is_counter_clockwise() -> None:
    """A quarter turn is exactly numpy's rot90."""
    images = noise(20, 64, 64)
    source, turned = coordinates(20, 64, 64), PatchParams(jitter=0, rotation=(90, 90))
    for image, paste, new in zip(
        images,
        measure(source, cutpaste(source, keys(20), turned).images),
        cutpaste(images, keys(20), turned).images,
        strict=True,
    ):
        (top, left), (bottom, right) = paste.source.min(axis=0), paste.source.max(axis=0)
        cut = image.numpy()[:, top : bottom + 1, left : right + 1]
        (top, left), (bottom, right) = paste.target.min(axis=0), paste.target.max(axis=0)
        assert np.array_equal(new.numpy()[:, top : bottom + 1, left : right + 1], np.rot90(cut, axes=(1, 2)))


def test_patch_that_would_not_fit_when_turned_stays_upright() -> None:
    images = coordinates(50, 40, 200)
    pastes = measure(images, cutpaste(images, keys(50), PatchParams(jitter=0, rotation=(45, 45))).images)
    for paste in pastes:
        fits = sum(paste.source_size) / np.sqrt(2) <= 40
        assert paste.angle() == pytest.approx(45 if fits else 0, abs=3)


# Scar


@pytest.mark.parametrize(("side", "widths", "lengths"), [(256, (2, 16), (10, 25)), (128, (1, 8), (5, 12))])
def test_scar_follows_the_papers_distributions(side: int, widths: tuple[int, int], lengths: tuple[int, int]) -> None:
    images = coordinates(SAMPLES, side, side)
    result = scar(images, keys(SAMPLES), ScarParams(jitter=0))
    pastes = measure(images, result.images)
    upright = measure(images, scar(images, keys(SAMPLES), ScarParams(jitter=0, rotation=(0, 0))).images)
    sizes = np.array([paste.source_size for paste in upright])  # (SAMPLES, 2): length, width
    for measured, (low, high) in zip(sizes.T, (lengths, widths), strict=True):
        counts = np.bincount(measured, minlength=high + 1)
        assert counts[:low].sum() == counts[high + 1 :].sum() == 0
        assert stats.chisquare(counts[low:]).pvalue > P_VALUE
    for paste, mask, size in zip(pastes, result.masks, sizes, strict=True):
        assert (
            abs(int(mask.sum()) - size.prod()) <= 1 + 0.75 * size.sum()
        )  # whole, up to a pixel along half its outline
        assert mask.numpy()[paste.target[:, 0], paste.target[:, 1]].all()
        assert (paste.target != paste.source).any()
    # Where a scar is a few pixels only, its angle cannot be told.
    angles = np.array([paste.angle() for paste, size in zip(pastes, sizes, strict=True) if size.prod() >= 60])
    assert stats.kstest(angles, stats.uniform(-45, 90).cdf).pvalue > P_VALUE


# Colour


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.5])
def test_jitter_equals_torchvisions(amount: float) -> None:
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 256, (3, *rng.integers(1, 40, 2)), dtype=np.uint8) for _ in range(120)]
    patches = [patch // 85 * 85 if row % 3 == 0 else patch for row, patch in enumerate(patches)]  # ties and extremes
    patches = [patch[[0, 0, 0]] if row % 5 == 0 else patch for row, patch in enumerate(patches)]  # grey
    jitter = draw_jitter(rng.random((120, 8)), amount)
    adjust = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    for row, (patch, result) in enumerate(zip(patches, jitter_patches(patches, jitter), strict=True)):
        expected = torch.from_numpy(patch).float() / 255
        for change in jitter.order[row]:
            expected = adjust[change](expected, jitter.factors[row, change])
        assert np.abs(result - 255 * expected.numpy()).max() < 0.52  # one rounding


def test_jitter_factors_and_order_are_uniform() -> None:
    jitter = draw_jitter(keys(4000).uniform("any", 8), 0.1)
    for factors, low in zip(jitter.factors.T, (0.9, 0.9, 0.9, -0.1), strict=True):
        assert stats.kstest(factors, stats.uniform(low, 0.2).cdf).pvalue > P_VALUE
    orders, counts = np.unique(jitter.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts).pvalue > P_VALUE


def test_pasted_pixels_are_jittered_and_others_kept() -> None:
    images = noise(30, 64, 64)
    for make in (cutpaste, scar):
        result = make(images, keys(30))
        assert torch.equal(result.images.permute(0, 2, 3, 1)[~result.masks], images.permute(0, 2, 3, 1)[~result.masks])
    plain, jittered = (cutpaste(images, keys(30), PatchParams(jitter=amount)) for amount in (0.0, 0.1))
    assert torch.equal(plain.masks, jittered.masks)  # the colour draws do not move the patch
    assert not torch.equal(plain.images, jittered.images)


# Baselines


def test_cutout_erases_a_box_with_the_mean_colour_or_a_given_one() -> None:
    images = coordinates(200, 200, 150)
    mean, given_colour = cutout(images, keys(200)), cutout(images, keys(200), CutoutParams(colour=(1, 2, 255)))
    for image, mask, result, other in zip(images, mean.masks, mean.images, given_colour.images, strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (result[:, mask].float().mean(dim=1) - image.float().mean(dim=(1, 2))).abs().max() <= 0.5
        assert (other[:, mask] == torch.tensor([[1], [2], [255]])).all()
        assert torch.equal(result[:, ~mask], image[:, ~mask])
    area = mean.masks.float().mean(dim=(1, 2)).numpy()
    assert stats.kstest(area, stats.uniform(0.02, 0.13).cdf).pvalue > P_VALUE


def test_confetti_recolours_several_small_patches_in_place() -> None:
    images = torch.full((200, 3, 128, 128), 128, dtype=torch.uint8)
    result = confetti(images, keys(200), ConfettiParams(count=(2, 5), side=(0.03, 0.05)))
    assert torch.equal(result.images.permute(0, 2, 3, 1)[~result.masks], images.permute(0, 2, 3, 1)[~result.masks])
    pieces = np.array([ndimage.label(mask.numpy())[1] for mask in result.masks])
    assert pieces.max() == 5
    assert np.median(pieces) in (3, 4)
    assert (pieces >= 2).mean() > 0.9  # now and then two touch
    lone = [mask for mask, count in zip(result.masks.numpy(), pieces, strict=True) if count == 5]
    sizes = [area for mask in lone for area in np.bincount(ndimage.label(mask)[0].ravel())[1:]]
    assert min(sizes) >= 4 * 4
    assert max(sizes) <= 6 * 6


def test_rotation_label_undoes_the_turn() -> None:
    images = noise(400, 20, 20)
    result = rotation(images, keys(400))
    for image, turned, label in zip(images, result.images, result.labels.tolist(), strict=True):
        assert torch.equal(torch.rot90(turned, -label, (1, 2)), image)
    assert stats.chisquare(np.bincount(result.labels.numpy())).pvalue > P_VALUE


@pytest.mark.parametrize(("padding", "numpy_padding"), [("reflect", "reflect"), ("edge", "edge")])
def test_augment_shifts_and_fills_up(padding: str, numpy_padding: str) -> None:
    images = coordinates(600, 100, 50)
    result = augment(images, keys(600), AugmentParams(translation=0.06, padding=padding, jitter=0)).numpy()
    shifts = np.array([50, 25]) - result[:, :2, 50, 25]  # (N, 2): down, right
    for image, shift in zip(result, shifts.tolist(), strict=True):
        padded = np.pad(images[0].numpy(), ((0, 0), (6, 6), (3, 3)), mode=numpy_padding)  # type: ignore[call-overload]
        top, left = 6 - shift[0], 3 - shift[1]
        assert np.array_equal(image, padded[:, top : top + 100, left : left + 50])
    for column, limit in zip(shifts.T, (6, 3), strict=True):
        assert stats.chisquare(np.bincount(column.astype(int) + limit, minlength=2 * limit + 1)).pvalue > P_VALUE


def test_augment_jitters_the_whole_image_as_one_patch() -> None:
    images = noise(4, 30, 30)
    result = augment(images, keys(4), AugmentParams(translation=0, jitter=0.2))
    jitter = draw_jitter(keys(4).uniform("augment", 10)[:, 2:], 0.2)
    assert np.array_equal(result.numpy(), np.stack(jitter_patches(list(images.numpy()), jitter)))


# Errors


@pytest.mark.parametrize("name", [name for name in cases() if name != "rotation"])
def test_tiny_images_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="too small"):
        cases()[name](noise(1, 15, 40), keys(1))


def test_rotation_refuses_oblong_images() -> None:
    with pytest.raises(UserError, match="square"):
        rotation(noise(1, 20, 30), keys(1))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: PatchParams(area=(0.2, 0.1)), "area"),
        (lambda: PatchParams(area=(0.0, 0.1)), "area"),
        (lambda: PatchParams(aspect=()), "aspect"),
        (lambda: PatchParams(jitter=0.6), "jitter"),
        (lambda: PatchParams(jitter=float("nan")), "jitter"),
        (lambda: PatchParams(rotation=(0, 200)), "rotation"),
        (lambda: ScarParams(width=(0, 4)), "width"),
        (lambda: CutoutParams(colour=(0, 0, 256)), "colour"),
        (lambda: ConfettiParams(count=(0, 3)), "count"),
        (lambda: AugmentParams(0.04, 0.1, padding="wrap"), "padding"),
        (lambda: AugmentParams(translation=0.6, jitter=0.1), "translation"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        make()
