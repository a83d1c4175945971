"""The demo data set: tiles of real photographs as good images, drawn defects with exact masks, MVTec AD layout.

The photographs of bricks, gravel and grass ship inside scikit-image. Training tiles and test tiles come from
opposite sides of each, with a strip between them that neither touches. The defects are drawn from
geometry and shading alone; no piece of any image is moved or blended, so they share nothing with the synthetic
defects that the methods learn from.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from components.foundation.files import new_directory
from components.foundation.libraries import check_libraries
from components.foundation.making import check_unchanged
from components.foundation.params import DemoParams, Params, load_params
from components.foundation.places import DEMO
from components.stages.command import run_guarded

PHOTOGRAPHS = {"brick": "right", "gravel": "left", "grass": "right"}  # and the side that is kept for testing
MARGIN = 16  # columns between the training and the test part
REACH = 0.1  # picture sides within which a line can change the picture
VISIBLE = 6.0  # grey levels: a smaller change counts as none, in image and mask alike
TO_LIGHT = np.array([-0.5, -0.87])  # (x, y) towards the light: from the top and a little from the left
STEPS = np.array([0.7548776662, 0.5698402910])  # of the two-dimensional golden-ratio sequence, which fills evenly


def main(params: Params) -> None:
    """Write the three categories to `data/demo`, whole or not at all; equal parameters give equal bytes."""
    with new_directory(DEMO) as root:
        for name, test_side in PHOTOGRAPHS.items():
            train_part, test_part = split_photograph(read_photograph(name), params.demo.tile, test_side)
            write_category(root / name, train_part, test_part, params.demo)


def read_photograph(name: str) -> np.ndarray:
    """One of scikit-image's photographs, from the installed package itself: (512, 512) uint8 grey."""
    with (package_files("skimage") / "data" / f"{name}.png").open("rb") as file:
        return np.array(Image.open(file).convert("L"))  # (H, W)


def write_category(root: Path, train_part: np.ndarray, test_part: np.ndarray, demo: DemoParams) -> None:
    """Write train/good, test/good, test/KIND and ground_truth/KIND below `root`, named after the photograph."""
    for index, tile in enumerate(cut_tiles(train_part, demo.train, demo.tile, _generator(demo.seed, root.name, "cut"))):
        image, _ = take_picture(tile, None, _generator(demo.seed, root.name, "train", index))
        _write(root / "train" / "good" / f"{index:03}.png", image)
    count = demo.test_good + demo.per_kind * len(DEFECTS)
    tiles = cut_tiles(test_part, count, demo.tile, _generator(demo.seed, root.name, "cut test"))
    order = _generator(demo.seed, root.name, "order").permutation(count)
    for tile, (kind, index) in zip(tiles[order], _test_plan(demo), strict=True):
        image, mask = take_picture(tile, DEFECTS.get(kind), _generator(demo.seed, root.name, kind, index))
        _write(root / "test" / kind / f"{index:03}.png", image)
        if kind != "good":
            _write(root / "ground_truth" / kind / f"{index:03}_mask.png", mask.astype(np.uint8) * 255)


def split_photograph(photograph: np.ndarray, tile: int, test_side: str) -> tuple[np.ndarray, np.ndarray]:
    """The parts for training and for testing, `MARGIN` columns apart; both are at least one tile wide."""
    width = max(192, tile)
    if test_side == "right":
        return photograph[:, : -width - MARGIN], photograph[:, -width:]
    return photograph[:, width + MARGIN :], photograph[:, :width]


def cut_tiles(part: np.ndarray, count: int, tile: int, generator: np.random.Generator) -> np.ndarray:
    """`count` square tiles spread evenly over `part` from a random start: (count, tile, tile) uint8."""
    start = generator.random(2)
    room = np.array(part.shape) - tile + 1
    corners = ((start + np.arange(count)[:, None] * STEPS) % 1 * room).astype(int)  # (count, 2)
    return np.stack([part[top : top + tile, left : left + tile] for top, left in corners])


@dataclass(frozen=True)
class Layer:
    """What a defect does to the picture: `image * shade`, then `colour` laid over it with opacity `alpha`.

    Attributes:
        shade: (H, W) factor on the brightness below, 1 where nothing happens.
        colour: (H, W) grey levels.
        alpha: (H, W) in [0, 1].
    """

    shade: np.ndarray
    colour: np.ndarray
    alpha: np.ndarray

    def over(self, image: np.ndarray) -> np.ndarray:
        """Lay the defect over (H, W) grey levels."""
        return image * self.shade * (1 - self.alpha) + self.colour * self.alpha


Defect = Callable[[np.ndarray, np.random.Generator], Layer]


def take_picture(
    tile: np.ndarray, defect: Defect | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Photograph one tile as a camera on a line would: lamp, mirrored part, sensor noise; with a defect, if given.

    Returns (H, W) uint8 and the mask (H, W) bool, which holds exactly the pixels that the defect changes: outside it
    the picture is, byte for byte, the one without the defect.
    """
    lamp = _lamp(tile.shape, generator)
    mirrored = generator.random() < 0.5
    noise = generator.normal(0, 1.2, tile.shape)
    good = tile.astype(float)
    bad = np.clip(defect(good, generator).over(good), 0, 255) if defect else good
    mask = _visible_change(good * lamp, bad * lamp) if defect else np.zeros(tile.shape, bool)
    picture = np.where(mask, bad, good) * lamp + noise
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return (picture[:, ::-1], mask[:, ::-1]) if mirrored else (picture, mask)


def _lamp(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Brightness of the lamp over the picture: within 6 % overall and 4 % from edge to edge."""
    x, y = _grid(shape[0])
    slope_x, slope_y = generator.uniform(-0.04, 0.04, 2) / shape[0]
    return generator.uniform(0.94, 1.06) + slope_x * (x - shape[1] / 2) + slope_y * (y - shape[0] / 2)


def _visible_change(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Pixels of a visible change, without specks; pits inside a defect, where it happens to change little, belong."""
    changed = np.abs(bad - good) >= VISIBLE
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(changed, 2), np.ones((3, 3))))[2:-2, 2:-2]
    labels, count = ndimage.label(closed, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return closed & (sizes[labels] >= 6)


def draw_scratch(image: np.ndarray, generator: np.random.Generator) -> Layer:
    """A tapering groove: the flank that faces the light is bright, the other one dark, the bottom freshly exposed."""
    size = image.shape[0]
    path = _path(size, generator, length=generator.uniform(0.45, 0.75), bend=0.6, wiggle=0.15)
    distance, along = _distance_to_path(path, size)
    width = size / 128 * generator.uniform(1.5, 2.2) * (0.25 + np.sin(np.pi * along) ** 0.5)
    profile = np.exp(-((distance / width) ** 2))
    lit = _slope_towards_light(-profile * width) * 1.4
    level = np.clip(1.5 * np.median(image), 120, 210)
    pressure = np.interp(along, np.linspace(0, 1, 9), generator.uniform(0.75, 1, 9))
    return Layer(
        np.ones_like(image), np.clip(level * (1 + lit), 15, 250), 0.95 * pressure * np.minimum(1, 1.5 * profile)
    )


def draw_stain(image: np.ndarray, generator: np.random.Generator) -> Layer:
    """Spilt oil: dark, the surface faintly seen through it, a glint on the rim next to the light, drops beside it."""
    size = image.shape[0]
    radius = size * generator.uniform(0.13, 0.2)
    depth = _blob(size, _place(size, radius, generator), radius, 0.22, generator)  # pixels inside the outline
    for _ in range(generator.integers(2, 5)):
        drop = size * generator.uniform(0.015, 0.035)
        depth = np.maximum(depth, _blob(size, _place(size, drop, generator, 0.3), drop, 0.1, generator))
    inside = _soft_step(depth, size / 64)
    rim = np.exp(-(((depth - size / 50) / (size / 80)) ** 2))
    glint = rim * np.clip(1.6 * _slope_towards_light(depth) - 0.4, 0, 1)
    colour = np.median(image) * (0.3 + 1.7 * glint)
    return Layer(1 - inside * generator.uniform(0.35, 0.45), np.clip(colour, 0, 245), inside * (0.65 + 0.3 * glint))


def draw_hole(image: np.ndarray, generator: np.random.Generator) -> Layer:
    """A bored hole: dark, its far wall lit, the edge bevelled."""
    size = image.shape[0]
    radius = size * generator.uniform(0.055, 0.085)
    centre = _place(size, radius, generator)
    depth = _blob(size, centre, radius, 0.06, generator)
    towards = _towards_light(size, centre) / radius  # +1 at the edge next to the light, -1 at the far edge
    wall = np.exp(-np.maximum(depth, 0) / (0.5 * radius))
    colour = np.median(image) * (0.12 + 0.6 * wall * np.clip(-towards, 0, 1))
    bevel = np.exp(-((np.minimum(depth, 0) / (size / 90)) ** 2))
    return Layer(1 - 0.35 * bevel * np.clip(towards, -1, 1), colour, _soft_step(depth, size / 128))


def draw_fibre(image: np.ndarray, generator: np.random.Generator) -> Layer:
    """A foreign thread lying on top: round, lit from one side, with a soft shadow beside it."""
    size = image.shape[0]
    path = _path(size, generator, length=generator.uniform(0.7, 1.1), bend=1.8, wiggle=0.6)
    width = size / 128 * generator.uniform(1.5, 2.0)
    distance, _ = _distance_to_path(path, size)
    shadow, _ = _distance_to_path(path - 2.2 * width * TO_LIGHT, size)
    roundness = np.sqrt(np.clip(1 - (distance / (width + 0.5)) ** 2, 0, 1)) * width
    level = generator.choice([30.0, 235.0], p=[0.3, 0.7])
    colour = np.clip(level * (1 + 0.3 * _slope_towards_light(roundness)), 10, 250)
    return Layer(1 - 0.5 * np.exp(-((shadow / (1.3 * width)) ** 2)), colour, np.clip(width + 0.5 - distance, 0, 1))


def draw_missing_grain(image: np.ndarray, generator: np.random.Generator) -> Layer:
    """A grain or chip broken out: an angular pit with a rough dark floor, shadowed by the edge next to the light."""
    size = image.shape[0]
    radius = size * generator.uniform(0.095, 0.14)
    centre = _place(size, radius, generator)
    depth = _polygon(size, centre, radius, generator)
    rough = ndimage.gaussian_filter(generator.normal(0, 1, image.shape), size / 80)
    floor = 0.45 + 0.09 * rough / rough.std() - 0.2 * np.clip(_towards_light(size, centre) / radius, -1, 1)
    lit_edge = np.exp(-((depth / (size / 90)) ** 2)) * np.clip(-_towards_light(size, centre) / radius, 0, 1)
    colour = np.clip(np.median(image) * (floor + 0.8 * lit_edge), 5, 245)
    return Layer(np.ones_like(image), colour, _soft_step(depth, size / 128))


DEFECTS: dict[str, Defect] = {
    "fibre": draw_fibre,
    "hole": draw_hole,
    "missing_grain": draw_missing_grain,
    "scratch": draw_scratch,
    "stain": draw_stain,
}


def _path(size: int, generator: np.random.Generator, length: float, bend: float, wiggle: float) -> np.ndarray:
    """A smooth curve through the middle of the picture: (K, 2) points x, y in pixels, `length` in picture sides.

    `bend` is the largest turn over the whole length in radians, `wiggle` the amplitude of two slower oscillations.
    """
    t = np.linspace(0, 1, 64)
    waves = [wiggle * np.sin(2 * np.pi * (f * t + generator.random())) for f in generator.uniform(0.7, 2.2, 2)]
    heading = generator.uniform(0, 2 * np.pi) + generator.uniform(-bend, bend) * t + sum(waves)
    steps = np.stack([np.cos(heading), np.sin(heading)], 1) * length * size / len(t)
    points = np.cumsum(steps, 0)
    return points - points.mean(0) + generator.uniform(0.35, 0.65, 2) * size


def _distance_to_path(path: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance in pixels of each pixel to a polyline, and where along it the nearest point lies: 2 × (H, W).

    Beyond `REACH` picture sides the distance is given as infinity.
    """
    along = np.linspace(0, 1, 24 * len(path))
    corners = np.linspace(0, 1, len(path))
    dense = np.stack([np.interp(along, corners, path[:, axis]) for axis in (0, 1)], 1)  # (K, 2), < 0.2 px apart
    pixels = np.stack(_grid(size), -1)  # (H, W, 2)
    distance, nearest = cKDTree(dense).query(pixels, distance_upper_bound=REACH * size)  # 2 × (H, W)
    return distance, along[np.minimum(nearest, len(along) - 1)]


def _blob(size: int, centre: np.ndarray, radius: float, roughness: float, generator: np.random.Generator) -> np.ndarray:
    """A round shape with an irregular outline: (H, W), pixels inside the outline, negative outside."""
    x, y = _grid(size)
    angle = np.arctan2(y - centre[1], x - centre[0])
    waves = [a * np.cos(k * angle + p) / k for k, a, p in zip(range(2, 8), *_amplitudes(6, generator), strict=True)]
    return radius * (1 + roughness * np.sum(waves, 0)) - np.hypot(x - centre[0], y - centre[1])


def _amplitudes(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return generator.uniform(0.5, 2, count), generator.uniform(0, 2 * np.pi, count)


def _polygon(size: int, centre: np.ndarray, radius: float, generator: np.random.Generator) -> np.ndarray:
    """A convex polygon of five to seven sides: (H, W), pixels inside the nearest side, negative outside."""
    x, y = _grid(size)
    count = generator.integers(5, 8)
    angles = (np.arange(count) + generator.uniform(-0.3, 0.3, count)) * 2 * np.pi / count + generator.uniform(0, 6.28)
    reach = radius * generator.uniform(0.75, 1.1, count)
    sides = [r - (x - centre[0]) * np.cos(a) - (y - centre[1]) * np.sin(a) for a, r in zip(angles, reach, strict=True)]
    return np.min(sides, 0)


def _place(size: int, radius: float, generator: np.random.Generator, border: float = 0.12) -> np.ndarray:
    """A centre (x, y) which keeps a shape of that radius off the border of the picture."""
    edge = border * size + radius
    return generator.uniform(edge, size - edge, 2)


def _towards_light(size: int, centre: np.ndarray) -> np.ndarray:
    """How far each pixel lies from `centre` in the direction of the light, in pixels: (H, W)."""
    x, y = _grid(size)
    return (x - centre[0]) * TO_LIGHT[0] + (y - centre[1]) * TO_LIGHT[1]


def _slope_towards_light(height: np.ndarray) -> np.ndarray:
    """How much a relief (H, W), in pixels, faces the light: positive where its surface is turned to the light."""
    down, right = np.gradient(height)
    return -(right * TO_LIGHT[0] + down * TO_LIGHT[1])


def _soft_step(depth: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, rising linearly over `width` pixels around the outline."""
    return np.clip(depth / width + 0.5, 0, 1)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres: 2 × (H, W)."""
    y, x = np.mgrid[:size, :size].astype(float) + 0.5
    return x, y


def _test_plan(demo: DemoParams) -> list[tuple[str, int]]:
    """The kind and the number of each test image."""
    kinds = [("good", demo.test_good), *((kind, demo.per_kind) for kind in DEFECTS)]
    return [(kind, index) for kind, count in kinds for index in range(count)]


def _generator(seed: int, *names: str | int) -> np.random.Generator:
    """An own generator for each image, so that none depends on how many others are made."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image)).save(path, format="PNG")


def _stage() -> None:
    params = load_params()
    check_libraries()
    main(params)
    check_unchanged(params, ("demo",))


if __name__ == "__main__":
    run_guarded(_stage)
