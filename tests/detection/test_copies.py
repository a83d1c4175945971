"""Turned copies of good images."""

import numpy as np
import torch

from components.detection.copies import JITTER, SHIFT, copies_of, geometric_copies, photometric_copies
from components.foundation.draws import SampleKeys

SIDE = 64


def disc(centre: tuple[float, float]) -> torch.Tensor:
    """A bright disc on a plain ground: turning it about the image's middle moves its centre on a circle."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 36
    return torch.from_numpy(np.where(inside, 200, 40).astype(np.uint8)).expand(1, 3, SIDE, SIDE)


def centre_of(image: torch.Tensor) -> np.ndarray:
    rows, columns = np.nonzero(image[0].numpy() > 120)
    return np.array([columns.mean(), rows.mean()]) + 0.5


def test_a_copy_is_a_rigid_motion_about_the_middle() -> None:
    keys = SampleKeys.of(0, "bolt", 0, np.arange(1))
    copies = geometric_copies(disc((48, 32)), keys, 200)
    assert copies.dtype == torch.uint8
    assert copies.shape == (200, 3, SIDE, SIDE)
    centres = np.array([centre_of(copy) for copy in copies])
    distance = np.linalg.norm(centres - SIDE / 2, axis=1)
    assert np.all(np.abs(distance - 16) < np.sqrt(2) * SHIFT * SIDE + 1)
    angles = np.arctan2(*(centres - SIDE / 2).T)
    assert np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0].min() > 25  # every quarter is visited


def test_half_of_the_copies_are_mirrored() -> None:
    image = torch.maximum(disc((48, 32)), disc((32, 52)) // 2)  # turning clockwise leads from one to the other
    copies = geometric_copies(image, SampleKeys.of(0, "bolt", 0, np.arange(1)), 100)
    senses = []
    for copy in copies:
        bright = np.argwhere(copy[0].numpy() > 150).mean(axis=0) - SIDE / 2
        dim = np.argwhere((copy[0].numpy() > 70) & (copy[0].numpy() < 130)).mean(axis=0) - SIDE / 2
        senses.append(np.sign(bright[0] * dim[1] - bright[1] * dim[0]))
    assert 30 < senses.count(1) < 70


def test_a_copy_depends_on_its_image_and_number_only() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))
    together = geometric_copies(images, SampleKeys.of(1, "bolt", 0, np.arange(5)), 3).unflatten(0, (3, 5))
    alone = geometric_copies(images[2:3], SampleKeys.of(1, "bolt", 0, np.array([2])), 3)
    torch.testing.assert_close(together[:, 2], alone, rtol=0, atol=0)


def test_a_photometric_copy_keeps_its_place_and_changes_its_light() -> None:
    """A grey image stays grey under saturation and hue; contrast and brightness scale it by a tenth each at most."""
    image = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    copies = photometric_copies(image, SampleKeys.of(0, "bolt", 0, np.arange(1)), 200)
    assert copies.dtype == torch.uint8
    assert copies.shape == (200, 3, 16, 16)
    levels = copies.float().mean(dim=(1, 2, 3)).numpy()
    assert np.all(copies.float().std(dim=(1, 2, 3)).numpy() == 0)
    assert np.all(np.abs(levels - 100) <= 100 * JITTER + 1)
    assert levels.std() > 4  # of U(90, 110): 5.8
    edge = photometric_copies(disc((48, 32)), SampleKeys.of(0, "bolt", 0, np.arange(1)), 5)
    for copy in edge:
        np.testing.assert_allclose(centre_of(copy), [48, 32], atol=0.01)


def test_a_photometric_copy_depends_on_its_image_and_number_only() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8))
    together = photometric_copies(images, SampleKeys.of(1, "bolt", 0, np.arange(5)), 3).unflatten(0, (3, 5))
    alone = photometric_copies(images[2:3], SampleKeys.of(1, "bolt", 0, np.array([2])), 3)
    torch.testing.assert_close(together[:, 2], alone, rtol=0, atol=0)
    assert len({copy.numpy().tobytes() for copy in alone}) == 3


def test_images_that_lie_channels_last_are_copied_alike_and_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    before, keys = pixels.copy(), SampleKeys.of(1, "bolt", 0, np.arange(4))
    last = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for kind in ("geometric", "photometric"):
        assert torch.equal(copies_of(last, keys, 2, kind), copies_of(last.contiguous(), keys, 2, kind))
    np.testing.assert_array_equal(pixels, before)
