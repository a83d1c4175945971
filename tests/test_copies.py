"""Turned copies of good images."""

import numpy as np
import torch

from components.copies import SHIFT, geometric_copies
from components.draws import SampleKeys

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
