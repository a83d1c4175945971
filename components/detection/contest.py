"""Which of a few detectors serves: the simplest, unless one that costs more is better in the exam beyond chance.

The contest is held on good images that nobody has learned from and that have chosen nothing else, and on the samples
made from these. Contenders are compared in an order that was fixed before, each with the winner so far, until one is
not better: with a true order of equals a costlier one wins with probability ERROR at most, however many contenders
there are (fixed-sequence testing: Maurer, Hothorn, Lehmacher, "Multiple comparisons in drug clinical trials", 1995).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.density.gaussian import Scorer
from components.detection.beyond_chance import Answers, Comparison, compare, mark_of, visibility
from components.detection.detector import Composition, arrange, grown, image_scores
from components.detection.exam import ExamPaper, auroc_of, coarse_maps, coarse_masks, held_out_paper, step_of
from components.detection.feature_bank import FeatureBank
from components.detection.fitting import fit_scorers
from components.detection.scale import Scale


@dataclass(frozen=True)
class Contender:
    """A detector that might serve: compositions whose scores are averaged, for the image score and for the map."""

    name: str
    image: tuple[Composition, ...]
    map: tuple[Composition, ...]

    @property
    def all(self) -> list[Composition]:
        """Every composition once."""
        return list(dict.fromkeys([*self.image, *self.map]))


@dataclass(frozen=True)
class Distances:
    """What one composition makes of the good images (M,) or (M, L) of the contest, and of the samples of each kind."""

    good: np.ndarray
    samples: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Contest:
    """What came of a contest.

    Attributes:
        contenders: who took part, in their order.
        answers: of each, by name.
        weights: of the kinds of samples that counted.
        comparisons: those that were made, by the names of both; the last decided.
        winner: who serves.
    """

    contenders: tuple[Contender, ...]
    answers: Mapping[str, Answers]
    weights: Mapping[str, float]
    comparisons: Mapping[tuple[str, str], Comparison]
    winner: Contender

    @property
    def marks(self) -> dict[str, float]:
        """The image mark of each contender: the weighted mean over kinds of its image AUROC; 0.5, a guess, of none."""
        return {name: image_mark(answers, self.weights) for name, answers in self.answers.items()}


def hold(
    contenders: Sequence[Contender],
    banks: Mapping[str, FeatureBank],
    not_asked: Collection[str],
    margin: float,
    seed: int,
) -> Contest:
    """Fit all contenders to the images to learn from, and hold the contest on the held-out images of the exam."""
    sat, masks = distances_of(list(dict.fromkeys(c for own in contenders for c in own.all)), banks, not_asked)
    answers = {contender.name: answers_of(contender, sat, masks) for contender in contenders}
    return decide(contenders, answers, margin, seed)


def decide(contenders: Sequence[Contender], answers: Mapping[str, Answers], margin: float, seed: int) -> Contest:
    """Compare the contenders in their order, each with the winner so far, until one is not better beyond chance.

    margin: by how much at least it must be better. seed: of the bootstrap. Kinds that none can see count nothing.
    """
    weights = visibility(*answers.values())
    winner, comparisons = contenders[0], {}
    for contender in contenders[1:]:
        comparison = compare(answers[winner.name], answers[contender.name], weights, np.random.default_rng(seed))
        comparisons[winner.name, contender.name] = comparison
        if comparison.low <= margin:
            break
        winner = contender
    return Contest(tuple(contenders), answers, weights, comparisons, winner)


def distances_of(
    compositions: Sequence[Composition], banks: Mapping[str, FeatureBank], not_asked: Collection[str]
) -> tuple[dict[Composition, Distances], dict[str, np.ndarray]]:
    """What compositions, fitted to the images to learn from, make of the exam's held-out images; the samples' masks."""
    scorers = fit_scorers(compositions, banks)
    found: dict[Composition, Distances] = {}
    masks: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(c.encoder for c in compositions):
        paper = held_out_paper(banks[name], not_asked)
        found.update({c: _distances(c, scorers[c], paper) for c in compositions if c.encoder == name})
        masks.update(paper.masks)
    return found, masks


def _distances(composition: Composition, scorer: Scorer, paper: ExamPaper) -> Distances:
    return Distances(
        scorer.score(arrange(paper.good, composition)),
        {kind: scorer.score(arrange(features, composition)) for kind, features in paper.samples.items()},
    )


def answers_of(contender: Contender, sat: Mapping[Composition, Distances], masks: Mapping[str, np.ndarray]) -> Answers:
    """What a contender says: the mean of its compositions, each on the scale of what it makes of the good images.

    masks: kind to (M, S, S) bool. Compositions without a map of their own answer for images only.
    """
    changed = {kind: own.any(axis=(1, 2)) for kind, own in masks.items()}
    scaled = [_scaled_scores(sat[c], c) for c in contender.image]
    samples = {
        kind: np.where(changed[kind], np.mean([own[kind] for _, own in scaled], axis=0), np.nan) for kind in masks
    }
    maps = [c for c in contender.map if c.is_dense]
    coarse = {kind: coarse_masks(own) for kind, own in masks.items()} if maps else {}
    found = {kind: _found(_maps(maps, sat, kind, masks[kind].shape[-1]), coarse[kind]) for kind in coarse}
    areas = {kind: own.sum(axis=(1, 2)).astype(np.float64) for kind, own in coarse.items()}
    return Answers(np.mean([good for good, _ in scaled], axis=0), samples, found, areas)


def _scaled_scores(distances: Distances, composition: Composition) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Image scores of the good images and of the samples, in standard deviations of the former."""
    good = image_scores(distances.good, composition).astype(np.float64)
    scale = Scale.of(good)
    samples = {kind: scale.apply(image_scores(own, composition)) for kind, own in distances.samples.items()}
    return scale.apply(good), samples


def _maps(
    compositions: Sequence[Composition], sat: Mapping[Composition, Distances], kind: str, side: int
) -> np.ndarray:
    """The mean (M, raster, raster) of compositions' maps of the samples of a kind, as a detector merges them."""
    raster = side // step_of(side)
    grids = [grown(Scale.of(sat[c].good).apply(sat[c].samples[kind]), c, side, raster) for c in compositions]
    return coarse_maps(sum(grids[1:], grids[0]) / len(grids), side)


def _found(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """For each sample (M,) the share of all samples' unchanged pixels that its changed pixels exceed on average."""
    changed = masks.any(axis=(1, 2))
    found = np.full(len(maps), np.nan)
    if not changed.any() or masks[changed].all():
        return found
    unchanged = np.sort(maps[changed][~masks[changed]])
    for row in np.flatnonzero(changed):
        values = maps[row][masks[row]]
        above = np.searchsorted(unchanged, values, "left") + np.searchsorted(unchanged, values, "right")
        found[row] = above.mean() / 2 / len(unchanged)
    return found


def image_mark(answers: Answers, weights: Mapping[str, float]) -> float:
    """The weighted mean over kinds of the image AUROC; 0.5, a guess, of none."""
    return float(mark_of(Answers(answers.good, answers.samples, {}, {}), weights)[0])


def by_strength(answers: Answers, strengths: np.ndarray) -> dict[str, dict[str, float]]:
    """The image AUROC of each kind for each strength (M,) of its samples; nothing of what was not changed."""
    found: dict[str, dict[str, float]] = {}
    for kind, scores in answers.samples.items():
        there = np.isfinite(scores)
        rows = {f"{strength:g}": there & (strengths == strength) for strength in np.unique(strengths)}
        found[kind] = {name: auroc_of(answers.good, scores[own]) for name, own in rows.items() if own.any()}
    return found


def record(contest: Contest, strengths: np.ndarray) -> dict[str, Any]:
    """The contest in JSON: what counted, each comparison, and what the winner says of every image and sample.

    strengths: (M,) of the samples from each image; empty where they have none. The scores are in standard deviations
    of those of the good images, by densities that have not learned them; null where a sample is no defect.
    """
    answers = contest.answers[contest.winner.name]
    return {
        "images": len(answers.good),
        "weights": {kind: round(weight, 4) for kind, weight in contest.weights.items()},
        "comparisons": [_comparison(*names, made) for names, made in contest.comparisons.items()],
        "by_strength": by_strength(answers, strengths) if len(strengths) else {},
        "strengths": strengths.tolist(),
        "good": _rounded(answers.good),
        "samples": {kind: _rounded(scores) for kind, scores in answers.samples.items()},
    }


def _comparison(first: str, second: str, made: Comparison) -> dict[str, Any]:
    marks = {"first_mark": made.first, "second_mark": made.second, "low": made.low, "high": made.high}
    return {"first": first, "second": second, **{name: round(value, 4) for name, value in marks.items()}}


def _rounded(scores: np.ndarray) -> list[float | None]:
    return [round(float(score), 4) if np.isfinite(score) else None for score in scores]
