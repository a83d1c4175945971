"""Admission: what of an arriving file can be said without knowing the category. Nothing here trusts the file.

A file passes if its name is harmless, it is one still image of a usual format within the limits, and nothing else is
hidden in it. Archives are never unpacked, and the number of pixels is read from the header before any is decoded.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from components.arrivals.names import Refusal, check_name
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.images.decode import FORMATS, decode_image
from components.images.ending import foreign_content, image_end, is_archive


@dataclass(frozen=True)
class Opened:
    """An image that was admitted.

    pixels: (H, W, 3) uint8 RGB. mode, format: Pillow's names. sha256: of the file's bytes.
    """

    pixels: np.ndarray
    mode: str
    format: str
    sha256: str


def check_listing(key: str, kind: str, size: int, limits: ImageLimits) -> Refusal | None:
    """Check a file before a byte of it is read, by its name, its kind ("file", "link" or "other") and its size."""
    if refusal := check_name(key):
        return refusal
    if kind == "link":
        return Refusal("link", "is a link, and links are not followed")
    if kind != "file":
        return Refusal("not-a-file", "is no regular file")
    if size == 0:
        return Refusal("empty", "is empty")
    if size > limits.max_bytes:
        return Refusal("too-many-bytes", f"has {size:,} bytes, more than the limit of {limits.max_bytes:,}")
    return None


def open_arrival(data: bytes, name: str, limits: ImageLimits) -> Opened | Refusal:
    """Check a file by its content, and decode it.

    Codes: archive, not-an-image, too-many-pixels, several-images, foreign-content, undecodable.
    """
    if is_archive(data):
        return Refusal("archive", "is an archive or a compressed file; it was not unpacked")
    header = _header(data)
    if header is None:
        return Refusal("not-an-image", "is no PNG, JPEG, BMP or TIFF image")
    if refusal := _check_header(header, limits):
        return refusal
    if foreign := foreign_content(data):
        return Refusal("foreign-content", f"holds {foreign}")
    if _lacks_end(data, header.format):
        return Refusal("undecodable", "is truncated: its end is missing")
    try:
        pixels = decode_image(data, name, limits)  # (H, W, 3)
    except UserError:
        return Refusal("undecodable", "cannot be decoded: it is truncated or damaged")
    return Opened(pixels, header.mode, header.format, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class _Header:
    mode: str
    format: str
    width: int
    height: int
    frames: int


def _header(data: bytes) -> _Header | None:
    """What the image says of itself; None where it is none. `Image.open` decodes no pixels."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            return _Header(image.mode, str(image.format), width, height, getattr(image, "n_frames", 1))
    except Image.DecompressionBombError:
        return _Header("", "", 1 << 31, 1 << 31, 1)
    except Exception:  # on a damaged file Pillow's readers fail with any exception
        return None


def _lacks_end(data: bytes, format: str) -> bool:
    """Whether the last bytes are missing: where they hold no pixels, decoders do not mind."""
    end = image_end(data) if format in ("PNG", "BMP") else 0
    return end is None or end > len(data)


def _check_header(header: _Header, limits: ImageLimits) -> Refusal | None:
    if header.width * header.height > limits.max_pixels:
        return Refusal("too-many-pixels", f"has more pixels than the limit of {limits.max_pixels:,}")
    if header.frames != 1:
        return Refusal("several-images", f"holds {header.frames} images, one is expected")
    return None
