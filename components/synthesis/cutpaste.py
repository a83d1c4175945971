"""CutPaste's synthetic defects and the paper's baselines, batched on uint8 tensors.

Source: Li, Sohn, Yoon, Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR 2021.
Images are uint8 (N, 3, H, W) RGB, contiguous or channels-last; results keep layout and device. Every sample is made
from its own key alone, so it has the same bytes in any batch, on any worker and in any order. The work is done on the
CPU, images of another device make the round trip: the patches are too small to be worth a GPU's launches.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from components.foundation.draws import SampleKeys, pick, spread
from components.foundation.errors import UserError
from components.synthesis.jitter import JITTER_DRAWS, Bytes, Integers, Jitter, Reals, draw_jitter, jitter_patches

Interval = tuple[float, float]

MIN_SIDE = 16  # px: below this the smallest patches vanish
SCAR_SIDE = 256  # px: the image side for which the paper gives the scar's size
PAPER_ASPECTS: tuple[Interval, ...] = ((0.3, 1.0), (1.0, 3.3))
NORMAL, CUTPASTE, SCAR = range(3)

_GROUP = 64  # images whose patches are held at once, so that memory does not grow with the batch


def _check_interval(name: str, interval: Interval, low: float, high: float) -> None:
    if not low <= interval[0] <= interval[1] <= high:
        raise UserError(f"The {name} {interval} is out of range: give two numbers from {low:g} to {high:g}, in order.")


def _check_jitter(amount: float) -> None:
    if not 0.0 <= amount <= 0.5:
        raise UserError(f"The colour jitter {amount} is out of range: give a number from 0 to 0.5.")


def _check_box(area: Interval, aspect: tuple[Interval, ...]) -> None:
    _check_interval("patch area", area, 1e-4, 0.5)
    if not aspect:
        raise UserError("The patch has no aspect interval: give at least one, such as (0.3, 3.3).")
    for interval in aspect:
        _check_interval("patch aspect", interval, 0.05, 20.0)


@dataclass(frozen=True)
class PatchParams:
    """CutPaste's patch (paper, section 2.2).

    area: of the patch, as a ratio of the image's. aspect: height / width, uniform within an interval that is picked
    with equal chance. jitter: largest change in brightness, contrast, saturation and hue. rotation: degrees,
    counter-clockwise. Raises UserError for values out of range.
    """

    area: Interval = (0.02, 0.15)
    aspect: tuple[Interval, ...] = PAPER_ASPECTS
    jitter: float = 0.1
    rotation: Interval = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_box(self.area, self.aspect)
        _check_jitter(self.jitter)
        _check_interval("rotation", self.rotation, -180.0, 180.0)


@dataclass(frozen=True)
class ScarParams:
    """CutPaste's scar (paper, section 2.3): a thin rectangle, jittered, rotated and pasted through its mask.

    width, length: px in an image of 256 px, scaled with the shorter side; whole pixels, both ends included.
    rotation: degrees from upright, counter-clockwise. Raises UserError for values out of range.
    """

    width: Interval = (2, 16)
    length: Interval = (10, 25)
    rotation: Interval = (-45.0, 45.0)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _check_interval("scar width", self.width, 1, SCAR_SIDE // 2)
        _check_interval("scar length", self.length, 1, SCAR_SIDE // 2)
        _check_interval("rotation", self.rotation, -180.0, 180.0)
        _check_jitter(self.jitter)


@dataclass(frozen=True)
class CutoutParams:
    """Baseline Cutout: a box of the patch's size is erased with `colour` (RGB, 0..255), or the image's mean colour."""

    area: Interval = (0.02, 0.15)
    aspect: tuple[Interval, ...] = PAPER_ASPECTS
    colour: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        _check_box(self.area, self.aspect)
        if self.colour is not None and not all(0 <= level <= 255 for level in self.colour):
            raise UserError(f"The Cutout colour {self.colour} is out of range: give three levels between 0 and 255.")


@dataclass(frozen=True)
class ConfettiParams:
    """Baseline confetti: several small patches change their colour where they are.

    count: patches per image, both ends included. side: of a patch, as a ratio of the shorter side. jitter: as for a
    patch, but strong, since nothing else marks the defect.
    """

    count: tuple[int, int] = (3, 8)
    side: Interval = (0.02, 0.08)
    jitter: float = 0.5

    def __post_init__(self) -> None:
        _check_interval("confetti count", self.count, 1, 100)
        _check_interval("confetti side", self.side, 0.0, 0.5)
        _check_jitter(self.jitter)


@dataclass(frozen=True)
class AugmentParams:
    """What happens to the whole image before either kind of defect; the paper gives no amounts.

    translation: largest shift along each axis, as a ratio of the side. padding: "reflect" or "edge".
    jitter: largest change in brightness, contrast, saturation and hue.
    """

    translation: float
    jitter: float
    padding: str = "reflect"

    def __post_init__(self) -> None:
        _check_interval("translation", (0.0, self.translation), 0.0, 0.5)
        _check_jitter(self.jitter)
        if self.padding not in ("reflect", "edge"):
            raise UserError(f"The padding {self.padding!r} is unknown: choose 'reflect' or 'edge'.")


class Synthetic(NamedTuple):
    """images uint8 (N, 3, H, W); masks bool (N, H, W), true where something was pasted, even if it looks the same."""

    images: torch.Tensor
    masks: torch.Tensor


class ThreeWay(NamedTuple):
    """images uint8 (3N, 3, H, W): N normal, N CutPaste, N scar; labels int64 (3N,) 0, 1, 2; masks bool (3N, H, W)."""

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


class Rotated(NamedTuple):
    """images uint8 (N, 3, S, S); labels int64 (N,), quarter turns counter-clockwise, 0..3."""

    images: torch.Tensor
    labels: torch.Tensor


def cutpaste(images: torch.Tensor, keys: SampleKeys, params: PatchParams = PatchParams()) -> Synthetic:
    """Cut a patch, jitter and perhaps rotate it, and paste it elsewhere in the same image (paper, section 2.2).

    Source and target are uniform, wholly inside the image and differ. A patch whose turned bounding box would not fit
    the image is not turned. Raises UserError for images that are too small.
    """
    canvas, masks = _copies(images, keys)
    _paste_patches(canvas.numpy(), masks.numpy(), keys, params)
    return Synthetic(canvas.to(images.device), masks.to(images.device))


def scar(images: torch.Tensor, keys: SampleKeys, params: ScarParams = ScarParams()) -> Synthetic:
    """Paste a thin jittered rectangle, rotated, through its mask (paper, section 2.3).

    Source and target are uniform, wholly inside the image and differ. Raises UserError for tiny images.
    """
    canvas, masks = _copies(images, keys)
    _paste_scars(canvas.numpy(), masks.numpy(), keys, params)
    return Synthetic(canvas.to(images.device), masks.to(images.device))


def three_way(
    images: torch.Tensor,
    keys: SampleKeys,
    patch_params: PatchParams = PatchParams(),
    scar_params: ScarParams = ScarParams(),
) -> ThreeWay:
    """Make the paper's 3-way batch: the images as they are, each with a patch, each with a scar (section 2.4).

    The defects are those that `cutpaste` and `scar` make of the same keys. Raises UserError as they do.
    """
    canvas, masks = _copies(images, keys, copies=3)
    _, patched, scarred = np.split(canvas.numpy(), 3)
    _, patch_masks, scar_masks = np.split(masks.numpy(), 3)
    _paste_patches(patched, patch_masks, keys, patch_params)
    _paste_scars(scarred, scar_masks, keys, scar_params)
    labels = torch.tensor([NORMAL, CUTPASTE, SCAR]).repeat_interleave(len(images))
    return ThreeWay(canvas.to(images.device), labels.to(images.device), masks.to(images.device))


def cutout(images: torch.Tensor, keys: SampleKeys, params: CutoutParams = CutoutParams()) -> Synthetic:
    """Erase a box of a patch's size, uniform inside the image, with one colour. Raises UserError for tiny images."""
    canvas, masks = _copies(images, keys)
    pixels, marks = canvas.numpy(), masks.numpy()
    side = pixels.shape[2:]
    draws = keys.uniform("cutout", 4)
    heights, widths = _patch_sizes(side, draws[:, :3], params.area, params.aspect)
    tops, lefts = _positions(side, heights, widths, draws[:, 3])
    for row, box in enumerate(_boxes(tops, lefts, heights, widths)):
        colour = pixels[row].mean(axis=(1, 2)).round() if params.colour is None else params.colour
        pixels[row][:, *box] = np.asarray(colour, dtype=np.uint8)[:, None, None]
        marks[row][box] = True
    return Synthetic(canvas.to(images.device), masks.to(images.device))


def confetti(images: torch.Tensor, keys: SampleKeys, params: ConfettiParams = ConfettiParams()) -> Synthetic:
    """Change the colour of several small patches, uniform inside the image, where they are; they may overlap.

    Raises UserError for images that are too small.
    """
    canvas, masks = _copies(images, keys)
    pixels, marks = canvas.numpy(), masks.numpy()
    side = pixels.shape[2:]
    count = pick(keys.uniform("confetti", 1)[:, 0], *params.count)
    for piece in range(params.count[1]):
        draws = keys.uniform(f"confetti {piece}", 3 + JITTER_DRAWS)
        sizes = spread(draws[:, :2], *params.side) * min(side)
        heights, widths = np.maximum(1, np.rint(sizes)).astype(np.int64).T
        placement = _Placement.in_place(*_positions(side, heights, widths, draws[:, 2]), heights, widths)
        chosen = np.flatnonzero(count > piece)
        _paste(pixels, marks, chosen, placement, draw_jitter(draws[:, 3:], params.jitter))
    return Synthetic(canvas.to(images.device), masks.to(images.device))


def rotation(images: torch.Tensor, keys: SampleKeys) -> Rotated:
    """Turn each image by 0, 90, 180 or 270 degrees: the rotation-prediction baseline.

    Raises UserError unless the images are square.
    """
    _check_images(images, keys)
    height, width = images.shape[2:]
    if height != width:
        raise UserError(f"Rotation prediction needs square images, but these are {width}×{height} px: crop them first.")
    labels = torch.from_numpy(pick(keys.uniform("rotation", 1)[:, 0], 0, 3)).to(images.device)
    turned = torch.empty_like(images)
    for quarter in range(4):
        rows = labels == quarter
        turned[rows] = torch.rot90(images[rows], quarter, (2, 3))
    return Rotated(turned, labels)


def augment(images: torch.Tensor, keys: SampleKeys, params: AugmentParams) -> torch.Tensor:
    """Shift each whole image by whole pixels and jitter its colours: the step before either defect (section 2.2).

    Returns uint8 (N, 3, H, W). Raises UserError for images that are too small.
    """
    canvas, _ = _copies(images, keys)
    pixels = canvas.numpy()
    draws = keys.uniform("augment", 2 + JITTER_DRAWS)
    _translate(pixels, draws[:, :2], params)
    jitter = draw_jitter(draws[:, 2:], params.jitter)
    if params.jitter > 0:
        for row in range(len(pixels)):
            pixels[row] = jitter_patches([pixels[row]], jitter[np.array([row])])[0]
    return canvas.to(images.device)


class _Placement(NamedTuple):
    """Where patches come from and go to; all int64 (N,) but angle, float64 (N,) in degrees.

    The source is height × width at (source_top, source_left), the target the bounding box of the turned patch.
    """

    height: Integers
    width: Integers
    angle: Reals
    box_height: Integers
    box_width: Integers
    source_top: Integers
    source_left: Integers
    target_top: Integers
    target_left: Integers

    def take(self, rows: Integers) -> "_Placement":
        """Those of some of the samples."""
        return _Placement._make(values[rows] for values in self)

    @classmethod
    def in_place(cls, top: Integers, left: Integers, height: Integers, width: Integers) -> "_Placement":
        return cls(height, width, np.zeros(len(height)), height, width, top, left, top, left)

    @classmethod
    def elsewhere(
        cls, side: tuple[int, int], height: Integers, width: Integers, angle: Reals, draws: Reals
    ) -> "_Placement":
        """Pick a source and a different target, both uniform, from draws (N, 2)."""
        box_height, box_width = _bounding_box(height, width, angle)
        top, left = _positions(side, height, width, draws[:, 0])
        # The one forbidden target has the source's centre.
        avoid = top - (box_height - height) // 2, left - (box_width - width) // 2
        target = _positions(side, box_height, box_width, draws[:, 1], avoid)
        return cls(height, width, angle, box_height, box_width, top, left, *target)


def _copies(images: torch.Tensor, keys: SampleKeys, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy a batch, one or more times in a row, to the CPU: images (copies · N, 3, H, W) and empty masks."""
    _check_images(images, keys)
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    count, _, height, width = images.shape
    canvas = torch.empty((copies * count, 3, height, width), dtype=torch.uint8, memory_format=layout)
    for copy in range(copies):
        canvas[copy * count : (copy + 1) * count] = images
    return canvas, torch.zeros((copies * count, height, width), dtype=torch.bool)


def _paste_patches(pixels: Bytes, masks: NDArray[np.bool_], keys: SampleKeys, params: PatchParams) -> None:
    side = pixels.shape[2:]
    draws = keys.uniform("cutpaste", 6 + JITTER_DRAWS)
    height, width = _patch_sizes(side, draws[:, :3], params.area, params.aspect)
    angle = spread(draws[:, 3], *params.rotation)
    box_height, box_width = _bounding_box(height, width, angle)
    angle = np.where((box_height <= side[0]) & (box_width <= side[1]), angle, 0.0)
    placement = _Placement.elsewhere(side, height, width, angle, draws[:, 4:6])
    jitter = draw_jitter(draws[:, 6:], params.jitter) if params.jitter > 0 else None
    _paste(pixels, masks, np.arange(len(pixels)), placement, jitter)


def _paste_scars(pixels: Bytes, masks: NDArray[np.bool_], keys: SampleKeys, params: ScarParams) -> None:
    side = pixels.shape[2:]
    draws = keys.uniform("scar", 5 + JITTER_DRAWS)
    scale = min(side) / SCAR_SIDE
    width, length = (
        pick(draws[:, column], *np.maximum(1, np.rint(np.multiply(bounds, scale))))
        for column, bounds in enumerate((params.width, params.length))
    )
    placement = _Placement.elsewhere(side, length, width, spread(draws[:, 2], *params.rotation), draws[:, 3:5])
    jitter = draw_jitter(draws[:, 5:], params.jitter) if params.jitter > 0 else None
    _paste(pixels, masks, np.arange(len(pixels)), placement, jitter)


def _paste(
    pixels: Bytes, masks: NDArray[np.bool_], rows: Integers, placement: _Placement, jitter: Jitter | None
) -> None:
    """Cut, jitter, turn and paste one patch in each of the rows, in place, a group of rows at a time."""
    for start in range(0, len(rows), _GROUP):
        group = rows[start : start + _GROUP]
        spots = placement.take(group)
        sources = _boxes(spots.source_top, spots.source_left, spots.height, spots.width)
        targets = _boxes(spots.target_top, spots.target_left, spots.box_height, spots.box_width)
        patches = [pixels[row][:, *box] for row, box in zip(group, sources, strict=True)]
        patches = [patch.copy() for patch in patches] if jitter is None else jitter_patches(patches, jitter[group])
        for row, box, patch, angle in zip(group, targets, patches, spots.angle.tolist(), strict=True):
            if angle == 0.0:
                pixels[row][:, *box] = patch
                masks[row][box] = True
            else:
                turned, inside = _turn(patch, angle, masks[row][box].shape)
                np.copyto(pixels[row][:, *box], turned, where=inside)
                masks[row][box] |= inside


def _turn(patch: Bytes, angle: float, box: tuple[int, ...]) -> tuple[Bytes, NDArray[np.bool_]]:
    """Turn a patch (C, h, w) counter-clockwise by angle degrees into its bounding box, nearest neighbour.

    Returns uint8 (C, *box) and bool (*box), true where the turned patch covers the pixel's centre.
    """
    height, width = patch.shape[1:]
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    down = (np.arange(box[0]) + (0.5 - box[0] / 2))[:, None]
    right = np.arange(box[1]) + (0.5 - box[1] / 2)
    row = np.floor(cosine * down + (sine * right + height / 2)).astype(np.int64)
    column = np.floor(cosine * right - (sine * down - width / 2)).astype(np.int64)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row *= width
    row += column
    return patch.reshape(len(patch), -1).take(row, axis=1, mode="clip"), inside


def _bounding_box(height: Integers, width: Integers, angle: Reals) -> tuple[Integers, Integers]:
    """Height and width of the smallest upright box around each turned patch, in whole pixels."""
    cosine, sine = np.abs(np.cos(np.radians(angle))), np.abs(np.sin(np.radians(angle)))
    tall, wide = height * cosine + width * sine, height * sine + width * cosine
    return np.ceil(tall - 1e-6).astype(np.int64), np.ceil(wide - 1e-6).astype(np.int64)


def _patch_sizes(
    side: tuple[int, ...], draws: Reals, area: Interval, aspect: tuple[Interval, ...]
) -> tuple[Integers, Integers]:
    """Heights and widths from draws (N, 3); on long images the aspect gives way so that the area can be kept."""
    pixels = spread(draws[:, 0], *area) * side[0] * side[1]
    bounds = np.asarray(aspect)[pick(draws[:, 1], 0, len(aspect) - 1)]  # (N, 2)
    ratio = spread(draws[:, 2], bounds[:, 0], bounds[:, 1])
    ratio = np.clip(ratio, pixels / side[1] ** 2, side[0] ** 2 / pixels)
    height = np.clip(np.rint(np.sqrt(pixels * ratio)), 1, side[0]).astype(np.int64)
    width = np.clip(np.rint(pixels / height), 1, side[1]).astype(np.int64)
    return height, width


def _positions(
    side: tuple[int, ...],
    height: Integers,
    width: Integers,
    draws: Reals,
    avoid: tuple[Integers, Integers] | None = None,
) -> tuple[Integers, Integers]:
    """Tops and lefts of boxes, uniform over all places wholly inside the image but the one to avoid.

    The limits of the parameters see to it that there are at least two places.
    """
    rows, columns = side[0] - height + 1, side[1] - width + 1
    places = rows * columns
    if avoid is None:
        place = pick(draws, 0, places - 1)
    else:
        possible = (avoid[0] >= 0) & (avoid[0] < rows) & (avoid[1] >= 0) & (avoid[1] < columns)
        forbidden = np.where(possible, avoid[0] * columns + avoid[1], places)
        place = pick(draws, 0, places - 1 - possible)
        place += place >= forbidden
    return place // columns, place % columns


def _boxes(top: Integers, left: Integers, height: Integers, width: Integers) -> list[tuple[slice, slice]]:
    edges = zip(top.tolist(), (top + height).tolist(), left.tolist(), (left + width).tolist(), strict=True)
    return [(slice(top, bottom), slice(left, right)) for top, bottom, left, right in edges]


def _translate(pixels: Bytes, draws: Reals, params: AugmentParams) -> None:
    """Shift each image in place, filling up by reflection or repetition of the edge."""
    side = pixels.shape[2:]
    limit = np.rint(np.multiply(side, params.translation)).astype(np.int64)  # (2,)
    shifts = pick(draws, -limit, limit)  # (N, 2)
    margins = ((0, 0), (limit[0], limit[0]), (limit[1], limit[1]))
    for image, (down, right) in zip(pixels, shifts, strict=True):
        padded = np.pad(image, margins, mode=params.padding)  # type: ignore[call-overload]
        top, left = limit[0] - down, limit[1] - right
        image[...] = padded[:, top : top + side[0], left : left + side[1]]


def _check_images(images: torch.Tensor, keys: SampleKeys) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if len(images) != len(keys):
        raise ValueError(f"{len(images)} images need as many keys, got {len(keys)}")
    height, width = images.shape[2:]
    if min(height, width) < MIN_SIDE:
        raise UserError(
            f"Images of {width}×{height} px are too small for synthetic defects: use images of at least "
            f"{MIN_SIDE}×{MIN_SIDE} px."
        )
