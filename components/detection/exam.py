"""The synthetic exam: which composition tells good images from synthetic defects best, without any test label.

Every image of the exam sits it once: its fold's densities have not seen it, nor the samples made from it. A
composition's mark is the mean over the kinds of samples of the AUROC (image or pixel) against the good images: one
kind alone misleads, the mean over kinds ranks compositions nearly as test labels do.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from components.density.gaussian import GaussianDensity, Scorer
from components.detection.detector import Composition, CopyKind, arrange, gaussian_blur, grown, image_scores
from components.detection.feature_bank import FeatureBank, Features
from components.evaluation.metrics import auroc, pixel_auroc

PIXELS = 64
BLUR = 4.0  # of maps, in pixels of the image
MOST_FITTED = 400
POOLED_MARGIN = 0.03


@dataclass(frozen=True)
class ExamPaper:
    """Features of the images that sit one exam with one encoder.

    Attributes:
        good: level to features (M, C, h, w) or (M, C) of the good images.
        samples: kind to the same of the synthetic sample of each good image, in the same order.
        masks: kind to (M, H, W) bool: what was changed.
        folds: (M,) the fold of each image; one fold only means that the density was fitted elsewhere.
        more: level to features of further good images, which do not sit the exam but which densities learn from: what
            suits many images may not be what suits few, so a candidate must be fitted to about as many as in earnest.
        copies: level to features of copies of `good` and `more` together, all first copies first; None where no
            composition learns from copies.
    """

    good: Features
    samples: Mapping[str, Features]
    masks: Mapping[str, np.ndarray]
    folds: np.ndarray
    more: Features | None = None
    copies: Features | None = None


@dataclass(frozen=True)
class Mark:
    """What a composition reached in an exam.

    Attributes:
        composition: who sat it.
        image: mean over kinds of the image AUROC.
        pixel: mean over kinds of the pixel AUROC; None without a map.
        by_kind, pixel_by_kind: the AUROC for each kind; the latter is empty without a map.
    """

    composition: Composition
    image: float
    pixel: float | None
    by_kind: Mapping[str, float]
    pixel_by_kind: Mapping[str, float]


def asked(kinds: Iterable[str], not_asked: Collection[str]) -> list[str]:
    """The kinds that an exam asks: all but those that are `not_asked`, or all where these are all there are."""
    every = list(kinds)
    return [kind for kind in every if kind not in not_asked] or every


def held_out_paper(bank: FeatureBank, not_asked: Collection[str] = ()) -> ExamPaper:
    """The exam of the held-out images, for densities fitted to the others."""
    chosen = bank.prepared.held_out[bank.prepared.exam_source]
    return _paper(bank, chosen, np.zeros(np.count_nonzero(chosen)), not_asked)


def cross_paper(
    bank: FeatureBank,
    folds: int,
    seed: int,
    copies: int = 0,
    copy_kind: CopyKind = "geometric",
    not_asked: Collection[str] = (),
) -> ExamPaper:
    """The exam of the images to learn from, each to be scored by densities of the other folds and of their copies."""
    prepared = bank.prepared
    chosen = ~prepared.held_out[prepared.exam_source]
    sitting = prepared.exam_source[chosen]
    paper = _paper(bank, chosen, prepared.folds_of(sitting, folds, seed), not_asked)
    like_them = np.isin(prepared.groups, prepared.groups[sitting])  # a fold must not learn its own near-duplicates
    others = prepared.fit_rows[~like_them[prepared.fit_rows]][: max(0, MOST_FITTED - len(sitting))]
    if len(others):
        paper = replace(paper, more=bank.of(others))
    if copies:
        rows = np.concatenate([sitting, others])
        paper = replace(paper, copies=bank.of_copies(rows, copies, copy_kind))
    return paper


def _paper(bank: FeatureBank, chosen: np.ndarray, folds: np.ndarray, not_asked: Collection[str]) -> ExamPaper:
    """Features and masks of the `chosen` (M,) bool of the images that can sit the exam; folds: of those chosen."""
    rows, prepared = np.flatnonzero(chosen), bank.prepared
    numbers = {kind: prepared.exam_kinds.index(kind) for kind in asked(prepared.exam_kinds, not_asked)}
    return ExamPaper(
        good=bank.of(prepared.exam_source[rows]),
        samples={kind: bank.of_samples(number, rows) for kind, number in numbers.items()},
        masks={kind: np.asarray(prepared.exam_masks[number][rows]) for kind, number in numbers.items()},
        folds=folds,
    )


def cross_examine(composition: Composition, paper: ExamPaper) -> Mark:
    """Mark a composition by cross-fitting: each fold is scored by the density of the other folds' good images."""
    good = arrange(paper.good, composition)
    samples = {kind: arrange(features, composition) for kind, features in paper.samples.items()}
    features, folds = _learned(composition, paper, good)
    distances = {kind: np.empty(values.shape[:-1], np.float32) for kind, values in samples.items()}
    good_distances = np.empty(good.shape[:-1], np.float32)
    for k, scorer in fold_scorers(composition, features, folds):
        rows = paper.folds == k
        good_distances[rows] = scorer.score(good[rows])
        for kind, values in samples.items():
            distances[kind][rows] = scorer.score(values[rows])
    return mark(composition, good_distances, distances, paper.masks)


def fold_scorers(composition: Composition, features: np.ndarray, folds: np.ndarray) -> Iterator[tuple[int, Scorer]]:
    """For each fold its number, and the scorer fitted to all images but those of that fold, and to their copies.

    features: (1 + copies, N, …). folds: (N,) the fold of each image; −1 for those in none, which are always learned.
    """
    vector, numbers = features.shape[2:], range(int(folds.max()) + 1)
    if not composition.merges_quickly:
        for k in numbers:
            yield k, composition.scorer_of(features[:, folds != k].reshape(-1, *vector))
        return
    pieces = {int(k): composition.density().fit(features[:, folds == k].reshape(-1, *vector)) for k in np.unique(folds)}
    for k in numbers:
        yield k, GaussianDensity.merge([piece for own, piece in pieces.items() if own != k]).scorer()


def _learned(composition: Composition, paper: ExamPaper, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (1 + copies, N, …) that a density may learn from, and the fold (N,) of each image, −1 for `more`."""
    own, folds = good, paper.folds
    if paper.more:
        own = np.concatenate([good, arrange(paper.more, composition)])
        folds = np.append(folds, np.full(len(own) - len(good), -1))
    if not composition.copies or paper.copies is None:
        return own[None], folds
    features = np.empty((1 + composition.copies, *own.shape), np.float32)
    features[0] = own
    for number in range(composition.copies):  # one copy of all images at a time, so that all are there once
        rows = slice(number * len(own), (number + 1) * len(own))
        features[1 + number] = arrange({level: value[rows] for level, value in paper.copies.items()}, composition)
    return features, folds


def examine(composition: Composition, scorer: Scorer, paper: ExamPaper) -> Mark:
    """Mark a composition whose density was fitted to other images than those which sit the exam."""
    good = scorer.score(arrange(paper.good, composition))
    samples = {kind: scorer.score(arrange(features, composition)) for kind, features in paper.samples.items()}
    return mark(composition, good, samples, paper.masks)


def mark(
    composition: Composition, good: np.ndarray, samples: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]
) -> Mark:
    """Mark from distances of the good images (M,) or (M, L) and of the samples of each kind, of the same shape.

    A sample in which nothing was changed (its mask is empty) is no defect and is left out.
    """
    good_scores = image_scores(good, composition)
    changed = {kind: masks[kind].any(axis=(1, 2)) for kind in samples}
    kinds = [kind for kind in samples if changed[kind].any()]
    by_kind = {k: auroc_of(good_scores, image_scores(samples[k][changed[k]], composition)) for k in kinds}
    pixels: dict[str, float] = {}
    if composition.is_dense:
        pixels = {k: _pixel_auroc(samples[k][changed[k]], masks[k][changed[k]], composition) for k in kinds}
    return Mark(composition, _mean(by_kind), _mean(pixels) if composition.is_dense else None, by_kind, pixels)


def weighed(marks: Sequence[Mark]) -> list[Mark]:
    """The same marks with their means weighted by how well all candidates together see each kind of sample.

    A kind that no candidate can tell from good images (a piece of grass pasted onto grass) says nothing of which
    candidate is better: its AUROC is chance. The weight of a kind is the candidates' mean AUROC beyond 0.5.
    """
    image = _visibility([mark.by_kind for mark in marks])
    pixel = _visibility([mark.pixel_by_kind for mark in marks if mark.pixel is not None])
    return [
        replace(
            mark,
            image=_mean(mark.by_kind, image),
            pixel=None if mark.pixel is None else _mean(mark.pixel_by_kind, pixel),
        )
        for mark in marks
    ]


def _visibility(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    kinds = rows[0] if rows else ()
    return {kind: max(0.0, float(np.mean([row[kind] for row in rows])) - 0.5) for kind in kinds}


def _mean(values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """The mean, weighted where weights are given and not all zero; 0.5, a guess, of nothing."""
    if not values:
        return 0.5
    if weights is None or not any(weights.values()):
        return float(np.mean(list(values.values())))
    return float(np.average(list(values.values()), weights=[weights[kind] for kind in values]))


def auroc_of(good: np.ndarray, bad: np.ndarray) -> float:
    """AUROC of scores of good images (N,) and of defects (M,)."""
    labels = np.repeat([False, True], [len(good), len(bad)])
    return auroc(labels, np.concatenate([good, bad])) or 0.0


def _pixel_auroc(distances: np.ndarray, masks: np.ndarray, composition: Composition) -> float:
    """Pixel AUROC on a coarse raster, which ranks compositions as the full one does at a small part of its cost."""
    side = masks.shape[-1]
    grids = grown(distances, composition, side, side // step_of(side))
    return pixel_auroc(coarse_masks(masks), coarse_maps(grids, side)) or 0.0


def step_of(side: int) -> int:
    """How many pixels of an image apart the points of the exam's raster are."""
    return max(1, side // PIXELS)


def coarse_masks(masks: np.ndarray) -> np.ndarray:
    """Masks (M, S, S) on the exam's raster."""
    step = step_of(masks.shape[-1])
    raster = masks.shape[-1] // step
    return masks[:, step // 2 :: step, step // 2 :: step][:, :raster, :raster]


def coarse_maps(grids: Tensor, side: int) -> np.ndarray:
    """Maps (M, raster, raster) of grids (M, 1, raster, raster) of images of this side, blurred as anomaly maps are."""
    return gaussian_blur(grids, BLUR / step_of(side))[:, 0].numpy()


def best(marks: Sequence[Mark], count: int, *, by: str) -> list[Composition]:
    """The `count` compositions with the highest mark, by "image" or by "pixel"; ties keep the given order.

    A composition without a map must be better by more than POOLED_MARGIN: its mark on few images is chance otherwise,
    and an alarm that a map can explain is worth more.
    """
    able = [m for m in marks if getattr(m, by) is not None]
    handicap = {m.composition: 0.0 if m.composition.is_dense else POOLED_MARGIN for m in able}
    return [m.composition for m in sorted(able, key=lambda m: handicap[m.composition] - getattr(m, by))[:count]]
