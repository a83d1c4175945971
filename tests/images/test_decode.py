"""Reading images: every usual kind gives the right RGB pixels, every broken or dangerous file one sentence."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.images.decode import (
    decode_image,
    mask_values,
    read_image,
    read_mask,
    read_mask_with_header,
    read_with_header,
    resize_image,
    resize_mask,
)

LIMITS = ImageLimits()
GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (23, 31), dtype=np.uint8)
RGB = GENERATOR.integers(0, 256, (23, 31, 3), dtype=np.uint8)
GREY_16 = GENERATOR.integers(0, 65536, (23, 31), dtype=np.uint16)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(64)[:, None] * 3, np.arange(48) * 4, 90), -1).astype(np.uint8)


def save(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, extension: str) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path, f"c.{extension}", Image.fromarray(RGB)), LIMITS), RGB)
    found = read_image(save(tmp_path, f"g.{extension}", Image.fromarray(GREY)), LIMITS)
    np.testing.assert_array_equal(found, three(GREY))
    assert found.dtype == np.uint8


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff_compressions(tmp_path: Path, compression: str) -> None:
    path = save(tmp_path, "a.tiff", Image.fromarray(RGB), compression=compression)
    np.testing.assert_array_equal(read_image(path, LIMITS), RGB)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_gives_nearly_the_pixels(tmp_path: Path, mode: str) -> None:
    original = Image.fromarray(SMOOTH).convert(mode)
    path = save(tmp_path, "a.jpg", original, quality=98, subsampling=0)
    np.testing.assert_allclose(read_image(path, LIMITS).astype(int), np.array(original.convert("RGB")), atol=6)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_8_bit(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    cv2.imwrite(str(path), GREY_16)  # written by another library than the one that reads
    expected = np.rint(GREY_16 / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path, LIMITS), three(expected))


def test_16_bit_big_endian_tiff(tmp_path: Path) -> None:
    header = struct.pack(">2sHI", b"MM", 42, 8)
    pixels = GREY_16.astype(">u2").tobytes()
    height, width = GREY_16.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, len(pixels))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        value = start if tag == 273 else value
        entries += struct.pack(">HHI", tag, kind, 1) + (
            struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
        )
    (tmp_path / "a.tif").write_bytes(header + struct.pack(">H", len(tags)) + entries + bytes(4) + pixels)
    expected = np.rint(GREY_16 / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", LIMITS), three(expected))


def test_16_bit_colour_keeps_its_upper_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), RGB[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", LIMITS), RGB)


def test_palette_and_bilevel(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(200)
    np.testing.assert_array_equal(
        read_image(save(tmp_path, "p.png", palette), LIMITS), np.array(palette.convert("RGB"))
    )
    np.testing.assert_array_equal(
        read_image(save(tmp_path, "1.png", Image.fromarray(GREY > 127)), LIMITS), three((GREY > 127) * np.uint8(255))
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_black(tmp_path: Path, mode: str) -> None:
    alpha = np.tile(np.array([0, 128, 255], np.uint8), (23, 11))[:, :31]
    image = Image.fromarray(RGB if mode == "RGBA" else GREY)
    image.putalpha(Image.fromarray(alpha))
    assert image.mode == mode
    expected = (RGB if mode == "RGBA" else three(GREY)) * (alpha[..., None] / 255)
    np.testing.assert_allclose(read_image(save(tmp_path, "a.png", image), LIMITS), expected, atol=1)


def test_a_transparent_palette_entry_becomes_black(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([200, 10, 10, 10, 200, 10])
    path = save(tmp_path, "a.png", palette, transparency=0)
    assert read_image(path, LIMITS).tolist() == [[[0, 0, 0], [10, 200, 10]]]


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what undoes each EXIF orientation (EXIF 2.32, tag 0x0112)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, extension: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, f"a.{extension}", Image.fromarray(SMOOTH), exif=exif)
    found = read_image(path, LIMITS).astype(int)
    np.testing.assert_allclose(found, UPRIGHT[orientation](SMOOTH), atol=12 if extension == "jpg" else 0)


@pytest.mark.parametrize("pixels", [GREY, GREY_16])
def test_a_grey_tiff_is_turned_whether_it_comes_as_a_file_or_as_bytes(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, "a.tif", Image.fromarray(pixels), exif=exif)
    expected = three(UPRIGHT[6](pixels if pixels is GREY else np.rint(pixels / 257).astype(np.uint8)))
    np.testing.assert_array_equal(read_image(path, LIMITS), expected)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), "a", LIMITS), expected)


def test_floating_point_and_out_of_range_values_are_refused(tmp_path: Path) -> None:
    floating = save(tmp_path, "f.tif", Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(UserError, match="floating-point"):
        read_image(floating, LIMITS)
    large = save(tmp_path, "i.tif", Image.fromarray(np.full((4, 4), 70_000, np.int32)))
    with pytest.raises(UserError, match="outside"):
        read_image(large, LIMITS)


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_truncated_file_is_refused(tmp_path: Path, extension: str, share: float) -> None:
    path = save(tmp_path, f"a.{extension}", Image.fromarray(GENERATOR.integers(0, 256, (200, 200, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_one_sentence(path, "cannot be decoded|is not a PNG")


def assert_one_sentence(path: Path, why: str, limits: ImageLimits = LIMITS) -> None:
    for read in (read_image, read_mask, mask_values):
        with pytest.raises(UserError, match=why) as caught:
            read(path, limits)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_png_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", Image.fromarray(RGB))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert_one_sentence(path, "cannot be decoded")


@pytest.mark.parametrize("content", [b"this is text\n", b"", b"GIF89a" + bytes(40), b"%PDF-1.7\n", b"<svg></svg>"])
def test_what_is_no_image_is_refused_whatever_its_name_says(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert_one_sentence(tmp_path / "a.png", "is not a PNG, JPEG, BMP or TIFF image")


def test_a_real_gif_under_another_name_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", format="GIF")
    assert_one_sentence(tmp_path / "a.png", "is not a PNG")


def test_an_image_with_the_wrong_extension_of_a_known_format_is_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", LIMITS), RGB)


def test_a_cameras_multi_picture_jpeg_gives_its_first_picture(tmp_path: Path) -> None:
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    path = save(tmp_path, "a.jpg", first, format="MPO", save_all=True, append_images=[second], quality=98)
    np.testing.assert_allclose(read_image(path, LIMITS).astype(int), SMOOTH, atol=12)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert_one_sentence(tmp_path / "none.png", "no image at")
    assert_one_sentence(tmp_path, "no image at")


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid one-bit PNG of that size, a thousand times smaller than what it decodes to."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_001, 10_000), (100_000_001, 1)])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_zeros(width, height))
    assert path.stat().st_size < 100_000
    assert_one_sentence(path, "100,000,000")


def test_limits_are_inclusive(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", Image.fromarray(RGB))
    size = path.stat().st_size
    read_image(path, ImageLimits(max_pixels=23 * 31, max_bytes=size))
    assert_one_sentence(path, "max_pixels", ImageLimits(max_pixels=23 * 31 - 1))
    assert_one_sentence(path, "max_bytes", ImageLimits(max_bytes=size - 1))


MASK = GREY > 200


@pytest.mark.parametrize("on", [1, 128, 255])
def test_any_mask_value_above_zero_is_defect(tmp_path: Path, on: int) -> None:
    path = save(tmp_path, "m.png", Image.fromarray((MASK * on).astype(np.uint8)))
    found = read_mask(path, LIMITS)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, MASK)
    assert mask_values(path, LIMITS).tolist() == [0, on]


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA"])
def test_masks_of_other_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(MASK.astype(np.uint8) * 255).convert(mode)
    path = save(tmp_path, "m.png", image)
    np.testing.assert_array_equal(read_mask(path, LIMITS), MASK)
    assert len(mask_values(path, LIMITS)) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("extension", "mode"), [("png", "L"), ("png", "1"), ("png", "P"), ("tif", "L"), ("tif", "I;16")]
)
def test_a_mask_is_turned_as_its_image_is(tmp_path: Path, orientation: int, extension: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(MASK.astype(np.uint16) * 7 if mode == "I;16" else MASK.astype(np.uint8) * 255)
    path = save(tmp_path, f"m.{extension}", image if mode == "I;16" else image.convert(mode), exif=exif)
    found = read_mask_with_header(path, LIMITS)
    np.testing.assert_array_equal(found.marked, UPRIGHT[orientation](MASK))
    assert (found.levels, found.orientation, found.frames) == (2, orientation, 1)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0)])
def test_a_mask_of_one_colour_is_marked_by_its_opacity(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (31, 23), colour)
    image.putalpha(Image.fromarray(MASK.astype(np.uint8) * 255))
    np.testing.assert_array_equal(read_mask(save(tmp_path, "m.png", image), LIMITS), MASK)


def test_a_transparent_background_of_any_colour_is_not_marked(tmp_path: Path) -> None:
    pixels = np.dstack([np.where(MASK[..., None], 200, 90).repeat(3, 2), MASK * 255]).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path, "m.png", Image.fromarray(pixels)), LIMITS), MASK)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_of_a_mask_is_its_background(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.where(MASK, 255, 90).astype(np.uint8))
    if mode == "P":
        image = Image.fromarray((~MASK).astype(np.uint8), mode="P")
        image.putpalette([255, 0, 0, 90, 90, 90])
    ground = {"L": 90, "P": 1, "RGB": (90, 90, 90)}[mode]
    path = save(tmp_path, "m.png", image if mode == "P" else image.convert(mode), transparency=ground)
    np.testing.assert_array_equal(read_mask(path, LIMITS), MASK)


def test_each_colour_of_a_mask_counts_however_dark_it_looks(tmp_path: Path) -> None:
    blue = np.zeros((23, 31, 3), np.uint8)
    blue[MASK] = (0, 0, 4)  # as grey, this would be 0
    np.testing.assert_array_equal(read_mask(save(tmp_path, "b.png", Image.fromarray(blue)), LIMITS), MASK)
    labels = Image.fromarray(MASK.astype(np.uint8), mode="P")
    labels.putpalette([0, 0, 0, 1, 1, 4])
    np.testing.assert_array_equal(read_mask(save(tmp_path, "p.png", labels), LIMITS), MASK)


def test_a_file_of_several_images_says_so(tmp_path: Path) -> None:
    pages = [Image.fromarray(MASK), Image.fromarray(~MASK)]
    path = save(tmp_path, "m.tif", pages[0], save_all=True, append_images=pages[1:])
    assert read_mask_with_header(path, LIMITS).frames == read_with_header(path, LIMITS).frames == 2


def test_a_16_bit_mask(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), MASK.astype(np.uint16) * 7)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", LIMITS), MASK)


def test_a_mask_of_many_values_is_reported_as_such(tmp_path: Path) -> None:
    assert len(mask_values(save(tmp_path, "m.png", Image.fromarray(GREY)), LIMITS)) > 2


def test_resizing() -> None:
    np.testing.assert_array_equal(resize_image(RGB[:23, :23], 23), RGB[:23, :23])
    flat = resize_image(np.full((300, 100, 3), 77, np.uint8), 64)
    assert flat.shape == (64, 64, 3)
    assert (flat == 77).all()
    half = np.zeros((100, 200), bool)
    half[:, 100:] = True
    np.testing.assert_array_equal(resize_mask(half, 50), np.tile(np.arange(50) >= 25, (50, 1)))
