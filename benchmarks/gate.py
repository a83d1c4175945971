"""What the gate's default policy makes of models that are as good as the champion, and of models that lost something.

    python -m benchmarks.gate --out benchmarks/results/gate.json
    python -m benchmarks.gate --data ../shared/data/mvtec/screw --out benchmarks/results/gate.json

Rows of images (test_images of either class), lost_points, auroc (the champion's) and correlation, with the shares of so
many pairs of test sets that are promoted, rejected, and held for a person. A run makes its own rows anew, and keeps
those that the file has from elsewhere (`from`: "simulation", or the category).

By simulation: image scores of two models are normal, with known AUROC and correlation; the challenger's AUROC is lower
by `lost_points` hundredths; half of `images` are good. Each has the threshold that its own good scores exceed in 2 of
100.

With --data, the folder of a category: models that were really fitted (`benchmarks.degraded`) score its test images.
What they lost is measured on all of these, in hundredths of the champion's image AUROC. Test sets are drawn from them
with replacement, good and defective ones apart: 100 + 100 can be had of fewer so, and as these draws know no other
images, what was measured on all of them is the truth. Correlation is that of scores within good and defective images.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import print_table, write_results
from benchmarks.degraded import Model, Models, image_auroc, models_of
from benchmarks.methods import known_rows
from components.foundation.params import GateParams
from components.registry.gate.decision import Compared, Evidence, Rates, count_comparisons, decide
from components.registry.gate.probe import Cost
from components.registry.gate.statistics import Levels, Rate, auroc_difference, more_often, resamples

IMAGES = (20, 50, 100, 200)  # of either class
LOST = (0, 1, 3, 5, 10)  # hundredths of AUROC
SETTINGS = ((0.85, 0.5), (0.9, 0.7), (0.97, 0.9))  # the champion's AUROC, and how the models' scores correlate
KINDS = 3  # of defects, equally many of each
FALSE_ALARMS = 0.02
SIMULATION = "simulation"
FEW, MANY = 20, 100  # of real test images; and as many as there are good ones


def main() -> None:
    """Make all rows of the simulation, or all of a category."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of a category; without, by simulation")
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks"), help="folder for the models")
    parser.add_argument("--trials", type=int, default=400, help="pairs of test sets for each row")
    parser.add_argument("--resamples", type=int, default=500, help="bootstrap samples of each")
    arguments = parser.parse_args()
    gate = GateParams(resamples=arguments.resamples)
    if arguments.data:
        rows = real_rows(arguments.data, arguments.work, arguments.trials, gate)
    else:
        rows = simulated_rows(arguments.trials, gate)
    kept = [row for row in known_rows(arguments.out) if row["from"] != rows[0]["from"]]
    print_table(rows)
    write_results(arguments.out, sorted([*kept, *rows], key=lambda row: row["from"] != SIMULATION))


def simulated_rows(trials: int, gate: GateParams) -> list[dict[str, Any]]:
    """All rows of normal scores."""
    return [
        simulated(images, auroc, correlation, lost, trials, gate)
        for images in IMAGES
        for auroc, correlation in SETTINGS
        for lost in LOST
    ]


def simulated(
    images: int, auroc: float, correlation: float, lost: int, trials: int, gate: GateParams
) -> dict[str, Any]:
    """One row of normal scores."""
    labels, kinds = np.repeat([False, True], images), np.arange(2 * images) % KINDS
    thresholds = np.repeat(stats.norm.ppf(1 - FALSE_ALARMS), 2)

    def evidence(seed: int) -> Evidence:
        scores = normal_scores(labels, (auroc, auroc - lost / 100), correlation, seed)
        return evidence_of(labels, kinds, scores, thresholds, seed, gate)

    columns = {"from": SIMULATION, "model": "normal scores", "test_images": images, "lost_points": lost}
    return columns | {"auroc": auroc, "correlation": correlation} | shares(evidence, trials, gate)


def normal_scores(labels: np.ndarray, aurocs: tuple[float, float], correlation: float, seed: int) -> np.ndarray:
    """Scores (N, 2) of two models of these AUROCs of the same test images."""
    generator = np.random.default_rng([seed, len(labels) // 2])
    mixed = np.linalg.cholesky(np.array([[1, correlation], [correlation, 1]])).T
    scores = generator.normal(size=(len(labels), 2)) @ mixed  # (N, 2)
    shifted: np.ndarray = scores + labels[:, None] * np.sqrt(2) * stats.norm.ppf(aurocs)  # binormal: Φ(shift / √2)
    return shifted


def real_rows(category: Path, work: Path, trials: int, gate: GateParams) -> list[dict[str, Any]]:
    """All rows of a category's challengers."""
    models = models_of(category, work)
    return [
        {"from": category.resolve().name} | real(models, challenger, images, trials, gate)
        for challenger in models.challengers
        for images in (FEW, int((~models.labels).sum()), MANY)
    ]


def real(models: Models, challenger: Model, images: int, trials: int, gate: GateParams) -> dict[str, Any]:
    """One row of a challenger on test sets of so many good and so many defective images."""
    labels, scores = models.labels, np.stack([models.champion.scores, challenger.scores], axis=1)  # (N,), (N, 2)
    thresholds = np.array([models.champion.threshold, challenger.threshold])

    def evidence(seed: int) -> Evidence:
        generator = np.random.default_rng([seed, images])
        rows = np.concatenate([generator.choice(np.flatnonzero(labels == own), images) for own in (False, True)])
        return evidence_of(labels[rows], models.kinds[rows], scores[rows], thresholds, seed, gate)

    return {
        "model": challenger.name,
        "test_images": images,
        "lost_points": round(models.lost_points(challenger), 2),
        "auroc": round(image_auroc(models.kinds, models.champion.scores), 4),
        "correlation": round(correlation_of(labels, scores), 3),
    } | shares(evidence, trials, gate)


def correlation_of(labels: np.ndarray, scores: np.ndarray) -> float:
    """How scores (N, 2) of two models correlate within each class (N,) bool, on average."""
    return float(np.mean([np.corrcoef(scores[labels == own].T)[0, 1] for own in (False, True)]))


def shares(evidence: Callable[[int], Evidence], trials: int, gate: GateParams) -> dict[str, Any]:
    """The shares of verdicts over so many pairs of test sets, whose evidence follows from a seed."""
    words = Counter(decide(evidence(seed), gate).word for seed in range(trials))
    return {
        "promoted_share": words["promote"] / trials,
        "rejected_share": words["reject"] / trials,
        "held_share": words["hold"] / trials,
        "trials": trials,
    }


def evidence_of(
    labels: np.ndarray, kinds: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, seed: int, gate: GateParams
) -> Evidence:
    """The evidence on champion and challenger, which have scored the same N test images.

    labels: (N,) True for a defect. kinds: (N,) that of each defect. scores: (N, 2). thresholds: (2,).
    """
    present = np.unique(kinds[labels])
    levels, drawn = Levels.of(gate.confidence, count_comparisons(len(present))), resamples(labels, gate.resamples, seed)
    figures = []
    for kind in (None, *present):
        (rows,) = np.nonzero(~labels | (kind is None) | (kinds == kind))
        one = auroc_difference(labels[rows], scores[rows, 0], scores[rows, 1], drawn[:, rows], levels)
        assert one is not None
        name, defects = "image_auroc" if kind is None else str(kind), int(labels[rows].sum())
        figures.append(Compared(name, one, int((~labels).sum()), defects, is_kind=kind is not None))
    alarms = scores > thresholds
    return Evidence(
        figures,
        "test",
        rates_of(alarms[~labels], gate),
        rates_of(~alarms[labels], gate),
        None,
        (Cost(), Cost()),
        (),
        1000 * FALSE_ALARMS,
        None,
    )


def rates_of(happened: np.ndarray, gate: GateParams) -> Rates:
    """How often something happened to champion and challenger: (N, 2) bool."""
    old, new = happened.T
    rates = [Rate.of(mask, gate.confidence) for mask in (old, new)]
    return Rates(rates[0], rates[1], more_often(old, new), more_often(new, old))


if __name__ == "__main__":
    main()
