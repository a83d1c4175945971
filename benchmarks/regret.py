"""What the choice by the synthetic exam costs: who serves, against the best of no training, training and their means.

    python -m benchmarks.regret --data ../shared/data --out benchmarks/results/regret.json
    python -m benchmarks.regret --arrays FOLDER --out benchmarks/results/regret.json

Rows of set, method, and figure (image AUROC, pixel AUROC, AUPRO by test labels): who serves with that method, the best
of all contenders of all methods, their figures, and the regret (best minus chosen); the last rows are the mean and the
worst. With --data all stages are run with the preset. With --arrays the choice is made, by the same code, from scores
that were stored by set (see `benchmarks.stored_scores`): the figures are then on a coarse raster, and comparable only
among themselves.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import print_table, write_results
from benchmarks.methods import CATEGORIES, usual_content, working_in
from benchmarks.stored_scores import stored_sets
from components.detection.calibration import Plan, learns_held_out
from components.detection.choice import choose, make_banks
from components.evaluation.metrics import auroc, pixel_figures
from components.foundation.params import Params, parse_params
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.images.dataset import list_category
from components.stages import synthesize, train, validate
from components.stages.evaluate import score_records
from components.stages.fit import fit_detector, load_encoders
from components.synthesis.methods import NSA_GDE
from components.synthesis.prepared import load_prepared

METHODS = ("cutpaste-3way", NSA_GDE)
FIGURES = ("image AUROC", "pixel AUROC", "AUPRO")
Figures = tuple[float, float, float]


def main() -> None:
    """Measure all sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder that holds the categories")
    source.add_argument("--arrays", type=Path, help="folder of stored scores")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks"), help="folder for the runs")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.arrays:
        for name, served, figures in stored_sets(arguments.arrays):
            rows += rows_of(name, served, figures)
    for category in () if arguments.arrays else arguments.categories:
        rows += rows_of(Path(category).name, *measure(arguments, category))
    rows += summary(rows)
    rows = [{**row, "from": "stored scores" if arguments.arrays else f"preset {arguments.preset}"} for row in rows]
    print_table(rows)
    write_results(arguments.out, rows)


def measure(arguments: argparse.Namespace, category: str) -> tuple[dict[str, str], dict[str, Figures]]:
    """Who serves with each method, and the figures of every contender by name."""
    served, figures = {}, {}
    for method in METHODS:
        params = parse_params(usual_content(arguments, category, method, seed=0), arguments.preset)
        with working_in(arguments.work / f"{Path(category).name}-{method}-regret"):
            winner, found = contenders(Path(category).name, params)
        served[method] = named(winner, method)
        figures.update({named(name, method): own for name, own in found.items()})
    return served, figures


def named(contender: str, method: str) -> str:
    """The contender's name among those of all methods."""
    return contender.replace("trained", method) if contender != "pretrained" else contender


def contenders(category: str, params: Params) -> tuple[str, dict[str, Figures]]:
    """Who serves, and the test figures of each contender with its densities fitted as in earnest."""
    use_threads(params.threads)
    places = Places(category)
    for stage in (validate, synthesize, train):
        stage.main(category, params)
    prepared = load_prepared(places.prepared)
    banks = make_banks(load_encoders(places.encoder, params), prepared, params)
    choice = choose(banks, params)
    figures = {}
    for contender in choice.contest.contenders:
        own = replace(choice, contest=replace(choice.contest, winner=contender))
        plan = Plan.of(prepared, params, taught=own.is_taught, refit=learns_held_out(prepared, params))
        served = fit_detector(own, banks, prepared, params, {}, plan)
        records = list_category(Path(params.data.root) / category).test
        scored = score_records(served.detector, records, params.limits.image_limits())
        truth = scored.has_truth
        pixel, aupro = pixel_figures(scored.masks[truth], scored.maps[truth])
        figures[contender.name] = (auroc(scored.labels, scored.scores) or 0.0, pixel or 0.0, aupro or 0.0)
    return choice.encoder, figures


def rows_of(name: str, served: Mapping[str, str], figures: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """The rows of one set."""
    rows = []
    for method, chosen in served.items():
        for number, figure in enumerate(FIGURES):
            most, best = max((own[number], one) for one, own in figures.items())
            own = figures[chosen][number]
            row = {"set": name, "method": method, "figure": figure, "chosen": chosen, "by_chosen": round(own, 4)}
            rows.append({**row, "best": best, "by_best": round(most, 4), "regret": round(most - own, 4)})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and worst regret of each method and figure over the sets."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for figure in FIGURES:
            regrets = [row["regret"] for row in rows if (row["method"], row["figure"]) == (method, figure)]
            for name, value in (("mean", sum(regrets) / len(regrets)), ("worst", max(regrets))):
                found.append({"set": name, "method": method, "figure": figure, "regret": round(value, 4)})
    return found


if __name__ == "__main__":
    main()
