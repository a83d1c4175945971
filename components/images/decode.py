"""Decode inspection images of any usual kind into uint8 RGB, and refuse what is broken or dangerous."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
ORIENTATION = 0x0112  # EXIF's tag: 1 is upright


def read_image(path: Path, limits: ImageLimits) -> np.ndarray:
    """Read one image as the eye sees it: (H, W, 3) uint8 RGB, EXIF rotation applied.

    Grey and palette images become RGB; values v of 16-bit grey become round(v · 255 / (2^bits − 1)), at most 255;
    transparency is laid over black.
    Raises UserError where the file is missing, too large, truncated, or no PNG, JPEG, BMP or TIFF image.
    """
    return read_with_header(path, limits)[0]


class Decoded(NamedTuple):
    """One image file, decoded.

    pixels: (H, W, 3) uint8 RGB. mode, format: Pillow's names, such as "RGB" and "PNG". frames: how many images the file
    holds, of which this is the first. orientation: EXIF's, 1 where nothing was turned. highest: the highest value
    stored in a deep grey image; None for any other.
    """

    pixels: np.ndarray
    mode: str
    format: str
    frames: int
    orientation: int
    highest: int | None = None


class DecodedMask(NamedTuple):
    """One mask file, decoded: marked (H, W) bool, True on the defect; levels: how many distinct values it holds."""

    marked: np.ndarray
    levels: int
    frames: int
    orientation: int


def read_with_header(path: Path, limits: ImageLimits) -> Decoded:
    """`read_image`, and what the file says of itself."""
    with _opened(path, limits) as image:
        pixels, highest = _upright_rgb(image, path, limits), _highest(image)
        return Decoded(pixels, image.mode, str(image.format), *_frames_and_orientation(image), highest)


def highest_value(path: Path, limits: ImageLimits) -> int | None:
    """The highest value stored in a deep grey image; None for any other, of which only the header is read."""
    with _failures_explained(path, limits), _identified(path) as image:
        is_deep = _is_deep(image)
    if not is_deep:
        return None
    with _opened(path, limits) as image:
        return _highest(image)


def decode_image(data: bytes, name: str, limits: ImageLimits) -> np.ndarray:
    """`read_image` for an image file's content in memory; errors call it `name`."""
    _check_size(name, len(data), limits)
    with _decoded(BytesIO(data), name, limits) as image:
        return _upright_rgb(image, name, limits)


def read_mask(path: Path, limits: ImageLimits) -> np.ndarray:
    """Read one ground-truth mask as the eye sees it: (H, W) bool, True on the defect (any value above zero).

    EXIF rotation is applied as for images. A pixel of a colour or palette mask counts unless it is black; transparency
    is laid over black, and where the colour is the same everywhere, the opacity alone says what is marked.
    """
    return read_mask_with_header(path, limits).marked


def read_mask_with_header(path: Path, limits: ImageLimits) -> DecodedMask:
    """`read_mask`, and what the file says of itself."""
    with _opened(path, limits) as image, _failures_explained(path, limits):
        values = _mask_values(ImageOps.exif_transpose(image))
        return DecodedMask(values > 0, len(np.unique(values)), *_frames_and_orientation(image))


def mask_values(path: Path, limits: ImageLimits) -> np.ndarray:
    """The distinct values of a mask, sorted, of a colour one the brightest channel's: a proper mask has at most two."""
    with _opened(path, limits) as image, _failures_explained(path, limits):
        return np.unique(_mask_values(image))


def read_grey(path: Path, limits: ImageLimits) -> tuple[np.ndarray, dict[str, str]]:
    """Read one image's grey values as they are stored: (H, W) uint8, or uint16 for a deep image; and its PNG texts.

    EXIF rotation is applied. Colour images become grey, transparency is laid over black. Raises UserError as
    `read_image` does.
    """
    with _opened(path, limits) as image, _failures_explained(path, limits):
        texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
        image = ImageOps.exif_transpose(image)
        if _is_deep(image):
            return _values_of_16_bit(image, path).astype(np.uint16), texts
        return np.array(_as_rgb(image, path, limits).convert("L")), texts


def to_8_bit(values: np.ndarray, bits: int) -> np.ndarray:
    """Grey values 0 … 2^bits − 1 (H, W) as 0 … 255 uint8, rounded; what is above becomes white."""
    most = (1 << bits) - 1
    return ((np.minimum(values, most).astype(np.int32) * 255 + most // 2) // most).astype(np.uint8)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resample (H, W, 3) uint8 to (size, size, 3) uint8 with Lanczos; an image of that size is returned as it is."""
    if image.shape[:2] == (size, size):
        return image
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def read_square(path: Path, size: int, limits: ImageLimits) -> np.ndarray:
    """The image as the models see it: `read_image`, resampled to (size, size, 3) uint8. Errors as of `read_image`."""
    return resize_image(read_image(path, limits), size)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resample (H, W) bool to (size, size) bool by nearest neighbour."""
    if mask.shape == (size, size):
        return mask
    return np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def merged_mask(paths: Iterable[Path], size: int, limits: ImageLimits) -> np.ndarray:
    """The union of an image's masks, (size, size) bool; all false where it has none. Errors as of `read_mask`."""
    mask = np.zeros((size, size), bool)
    for path in paths:
        mask |= resize_mask(read_mask(path, limits), size)
    return mask


def _opened(path: Path, limits: ImageLimits) -> Image.Image:
    """Open and decode one file within `limits`; every failure becomes one sentence."""
    if not path.is_file():
        raise UserError(f"There is no image at {path}: check the path.")
    _check_size(path, path.stat().st_size, limits)
    return _decoded(path, path, limits)


def _decoded(source: Path | BytesIO, path: Path | str, limits: ImageLimits) -> Image.Image:
    """Open and decode `source`, which messages call `path`."""
    with _failures_explained(path, limits):
        image = _identified(source)
        _check_pixels(path, image.size, limits)
        image.filename = ""  # else Pillow maps raw grey TIFF pixels into memory, and loses how they are to be turned
        image.info["orientation"] = image.getexif().get(ORIENTATION, 1)  # which is gone once a TIFF file is loaded
        image.load()
        return image


def _identified(source: Path | BytesIO) -> ImageFile.ImageFile:
    """What the header says; no pixel is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=FORMATS)


def _upright_rgb(image: Image.Image, path: Path | str, limits: ImageLimits) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the EXIF rotation applied; EXIF data may be damaged where the pixels are not."""
    with _failures_explained(path, limits):
        return np.array(_as_rgb(ImageOps.exif_transpose(image), path, limits), dtype=np.uint8)  # (H, W, 3)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I")


def _highest(image: Image.Image) -> int | None:
    return int(np.array(image).max()) if _is_deep(image) else None


def _frames_and_orientation(image: Image.Image) -> tuple[int, int]:
    """How many images the file holds, and EXIF's orientation; 1 for what is no orientation."""
    orientation = image.info["orientation"]
    return getattr(image, "n_frames", 1), orientation if orientation in range(1, 9) else 1


def _mask_values(image: Image.Image) -> np.ndarray:
    """(H, W) of which all above zero is marked: grey values, the brightest of the colour channels, or the opacity."""
    if image.mode in ("1", "L", "P") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("1", "L", "F") or _is_deep(image):
        return np.array(image)
    colours = np.array(image.convert("RGBA"))  # (H, W, 4)
    brightest, opacity = colours[..., :3].max(axis=2), colours[..., 3]  # (H, W)
    if np.ptp(brightest) == 0 and np.ptp(opacity) > 0:
        return opacity
    return np.where(opacity > 0, brightest, 0)


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


def _as_rgb(image: Image.Image, path: Path | str, limits: ImageLimits) -> Image.Image:
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    match image.mode:
        case "I;16" | "I;16L" | "I;16B" | "I" | "I;16N":
            return Image.fromarray(to_8_bit(_values_of_16_bit(image, path), limits.bits)).convert("RGB")
        case "LA" | "RGBA" | "PA":
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
        case "F":
            raise UserError(f"{path} holds floating-point pixels: convert it to 8 or 16 bit.")
        case _:
            return image.convert("RGB")


def _values_of_16_bit(image: Image.Image, path: Path | str) -> np.ndarray:
    values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path} holds pixel values outside 0…65535: convert it to 8 or 16 bit.")
    return values
