"""What the choice by the synthetic exam costs: the chosen composition against the best one by test labels.

    python -m benchmarks.regret --data ../shared/data --out benchmarks/results/regret.json

Rows of category, figure (image AUROC, or pixel AUROC of the map), chosen and best composition with their figures by
test labels, and regret (best minus chosen); the last rows are the means. The representation before training, the
preset `cpu`. Every composition that sits the exam is fitted to all good images, as the capsule's is.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import print_table, write_results
from benchmarks.methods import CATEGORIES, make_params, working_in
from components import synthesize, validate
from components.backbone import Encoder, build_encoder
from components.compositions import for_maps
from components.dataset import ImageRecord, list_category
from components.detector import Composition, Detector, Part, Scale
from components.fit import PRETRAINED, choose_compositions, fit_to_all
from components.images import read_image, read_mask, resize_image, resize_mask
from components.metrics import auroc, pixel_auroc
from components.params import Params
from components.places import Places
from components.prepared import Prepared, load_prepared
from components.runtime import use_threads

FIGURES = {"image": "image AUROC", "map": "pixel AUROC"}
NO_SCALE = Scale(0.0, 1.0)


def main() -> None:
    """Measure all categories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the categories")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks"), help="folder for the runs")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    parser.set_defaults(steps=None)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for category in arguments.categories:
        params = make_params(arguments, category, "pretrained", 0)
        with working_in(arguments.work / f"{Path(category).name}-regret"):
            rows += measure(Path(category).name, params)
        write_results(arguments.out, rows)
    rows += [mean_row(rows, figure) for figure in FIGURES.values()]
    print_table(rows)
    write_results(arguments.out, rows)


def measure(category: str, params: Params) -> list[dict[str, Any]]:
    """The rows of one category."""
    use_threads(params.threads)
    places = Places(category)
    if not places.prepared.exists():
        validate.main(category, params)
        synthesize.main(category, params)
    prepared, encoder = load_prepared(places.prepared), build_encoder(params.backbone, params.seed)
    choice = choose_compositions(PRETRAINED, encoder, prepared, params)
    records = list_category(Path(params.data.root) / category).test
    family = [mark.composition for mark in choice.marks]
    maps = [for_maps(composition) for composition in family if composition.is_dense]
    figures = {
        "image": {c: test_figures(c, encoder, prepared, records, params)["image"] for c in family},
        "map": {c: test_figures(c, encoder, prepared, records, params)["map"] for c in maps},
    }
    return [row(category, "image", choice.image, figures["image"]), row(category, "map", choice.map, figures["map"])]


def test_figures(
    composition: Composition, encoder: Encoder, prepared: Prepared, records: Sequence[ImageRecord], params: Params
) -> dict[str, float]:
    """Image AUROC by the image score and pixel AUROC by the map, of one composition on the test images."""
    scorer, _ = fit_to_all(composition, encoder, prepared, folds=1)
    part = Part(composition, scorer, NO_SCALE, NO_SCALE, for_map=composition.is_dense)
    size, limits = params.image.size, params.limits.image_limits()
    detector = Detector({composition.encoder: encoder}, [part], size, 2.0 * size / 256)
    scores, maps = detector.score([resize_image(read_image(record.path, limits), size) for record in records])
    masks = np.zeros(maps.shape, bool)
    for row, record in enumerate(records):
        for path in record.masks:
            masks[row] |= resize_mask(read_mask(path, limits), size)
    labels = np.array([not record.is_good for record in records])
    found = {"image": auroc(labels, scores) or 0.0}
    if composition.is_dense:
        found["map"] = pixel_auroc(masks, maps) or 0.0
    return found


def row(
    category: str, figure: str, chosen: Sequence[Composition], figures: Mapping[Composition, float]
) -> dict[str, Any]:
    """One row; of several chosen compositions the first counts."""
    best = max(figures, key=lambda composition: figures[composition])
    return {
        "category": category,
        "figure": FIGURES[figure],
        "chosen": chosen[0].name,
        "by_chosen": round(figures[chosen[0]], 4),
        "best": best.name,
        "by_best": round(figures[best], 4),
        "regret": round(figures[best] - figures[chosen[0]], 4),
    }


def mean_row(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    """The mean regret of one figure over the categories."""
    regrets = [row["regret"] for row in rows if row["figure"] == figure]
    return {"category": "mean", "figure": figure, "regret": round(float(np.mean(regrets)), 4)}


if __name__ == "__main__":
    main()
