"""Whether the alarm threshold keeps what it promises, through the calibration that stage fit does.

    python -m benchmarks.promise --out benchmarks/results/promise.json
    python -m benchmarks.promise --data ../shared/data --out benchmarks/results/promise.json

Each row is many categories: for each, features of good images are drawn, `fit_detector` fits and calibrates, and fresh
features say what the threshold's false-alarm rate is. Features, and with them scores, have known distributions; with
--data also those of magnetic_tile's good images, of which every draw takes some to calibrate and the rest is fresh.

Columns: case; n images, groups of near-duplicates; rule and construction (`components.detection.promise`); the rate
that was wished, and the one that is promised; exceeded_share, how often the fresh rate exceeds it (confident), or the
mean fresh rate (marginal); allowed_share, what is promised of that, for so many fresh images, and the Monte-Carlo error
of so many draws (99 %); mean_rate, of false alarms.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.common import print_table, write_results
from benchmarks.methods import working_in
from components.density.gaussian import Layout
from components.detection.calibration import Plan
from components.detection.compositions import candidates
from components.detection.detector import Composition, Part, arrange, image_scores
from components.detection.feature_bank import FeatureBank, Features
from components.detection.network_fit import Served
from components.detection.promise import Promise
from components.evaluation.metrics import auroc
from components.foundation.params import Params, ThresholdParams, parse_params, read_preset
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.images.identity import Roles
from components.learning.backbone import build_encoder
from components.stages import synthesize, validate
from components.stages.fit import Choice, fit_detector
from components.synthesis.methods import PRETRAINED
from components.synthesis.prepared import Prepared, load_prepared

DRAWS, SPLITS = 300, 200
FRESH = 5000
SIDE = 32  # of the maps that are made on the way
SURE = 0.99  # with which a promise that is just kept is not said to be broken
HELD_OUT, CALIBRATE = 0.3, 0.25  # of a category
LEVEL = "b1"
REAL, REAL_SIDE, GRID = "magnetic_tile", 128, 4
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: of the distribution, and of what is special.
        images: good images of a category. copies: how many of these are near-duplicates of another one.
        draw: gives features (n, C, g, g) of good images that are independent of each other.
        layout: of the density.
        threshold: the section of params.yaml.
        taught, refit: as `Plan.of` takes them.
        choices: compositions, one of which an exam of these same images chooses.
        blind: whether near-duplicates are not known as such.
    """

    name: str
    images: int
    draw: Draw
    threshold: ThresholdParams
    copies: int = 0
    layout: Layout = "image"
    taught: bool = False
    refit: bool = True
    choices: int = 1
    blind: bool = False


class KnownFeatures(FeatureBank):
    """A bank of features that are there already."""

    def __init__(self, prepared: Prepared, features: np.ndarray) -> None:
        self.name, self.prepared, self.keeps = PRETRAINED, prepared, True
        self.encoder: Any = None
        self._features = torch.from_numpy(features)

    def of(self, rows: np.ndarray) -> Features:
        """Of good images `rows`."""
        return {LEVEL: self._features[rows]}


def normal(generator: np.random.Generator, count: int, channels: int = 12, grid: int = 1) -> np.ndarray:
    """Normal features with a spread that differs by channel: float32 (n, C, g, g)."""
    spread = np.linspace(0.2, 2, channels)[:, None, None]
    return (spread * generator.standard_normal((count, channels, grid, grid))).astype(np.float32)


def heavy(generator: np.random.Generator, count: int, channels: int = 12, grid: int = 1) -> np.ndarray:
    """Multivariate t with 4 degrees of freedom: now and then a good part is far from the others."""
    scale = np.sqrt(generator.chisquare(4, (count, 1, 1, 1)) / 4)
    return (normal(generator, count, channels, grid) / scale).astype(np.float32)


def mixed(generator: np.random.Generator, count: int, channels: int = 12, grid: int = 1) -> np.ndarray:
    """Every twentieth good part is an odd one, with three times the spread."""
    odd = generator.random((count, 1, 1, 1)) < 0.05
    return (normal(generator, count, channels, grid) * np.where(odd, 3, 1)).astype(np.float32)


def cases() -> list[Case]:
    """The rows of known distributions."""
    wide = partial(normal, channels=200)
    one_in_50, one_in_20 = ThresholdParams(false_alarm_rate=0.02), ThresholdParams(false_alarm_rate=0.05)
    average = ThresholdParams(false_alarm_rate=0.02, promise="marginal")
    return [
        Case("normal", 149, normal, one_in_50),
        Case("heavy tails", 149, heavy, one_in_50),
        Case("odd parts", 149, mixed, one_in_50),
        Case("more features than images", 149, wide, one_in_50),
        Case("normal, a density a location", 64, partial(normal, grid=3), one_in_20, layout="location"),
        Case("heavy tails, locations share one", 64, partial(heavy, grid=3), one_in_20, layout="shared"),
        Case("odd parts, many", 400, mixed, one_in_20),
        Case("too few", 43, heavy, one_in_50),
        Case("tiny", 12, normal, one_in_20),
        Case("75 % near-duplicates", 120, heavy, one_in_20, copies=90),
        Case("75 % near-duplicates, locations", 240, partial(mixed, grid=3), one_in_20, copies=180, layout="location"),
        Case("chosen among 8 by the same images", 64, heavy, one_in_20, choices=8),
        Case("on average", 149, heavy, average),
        Case("on average, 75 % near-duplicates", 240, normal, average, copies=180),
        Case("encoder was taught", 400, heavy, one_in_20, taught=True),
        Case("never learned", 600, mixed, one_in_20, refit=False),
    ]


def main() -> None:
    """Measure all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder that holds magnetic_tile; without, known distributions only")
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks"), help="folder for features")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--splits", type=int, default=SPLITS)
    arguments = parser.parse_args()
    use_threads(1)
    rows = []
    for case in cases():
        rows.append(row(case, arguments.draws, simulated(case, arguments.draws)))
        print_table(rows[-1:])
    if arguments.data:
        rows += real_rows(arguments.data, arguments.work, arguments.splits)
    print_table(rows)
    write_results(arguments.out, rows)


Outcome = tuple[Promise, int, int]  # what is promised, false alarms, fresh images


def simulated(case: Case, draws: int) -> Iterator[Outcome]:
    """Categories of one case."""
    for number in range(draws):
        generator = np.random.default_rng([number, case.images, sum(case.name.encode())])
        features, groups = with_copies(case.draw(generator, case.images - case.copies), case.copies, generator)
        groups = np.arange(len(groups)) if case.blind else groups
        fresh = case.draw(generator, FRESH)
        composition = chosen(case, features, groups, number)
        promise, scores = calibrated(composition, features, groups, fresh, case, number)
        yield promise, int(np.count_nonzero(scores > promise.value)), FRESH


def with_copies(features: np.ndarray, copies: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features with near-duplicates of a third of them, and the group (n,) of each."""
    of = generator.integers(0, max(1, len(features) // 3), copies)
    noise = 0.02 * generator.standard_normal((copies, *features.shape[1:]))
    order = generator.permutation(len(features) + copies)
    groups = np.concatenate([np.arange(len(features)), of])[order]
    return np.concatenate([features, features[of] + noise])[order].astype(np.float32), groups


def calibrated(
    composition: Composition, features: np.ndarray, groups: np.ndarray, fresh: np.ndarray, case: Case, seed: int
) -> tuple[Promise, np.ndarray]:
    """What the threshold of good images with these features promises, and the image scores of fresh ones."""
    prepared = prepared_of(groups, seed)
    params = params_of(case.threshold)
    choice = Choice.of((composition,), (composition,) if composition.is_dense else ())
    plan = Plan.of(prepared, params, taught=case.taught, refit=case.refit)
    banks = {PRETRAINED: KnownFeatures(prepared, features)}
    served = fit_detector(choice, banks, prepared, params, {}, plan)
    return served.calibration.promise(prepared, params.threshold), scores_of(served, fresh)


def scores_of(served: Served, features: np.ndarray) -> np.ndarray:
    """Image scores (n,) float32 of features (n, C, g, g), as `Detector.score` makes them."""
    part: Part = next(part for part in served.detector.parts if part.for_image)
    distances = part.scorer.score(arrange({LEVEL: torch.from_numpy(features)}, part.composition))
    return part.image_scale.apply(image_scores(distances, part.composition)).astype(np.float32)


def chosen(case: Case, features: np.ndarray, groups: np.ndarray, seed: int) -> Composition:
    """The case's composition; of several the one that an exam of these images likes best.

    They differ in how far they trust small variances. The exam's samples are the images with one feature moved.
    """
    grid = features.shape[-1] if case.layout != "image" else 0
    first = Composition(PRETRAINED, (LEVEL,), case.layout, grid, "ridge" if case.choices > 1 else "ledoit-wolf")
    if case.layout == "location":
        first = replace(first, covariance="low-rank", rank=6)
    if case.choices == 1:
        return first
    family = [replace(first, ridge=float(ridge)) for ridge in np.geomspace(1e-4, 1, case.choices)]
    moved = features.copy()
    moved[np.arange(len(features)), np.arange(len(features)) % features.shape[1]] += 1.0
    prepared = prepared_of(groups, seed)
    rows = np.arange(len(groups))
    folds = prepared.folds_of(rows, 4, seed)
    return max(family, key=lambda composition: exam_mark(composition, features, moved, folds))


def exam_mark(composition: Composition, good: np.ndarray, bad: np.ndarray, folds: np.ndarray) -> float:
    """The cross-fitted AUROC of samples against the good images that they were made from."""
    scores = np.empty((2, len(good)))
    for fold in np.unique(folds):
        own = folds == fold
        scorer = composition.scorer_of(arrange({LEVEL: torch.from_numpy(good[~own])}, composition))
        for row, features in zip(scores, (good, bad), strict=True):
            row[own] = scorer.score(arrange({LEVEL: torch.from_numpy(features[own])}, composition))
    return auroc(np.repeat([False, True], len(good)), scores.ravel()) or 0.0


def prepared_of(groups: np.ndarray, seed: int) -> Prepared:
    """A category of which nothing is there but who its images are; groups: (n,) equal for near-duplicates."""
    generator = np.random.default_rng([seed, 1])
    digests = sorted(bytes(row).hex() for row in generator.integers(0, 256, (len(groups), 32), np.uint8))
    alike = [[digests[row] for row in np.flatnonzero(groups == group)] for group in np.unique(groups)]
    nothing = np.zeros((0, 0, 1, 1), bool)
    return Prepared(
        category="simulated",
        seed=seed,
        data_digest="",
        roles=Roles.of(digests, [group for group in alike if len(group) > 1], seed, HELD_OUT, CALIBRATE),
        images=np.zeros((len(groups), 1, 1, 3), np.uint8),
        exam_source=np.zeros(0, np.int64),
        exam_kinds=(),
        exam_images=nothing,
        exam_masks=nothing,
    )


def params_of(threshold: ThresholdParams) -> Params:
    """The parameters that matter here."""
    content = {"data": {"root": ".", "categories": ["simulated"]}, "image": {"side": SIDE}}
    return parse_params(content, "benchmark").model_copy(update={"threshold": threshold})


def real_rows(data: Path, work: Path, splits: int) -> list[dict[str, Any]]:
    """Magnetic tiles: random splits of the good images into those that calibrate, learned or not, and fresh ones."""
    features, groups = real_features(data, work)
    composition = Composition(PRETRAINED, (LEVEL,), "location", GRID, "low-rank", rank=32)

    def split(case: Case) -> Iterator[Outcome]:
        for number in range(splits):
            order = np.random.default_rng(number).permutation(groups.max() + 1)[groups].argsort(kind="stable")
            known, fresh = order[: case.images], order[case.images :]
            fresh = fresh[~np.isin(groups[fresh], groups[known])]
            promise, scores = calibrated(composition, features[known], groups[known], features[fresh], case, number)
            yield promise, int(np.count_nonzero(scores > promise.value)), len(fresh)

    def drawn(generator: np.random.Generator, count: int) -> np.ndarray:
        return features[generator.permutation(len(features))[:count]]

    one_in_50, one_in_20 = ThresholdParams(false_alarm_rate=0.02), ThresholdParams(false_alarm_rate=0.05)
    average = ThresholdParams(false_alarm_rate=0.02, promise="marginal")
    found = []
    for case in (
        Case(REAL, 149, drawn, one_in_50),
        Case(REAL, 64, drawn, one_in_20),
        Case(REAL, 149, drawn, average),
        Case(f"{REAL}, never learned", 500, drawn, one_in_20, refit=False),
    ):
        found.append(row(case, splits, split(case)))
        print_table(found[-1:])
    return found


def real_features(data: Path, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C, g, g) float32 of the good images, kept in `work`, and the group (N,) of each."""
    content = read_preset("cpu") | {"method": "pretrained", "image": {"side": REAL_SIDE}}
    content |= {"data": {"root": str(data.resolve()), "categories": [REAL]}}
    params = parse_params(content, "preset cpu")
    with working_in(work / f"{REAL}-promise"):
        places, kept = Places(REAL), Path("features.npy")
        if not places.prepared.exists():
            validate.main(REAL, params)
            synthesize.main(REAL, params)
        prepared = load_prepared(places.prepared)
        if not kept.exists():
            encoder = build_encoder(params.backbone, params.seed)
            composition = replace(candidates(PRETRAINED, encoder, REAL_SIDE, 1000)[0], grid=GRID)
            bank = FeatureBank(PRETRAINED, encoder, prepared, [composition])
            arranged = arrange(bank.of(np.arange(len(prepared.images))), composition)  # (N, g², C)
            np.save(kept, arranged.transpose(0, 2, 1).reshape(len(arranged), -1, GRID, GRID))
        _, groups = np.unique(prepared.groups, return_inverse=True)
        return np.load(kept, allow_pickle=False), groups


def row(case: Case, draws: int, outcomes: Iterator[Outcome]) -> dict[str, Any]:
    """One row of the table; groups, promised rate and what is allowed are means over the draws."""
    found = list(outcomes)
    rates = np.array([alarms / fresh for _, alarms, fresh in found])
    promised = np.array([promise.rate for promise, _, _ in found])
    if case.threshold.promise == "marginal":
        share, allowed = float(rates.mean()), float(promised.mean())
        allowed += stats.norm.ppf(SURE) * float(rates.std(ddof=1)) / np.sqrt(draws)
    else:
        share = float(np.mean(rates > promised))
        risk = np.mean([failure(promise, fresh) for promise, _, fresh in found])
        allowed = float(stats.binom.ppf(SURE, draws, risk)) / draws
    return {
        "case": case.name,
        "n": case.images,
        "groups": round(float(np.mean([promise.groups for promise, _, _ in found])), 1),
        "rule": case.threshold.promise,
        "construction": found[0][0].construction,
        "wished": case.threshold.false_alarm_rate,
        "promised": round(float(promised.mean()), 4),
        "exceeded_share": round(share, 4),
        "allowed_share": round(allowed, 4),
        "mean_rate": round(float(rates.mean()), 4),
        "draws": draws,
    }


def failure(promise: Promise, fresh: int) -> float:
    """How likely more than the promised share of so many fresh good images is above the threshold, at most.

    The rate above the threshold is Beta(above + 1, groups − above) distributed where the promise is just kept, so the
    number of fresh images above it is beta-binomial.
    """
    allowed = np.floor(promise.rate * fresh * (1 + 1e-12))
    return float(stats.betabinom.sf(allowed, fresh, promise.above + 1, promise.groups - promise.above))


if __name__ == "__main__":
    main()
