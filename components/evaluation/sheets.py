"""Pictures for people: sheets of images, and maps over images, as small PNG files.

Everything is drawn in memory by Pillow and written whole or not at all. The same input gives the same bytes; a file
holds no date and no software name. The map scale is matplotlib's inferno, legible with any colour vision.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from components.foundation.files import write_bytes

VERMILION, GREEN, INK, MUTED, FAINT = (
    "#D55E00",
    "#009E73",
    "#1F2430",
    "#6B7280",
    "#E5E7EB",
)  # of Okabe and Ito's set, and greys
TRUTH_COLOUR = (0, 229, 255)
ALARM, PASS = "alarm", "pass"
MAX_BYTES = 600_000
MOST_PIXELS = 2_000_000  # of a sheet: more fit no screen, and take seconds to compress
LARGEST_TILE, SMALLEST_TILE = 256, 80  # pixels
MOST_ENLARGED = 3  # times: more shows no more of an image, and takes seconds to compress
MARGIN, GAP = 16, 8  # pixels
STRIP = 120  # pixels of the colour scale

Draw = Callable[[int], Image.Image]


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    path: Path,
    columns: int = 8,
    title: str = "",
    masks: Sequence[NDArray[np.bool_] | None] | None = None,
    tile: int = LARGEST_TILE,
) -> None:
    """Write the images as a grid with a caption under each.

    images: each (H, W, 3) uint8 RGB, any size and shape; captions: one per image, lines parted by a newline, cut
    with an ellipsis where too long. masks: each (H, W) bool or None, drawn as a contour. Tiles shrink from `tile`
    pixels until the sheet has at most about 2 million of them and the file 600 KB.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    columns = max(1, min(columns, len(images)))
    outlines = masks or [None] * len(images)

    def draw(size: int) -> Image.Image:
        blocks = [
            ([_outlined(_tile(image, size), mask, image.shape[:2])], caption)
            for image, mask, caption in zip(images, outlines, captions, strict=True)
        ]
        return _grid(blocks, size, columns, title, [])

    _write_small(draw, path, _largest_of(images, tile))


def map_gallery(
    images: Sequence[NDArray[np.uint8]],
    maps: Sequence[NDArray[np.floating]],
    masks: Sequence[NDArray[np.bool_] | None] | None,
    scores: Sequence[float],
    captions: Sequence[str],
    path: Path,
    map_range: tuple[float, float] | None = None,
    threshold: float | None = None,
    columns: int = 8,
    title: str = "",
) -> None:
    """Write each image, its true defect as a contour (where one has a mask), and its anomaly map over it in grey.

    images: each (H, W, 3) uint8 RGB; maps: each (h, w) float; masks: each (H, W) bool, empty for no defect, or None
    for unknown, or None altogether; scores: one number per image, shown with its caption.
    map_range: (low, high), the one colour scale of all maps: at or under low, an unremarkable value, the image shows
    through unchanged; at or over high the colour is full. By default from the middle value of all maps to the highest
    but one in a thousand. threshold: scores above it are said to be alarms, others to pass. Files as in
    `contact_sheet`.
    """
    counts = {len(images), len(maps), len(scores), len(captions), len(images if masks is None else masks)}
    if len(counts) != 1:
        raise ValueError("images, maps, masks, scores and captions must be as many of each")
    columns = max(1, min(columns, len(images)))
    low, high = map_range or _range_of(maps)
    truths = list(masks) if masks is not None and any(mask is not None and mask.any() for mask in masks) else []

    def draw(size: int) -> Image.Image:
        blocks = []
        for i, image in enumerate(images):
            tile = _tile(image, size)
            truth = [_truth(tile, truths[i], image.shape[:2])] if truths else []
            overlay = _overlaid(tile, maps[i], (low, high), image.shape[:2])
            blocks.append(([tile, *truth, overlay], f"{captions[i]}\n{_verdict(scores[i], threshold)}"))
        rows = ["image", "defect", "map"] if truths else ["image", "map"]
        sheet = _grid(blocks, size, columns, title or " ", rows, beside_title=_colour_bar_width(low, high))
        return _with_colour_bar(sheet, low, high)

    _write_small(draw, path, _largest_of(images, LARGEST_TILE))


def map_picture(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating],
    mask: NDArray[np.bool_] | None,
    caption: str,
    map_range: tuple[float, float] | None,
) -> Image.Image:
    """One image with its true defect as a contour, its anomaly map beside it, and a line of words under both.

    image: (H, W, 3) uint8 RGB; anomaly_map: (h, w) float; mask: (H, W) bool or None; map_range: as in `map_gallery`.
    """
    pair = map_tiles(image, [anomaly_map], mask, [map_range], LARGEST_TILE)
    font = _font(22)
    picture = Image.new("RGB", (2 * LARGEST_TILE + GAP, LARGEST_TILE + 34), "white")
    for column, one in enumerate(pair):
        picture.paste(one, (column * (LARGEST_TILE + GAP), 0))
    ImageDraw.Draw(picture).text((4, LARGEST_TILE + 4), _shortened(caption, font, picture.width - 8), INK, font)
    return picture


def map_tiles(
    image: NDArray[np.uint8],
    maps: Sequence[NDArray[np.floating]],
    mask: NDArray[np.bool_] | None,
    map_ranges: Sequence[tuple[float, float] | None],
    side: int,
) -> list[Image.Image]:
    """The image with its true defect as a contour, and each anomaly map over it in grey: squares of `side` pixels.

    image: (H, W, 3) uint8 RGB; maps: each (h, w) float; mask: (H, W) bool or None; map_ranges: as in `map_gallery`.
    """
    tile = _tile(image, side)
    scales = [scale or _range_of([values]) for values, scale in zip(maps, map_ranges, strict=True)]
    shown = [_overlaid(tile, values, scale, image.shape[:2]) for values, scale in zip(maps, scales, strict=True)]
    return [_outlined(tile, mask, image.shape[:2]), *shown]


def _tile(image: NDArray[np.uint8], size: int) -> Image.Image:
    """The image in a square of `size` pixels, its shape kept, on a faint ground."""
    ground = Image.new("RGB", (size, size), FAINT)
    height, width, left, top = _place(image.shape[:2], size)
    picture = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.LANCZOS)
    ground.paste(picture, (left, top))
    return ground


def _place(shape: tuple[int, ...], size: int) -> tuple[int, int, int, int]:
    """(height, width, left, top) of an image of this (H, W) shape centred in a square."""
    scale = size / max(shape)
    height, width = (max(1, round(side * scale)) for side in shape)
    return height, width, (size - width) // 2, (size - height) // 2


def _placed(values: NDArray, shape: tuple[int, ...], size: int) -> NDArray[np.float32]:
    """A mask or map (h, w), stretched over an image of `shape` as `_tile` places it: (size, size), 0 outside."""
    height, width, left, top = _place(shape, size)
    field = Image.fromarray(np.asarray(values, dtype=np.float32))
    canvas = np.zeros((size, size), np.float32)
    stretched = field.resize((width, height), Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = np.asarray(stretched)
    return canvas


def _outlined(tile: Image.Image, mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> Image.Image:
    """The tile with the mask's outline in bright cyan on a dark hem, so that it shows on any ground."""
    if mask is None or not np.any(mask):
        return tile
    inside = _placed(mask, shape, tile.width) > 0.25
    line = ndimage.binary_dilation(inside) & ~ndimage.binary_erosion(inside)  # closed at the tile's edge too
    hem = ndimage.binary_dilation(line) & ~line
    pixels = np.array(tile)  # (size, size, 3)
    pixels[hem] = pixels[hem] // 3
    pixels[line] = TRUTH_COLOUR
    return Image.fromarray(pixels)


def _truth(tile: Image.Image, mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> Image.Image:
    """The tile with the mask's outline; words instead of the image once more where there is nothing to outline."""
    if mask is not None and np.any(mask):
        return _outlined(tile, mask, shape)
    words, font = "no mask" if mask is None else "no defect", _font(_text_size(tile.width))
    empty = Image.new("RGB", tile.size, FAINT)
    left, top = (tile.width - font.getlength(words)) / 2, (tile.height - font.size) / 2
    ImageDraw.Draw(empty).text((left, top), words, MUTED, font)
    return empty


def _verdict(score: float, threshold: float | None) -> str:
    """The score, and what the threshold makes of it."""
    return f"{score:.4g}" if threshold is None else f"{ALARM if score > threshold else PASS} {score:.4g}"


def _overlaid(
    tile: Image.Image, anomaly_map: NDArray[np.floating], scale: tuple[float, float], shape: tuple[int, ...]
) -> Image.Image:
    low, high = scale
    level = np.clip((_placed(anomaly_map, shape, tile.width) - low) / max(high - low, 1e-12), 0, 1)
    grey = np.asarray(tile.convert("L"), np.float32)[..., None]  # (size, size, 1)
    opacity = 0.85 * np.clip(2.5 * level, 0, 1)[..., None]
    blend = grey * (1 - opacity) + _inferno(level) * opacity
    return Image.fromarray(np.rint(blend).astype(np.uint8))


def _inferno(level: NDArray[np.floating]) -> NDArray[np.float32]:
    """Colours (..., 3) in [0, 255] of levels (...) in [0, 1]."""
    return 255 * matplotlib.colormaps["inferno"](level)[..., :3].astype(np.float32)


def _range_of(maps: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    if not maps:
        return 0.0, 1.0
    values = np.concatenate([np.ravel(one) for one in maps])
    low, high = np.quantile(values, [0.5, 0.999])
    return float(low), float(high)


def _grid(
    blocks: Sequence[tuple[list[Image.Image], str]],
    size: int,
    columns: int,
    title: str,
    rows: Sequence[str],
    beside_title: int = 0,
) -> Image.Image:
    """Blocks (tiles from top to bottom, caption under them) side by side, in bands of `columns`.

    beside_title: pixels that are left free at the right of the title.
    """
    font, line = _font(_text_size(size)), round(1.35 * _text_size(size))
    tall = len(blocks[0][0]) if blocks else 0
    gutter = round(1.6 * line) if rows else 0
    head = round(2.2 * line) if title else 0
    caption_lines = max((caption.count("\n") + 1 for _, caption in blocks), default=0)
    band = tall * (size + GAP // 2) + caption_lines * line + GAP + MARGIN // 2
    bands = -(-len(blocks) // columns)
    title_font = _font(round(1.25 * _text_size(size)), bold=True)
    inner = max(columns * (size + GAP) - GAP, math.ceil(title_font.getlength(title)) + GAP + beside_title)
    width = 2 * MARGIN + gutter + inner
    sheet = Image.new("RGB", (width, 2 * MARGIN + head + bands * band - GAP - MARGIN // 2), "white")
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((MARGIN + gutter, MARGIN), title, INK, title_font)
    for i, (tiles, caption) in enumerate(blocks):
        x = MARGIN + gutter + (i % columns) * (size + GAP)
        y = MARGIN + head + (i // columns) * band
        for row, tile in enumerate(tiles):
            sheet.paste(tile, (x, y + row * (size + GAP // 2)))
            if rows and i % columns == 0:
                _sideways(sheet, rows[row], font, (MARGIN, y + row * (size + GAP // 2)), size)
        for row, words in enumerate(caption.split("\n")):
            below = y + tall * (size + GAP // 2) + row * line
            pen.text((x, below), _shortened(words, font, size), _caption_colour(words, row), font)
    return sheet


def _caption_colour(words: str, row: int) -> str:
    verdicts = {ALARM: VERMILION, PASS: GREEN}
    return INK if row == 0 else verdicts.get(words.partition(" ")[0], MUTED)


def _sideways(
    sheet: Image.Image, words: str, font: ImageFont.FreeTypeFont, corner: tuple[int, int], length: int
) -> None:
    """Write words upwards, centred along a vertical stretch of `length` pixels from `corner`."""
    strip = Image.new("RGB", (length, round(1.35 * font.size)), "white")
    ImageDraw.Draw(strip).text(((length - font.getlength(words)) / 2, 0), words, MUTED, font)
    sheet.paste(strip.rotate(90, expand=True), corner)


def _with_colour_bar(sheet: Image.Image, low: float, high: float) -> Image.Image:
    """Draw the scale at the right of the title line: low, a strip of colours, high."""
    font, pen = _font(13), ImageDraw.Draw(sheet)
    strip = np.broadcast_to(_inferno(np.linspace(0, 1, STRIP))[None], (12, STRIP, 3))
    before, after = _colour_bar_words(low, high)
    right = sheet.width - MARGIN - font.getlength(after)
    left = round(right) - 6 - STRIP
    sheet.paste(Image.fromarray(np.rint(strip).astype(np.uint8)), (left, MARGIN + 2))
    pen.text((right, MARGIN), after, MUTED, font)
    pen.text((left - 6 - font.getlength(before), MARGIN), before, MUTED, font)
    return sheet


def _colour_bar_words(low: float, high: float) -> tuple[str, str]:
    return f"anomaly  {low:.3g}", f"{high:.3g}"


def _colour_bar_width(low: float, high: float) -> int:
    return STRIP + 12 + math.ceil(sum(_font(13).getlength(words) for words in _colour_bar_words(low, high)))


def _text_size(tile: int) -> int:
    return min(15, max(11, tile // 13))


@lru_cache(maxsize=16)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib ships DejaVu Sans: the same letters on every machine, in every figure."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def _shortened(words: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "…") > width:
        words = words[:-1]
    return words.rstrip() + "…"


def _largest_of(images: Sequence[NDArray[np.uint8]], size: int) -> int:
    """The side of a tile, at most `size`: small images are not enlarged beyond what shows their pixels."""
    longest = max((max(image.shape[:2]) for image in images), default=size)
    return min(size, max(SMALLEST_TILE, MOST_ENLARGED * longest))


def _write_small(draw: Draw, path: Path, size: int) -> None:
    """Write the drawing with tiles of `size`, or smaller ones that keep the file small, or the smallest there are."""
    drawn = cache(draw)
    if (area := drawn(size).width * drawn(size).height) > MOST_PIXELS:
        size = max(SMALLEST_TILE, int(size * (MOST_PIXELS / area) ** 0.5))
    picture = drawn(size)
    band = picture.crop((0, picture.height * 3 // 8, picture.width, picture.height * 5 // 8))
    size = _shrunk(size, 4 * len(png(_rounded(band))))  # a quarter tells about how large the file would be
    while len(data := png(_rounded(drawn(size)))) > MAX_BYTES and size > SMALLEST_TILE:
        size = _shrunk(size, len(data))
    write_bytes(path, data)


def _shrunk(size: int, length: int) -> int:
    """The side of tiles, now `size`, with which a file of `length` bytes, as large as its area, becomes small."""
    if length <= MAX_BYTES or size <= SMALLEST_TILE:
        return size
    return max(SMALLEST_TILE, int(size * min(0.94, (MAX_BYTES / length) ** 0.5)))


def _rounded(image: Image.Image) -> Image.Image:
    """The image with 64 levels per channel: a third smaller as a file, and the eye sees no difference."""
    pixels = np.asarray(image)
    return Image.fromarray((pixels & 0xFC) | (pixels >> 6))


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=5)
    return buffer.getvalue()
