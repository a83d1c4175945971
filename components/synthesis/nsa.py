"""Natural Synthetic Anomalies: patches of one good image, blended seamlessly into another, with pixel labels.

Source: Schlüter, Tan, Hou, Kainz, "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and
Localization", ECCV 2022 (arXiv 2109.15222), section 3; FPI (Tan et al. 2020) and PII (Tan et al. 2021) as its
baselines. Every draw belongs to its sample (`components.foundation.draws`), so neither batch size nor worker changes a
byte.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from components.foundation.draws import SampleKeys
from components.foundation.errors import UserError
from components.synthesis.boxes import Box, disjoint_windows
from components.synthesis.disk_median import bounding_box, box_median, disk_median
from components.synthesis.nsa_params import Bounds, NsaParams
from components.synthesis.poisson import blend_mask, blend_rectangle, to_uint8

SMALLEST_MASK = 50  # pixels; smaller masks are skipped, as the paper's generator does
OBJECT_RULE = "share of the source patch on the object"
OVERLAP_RULE = "overlap of the patch with the target's object"
SIZE_RULE = f"a mask of at least {SMALLEST_MASK} pixels"
CHANGE_RULE = "a change of more than one grey level"

_FIRST_TRIES = 16  # drawn for every patch; the rest only where these fail
_DRAWS_PER_PATCH = 6 + 2 * 2 * _FIRST_TRIES
_MASK_FILTER = 7
_LABEL_FILTER = 5
_LABEL_MARGIN = 5  # the disk's radius: how far a pixel's label can see


class NoPatchError(UserError):
    """No patch can be made: the images are smaller than the smallest one, or whatever is blended changes nothing."""


@dataclass(frozen=True)
class NsaImage:
    """A good image as the generator reads it, made once by `prepare`.

    image: uint8 (H, W, 3). planes: uint8 (C, H, W), C = 1 for a grey image. object_mask: bool (H, W) or None.
    counts: int32 (H + 1, W + 1), object pixels above and left, so that any rectangle is counted by four look-ups.
    """

    image: NDArray[np.uint8]
    planes: NDArray[np.uint8]
    object_mask: NDArray[np.bool_] | None = None
    counts: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class NsaSample:
    """A synthetic sample.

    image: uint8 (H, W, 3). label: float32 (H, W), 0–1 (grey levels for "continuous"). mask: bool (H, W), the pixels
    that changed by more than the tolerance. tries: places tried. patches: patches blended. refused: how often a rule
    refused, by the rule's name.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.float32]
    mask: NDArray[np.bool_]
    tries: int
    patches: int
    refused: Counter[str]

    @property
    def changed(self) -> bool:
        """Whether any pixel of the mask is set."""
        return bool(self.mask.any())


def prepare(image: NDArray[np.uint8], params: NsaParams) -> NsaImage:
    """Split a uint8 (H, W, 3) image into planes and find its object; raises NoPatchError if no patch fits in it."""
    height, width = image.shape[:2]
    tallest, widest = (round(bounds[1] * side) for bounds, side in zip(params.bounds, (height, width), strict=True))
    if (tallest - 2) * (widest - 2) < SMALLEST_MASK:
        raise NoPatchError(
            f"An image of {width} × {height} pixels is too small for synthetic patches: its largest patch has "
            f"{widest} × {tallest} pixels and breaks the rule '{SIZE_RULE}'; use larger images or size bounds."
        )
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))  # (3, H, W)
    mask = object_mask(planes, params)
    if np.array_equal(planes[0], planes[1]) and np.array_equal(planes[0], planes[2]):
        planes = planes[:1]
    return NsaImage(image, planes, mask, None if mask is None else _counts(mask))


def object_mask(planes: NDArray[np.uint8], params: NsaParams) -> NDArray[np.bool_] | None:
    """Pixels of uint8 (3, H, W) whose mean is further from the background than the tolerance, median-filtered."""
    if params.background is None:
        return None
    total = planes.astype(np.int16).sum(axis=0, dtype=np.int16)  # (H, W), three times the mean
    return box_median(np.abs(total - 3 * params.background) > 3 * params.tolerance, _MASK_FILTER)


def nsa_sample(target: NsaImage, source: NsaImage, keys: SampleKeys, params: NsaParams) -> NsaSample:
    """Blend patches of `source` into `target`, both of one size; `keys` names one sample.

    The same keys give the same bytes. A patch for which no place satisfies the rules is left out; with none left the
    image stays as it is and its label is zero.
    """
    draws = keys.uniform("nsa", 1 + _DRAWS_PER_PATCH * params.patches)[0]
    low, high = params.factor_bounds
    work = _Work(*_common_planes(target, source), target, source, keys, params, low + (high - low) * draws[0])
    for number, row in enumerate(draws[1:].reshape(params.patches, _DRAWS_PER_PATCH)):
        if number == 0 or row[0] < 0.5:
            work.add_patch(number, row)
    return work.finish()


def nsa_batch(
    images: Sequence[NsaImage], image_keys: NDArray[np.int64], keys: SampleKeys, params: NsaParams
) -> list[NsaSample]:
    """One sample for each of `keys`: into the image that it names, from another one (the same if alone).

    image_keys: (N,) who each of the images is. A sample does not depend on the others of the batch, and on other images
    only where one of them is its source (`SampleKeys.choose`). Raises UserError if there is no image.
    """
    if not images:
        raise UserError(f"{keys.category} has no good image to make synthetic anomalies from: add some.")
    places = {key: place for place, key in enumerate(image_keys.tolist())}
    sources = sources_of(keys, image_keys).tolist()
    return [
        nsa_sample(images[places[key]], images[source], keys[row : row + 1], params)
        for row, (key, source) in enumerate(zip(keys.index.tolist(), sources, strict=True))
    ]


def sources_of(keys: SampleKeys, image_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """From which image the patches of each of the samples with these keys (N,) come: positions (N,) in `image_keys`."""
    return keys.choose("nsa source", image_keys)


@dataclass
class _Work:
    """A sample in the making: the blended planes so far, and the mask of what its label covers."""

    blended: NDArray[np.uint8]  # (C, H, W)
    source_planes: NDArray[np.uint8]  # (C, H, W)
    target: NsaImage
    source: NsaImage
    keys: SampleKeys
    params: NsaParams
    factor: float
    covered: NDArray[np.bool_] = field(init=False)  # (H, W)
    boxes: list[Box] = field(default_factory=list)
    tries: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.covered = np.zeros(self.blended.shape[1:], bool)

    def add_patch(self, number: int, draws: NDArray[np.float64]) -> None:
        """Cut one patch, find its place, blend it; draws: float64 (_DRAWS_PER_PATCH,)."""
        cuts, places = draws[6:].reshape(2, _FIRST_TRIES, 2)
        origin = self._cut(number, draws[1:5], cuts)
        if origin is None:
            return
        if self.params.method == "nsa":
            size = _resized(origin, draws[5], self.blended.shape[1:], self.params)
        else:
            size = origin.height, origin.width
        patch, on_object = self._patch(origin, *size)
        box = origin
        if self.params.method == "nsa":
            found = self._place(number, places, size, on_object)
            if found is None:
                return
            box = found
        self._blend(box, patch, on_object)

    def _cut(self, number: int, draws: NDArray[np.float64], first: NDArray[np.float64]) -> Box | None:
        """The source's rectangle: the first of all tries whose share of object is large enough."""
        sides = self.blended.shape[1:]
        bounds = [_pixels(b, side) for b, side in zip(self.params.bounds, sides, strict=True)]
        half = [_half_side(draws[2 * i : 2 * i + 2], sides[i], bounds[i], self.params) for i in (0, 1)]
        low = np.array([b[0] for b in bounds])
        room = np.maximum(np.array(sides) - 2 * low, 1)

        def corners(places: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            centres = low + (places * room).astype(np.int64)
            return np.maximum(centres - half, 0), np.minimum(centres + half, sides)

        def accepts(places: NDArray[np.float64]) -> int | None:
            if self.source.counts is None:
                return 0
            starts, stops = corners(places)
            height, width = (stops - starts).T
            share = _count_in(self.source.counts, starts, stops) / (height * width)
            return _first(share > self.params.min_object)

        place = self._search(accepts, OBJECT_RULE, first, f"nsa cut {number}")
        if place is None:
            return None
        (top, left), (bottom, right) = (corner[0].tolist() for corner in corners(place[None]))
        return Box(top, left, bottom - top, right - left)

    def _patch(self, origin: Box, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """The source's planes (C, height, width) in the rectangle, resized, and with them its object mask."""
        planes = self.source_planes[origin.window_of_planes]
        if self.source.object_mask is None:
            return resize_bilinear(planes, height, width), None
        mask = self.source.object_mask[origin.window].view(np.uint8)
        resized = resize_bilinear(np.concatenate((planes, mask[None])), height, width)
        return resized[:-1], resized[-1].view(bool)

    def _place(
        self, number: int, first: NDArray[np.float64], size: tuple[int, int], on_object: NDArray[np.bool_] | None
    ) -> Box | None:
        """Where the patch goes: uniform within the image, the first try that overlaps the target's object enough."""
        room = np.array(self.blended.shape[1:]) - size + 1

        def accepts(places: NDArray[np.float64]) -> int | None:
            return 0 if on_object is None else self._overlapping((places * room).astype(np.int64), on_object)

        if on_object is not None and np.count_nonzero(on_object) <= self.params.min_object * on_object.size:
            self.tries += 1
            self.refused[OBJECT_RULE] += 1  # resizing took it below the share
            return None
        place = self._search(accepts, OVERLAP_RULE, first, f"nsa place {number}")
        if place is None:
            return None
        top, left = (place * room).astype(np.int64).tolist()
        return Box(top, left, *size)

    def _overlapping(self, starts: NDArray[np.int64], on_object: NDArray[np.bool_]) -> int | None:
        """Index of the first place where the objects overlap enough; places that cannot are sorted out by counting."""
        assert self.target.object_mask is not None
        assert self.target.counts is not None
        needed = self.params.min_overlap * np.count_nonzero(on_object)
        possible = _count_in(self.target.counts, starts, starts + on_object.shape) > needed
        for index in possible.nonzero()[0].tolist():
            top, left = starts[index].tolist()
            window = Box(top, left, *on_object.shape).window
            if np.count_nonzero(self.target.object_mask[window] & on_object) > needed:
                return index
        return None

    def _search(
        self,
        accepts: Callable[[NDArray[np.float64]], int | None],
        rule: str,
        first: NDArray[np.float64],
        purpose: str,
    ) -> NDArray[np.float64] | None:
        """The first place (2,) in [0, 1)² that `accepts` takes, of all tries; counts tries and refusals."""
        tried = 0
        while tried < self.params.tries:
            rest = self.params.tries - tried
            places = self.keys.uniform(purpose, 2 * rest).reshape(-1, 2) if tried else first[:rest]
            index = accepts(places)
            refused = len(places) if index is None else index
            tried += refused
            self.refused[rule] += refused
            if index is not None:
                self.tries += tried + 1
                return places[index]
        self.tries += tried
        return None

    def _blend(self, box: Box, patch: NDArray[np.uint8], on_object: NDArray[np.bool_] | None) -> None:
        covered, blend = self._masks(box, on_object)
        if self.params.method == "fpi":
            self._interpolate(box, patch, covered)
        else:
            inner = bounding_box(blend) if np.count_nonzero(blend) >= SMALLEST_MASK else None
            if inner is None:
                self.refused[SIZE_RULE] += 1
                return
            self._blend_poisson(box, inner, patch, blend)
        region = self.covered[box.window]
        self.covered[box.window] = covered if self.params.faithful else covered | region
        self.boxes.append(box)

    def _masks(self, box: Box, on_object: NDArray[np.bool_] | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """What the label covers (either object), and what is blended (also background on background, no border)."""
        covered = np.ones((box.height, box.width), bool)
        blend = covered.copy()
        if on_object is not None and self.target.object_mask is not None:
            there = self.target.object_mask[box.window]
            covered = on_object | there  # where neither is, both are background and may be blended
        blend[[0, -1]] = False
        blend[:, [0, -1]] = False
        return covered, blend

    def _interpolate(self, box: Box, patch: NDArray[np.uint8], covered: NDArray[np.bool_]) -> None:
        """FPI: (1 - factor) · target + factor · patch."""
        old = self.blended[box.window_of_planes]
        mixed = old + np.float32(self.factor) * (patch.astype(np.float32) - old)
        self.blended[box.window_of_planes] = np.where(covered, to_uint8(mixed), old)

    def _blend_poisson(
        self, box: Box, inner: tuple[slice, slice], patch: NDArray[np.uint8], blend: NDArray[np.bool_]
    ) -> None:
        """NSA and PII; PII weighs the gradients by the factor, and the correction is linear in them."""
        old = self.blended[box.window_of_planes][:, *inner]
        if self.params.exact_mask:
            new = blend_mask(old, patch[:, *inner], blend[inner], self.params.gradients)
        else:
            new = blend_rectangle(old, patch[:, *inner], blend[inner], self.params.gradients, self.params.erosion)
        if self.params.method == "pii":
            new = old + self.factor * (new - old)
        old[...] = to_uint8(new)

    def finish(self) -> NsaSample:
        """The image and its label."""
        image, shape = self.target.image.copy(), self.covered.shape
        label, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for window in self._windows():
            new, old = self.blended[:, *window], self.target.planes[:, *window]
            image[window] = new.transpose(1, 2, 0)
            difference = _difference(old, new)
            label[window], mask[window] = make_label(difference, self.covered[window], self.params, self.factor)
        return NsaSample(image, label, mask, self.tries, len(self.boxes), +self.refused)

    def _windows(self) -> list[tuple[slice, slice]]:
        """Disjoint windows that hold all that changed, with the label's margin."""
        grown = (box.grown(_LABEL_MARGIN, self.covered.shape) for box in self.boxes)
        return [box.window for box in disjoint_windows(grown)]


def make_label(
    difference: NDArray[np.int16], covered: NDArray[np.bool_], params: NsaParams, factor: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Label and mask of a window whose border is the image's, or lies 5 pixels outside all that changed.

    difference: int16 (h, w), sum over three channels of |blended − target|. covered: bool (h, w), where patches lie.
    mask = mean difference over the tolerance (1 grey level), filtered by a median over 5 × 5 pixels.
    x = median over a disk of radius 5 of the mean difference in the mask. Label: binary = mask; continuous = x;
    logistic = mask / (1 + exp(−k (x − x0))); factor = mask · factor. Returns float32 (h, w) and bool (h, w).
    """
    mask = box_median((difference > 3 * params.change_tolerance) & covered, _LABEL_FILTER)
    if params.label == "binary":
        return mask.astype(np.float32), mask
    if params.label == "factor":
        return mask * np.float32(factor), mask
    x = disk_median(difference * mask)  # three times the grey levels
    if params.label == "continuous":
        return (x / 3).astype(np.float32), mask
    return _logistic_labels(params.k, params.x0)[x] * mask, mask


@lru_cache(maxsize=16)
def _logistic_labels(k: float, x0: float) -> NDArray[np.float32]:
    """The label of every sum of three channels' differences: (766,)."""
    return np.asarray(expit(k * (np.arange(3 * 255 + 1) / 3 - x0)), np.float32)


def resize_bilinear(planes: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (C, h, w) to (C, height, width) by linear interpolation between pixel centres, rounded."""
    if planes.shape[1:] == (height, width):
        return planes
    rows, columns = _interpolation(planes.shape[1], height), _interpolation(planes.shape[2], width)
    along = planes.reshape(-1, planes.shape[2]).astype(np.float32) @ columns.T  # (C · h, width)
    resized = np.matmul(rows, along.reshape(len(planes), -1, width))  # (C, height, width)
    resized += np.float32(0.5)
    return resized.astype(np.uint8)


@lru_cache(maxsize=512)
def _interpolation(size: int, new_size: int) -> NDArray[np.float32]:
    """Matrix (new_size, size) of linear interpolation: two weights a row, the outermost pixels held beyond the ends."""
    centres = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(centres[:, None] - np.arange(size)), 0).astype(np.float32)


def _common_planes(target: NsaImage, source: NsaImage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Planes to blend into (a copy) and from, both with one channel or both with three."""
    if target.image.shape != source.image.shape:
        raise ValueError(f"target {target.image.shape} and source {source.image.shape} must have one shape")
    if len(target.planes) == len(source.planes):
        return target.planes.copy(), source.planes
    into, out_of = (np.repeat(p.planes, 3, axis=0) if len(p.planes) == 1 else p.planes.copy() for p in (target, source))
    return into, out_of


def _pixels(bounds: Bounds, side: int) -> tuple[int, int]:
    return max(round(bounds[0] * side), 1), max(round(bounds[1] * side), 1)


def _half_side(draws: NDArray[np.float64], side: int, bounds: tuple[int, int], params: NsaParams) -> int:
    """Half a patch's side in pixels; a gamma variable of shape 2 is the sum of two exponential ones."""
    gamma = -params.gamma_scale * math.log((1 - draws[0]) * (1 - draws[1]))
    return int(min(max((params.gamma_offset + gamma) * side, bounds[0]), bounds[1]))


def _resized(origin: Box, draw: float, sides: tuple[int, ...], params: NsaParams) -> tuple[int, int]:
    """New height and width: the aspect ratio stays unless a bound forbids it; the official code's order of bounds."""
    low, high = params.resize_bounds
    scale = min(max(1 + params.resize_deviation * float(ndtri(max(draw, 2.0**-60))), low), high)
    rows, columns = (_pixels(b, side) for b, side in zip(params.bounds, sides, strict=True))
    height = min(max(scale * origin.height, rows[0]), rows[1])
    width = min(max(int(height / origin.height * origin.width), columns[0]), columns[1])
    height = min(max(int(width / origin.width * origin.height), rows[0]), rows[1])
    return height, width


def _first(accepted: NDArray[np.bool_]) -> int | None:
    index = int(accepted.argmax())
    return index if accepted[index] else None


def _counts(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    counts = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int32), axis=1, out=counts[1:, 1:])
    return counts


def _count_in(counts: NDArray[np.int32], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int32]:
    """Object pixels in each of N rectangles; starts, stops: (N, 2)."""
    (top, left), (bottom, right) = starts.T, stops.T
    return counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]


def _difference(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Sum over three channels of |new − old|, int16 (h, w); one grey plane counts three times."""
    apart = np.maximum(old, new)
    apart -= np.minimum(old, new)  # (3, h, w); or (1, h, w) if both are grey
    if len(apart) == 1:
        return apart[0] * np.int16(3)
    total = apart[0].astype(np.int16)
    for plane in apart[1:]:
        total += plane
    return total
