"""Pictures for people: sheets of images, maps over images, curves and histograms, as small PNG files.

Everything is drawn in memory by Pillow or by matplotlib's Agg canvas (no pyplot, no display, no global state) and
written whole or not at all. The same input gives the same bytes; a file holds no date and no software name.
Colours are from Okabe and Ito's set and the map scale is matplotlib's inferno, legible with any colour vision.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from components.evaluation import metrics
from components.foundation.errors import printable
from components.foundation.files import write_bytes

BLUE, VERMILION, GREEN, INK, MUTED, FAINT = "#0072B2", "#D55E00", "#009E73", "#1F2430", "#6B7280", "#E5E7EB"
TRUTH_COLOUR = (0, 229, 255)
ALARM, PASS = "alarm", "pass"
MAX_BYTES = 600_000
LARGEST_TILE, SMALLEST_TILE = 256, 80  # pixels
MARGIN, GAP = 16, 8  # pixels
STRIP = 120  # pixels of the colour scale
DPI = 110

Draw = Callable[[int], Image.Image]


# Sheets of images


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
    pixels until the file is at most about 600 KB.
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

    _write_small(draw, path, tile)


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

    _write_small(draw, path)


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


# Charts


def roc_figure(labels: ArrayLike, scores: ArrayLike, path: Path) -> None:
    """Write the image-level ROC curve of scores (N,) against labels (N,), 1 = defective, with its area.

    Without both classes there is no curve, and the picture says so.
    """
    kinds = np.asarray(labels).astype(bool)
    figure, ax = _chart(4.6, 4.6)
    curve, area = metrics.roc_curve(kinds, scores), metrics.auroc(kinds, scores)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    if curve is None:
        ax.text(0.5, 0.9, "needs good and defective images", ha="center", color=MUTED)
        _title(ax, "ROC")
    else:
        ax.fill_between(curve[0], curve[1], color=BLUE, alpha=0.12, linewidth=0)
        ax.plot(curve[0], curve[1], color=BLUE, linewidth=2, clip_on=False)
        _title(ax, f"ROC, area {area:.3f}", f"{kinds.sum()} defective, {(~kinds).sum()} good")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="false alarms on good images", ylabel="defective images found")
    ax.set_aspect("equal")
    _write_chart(figure, path)


def score_histogram(
    good_scores: ArrayLike,
    defect_scores_by_kind: Mapping[str, ArrayLike],
    threshold: float | None,
    path: Path,
) -> None:
    """Write one histogram per kind, good first, over one axis of scores, with the threshold through all.

    good_scores: (n,); defect_scores_by_kind: kind -> (m,). Beside each: how many of its images are above the
    threshold. The axis is logarithmic where positive scores span more than a factor of fifty.
    """
    rows = {"good": np.asarray(good_scores, float)}
    rows |= {kind: np.asarray(scores, float) for kind, scores in defect_scores_by_kind.items()}
    everything = np.concatenate(list(rows.values()))
    figure, axes = _charts(len(rows), 7.2, 0.9 + 0.62 * len(rows))
    bins, log_scale = _bins(everything if threshold is None else np.append(everything, threshold))
    for ax, (kind, scores) in zip(axes, rows.items(), strict=True):
        ax.hist(scores, bins=bins.tolist(), color=BLUE if kind == "good" else VERMILION, alpha=0.85)
        ax.set(xscale="log" if log_scale else "linear", xlim=(bins[0], bins[-1]), yticks=[])
        ax.minorticks_off()
        ax.spines["left"].set_visible(False)
        label = ax.text(-0.012, 0.25, "", transform=ax.transAxes, ha="right", va="center", color=INK, fontsize=9)
        label.set_parse_math(False)  # $ is a sign like any other
        label.set_text(printable(kind))
        count = f"{len(scores)}"
        if threshold is not None:
            ax.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
            count = f"{np.count_nonzero(scores > threshold)} of {len(scores)}"
        ax.text(1.012, 0.25, count, transform=ax.transAxes, ha="left", va="center", color=MUTED, fontsize=9)
        ax.tick_params(labelbottom=ax is axes[-1])
    note = "images per score" if threshold is None else f"right: images above the threshold {threshold:.4g} (dashed)"
    _title(axes[0], "Scores", note)
    axes[-1].set_xlabel("anomaly score")
    _write_chart(figure, path)


def history_figure(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write the course of training: one small chart per numeric column, over `step` or `epoch` or the row number.

    rows: one mapping per recorded step, as `csv.DictReader` or a list of dicts gives them; what is empty or not a
    number is left out. Without rows the picture says that there was no training.
    """
    axis = next((name for name in ("step", "epoch") if rows and name in rows[0]), "row")
    columns = {name: _column(rows, name, axis) for name in dict.fromkeys(key for row in rows for key in row)}
    columns = {name: points for name, points in columns.items() if name not in ("step", "epoch") and len(points)}
    if not columns:
        figure, ax = _chart(5.0, 1.6)
        ax.text(0.5, 0.5, "no training took place", ha="center", va="center", color=MUTED)
        ax.set_axis_off()
        return _write_chart(figure, path)
    figure, axes = _charts(len(columns), 7.2, 0.8 + 1.35 * len(columns))
    for ax, (name, points) in zip(axes, columns.items(), strict=True):
        ax.plot(points[:, 0], points[:, 1], color=BLUE, linewidth=1.6, marker="o" if len(points) == 1 else "")
        ax.set_yscale("log" if _spans_decades(points[:, 1]) else "linear")
        ax.minorticks_off()
        ax.grid(axis="y", color=FAINT, linewidth=0.8)
        ax.set_title(f"{name}, last {points[-1, 1]:.4g}", loc="left", fontsize=9, color=INK)
        ax.margins(x=0)
    axes[-1].set_xlabel(axis)
    return _write_chart(figure, path)


def exam_figure(
    names: Sequence[str], values: Sequence[float | None], serving: Collection[str], path: Path, title: str = "Exam"
) -> None:
    """Write one dot per named value (an AUROC, say) with its number, those that serve marked; None is shown as n/a."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = max(high - low, 0.02)
    figure, ax = _chart(8.4, 1.1 + 0.3 * len(names))
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        colour = VERMILION if name in serving else BLUE
        words = "n/a" if value is None else f"{value:.3f}"
        if value is not None:
            ax.plot([low - 0.15 * room, value], [row, row], color=FAINT, linewidth=2, zorder=1)
            ax.scatter([value], [row], color=colour, s=42, zorder=2)
        at = (low - 0.15 * room, MUTED) if value is None else (value, INK)
        ax.annotate(words, (at[0], row), (8, 0), textcoords="offset points", va="center", fontsize=9, color=at[1])
    ax.set(xlim=(low - 0.15 * room, high + 0.2 * room), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set(color=VERMILION if name in serving else INK)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    served = any(name in serving for name in names)
    words = f"{title} (red: what serves)" if served else title
    # Of the whole figure: beside long names the axes are narrower than the title.
    figure.suptitle(words, x=0.02, ha="left", fontsize=11, fontweight="bold", color=INK)
    _write_chart(figure, path)


def _column(rows: Sequence[Mapping[str, object]], name: str, axis: str) -> NDArray[np.float64]:
    """The (x, y) points (T, 2) of a column where it holds finite numbers."""
    points = []
    for number, row in enumerate(rows):
        x, y = _number(row.get(axis, number)), _number(row.get(name))
        if x is not None and y is not None:
            points.append((x, y))
    return np.array(points)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _spans_decades(values: NDArray[np.float64]) -> bool:
    return bool(values.size and values.min() > 0 and values.max() > 50 * values.min())


def _bins(values: NDArray[np.float64], count: int = 60) -> tuple[NDArray[np.float64], bool]:
    """Edges (count + 1,) of equal bins around the values with a little room, and whether they are logarithmic."""
    log_scale = _spans_decades(values)
    spread = np.log10(values) if log_scale else values
    low, high = (spread.min(), spread.max()) if spread.size else (0.0, 1.0)
    room = 0.03 * (high - low) or 0.5
    edges = np.linspace(low - room, high + room, count + 1)
    return (10**edges if log_scale else edges), log_scale


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = _charts(1, width, height)
    return figure, axes[0]


def _charts(rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A white figure (inches) with `rows` plain axes above each other, sharing the horizontal one."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        ax.xaxis.label.set(color=INK, fontsize=9)
        ax.yaxis.label.set(color=INK, fontsize=9)
    return figure, axes


def _title(ax: Axes, title: str, note: str = "") -> None:
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_title(note, loc="right", fontsize=9, color=MUTED)


# Files


def _write_chart(figure: Figure, path: Path) -> None:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
    write_bytes(path, _png(Image.fromarray(np.ascontiguousarray(pixels))))


def _write_small(draw: Draw, path: Path, size: int = LARGEST_TILE) -> None:
    """Write the drawing with tiles of `size`, or the largest that keep the file small, or the smallest there are."""
    data = _png(_rounded(draw(size)))
    while len(data) > MAX_BYTES and size > SMALLEST_TILE:
        ratio = min(0.94, (MAX_BYTES / len(data)) ** 0.5)  # a file is about as large as its area
        size = max(SMALLEST_TILE, int(size * ratio))
        data = _png(_rounded(draw(size)))
    write_bytes(path, data)


def _rounded(image: Image.Image) -> Image.Image:
    """The image with 64 levels per channel: a third smaller as a file, and the eye sees no difference."""
    pixels = np.asarray(image)
    return Image.fromarray((pixels & 0xFC) | (pixels >> 6))


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
