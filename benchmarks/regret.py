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
from benchmarks.methods import CATEGORIES, usual_content, working_in
from components.detection.choice import choose_compositions, make_banks
from components.detection.compositions import for_maps
from components.detection.detector import Composition, Detector, Part
from components.detection.feature_bank import FeatureBank
from components.detection.fitting import learned
from components.detection.scale import Scale
from components.evaluation.metrics import auroc, pixel_auroc
from components.foundation.params import Params, parse_params
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.images.dataset import list_category
from components.learning.backbone import build_encoder
from components.stages import synthesize, validate
from components.stages.evaluate import score_records
from components.stages.fit import SIGMA
from components.synthesis.methods import PRETRAINED
from components.synthesis.prepared import load_prepared

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
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for category in arguments.categories:
        params = parse_params(usual_content(arguments, category, "pretrained", seed=0), arguments.preset)
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
    bank = make_banks({PRETRAINED: encoder}, prepared, params)[PRETRAINED]
    choice = choose_compositions(bank, params)
    family = [mark.composition for mark in choice.marks]
    maps = [for_maps(composition) for composition in family if composition.is_dense]
    figures = {c: test_figures(c, bank, params) for c in dict.fromkeys([*family, *maps])}
    return [
        row(category, "image", choice.image, {c: figures[c][0] for c in family}),
        row(category, "map", choice.map, {c: figures[c][1] for c in maps}),
    ]


def test_figures(composition: Composition, bank: FeatureBank, params: Params) -> tuple[float, float]:
    """Image and pixel AUROC on the test images of one composition that has learned all good images."""
    features = learned(composition, bank, np.arange(len(bank.prepared.images)))
    scorer = composition.scorer_of(features.reshape(-1, *features.shape[2:]))
    part = Part(composition, scorer, NO_SCALE, NO_SCALE, for_map=composition.is_dense)
    detector = Detector({bank.name: bank.encoder}, [part], params.image.side, SIGMA * params.image.side / 256)
    records = list_category(Path(params.data.root) / bank.prepared.category).test
    scored = score_records(detector, records, params.limits.image_limits())
    truth = scored.has_truth
    return auroc(scored.labels, scored.scores) or 0.0, pixel_auroc(scored.masks[truth], scored.maps[truth]) or 0.0


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
