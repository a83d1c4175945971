"""What the gate's default policy makes of models that are as good as the champion, and of models that lost something.

    python -m benchmarks.gate --out benchmarks/results/gate.json

By simulation: image scores of two models are normal, with known AUROC and correlation; the challenger's AUROC is lower
by `lost_points` hundredths; half of `images` are good. Each has the threshold that its own good scores exceed in 2 of
100. Rows of images (test_images of either class), lost_points, auroc and correlation with the shares of so many pairs
of test sets that are promoted, rejected, and held for a person.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import print_table, write_results
from components.foundation.params import GateParams
from components.registry.gate.decision import Compared, Cost, Evidence, Rates, count_comparisons, decide
from components.registry.gate.statistics import Levels, Rate, auroc_difference, more_often, resamples

IMAGES = (20, 50, 100, 200)  # of either class
LOST = (0, 1, 3, 5, 10)  # hundredths of AUROC
SETTINGS = ((0.85, 0.5), (0.9, 0.7), (0.97, 0.9))  # the champion's AUROC, and how the models' scores correlate
KINDS = 3  # of defects, equally many of each
FALSE_ALARMS = 0.02


def main() -> None:
    """Simulate all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=400, help="pairs of test sets for each row")
    parser.add_argument("--resamples", type=int, default=500, help="bootstrap samples of each")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    gate = GateParams(resamples=arguments.resamples)
    for images in IMAGES:
        for auroc, correlation in SETTINGS:
            for lost in LOST:
                rows.append(simulated(images, auroc, correlation, lost, arguments.trials, gate))
        write_results(arguments.out, rows)
    print_table(rows)
    write_results(arguments.out, rows)


def simulated(
    images: int, auroc: float, correlation: float, lost: int, trials: int, gate: GateParams
) -> dict[str, Any]:
    """One row: the shares of verdicts over so many pairs of test sets."""
    words = Counter(
        decide(evidence_of(images, (auroc, auroc - lost / 100), correlation, seed, gate), gate).word
        for seed in range(trials)
    )
    return {
        "test_images": images,
        "auroc": auroc,
        "correlation": correlation,
        "lost_points": lost,
        "promoted_share": words["promote"] / trials,
        "rejected_share": words["reject"] / trials,
        "held_share": words["hold"] / trials,
        "trials": trials,
    }


def evidence_of(images: int, aurocs: tuple[float, float], correlation: float, seed: int, gate: GateParams) -> Evidence:
    """The evidence on two models of these AUROCs that have scored the same test images."""
    generator = np.random.default_rng([seed, images])
    mixed = np.linalg.cholesky(np.array([[1, correlation], [correlation, 1]])).T
    labels, kinds = np.repeat([False, True], images), np.arange(2 * images) % KINDS
    scores = generator.normal(size=(2 * images, 2)) @ mixed  # (N, 2)
    scores += labels[:, None] * np.sqrt(2) * stats.norm.ppf(aurocs)  # binormal: AUROC = Φ(shift / √2)
    levels, drawn = Levels.of(gate.confidence, count_comparisons(KINDS)), resamples(labels, gate.resamples, seed)
    figures = []
    for kind in (None, *range(KINDS)):
        (rows,) = np.nonzero(~labels | (kind is None) | (kinds == kind))
        one = auroc_difference(labels[rows], scores[rows, 0], scores[rows, 1], drawn[:, rows], levels)
        assert one is not None
        name = "image_auroc" if kind is None else str(kind)
        figures.append(Compared(name, one, images, int(labels[rows].sum()), is_kind=kind is not None))
    alarms = scores > stats.norm.ppf(1 - FALSE_ALARMS)
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
