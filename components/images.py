"""Decode inspection images of any usual kind into uint8 RGB, and refuse what is broken or dangerous."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from components.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")


@dataclass(frozen=True)
class ImageLimits:
    """What an image file may be at most, so that one file cannot take the machine down.

    Attributes:
        max_pixels: width × height; checked from the header, before anything is decoded.
        max_bytes: size of the file on disk.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 500_000_000


def read_image(path: Path, limits: ImageLimits) -> np.ndarray:
    """Read one image as the eye sees it: (H, W, 3) uint8 RGB, EXIF rotation applied.

    Grey and palette images become RGB; 16-bit values v become round(v / 257); transparency is laid over black.
    Raises UserError where the file is missing, too large, truncated, or no PNG, JPEG, BMP or TIFF image.
    """
    return read_with_header(path, limits)[0]


def read_with_header(path: Path, limits: ImageLimits) -> tuple[np.ndarray, str, str]:
    """`read_image`, and Pillow's names of the file's mode and format, such as "RGB" and "PNG"."""
    with _opened(path, limits) as image:
        return _upright_rgb(image, path), image.mode, str(image.format)


def decode_image(data: bytes, name: str, limits: ImageLimits) -> np.ndarray:
    """`read_image` for an image file's content in memory; errors call it `name`."""
    _check_size(name, len(data), limits)
    with _decoded(BytesIO(data), name, limits) as image:
        return _upright_rgb(image, name)


def read_mask(path: Path, limits: ImageLimits) -> np.ndarray:
    """Read one ground-truth mask: (H, W) bool, True on the defect (any value above zero)."""
    with _opened(path, limits) as image:
        if image.mode in ("P", "RGB", "RGBA", "LA", "CMYK"):
            image = image.convert("L")
        return np.array(image) > 0


def read_grey(path: Path, limits: ImageLimits) -> tuple[np.ndarray, dict[str, str]]:
    """Read one image's grey values as they are stored: (H, W) uint8, or uint16 for a deep image; and its PNG texts.

    Colour images become grey, transparency is laid over black. Raises UserError as `read_image` does.
    """
    with _opened(path, limits) as image:
        texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
        if image.mode.startswith("I"):
            return _values_of_16_bit(image, path).astype(np.uint16), texts
        return np.array(_as_rgb(image, path).convert("L")), texts


def mask_values(path: Path, limits: ImageLimits) -> np.ndarray:
    """The distinct grey values of a mask, sorted: a proper mask has at most two."""
    with _opened(path, limits) as image:
        return np.unique(np.array(image.convert("L") if image.mode in ("P", "RGB", "RGBA", "LA") else image))


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resample (H, W, 3) uint8 to (size, size, 3) uint8 with Lanczos; an image of that size is returned as it is."""
    if image.shape[:2] == (size, size):
        return image
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resample (H, W) bool to (size, size) bool by nearest neighbour."""
    if mask.shape == (size, size):
        return mask
    return np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def _opened(path: Path, limits: ImageLimits) -> Image.Image:
    """Open and decode one file within `limits`; every failure becomes one sentence."""
    if not path.is_file():
        raise UserError(f"There is no image at {path}: check the path.")
    _check_size(path, path.stat().st_size, limits)
    return _decoded(path, path, limits)


def _decoded(source: Path | BytesIO, path: Path | str, limits: ImageLimits) -> Image.Image:
    """Open and decode `source`, which messages call `path`."""
    with _failures_explained(path, limits):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=FORMATS)
        _check_pixels(path, image.size, limits)
        image.load()
        return image


def _upright_rgb(image: Image.Image, path: Path | str) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the EXIF rotation applied; EXIF data may be damaged where the pixels are not."""
    with _failures_explained(path, ImageLimits()):
        return np.array(_as_rgb(ImageOps.exif_transpose(image), path), dtype=np.uint8)  # (H, W, 3)


@contextmanager
def _failures_explained(path: Path | str, limits: ImageLimits) -> Iterator[None]:
    """Turn whatever Pillow raises into one sentence: on a damaged file its readers fail with any exception."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} holds more pixels than the limit of {limits.max_pixels:,} "
            "(limits.max_pixels in params.yaml): remove the file or raise the limit."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a PNG, JPEG, BMP or TIFF image: remove or replace the file.") from error
    except Exception as error:
        raise UserError(
            f"{path} cannot be decoded ({error}): the file is truncated or damaged, copy it again or remove it."
        ) from error


def _check_size(path: Path | str, size: int, limits: ImageLimits) -> None:
    if size > limits.max_bytes:
        raise UserError(
            f"{path} has {size:,} bytes, more than the limit of {limits.max_bytes:,} "
            "(limits.max_bytes in params.yaml): remove the file or raise the limit."
        )


def _check_pixels(path: Path | str, size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise UserError(
            f"{path} is {width}×{height}, more pixels than the limit of {limits.max_pixels:,} "
            "(limits.max_pixels in params.yaml): remove the file or raise the limit."
        )


def _as_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    match image.mode:
        case "I;16" | "I;16L" | "I;16B" | "I" | "I;16N":
            return _from_16_bit(image, path).convert("RGB")
        case "LA" | "RGBA" | "PA":
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
        case "F":
            raise UserError(f"{path} holds floating-point pixels: convert it to 8 or 16 bit.")
        case _:
            return image.convert("RGB")


def _from_16_bit(image: Image.Image, path: Path | str) -> Image.Image:
    return Image.fromarray(((_values_of_16_bit(image, path) + 128) // 257).astype(np.uint8))


def _values_of_16_bit(image: Image.Image, path: Path | str) -> np.ndarray:
    values = np.array(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path} holds pixel values outside 0…65535: convert it to 8 or 16 bit.")
    return values
