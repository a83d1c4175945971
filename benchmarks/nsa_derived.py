"""Settings of NSA derived from good images alone, beside those which the paper sets by hand.

    python -m benchmarks.nsa_derived --data DIR --out benchmarks/results/nsa_derived.json

Each row is one value, or one statistic of the samples that the settings make, under both. magnetic_tile is no category
of the paper; its row is that of the paper's `tile`. "same object" is the overlap (intersection over union) of the
object masks that both find; "label apart" is the mean difference of the two logistic labels of the same pixels, those
which samples of the paper's settings change: 0 for equal labels, at most 1.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.common import print_table, write_results
from components.foundation.draws import SampleKeys
from components.foundation.limits import ImageLimits
from components.foundation.params import NsaSection
from components.images.decode import read_square
from components.images.layout import image_files
from components.synthesis.nsa import NsaSample, nsa_batch, prepare
from components.synthesis.nsa_derive import sample_statistics
from components.synthesis.nsa_params import PAPER_SETTINGS, NsaParams
from components.synthesis.nsa_settings import nsa_params_of, spread

CATEGORIES = {"bottle": "bottle", "screw": "screw", "magnetic_tile": "tile"}
FIELDS = ("background", "tolerance", "height_bounds", "width_bounds", "resize_bounds", "patches", "gradients",
          "min_object", "min_overlap", "k", "x0")  # fmt: skip
STATISTICS = ("changed_pixels", "patches", "unchanged_samples", "refused_tries")
SIZE = 256

Image = NDArray[np.uint8]


def compare(category: str, row: str, images: list[Image], count: int, seed: int) -> list[dict[str, Any]]:
    """The rows of one category: settings, statistics of `count` samples, agreement."""
    derived, report = nsa_params_of(NsaSection(), images, category, seed)
    paper = PAPER_SETTINGS[row]
    samples = [make_samples(images, category, seed, count, params) for params in (derived, paper)]
    figures = [sample_statistics(each) for each in samples]
    rows: list[tuple[str, Any, Any]] = [("kind", report["kind"], "texture" if paper.gradients == "mixed" else "object")]
    rows += [(name, getattr(derived, name), getattr(paper, name)) for name in FIELDS]
    rows += [(f"mean {name}", figures[0][name], figures[1][name]) for name in STATISTICS]
    rows.append(("mean label", mean_label(samples[0]), mean_label(samples[1])))
    rows.append(("same object", object_overlap(images, derived, paper), 1.0))
    rows.append(("label apart", label_distance(images, category, seed, count, derived, paper), 0.0))
    return [{"category": category, "paper_row": row, "value": name, "derived": a, "paper": b} for name, a, b in rows]


def make_samples(images: list[Image], category: str, seed: int, count: int, params: NsaParams) -> list[NsaSample]:
    """The first `count` samples of a category."""
    own = np.arange(len(images))
    keys = SampleKeys.cycled(seed, category, 0, own, count)
    return nsa_batch([prepare(image, params) for image in images], own, keys, params)


def mean_label(samples: list[NsaSample]) -> float:
    """Mean label of the pixels that changed."""
    return float(np.concatenate([sample.label[sample.mask] for sample in samples]).mean())


def object_overlap(images: list[Image], one: NsaParams, other: NsaParams) -> float | None:
    """Intersection over union of the object masks; 1 if neither has any, None if only one has."""
    masks = [[prepare(image, params).object_mask for image in images] for params in (one, other)]
    if masks[0][0] is None or masks[1][0] is None:
        return 1.0 if masks[0][0] is masks[1][0] else None
    first, second = (np.stack([mask for mask in each if mask is not None]) for each in masks)
    return float((first & second).sum() / (first | second).sum())


def label_distance(
    images: list[Image], category: str, seed: int, count: int, one: NsaParams, other: NsaParams
) -> float:
    """Mean absolute difference of two logistic labels of the same samples, made with the settings `other`."""
    samples = make_samples(images, category, seed, count, replace(other, label="continuous"))
    x = np.concatenate([sample.label[sample.mask] for sample in samples])
    return float(np.abs(expit(one.k * (x - one.x0)) - expit(other.k * (x - other.x0))).mean())


def read_images(data: Path, category: str) -> list[Image]:
    """At most 64 good training images of a category, evenly spread, at 256 pixels."""
    folder = next(path for path in (data / category, data / "mvtec" / category) if path.is_dir())
    files = image_files(folder / "train" / "good")
    return [read_square(files[i], SIZE, ImageLimits()) for i in spread(np.arange(len(files)))]


def main() -> None:
    """Compare all categories and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with bottle, screw and magnetic_tile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nsa_derived.json"))
    parser.add_argument("--samples", type=int, default=256, help="samples per category and settings")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for category, row in CATEGORIES.items():
        images = read_images(arguments.data, category)
        rows += compare(category, row, images, arguments.samples, arguments.seed)
    print_table(rows)
    write_results(arguments.out, rows)


if __name__ == "__main__":
    main()
