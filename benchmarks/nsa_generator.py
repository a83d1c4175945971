"""Speed of the NSA generator beside OpenCV's seamlessClone and scikit-image's disk median, used as the paper does.

    python -m benchmarks.nsa_generator --data DIR --out benchmarks/results/nsa_generator.json

One thread, timed in processor time, so that other work on the machine does not count; both take turns, in blocks of
twenty samples, on the same images in the same run. The reference draws by the paper's
rules with NumPy's generator; images are read, and object masks made, before the clock starts, for both.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import median
from skimage.morphology import disk
from threadpoolctl import threadpool_limits

from benchmarks.common import print_table, write_results
from components.foundation.draws import SampleKeys
from components.foundation.limits import ImageLimits
from components.images.decode import read_image
from components.images.layout import image_files
from components.synthesis.nsa import NsaImage, nsa_batch, prepare
from components.synthesis.nsa_params import PAPER_SETTINGS, NsaParams

BLOCK = 20
BOTTLE, TEXTURE, SCREW = PAPER_SETTINGS["bottle"], PAPER_SETTINGS["tile"], PAPER_SETTINGS["screw"]
ROWS: list[tuple[str, str, NsaParams]] = [
    ("magnetic_tile", "texture, mixed gradients", TEXTURE),
    ("bottle", "object, source gradients", BOTTLE),
    ("screw", "object, source gradients", SCREW),
    ("magnetic_tile", "texture, mixed gradients", replace(TEXTURE, label="binary")),
    ("bottle", "object, source gradients", replace(BOTTLE, label="binary")),
    ("screw", "object, source gradients", replace(SCREW, label="binary")),
    ("bottle", "FPI", replace(BOTTLE, method="fpi", label="factor")),
    ("bottle", "PII", replace(BOTTLE, method="pii", label="factor", gradients="mixed")),
]

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]


def reference_sample(target: NsaImage, source: NsaImage, params: NsaParams, rng: np.random.Generator) -> None:
    """One sample with the libraries' functions, on whole images: blend, then label."""
    factor = rng.uniform(*params.factor_bounds) if params.method != "nsa" else 1.0
    image, covered = target.image.copy(), np.zeros(target.image.shape[:2], np.uint8)
    for number in range(params.patches):
        if number and rng.random() < 0.5:
            continue
        cut = cut_patch(source, params, rng)
        placed = cut and place_patch(cut, target, source, params, rng)
        if placed:
            image = _blend(image, covered, target, placed, params, factor)
    _label(target.image, image, covered, params, factor)


def mask_of(picture: NsaImage, box: tuple[slice, slice]) -> Mask | None:
    """The object mask in a window, uint8; None for a picture without one."""
    return None if picture.object_mask is None else picture.object_mask[box].view(np.uint8)


def cut_patch(source: NsaImage, params: NsaParams, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Where a patch is cut from the source; None where the rule of the object share refuses every try."""
    sides = source.image.shape[:2]
    bounds = [np.round(np.array(b) * s).astype(int) for b, s in zip(params.bounds, sides, strict=True)]
    gamma = params.gamma_offset + rng.gamma(params.gamma_shape, params.gamma_scale, 2)
    half = [int(np.clip(g * s, *b)) for g, s, b in zip(gamma, sides, bounds, strict=True)]
    for _ in range(params.tries):
        centre = [rng.integers(b[0], s - b[0]) for s, b in zip(sides, bounds, strict=True)]
        box = tuple(slice(max(c - h, 0), min(c + h, s)) for c, h, s in zip(centre, half, sides, strict=True))
        mask = mask_of(source, box)  # type: ignore[arg-type]
        if mask is None or mask.mean() > params.min_object:
            return box  # type: ignore[return-value]
    return None


Placed = tuple[Image, Mask | None, int, int]


def place_patch(
    cut: tuple[slice, slice], target: NsaImage, source: NsaImage, params: NsaParams, rng: np.random.Generator
) -> Placed | None:
    """The resized patch (h, w, 3) with its object mask, and the top left corner it goes to; None where none fits."""
    patch, mask = source.image[cut], mask_of(source, cut)
    if params.method != "nsa":
        return patch, mask, cut[0].start, cut[1].start
    sides = target.image.shape[:2]
    (low, high), (left, right) = ((round(b[0] * s), round(b[1] * s)) for b, s in zip(params.bounds, sides, strict=True))
    height, width = patch.shape[:2]
    scale = np.clip(rng.normal(1, params.resize_deviation), *params.resize_bounds)
    tall = np.clip(scale * height, low, high)
    wide = int(np.clip(int(tall / height * width), left, right))
    tall = int(np.clip(int(wide / width * height), low, high))
    patch = _resize(patch, tall, wide)
    mask = None if mask is None else _resize(mask, tall, wide)
    for _ in range(params.tries):
        y, x = rng.integers(1, sides[0] - tall - 1), rng.integers(1, sides[1] - wide - 1)
        there = mask_of(target, (slice(y, y + tall), slice(x, x + wide)))
        if mask is None or there is None:
            return patch, mask, y, x
        if mask.mean() > params.min_object and (mask & there).sum() > params.min_overlap * mask.sum():
            return patch, mask, y, x
    return None


def _resize(image: Image, height: int, width: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height)), np.uint8)


def _blend(image: Image, covered: Mask, target: NsaImage, placed: Placed, params: NsaParams, factor: float) -> Image:
    patch, mask, y, x = placed
    height, width = patch.shape[:2]
    box = slice(y, y + height), slice(x, x + width)
    there = mask_of(target, box)
    either = np.ones((height, width), np.uint8) if mask is None or there is None else mask | there
    covered[box] = either
    if params.method == "fpi":
        mixed = image.astype(float)
        mixed[box] += factor * either[..., None] * (patch - mixed[box])
        return np.floor(mixed).astype(np.uint8)
    weight = np.uint8(np.ceil(255 * factor)) * (
        either if mask is None or there is None else either | (1 - mask) & (1 - there)
    )
    weight[[0, -1]] = weight[:, [0, -1]] = 0
    if np.count_nonzero(weight) < 50:
        covered[box] = 0
        return image
    flag = cv2.NORMAL_CLONE if params.gradients == "source" else cv2.MIXED_CLONE
    centre = (x + width // 2, y + height // 2)
    return np.asarray(cv2.seamlessClone(patch, image, weight, centre, flag), np.uint8)


def _label(old: Image, new: Image, covered: Mask, params: NsaParams, factor: float) -> NDArray[np.floating]:
    part = covered[..., None]
    mask = (np.mean(np.abs(1.0 * part * old - 1.0 * part * new), axis=-1) > params.change_tolerance).astype(np.uint8)
    mask = cv2.medianBlur(mask, 5)
    if params.label != "logistic":
        return mask * factor
    part = mask[..., None]
    x = median(np.mean(np.abs(part * old * 1.0 - part * new * 1.0), axis=-1), disk(5))
    return mask / (1 + np.exp(-params.k * (x - params.x0)))


def measure(pictures: list[NsaImage], category: str, params: NsaParams, samples: int) -> dict[str, float]:
    """Times of both generators, alternating, in milliseconds and samples per second."""
    rng, places = np.random.default_rng(0), np.arange(len(pictures))

    def ours(index: int) -> None:
        turn, place = divmod(index, len(pictures))
        nsa_batch(pictures, places, SampleKeys.of(0, category, turn, [place]), params)

    def reference(index: int) -> None:
        other = (index + 1 + int(rng.integers(len(pictures) - 1))) % len(pictures)
        reference_sample(pictures[index % len(pictures)], pictures[other], params, rng)

    own, theirs = [], []
    for start in range(0, samples + BLOCK, BLOCK):
        own.append([_milliseconds(ours, index) for index in range(start, start + BLOCK)])
        theirs.append([_milliseconds(reference, index) for index in range(start, start + BLOCK)])
    return _summary(np.ravel(own[1:]), np.ravel(theirs[1:]))  # the first block warms up


def _summary(own: NDArray[np.floating], theirs: NDArray[np.floating]) -> dict[str, float]:
    return {
        "ours_per_s": 1e3 / own.mean(),
        "reference_per_s": 1e3 / theirs.mean(),
        "ratio": theirs.mean() / own.mean(),
        "p50_ms": np.quantile(own, 0.5),
        "p95_ms": np.quantile(own, 0.95),
        "reference_p50_ms": np.quantile(theirs, 0.5),
        "reference_p95_ms": np.quantile(theirs, 0.95),
    }


def _milliseconds(make: Callable[[int], None], index: int) -> float:
    start = time.thread_time()
    make(index)
    return 1e3 * (time.thread_time() - start)


def read_good(data: Path, category: str, count: int) -> list[Image]:
    """The first `count` good training images of a category, uint8 (H, W, 3)."""
    folder = next(path for path in (data / category, data / "mvtec" / category) if path.is_dir())
    return [read_image(path, ImageLimits()) for path in image_files(folder / "train" / "good")[:count]]


def main() -> None:
    """Measure all rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bottle, screw and magnetic_tile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nsa_generator.json"))
    parser.add_argument("--samples", type=int, default=300, help="samples per row and generator")
    parser.add_argument("--images", type=int, default=64, help="good images used of each category")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rows = []
    with threadpool_limits(1):
        for category, setting, params in ROWS:
            images = read_good(arguments.data, category, arguments.images)
            pictures = [prepare(image, params) for image in images]
            figures = measure(pictures, category, params, arguments.samples)
            rows.append(
                {"setting": f"{category}: {setting}", "label": params.label} | {k: float(v) for k, v in figures.items()}
            )
    print_table(rows)
    write_results(arguments.out, rows)


if __name__ == "__main__":
    main()
