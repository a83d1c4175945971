"""The perceptual hash: what is the same photograph to it, and what is not."""

import os
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from components.foundation.params import IngestParams
from components.images.perceptual_hash import (
    FREQUENCIES,
    SIDE,
    HashIndex,
    distance,
    image_hashes,
    moved_hashes,
    own_hash,
    small_grey,
)

NEAR = IngestParams().near_distance
SHARED = os.environ.get("FLAWLINE_SHARED_DATA")


def photograph(seed: int, side: int = SIDE) -> np.ndarray:
    """A disc with a rim, always at the same place, and a surface of its own: what an aligned product looks like."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    disc = 190 - 120 * (np.hypot(x, y) < 0.35) + 50 * (np.abs(np.hypot(x, y) - 0.38) < 0.02)
    coarse = Image.fromarray(generator.normal(0, 1, (32, 32)).astype(np.float32))
    surface = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    noise = generator.normal(0, 2, (side, side))
    return np.clip((disc + 9 * surface + noise)[..., None] + [0, 4, -4], 0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    return padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]


def brighter(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


CHANGES = {
    "nothing": lambda image: image,
    "jpeg 90": lambda image: as_jpeg(image, 90),
    "jpeg 70": lambda image: as_jpeg(image, 70),
    "brighter by 5 %": lambda image: brighter(image, 1.05),
    "darker by 15 levels": lambda image: np.clip(image - 15.0, 0, 255).astype(np.uint8),
    "down": lambda image: moved(image, 1, 0),
    "left": lambda image: moved(image, 0, -1),
    "up and right": lambda image: moved(image, -1, 1),
    "smaller": lambda image: np.array(Image.fromarray(image).resize((230, 230), Image.Resampling.LANCZOS)),
    "moved, brighter, jpeg 80": lambda image: as_jpeg(brighter(moved(image, 1, 1), 1.05), 80),
}


def test_the_first_hash_holds_the_signs_of_the_cosine_transform() -> None:
    image = photograph(0)
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)
    expected = dctn(grey, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel() > 0
    bits = np.unpackbits(image_hashes(image)[0]).astype(bool)
    assert (bits[1:] == expected[1:]).mean() > 0.999  # single precision may turn the sign of a coefficient near zero
    assert not bits[0]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_near(change: str) -> None:
    for seed in range(3):
        image = photograph(seed)
        assert distance(image_hashes(CHANGES[change](image)), image_hashes(image)[0]) <= NEAR


def test_other_parts_of_the_same_product_are_not_near() -> None:
    hashes = [image_hashes(photograph(seed)) for seed in range(12)]
    distances = [distance(hashes[i], hashes[j][0]) for i in range(12) for j in range(12) if i != j]
    assert min(distances) > 2 * NEAR


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    index, images = HashIndex(), [photograph(seed) for seed in range(80)]
    for number, image in enumerate(images):
        index.add(f"{number}", image_hashes(image)[0])
    for number in (0, 63, 64, 79):
        grey = small_grey(moved(images[number], 1, -1))
        hashes, found = moved_hashes(grey), index.nearest(own_hash(grey), partial(np.asarray, grey))
        assert found is not None
        distances = [distance(hashes, image_hashes(image)[0]) for image in images]
        assert found[0] == f"{int(np.argmin(distances))}" == f"{number}"
        assert found[1] == pytest.approx(min(distances))


def test_an_empty_index_and_a_stranger_give_nothing() -> None:
    index = HashIndex()
    stranger = small_grey(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    assert index.nearest(own_hash(stranger), lambda: stranger) is None
    index.add("disc", image_hashes(photograph(0))[0])
    assert index.nearest(own_hash(stranger), lambda: stranger) is None


@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_image_has_a_hash_and_is_near_to_itself(value: int) -> None:
    hashes = image_hashes(np.full((40, 60, 3), value, np.uint8))
    assert distance(hashes, hashes[0]) == 0


@pytest.mark.skipif(SHARED is None, reason="FLAWLINE_SHARED_DATA is not set: no real inspection images here")
@pytest.mark.parametrize(("category", "twins"), [("mvtec/bottle", 0), ("mvtec/screw", 1)])
def test_real_parts_of_one_product_are_told_apart(category: str, twins: int) -> None:
    """The one near pair of screws, train 053 and 173, are two shots of one screw."""
    paths = sorted((Path(SHARED or "") / category / "train" / "good").glob("*.png"))
    index, near = HashIndex(), []
    for path in paths:
        with Image.open(path) as image:
            grey = small_grey(np.array(image.convert("RGB")))
        found = index.nearest(own_hash(grey), partial(np.asarray, grey))
        near += [(found[0], path.stem)] if found and found[1] <= NEAR else []
        index.add(path.stem, own_hash(grey))
    assert len(near) == twins, near
