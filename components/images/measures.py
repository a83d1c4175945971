"""What is kept of an image to compare others with it: digests, measures and a perceptual hash; never its pixels."""

import hashlib
from typing import Any

import numpy as np
from PIL import Image

from components.images.perceptual_hash import own_hash, small_grey

SHARPNESS_SIDE = 256
MEASURES = ("brightness", "contrast", "sharpness", "red_share", "blue_share")
Facts = dict[str, Any]


def image_facts(pixels: np.ndarray, mode: str) -> Facts:
    """Facts of one image, (H, W, 3) uint8, as a JSON-able dict.

    pixels: digest of the pixels. size: "W×H". mode: Pillow's name. short_side: pixels. hash: the own perceptual hash,
    in hex. brightness, contrast, sharpness, red_share, blue_share: see `image_measures`.
    """
    facts: Facts = {"pixels": pixel_digest(pixels), "size": size_words(pixels), "mode": mode}
    facts |= {"short_side": min(pixels.shape[:2]), "hash": own_hash(small_grey(pixels)).tobytes().hex()}
    return facts | image_measures(pixels)


def hash_of(digits: str) -> np.ndarray:
    """The own perceptual hash of an image, (288,) uint8, from its facts' "hash"."""
    return np.frombuffer(bytes.fromhex(digits), np.uint8)


def image_measures(image: np.ndarray) -> dict[str, float]:
    """Figures by which a moved camera or a failed lamp shows, of one image (H, W, 3) uint8 RGB.

    brightness: mean luma (ITU-R 601), 0…255. contrast: standard deviation of luma. sharpness: variance of the
    4-neighbour Laplacian of luma at 256 × 256 pixels (Pech-Pacheco et al., "Diatom autofocusing in brightfield
    microscopy", ICPR 2000). red_share, blue_share: of the sum of all channels, 1/3 for grey or black images.
    """
    picture = Image.fromarray(image)
    luma = picture.convert("L")
    values = np.arange(256)
    weights = np.array(luma.histogram()) / (luma.width * luma.height)  # (256,), sums to 1
    brightness = float(values @ weights)
    red, green, blue = np.array(picture.histogram()).reshape(3, 256) @ values
    total = red + green + blue
    return {
        "brightness": brightness,
        "contrast": float(np.sqrt((values - brightness) ** 2 @ weights)),
        "sharpness": _laplacian_variance(luma),
        "red_share": float(red / total) if total else 1 / 3,
        "blue_share": float(blue / total) if total else 1 / 3,
    }


def grey_levels(image: np.ndarray) -> int:
    """How many of the 256 levels of luma an image (H, W, 3) uint8 has."""
    return int(np.count_nonzero(Image.fromarray(image).convert("L").histogram()))


def size_words(image: np.ndarray) -> str:
    """The size of an image (H, W, …) as people write it: "W×H"."""
    return f"{image.shape[1]}×{image.shape[0]}"


def pixel_digest(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels (H, W, 3) uint8, as 64 hex digits, whatever file holds them."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _laplacian_variance(luma: Image.Image) -> float:
    small = luma.resize((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BOX)
    grey = np.array(small, dtype=np.int16)  # (256, 256)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(laplacian.var(dtype=np.float64))
