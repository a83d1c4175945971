"""Defects for the synthetic exam that no method of this project learns from, each with its exact mask and a strength.

Foreign texture, strokes, stains, blur, holes, warps, specks, and parts of another image. None of them is published as
a way to learn; two ideas are: masks from procedural noise (Zavrtanik, Kristan, Skočaj, "DRAEM", ICCV 2021, section 3.1)
and shaded edges (as a relief under one lamp). They are meant to be visible but not glaring: contrasts are multiples of
what the category's good images differ by among themselves, see `contrast_unit`.

The defects of the demo's test images (`components.data.demo`) come from another process, its own drawing code. Where
they come close: its scratch and fibre are lines too and its stain is a change of brightness, all far stronger.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.foundation.draws import SampleKeys, pick

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Sample = tuple[Bytes, Mask]

STRENGTHS = (1.0, 2.0, 3.0)
UNIT_RANGE = (6.0, 16.0)  # grey levels: fainter is not seen, stronger is glaring
TRIES = 4
SEEN = 0.4  # of a contrast unit, by which the pixels of a defect differ at least on average
EDGE = 0.04  # opacity up to which nothing is changed
GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scene:
    """What a sample is made from.

    Attributes:
        image: uint8 (S, S, 3), the good image.
        other: uint8 (S, S, 3), another good image.
        where: bool (S, S), the places that a defect may have its middle in.
        unit: grey levels, see `contrast_unit`.
    """

    image: Bytes
    other: Bytes
    where: Mask
    unit: float

    @property
    def side(self) -> int:
        """S."""
        return len(self.image)

    @cached_property
    def is_grey(self) -> bool:
        """Whether the camera sees no colour, so that no defect has one."""
        return not (self.image[..., :1] != self.image[..., 1:]).any()


Kind = Callable[[Scene, np.random.Generator, float], Sample]


def contrast_unit(images: Bytes) -> float:
    """Grey levels by which good images uint8 (N, S, S, 3) differ at a place, once their finest grain is smoothed away.

    The root mean square over places of the standard deviation over images, within UNIT_RANGE; in whole grey levels, so
    that a few images more or less rarely change it, and with it the samples of all others.
    """
    grey = images.astype(np.float32) @ GREY.astype(np.float32)  # (N, S, S)
    smooth = ndimage.gaussian_filter(grey, (0, grey.shape[1] / 128, grey.shape[1] / 128))
    return float(np.clip(round(float(np.sqrt(smooth.var(axis=0).mean()))), *UNIT_RANGE))


def strengths_of(keys: SampleKeys) -> NDArray[np.float64]:
    """The strength (N,) of the samples with these keys, the same for every kind: each of STRENGTHS equally often."""
    return np.array(STRENGTHS)[pick(keys.uniform("exam strength", 1)[:, 0], 0, len(STRENGTHS) - 1)]


def kind_makers(
    good: Bytes, objects: Sequence[Mask | None], keys_of: Callable[[NDArray[np.int64]], SampleKeys], unit: float
) -> Mapping[str, Callable[[NDArray[np.int64]], tuple[Bytes, Mask]]]:
    """For each kind, what makes samples uint8 (B, S, S, 3) and masks bool (B, S, S) from images of these numbers (B,).

    good: uint8 (M, S, S, 3). objects: (S, S) bool for each, where a defect may have its middle; None for anywhere.
    keys_of: the keys of the samples from these images, each with its image's. unit: see `contrast_unit`.
    """

    own = keys_of(np.arange(len(good))).index

    def maker(kind: str) -> Callable[[NDArray[np.int64]], tuple[Bytes, Mask]]:
        def make(numbers: NDArray[np.int64]) -> tuple[Bytes, Mask]:
            keys = keys_of(numbers)
            draws = keys.uniform(f"exam {kind}", 1)[:, 0]
            others = others_of(kind, keys, own)
            made = [
                make_sample(kind, scene_of(number, other), np.random.default_rng(int(draw * 2**53)), strength)
                for number, other, draw, strength in zip(numbers, others, draws, strengths_of(keys), strict=True)
            ]
            return np.stack([image for image, _ in made]), np.stack([mask for _, mask in made])

        return make

    def scene_of(number: int, other: int) -> Scene:
        where = objects[number]
        everywhere = np.ones(good.shape[1:3], bool)
        return Scene(good[number], good[other], everywhere if where is None else where, unit)

    return {kind: maker(kind) for kind in KINDS}


def others_of(kind: str, keys: SampleKeys, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which other image each of the samples with these keys (N,) is made with: positions (N,) in `own` (M,)."""
    return keys.choose(f"exam {kind} other", own)


def make_sample(kind: str, scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """A sample uint8 (S, S, 3) of `kind` with its mask bool (S, S); outside the mask it is the good image itself.

    Several places are tried until the defect can be seen, and the best of them is taken; an image that a defect does
    not change anywhere (nothing is missing from a plain background) comes back as it is, with an empty mask.
    """
    best, most = (scene.image, np.zeros(scene.image.shape[:2], bool)), 0.0
    for _ in range(TRIES):
        image, mask = KINDS[kind](scene, generator, strength)
        change = mean_change(scene.image, image, mask)
        if change > most:
            best, most = (image, mask), change
        if most >= SEEN * scene.unit:
            break
    return best


def mean_change(good: Bytes, bad: Bytes, mask: Mask) -> float:
    """Mean over the pixels of the mask of the largest change of a channel, in grey levels; 0 for an empty mask."""
    if not mask.any():
        return 0.0
    return float(np.abs(good[mask].astype(int) - bad[mask]).max(axis=-1).mean())


def foreign_texture(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """Another surface where noise is high: stripes, grain or cells around the place's own brightness."""
    alpha = _blob(scene, generator, generator.uniform(0.06, 0.16), roughness=0.9, edge=0.02)
    pattern = _texture(scene.side, generator)[..., None] * 0.8 + _tint(scene, generator) * 0.6
    ground = scene.image.astype(np.float32)
    window = _window(alpha, scene.side // 16)
    smooth = scene.side / 50
    ground[window] = ndimage.gaussian_filter(ground[window], (smooth, smooth, 0))
    return _laid_over(scene, alpha * 0.85, ground + strength * scene.unit * pattern)


def stroke(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """A stroke or scratch: a groove whose one flank is darker and whose other flank is lighter than the surface."""
    side = scene.side
    width = side / 256 * generator.uniform(1.2, 3.5)
    path = _curve(scene, generator, side * generator.uniform(0.08, 0.3), bend=0.7)
    distance, across = _along_path(path, side)
    profile = np.exp(-((distance / width) ** 2))
    light = generator.choice([-1.0, 1.0]) * profile + 1.2 * np.sign(across) * np.exp(
        -(((distance - width) / width) ** 2)
    )
    alpha = np.where(distance < 2.5 * width, 1.0, 0.0)
    change = 1.5 * strength * scene.unit * light[..., None] * (1 + 0.2 * _tint(scene, generator))
    return _laid_over(scene, alpha, scene.image + change)


def stain(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """A smooth change of brightness and, where there is colour, of colour."""
    alpha = _blob(scene, generator, generator.uniform(0.06, 0.18), roughness=0.5, edge=0.08)
    sign = generator.choice([-1.0, 1.0], p=[0.6, 0.4])
    change = strength * scene.unit * (sign + 0.5 * _tint(scene, generator))
    return _laid_over(scene, alpha, scene.image + change)


def blur(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """Loss of sharpness: a Gaussian blur that fades out at its edge."""
    alpha = _blob(scene, generator, generator.uniform(0.08, 0.18), roughness=0.5, edge=0.04)
    sigma = scene.side / 256 * 1.5 * strength
    blurred = scene.image.astype(np.float32)
    window = _window(alpha, round(3 * sigma))
    blurred[window] = ndimage.gaussian_filter(blurred[window], (sigma, sigma, 0))
    return _laid_over(scene, alpha, blurred)


def hole(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """Missing structure: a place is filled smoothly from around it; the strength is its size."""
    radius = 0.025 * (1 + strength) * generator.uniform(0.7, 1.3)
    alpha = _blob(scene, generator, radius, roughness=0.6, edge=0.012)
    sigma = radius * scene.side * 0.6
    window = _window(alpha, round(2 * sigma))
    outside = (alpha[window] <= EDGE).astype(np.float32)
    weight = ndimage.gaussian_filter(outside, sigma) + 1e-6
    filled = scene.image.astype(np.float32)
    known = ndimage.gaussian_filter(filled[window] * outside[..., None], (sigma, sigma, 0))
    filled[window] = known / weight[..., None]
    return _laid_over(scene, alpha, filled)


def warp(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """A small shift of a place against its surroundings, largest in the middle and none at the edge."""
    side = scene.side
    radius = side * generator.uniform(0.06, 0.14)
    middle = _middle(scene, generator)
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    away = np.hypot(rows - middle[0], columns - middle[1]) / radius
    bump = np.where(away < 1, (1 - away**2) ** 2, 0.0)
    shift = min(side / 256 * 2.0 * (1 + strength), 0.6 * radius)
    angle = generator.uniform(0, 2 * np.pi)
    window = _window(bump, 0)
    down, right = shift * bump[window] * np.sin(angle), shift * bump[window] * np.cos(angle)
    places = np.stack([rows[window] - down, columns[window] - right])
    moved = scene.image.astype(np.float32)
    for channel in range(3):
        moved[(*window, channel)] = ndimage.map_coordinates(
            scene.image[..., channel], places, np.float32, 1, mode="nearest"
        )
    return _laid_over(scene, np.where(bump > 0.01, 1.0, 0.0), moved)


def specks(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """Foreign specks and a fibre of any colour that differs from the place by the strength."""
    side = scene.side
    alpha = np.zeros((side, side))
    for _ in range(generator.integers(1, 4)):
        alpha = np.maximum(alpha, _blob(scene, generator, generator.uniform(0.006, 0.016), roughness=0.4, edge=0.004))
    if generator.random() < 0.6:
        path = _curve(scene, generator, side * generator.uniform(0.06, 0.2), bend=2.5)
        distance, _ = _along_path(path, side)
        alpha = np.maximum(alpha, np.clip(side / 256 * generator.uniform(0.9, 1.6) + 0.5 - distance, 0, 1))
    colour = generator.choice([-1.0, 1.0]) + 0.8 * _tint(scene, generator)
    return _laid_over(scene, alpha, _mean_under(scene.image, alpha) + 2.0 * strength * scene.unit * colour)


def other_part(scene: Scene, generator: np.random.Generator, strength: float) -> Sample:
    """A part of another good image, from not far away, as a polygon with hard edges; the strength is its size."""
    side = scene.side
    middle = _middle(scene, generator)
    reach = side * 0.03 * (1 + strength) * generator.uniform(0.7, 1.3)
    alpha = _polygon(side, middle, reach, generator)
    shift = generator.integers(-side // 4, side // 4 + 1, 2)
    part = np.roll(scene.other, tuple(shift), axis=(0, 1))
    return _laid_over(scene, alpha, part)


KINDS: dict[str, Kind] = {
    "foreign": foreign_texture,
    "stroke": stroke,
    "stain": stain,
    "blur": blur,
    "hole": hole,
    "warp": warp,
    "specks": specks,
    "part": other_part,
}


def _laid_over(scene: Scene, alpha: Floats, colour: Floats | NDArray[np.float32] | Bytes) -> Sample:
    """`colour` (S, S, 3) over the image with opacity `alpha` (S, S); the mask is where this changes a pixel.

    Pixels inside that happen to keep their value belong to the defect as well.
    """
    reached = alpha > EDGE
    near = _window(reached, margin=2)
    good, own, alpha = scene.image[near], reached[near], alpha[near][..., None]  # (h, w, 3), (h, w), (h, w, 1)
    laid = np.broadcast_to(colour, scene.image.shape)[near].astype(np.float64)  # (h, w, 3)
    mixed = good * (1 - alpha) + laid * alpha
    if scene.is_grey:
        mixed = np.repeat((mixed @ GREY)[..., None], 3, axis=-1)
    drawn = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    changed = own & (drawn != good).any(axis=-1)
    own &= ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(changed, 2), np.ones((3, 3))))[2:-2, 2:-2]
    image, mask = scene.image.copy(), np.zeros_like(reached)
    image[near], mask[near] = np.where(own[..., None], drawn, good), own
    return image, mask


def _window(alpha: Floats | Mask, margin: int) -> tuple[slice, slice]:
    """The rectangle of (S, S) that holds all that `alpha` reaches, with a margin."""
    if not alpha.any():
        return slice(0, 1), slice(0, 1)
    spans = [np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0)]
    down, right = (slice(max(0, int(span[0]) - margin), int(span[-1]) + margin + 1) for span in spans)
    return down, right


def _mean_under(image: Bytes, alpha: Floats) -> Floats:
    """The mean colour (3,) of the image under `alpha` (S, S)."""
    return np.tensordot(alpha, image.astype(np.float64), axes=2) / max(float(alpha.sum()), 1e-9)


def _middle(scene: Scene, generator: np.random.Generator) -> Floats:
    """A place (row, column) out of `scene.where`; any, where there is none."""
    places = np.flatnonzero(scene.where)
    place = generator.integers(scene.where.size) if not len(places) else places[generator.integers(len(places))]
    return np.array(divmod(int(place), scene.side), np.float64)


def _tint(scene: Scene, generator: np.random.Generator) -> Floats:
    """A direction of colour (3,) in −1…1; none for a camera that sees none."""
    draws = generator.uniform(-1, 1, 3)
    return np.zeros(3) if scene.is_grey else draws


def _noise(side: int, cells: int, generator: np.random.Generator) -> Floats:
    """Smooth noise (S, S) of about unit variance with `cells` cells a side, and half as much with twice as many."""
    total = np.zeros((side, side))
    for octave, weight in enumerate((1.0, 0.5)):
        count = max(2, cells * 2**octave)
        weights = _weights(side, count + 1)  # (S, count + 1)
        total += weight * weights @ generator.normal(size=(count + 1, count + 1)) @ weights.T
    return total / max(float(total.std()), 1e-9)


def _weights(side: int, count: int) -> Floats:
    """Weights (S, count) that interpolate `count` values smoothly over S places."""
    places = np.linspace(0, count - 1, side)
    away = np.clip(1 - np.abs(places[:, None] - np.arange(count)), 0, 1)
    return away * away * (3 - 2 * away)


def _blob(scene: Scene, generator: np.random.Generator, radius: float, roughness: float, edge: float) -> Floats:
    """An irregular shape (S, S) in 0…1 about a place of the scene; `radius` and width of the `edge` in sides."""
    side = scene.side
    middle = _middle(scene, generator)
    stretch, angle = generator.uniform(1, 2), generator.uniform(0, np.pi)
    half = int(1.5 * stretch * radius * side) + 2
    noise = _noise(2 * half + 1, 4, generator)  # (2 · half + 1,) squared, about the middle
    down, right = np.mgrid[-half : half + 1, -half : half + 1]
    along = (down * np.sin(angle) + right * np.cos(angle)) / stretch
    across = (down * np.cos(angle) - right * np.sin(angle)) * stretch
    depth = 1 - np.hypot(along, across) / (radius * side) + 0.4 * roughness * noise
    alpha = np.zeros((side, side))
    rows, columns = down[:, 0] + int(middle[0]), right[0] + int(middle[1])
    inside = np.ix_((rows >= 0) & (rows < side), (columns >= 0) & (columns < side))
    alpha[np.ix_(*(axis[(axis >= 0) & (axis < side)] for axis in (rows, columns)))] = np.clip(
        depth[inside] * radius / edge, 0, 1
    )
    return alpha


def _texture(side: int, generator: np.random.Generator) -> Floats:
    """A texture (S, S) of about unit variance: stripes, grain, or cells with plain colours."""
    which = generator.integers(3)
    grain = _noise(side, int(generator.integers(side // 16, side // 4)), generator)
    if which == 0:
        return grain
    if which == 1:
        return np.sign(_noise(side, int(generator.integers(8, 32)), generator)) + 0.3 * grain
    rows, columns = np.ogrid[:side, :side]
    angle, period = generator.uniform(0, np.pi), side / 256 * generator.uniform(3, 14)
    return 1.4 * np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period) + 0.3 * grain


def _curve(scene: Scene, generator: np.random.Generator, length: float, bend: float) -> Floats:
    """A smooth curve (K, 2) of rows and columns through a place of the scene, in steps of a third of a pixel."""
    steps = np.linspace(0, 1, max(8, int(3 * length)))
    turn = generator.uniform(-bend, bend) * steps + 0.3 * bend * np.sin(2 * np.pi * (steps + generator.random()))
    heading = generator.uniform(0, 2 * np.pi) + turn
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0) * length / len(steps)
    return path - path.mean(axis=0) + _middle(scene, generator)


def _along_path(path: Floats, side: int) -> tuple[Floats, Floats]:
    """Distance (S, S) of each pixel to a path (K, 2) of rows and columns, and on which side of it the pixel lies."""
    marked = np.ones((side, side), bool)
    places = np.clip(np.rint(path).astype(int), 0, side - 1)
    marked[places[:, 0], places[:, 1]] = False
    distance, nearest = ndimage.distance_transform_edt(marked, return_indices=True)
    rows, columns = np.mgrid[:side, :side]
    direction = path[-1] - path[0]
    across = (rows - nearest[0]) * direction[1] - (columns - nearest[1]) * direction[0]
    return distance, across.astype(np.float64)


def _polygon(side: int, middle: Floats, reach: float, generator: np.random.Generator) -> Floats:
    """A convex polygon (S, S), 1 inside and 0 outside, of four to seven sides about `middle`."""
    rows, columns = np.ogrid[:side, :side]
    count = int(generator.integers(4, 8))
    angles = (np.arange(count) + generator.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + generator.uniform(
        0, 2 * np.pi
    )
    reaches = reach * generator.uniform(0.6, 1.2, count)
    inside = np.ones((side, side), bool)
    for angle, own in zip(angles, reaches, strict=True):
        inside &= (rows - middle[0]) * np.sin(angle) + (columns - middle[1]) * np.cos(angle) <= own
    return inside.astype(np.float64)
