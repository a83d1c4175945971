"""How near the generator's Poisson blending comes to OpenCV's seamlessClone, and to the exact solution on the mask.

    python -m benchmarks.nsa_blending --data DIR --out benchmarks/results/nsa_blending.json

Patches are drawn by the paper's rules. Each is blended over its whole rectangle, as the generator does, and where there
are objects also over the part of it that lies on either image's object, which is no rectangle. A row has:

psnr_db, least_psnr_db: mean over patches, and worst, of the 8-bit result against seamlessClone, on the rectangle.
opencv_rule_psnr_db: the same if mixed gradients are chosen by OpenCV's rule and not on each axis.
mean_error, p99_error: of the fast solution (`blend_rectangle`, which the generator uses) against the exact one on the
    mask (`blend_mask`), in grey levels, of the pixels that either changes by more than one.
uneroded_error: the mean error if the fast solution does not erode the mask by OpenCV's three pixels: what is left is
    the approximation alone, which a rectangle has none of.
residual: largest residual of the discrete Poisson equation that the exact solution leaves on the mask, in grey levels.
fast_ms, exact_ms: median processor time of a blend.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.common import print_table, write_results
from benchmarks.nsa_generator import cut_patch, mask_of, place_patch, read_good
from components.synthesis.disk_median import bounding_box
from components.synthesis.nsa import SMALLEST_MASK, NsaImage, prepare
from components.synthesis.nsa_params import PAPER_SETTINGS, NsaParams
from components.synthesis.poisson import Gradients, Planes, blend_mask, blend_rectangle, laplacian, to_uint8

ROWS: dict[str, NsaParams] = {
    "bottle": PAPER_SETTINGS["bottle"],
    "screw": PAPER_SETTINGS["screw"],
    "magnetic_tile": PAPER_SETTINGS["tile"],
}
FLAGS: dict[Gradients, int] = {"source": cv2.NORMAL_CLONE, "mixed": cv2.MIXED_CLONE}


class Patch(NamedTuple):
    """What is blended: uint8 (C, h, w) of the target and the source, and where, bool (h, w)."""

    target: NDArray[np.uint8]
    source: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def draw_patches(pictures: list[NsaImage], params: NsaParams, count: int, on_object: bool) -> Iterator[Patch]:
    """Patches cropped to their masks, whose border is zeroed as in the paper; of the object alone if asked for."""
    rng = np.random.default_rng(0)
    while count:
        target, source = (pictures[i] for i in rng.choice(len(pictures), 2, replace=False))
        cut = cut_patch(source, params, rng)
        placed = cut and place_patch(cut, target, source, params, rng)
        if not placed:
            continue
        patch, own, y, x = placed
        window = slice(y, y + patch.shape[0]), slice(x, x + patch.shape[1])
        there = mask_of(target, window)
        mask = np.ones(patch.shape[:2], bool)
        if on_object and own is not None and there is not None:
            mask = (own | there).astype(bool)
        mask[[0, -1]] = mask[:, [0, -1]] = False
        box = bounding_box(mask)
        if box is None or np.count_nonzero(mask) < SMALLEST_MASK:
            continue
        count -= 1
        old, new = (np.ascontiguousarray(image[box].transpose(2, 0, 1)) for image in (target.image[window], patch))
        yield Patch(old, new, mask[box])


def seamless_clone(patch: Patch, flag: int) -> NDArray[np.uint8]:
    """OpenCV's result, uint8 (C, h, w), on a canvas with room around the rectangle: it does not look beyond it."""
    old, new, mask = patch.target.transpose(1, 2, 0), patch.source.transpose(1, 2, 0), patch.mask.astype(np.uint8)
    canvas, padded, weight = (cv2.copyMakeBorder(a, 8, 8, 8, 8, cv2.BORDER_CONSTANT) for a in (old, new, 255 * mask))
    centre = 8 + mask.shape[1] // 2, 8 + mask.shape[0] // 2
    return np.asarray(cv2.seamlessClone(padded, canvas, weight, centre, flag), np.uint8)[8:-8, 8:-8].transpose(2, 0, 1)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in decibels; at most 100."""
    error = np.mean((one.astype(float) - other) ** 2)
    return float(min(10 * np.log10(255**2 / error), 100)) if error else 100.0


def residual(patch: Patch, blended: Planes, gradients: Gradients) -> float:
    """Largest of |Δ blended − div guidance| on the mask, the guidance written out edge by edge."""
    old, new = (np.pad(image.astype(float), ((0, 0), (1, 1), (1, 1)), mode="edge") for image in patch[:2])
    divergence = np.zeros(patch.target.shape)
    for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
        of_old, of_new = ((np.roll(image, -step, axis) - image)[:, 1:-1, 1:-1] for image in (old, new))
        larger = np.abs(of_new) > np.abs(of_old)
        divergence += of_new if gradients == "source" else np.where(larger, of_new, of_old)
    apart = np.abs(laplacian(blended) - divergence[:, 1:-1, 1:-1])
    return float(apart[:, patch.mask[1:-1, 1:-1]].max(initial=0.0))


def compare(category: str, gradients: Gradients, patches: list[Patch], region: str) -> dict[str, Any]:
    """The row of one category, kind of gradients and kind of region."""
    opencv_rule: Gradients = "mixed-opencv" if gradients == "mixed" else gradients
    theirs = [seamless_clone(patch, FLAGS[gradients]) for patch in patches]
    fast, fast_ms = timed(lambda patch: blend_rectangle(*patch, gradients), patches)
    exact, exact_ms = timed(lambda patch: blend_mask(*patch, gradients), patches)
    levels = [psnr(to_uint8(one), other) for one, other in zip(fast, theirs, strict=True)]
    same_rule = [
        psnr(to_uint8(blend_rectangle(*p, opencv_rule)), other) for p, other in zip(patches, theirs, strict=True)
    ]
    errors = np.concatenate([errors_of(*each) for each in zip(patches, fast, exact, strict=True)])
    whole = [blend_rectangle(*patch, gradients, erosion=0) for patch in patches]
    uneroded = np.concatenate([errors_of(*each) for each in zip(patches, whole, exact, strict=True)])
    return {
        "category": category,
        "gradients": gradients,
        "region": region,
        "patches": len(patches),
        "psnr_db": float(np.mean(levels)),
        "least_psnr_db": min(levels),
        "opencv_rule_psnr_db": float(np.mean(same_rule)),
        "mean_error": float(errors.mean()),
        "p99_error": float(np.quantile(errors, 0.99)),
        "uneroded_error": float(uneroded.mean()),
        "residual": max(residual(p, blended, gradients) for p, blended in zip(patches, exact, strict=True)),
        "fast_ms": fast_ms,
        "exact_ms": exact_ms,
    }


def errors_of(patch: Patch, fast: Planes, exact: Planes) -> NDArray[np.float64]:
    """Absolute differences of the two solutions where either changed the target by more than a grey level."""
    changed = (np.abs(fast - patch.target) > 1) | (np.abs(exact - patch.target) > 1)
    return np.abs(fast - exact)[changed].astype(float)


def timed(blend: Callable[[Patch], Planes], patches: list[Patch]) -> tuple[list[Planes], float]:
    """What `blend` makes of each, and the median of its milliseconds."""
    results, times = [], []
    for patch in patches:
        start = time.thread_time()
        results.append(blend(patch))
        times.append(1e3 * (time.thread_time() - start))
    return results, float(np.median(times))


def main() -> None:
    """Measure all rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bottle, screw and magnetic_tile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nsa_blending.json"))
    parser.add_argument("--patches", type=int, default=100, help="patches per row")
    parser.add_argument("--images", type=int, default=64, help="good images used of each category")
    arguments = parser.parse_args()
    rows = []
    with threadpool_limits(1):
        for category, params in ROWS.items():
            pictures = [prepare(image, params) for image in read_good(arguments.data, category, arguments.images)]
            for region in ("rectangle", "object")[: 1 if params.background is None else 2]:
                patches = list(draw_patches(pictures, params, arguments.patches, region == "object"))
                rows += [compare(category, gradients, patches, region) for gradients in FLAGS]
    print_table(rows)
    write_results(arguments.out, rows)


if __name__ == "__main__":
    main()
