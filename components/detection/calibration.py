"""Which good images set the threshold, and their scores by densities that have not learned them.

Where features of all good images are held in memory, every image calibrates: the densities of all folds but its own
score it, near-duplicates being in one fold, and those that serve learn all of them. Of an encoder or a network that
was trained on the category only images that it has not seen calibrate, and that chose nothing, neither the step whose
weights were kept nor what serves; a cross-fitted density does not make an image unseen by the encoder beneath it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from components.density.gaussian import Scorer
from components.detection.detector import BATCH, Composition, Part, arrange, image_scores
from components.detection.exam import fold_scorers
from components.detection.feature_bank import FeatureBank, few_images
from components.detection.fitting import Banks, fit_scorers, learned
from components.detection.promise import Construction, Promise, group_scores, promise
from components.foundation.params import Params, ThresholdParams
from components.images.identity import CALIBRATE
from components.synthesis.exam_kinds import KINDS
from components.synthesis.prepared import Prepared, batches

NAMED = 8  # images at or above the threshold that are named
SAMPLES = 18  # of each kind of the exam's defects, by which it is measured what the threshold misses
TOGETHER = 4  # of the exam's images: the samples of all kinds from so many fill the network's batches


@dataclass(frozen=True)
class Plan:
    """How good images are scored as if they were new, and which of them set the threshold.

    Attributes:
        rows: (n,) indices, ascending, of the images that are scored.
        folds: (n,) the fold of each; None where the densities that serve have not learned them.
        counts: (n,) bool: those that set the threshold.
        construction: see `components.detection.promise`.
    """

    rows: np.ndarray
    folds: np.ndarray | None
    counts: np.ndarray
    construction: Construction

    @classmethod
    def of(cls, prepared: Prepared, params: Params, *, taught: bool, refit: bool) -> "Plan":
        """The plan for a category.

        taught: whether an encoder or network serves that was trained on the images to learn from.
        refit: whether the densities that serve learn all images in the end.
        """
        aside = np.array([role == CALIBRATE for role in prepared.roles.roles])  # (N,)
        own = aside if aside.any() else prepared.held_out  # of few images none is put aside, and the promise says so
        rows = prepared.held_out_rows if taught or not refit else np.arange(len(aside))
        folds = prepared.folds_of(rows, params.threshold.folds, prepared.seed) if refit else None
        if refit and not taught:
            return cls(rows, folds, np.ones(len(rows), bool), "cross-fitted")
        construction: Construction = "cross-fitted" if refit else "split"
        return cls(rows, folds, own[rows], construction if aside.any() else "examined")


def learns_held_out(prepared: Prepared, params: Params) -> bool:
    """Whether the densities learn the held-out good images in the end: where images are few, each one counts."""
    return params.fit.refit and few_images(prepared) and len(prepared.held_out_rows) >= 2


@dataclass(frozen=True)
class Fitted:
    """Densities as they serve, and what they would say of images if they had not learned them.

    Attributes:
        scorers: of each composition.
        distances: of each composition, (n,) or (n, L) of a plan's rows.
        samples: of each composition that gives the image score, (K, M) float32: that of the exam's samples, on no
            scale; NaN where the image that a sample was made from is not among the plan's rows.
    """

    scorers: dict[Composition, Scorer]
    distances: dict[Composition, np.ndarray]
    samples: dict[Composition, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Image scores of good images by what has not learned them, and of the exam's samples made from them.

    Attributes:
        plan: which images.
        scores: (n,) float32 of the plan's rows.
        samples: (K, M) float32 of the exam's samples; NaN where there is no such score.
    """

    plan: Plan
    scores: np.ndarray
    samples: np.ndarray

    def of(self, plan: Plan, prepared: Prepared) -> "Calibration":
        """The same of the rows of another plan, which are among these."""
        samples = np.where(np.isin(prepared.exam_source, plan.rows), self.samples, np.nan)
        return Calibration(plan, self.scores[np.searchsorted(self.plan.rows, plan.rows)], samples)

    def counted(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
        """Scores (c,) of the images that set the threshold, and the group (c,) of each."""
        return self.scores[self.plan.counts], prepared.groups[self.plan.rows[self.plan.counts]]

    def promise(self, prepared: Prepared, params: ThresholdParams) -> Promise:
        """The threshold, and what it promises."""
        scores, groups = self.counted(prepared)
        wished, confidence = params.false_alarm_rate, params.confidence
        return promise(scores, wished, confidence, params.promise, groups=groups, construction=self.plan.construction)

    def by_group(self, prepared: Prepared) -> np.ndarray:
        """The highest score (G,) float32 of each group of the images that set the threshold, ascending."""
        return group_scores(*self.counted(prepared)).astype(np.float32)

    def setting(self, prepared: Prepared, value: float) -> list[dict[str, Any]]:
        """The images at or above a threshold, the highest first: digest and score of at most NAMED of them."""
        rows = self.plan.rows[self.plan.counts]
        scores = self.scores[self.plan.counts]
        order = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores >= np.float32(value))][:NAMED]
        return [{"digest": prepared.roles.digests[rows[i]], "score": float(scores[i])} for i in order]

    def missed(self, prepared: Prepared, value: float) -> dict[str, dict[str, Any]]:
        """What a threshold costs: of each kind of the exam's defects how many there are, and the share missed,
        also by their strength where they have one.

        A sample in which nothing was changed is no defect; kinds without a sample are left out.
        """
        found: dict[str, dict[str, Any]] = {}
        for kind, scores, masks in zip(prepared.exam_kinds, self.samples, prepared.exam_masks, strict=True):
            known = np.flatnonzero(np.isfinite(scores) & masks.any(axis=(1, 2)))
            if not known.size:
                continue
            missed = scores[known] <= np.float32(value)
            found[kind] = _share(missed)
            if kind in KINDS:
                own = prepared.exam_strengths[known]
                found[kind]["by_strength"] = {f"{one:g}": _share(missed[own == one]) for one in np.unique(own)}
        return found


def _share(missed: np.ndarray) -> dict[str, Any]:
    return {"count": int(missed.size), "missed": float(missed.mean())}


def fit_and_score(
    compositions: Sequence[Composition], judging: Sequence[Composition], banks: Banks, prepared: Prepared, plan: Plan
) -> Fitted:
    """Fit each composition's density as it serves, and score the plan's rows as if they were new.

    judging: those of them that give the image score, and so score the exam's samples too.
    """
    if plan.folds is None:
        return _fit_apart(compositions, judging, banks, prepared, plan)
    rest = np.setdiff1d(np.arange(len(prepared.images)), plan.rows)
    rows, folds = np.concatenate([plan.rows, rest]), np.append(plan.folds, np.full(len(rest), -1))
    scorers: dict[Composition, Scorer] = {}
    distances: dict[Composition, np.ndarray] = {}
    samples = {composition: no_samples(prepared) for composition in judging}
    sitting = judged_samples(prepared, plan)
    for widest, alike in nested(compositions).items():
        features = learned(widest, banks[widest.encoder], rows)  # (1 + copies, N, …)
        everything = widest.scorer_of(features.reshape(-1, *features.shape[2:]))
        scorers |= {composition: composition.narrowed(everything) for composition in alike}
        found = {c: np.empty((len(plan.rows), *features.shape[2:-1]), np.float32) for c in alike}
        for k, scorer in fold_scorers(widest, features, folds):  # one at a time, as those of locations are large
            left_out = np.flatnonzero(folds == k)
            own = {composition: composition.narrowed(scorer) for composition in alike}
            for composition, values in found.items():
                values[left_out] = own[composition].score(features[0, left_out])
            here = sitting[np.isin(prepared.exam_source[sitting], rows[left_out])]
            for composition in samples.keys() & own.keys():
                score_samples(composition, own[composition], banks[widest.encoder], here, samples[composition])
        distances |= found
    return Fitted({c: scorers[c] for c in compositions}, {c: distances[c] for c in compositions}, samples)


def _fit_apart(
    compositions: Sequence[Composition], judging: Sequence[Composition], banks: Banks, prepared: Prepared, plan: Plan
) -> Fitted:
    """The same by densities that never learn the plan's rows; memory is bounded by a batch of them."""
    scorers = fit_scorers(compositions, banks)
    pieces: dict[Composition, list[np.ndarray]] = {composition: [] for composition in scorers}
    samples = {composition: no_samples(prepared) for composition in judging}
    for rows in batches(plan.rows, BATCH):
        features = {name: banks[name].of(rows) for name in dict.fromkeys(c.encoder for c in scorers)}
        for composition, own in pieces.items():
            own.append(scorers[composition].score(arrange(features[composition.encoder], composition)))
    for composition, found in samples.items():
        bank, scorer = banks[composition.encoder], scorers[composition]
        score_samples(composition, scorer, bank, judged_samples(prepared, plan), found)
    return Fitted(scorers, {composition: np.concatenate(own) for composition, own in pieces.items()}, samples)


def no_samples(prepared: Prepared) -> np.ndarray:
    """(K, M) NaN: no score of any of the exam's samples."""
    return np.full((len(prepared.exam_kinds), len(prepared.exam_source)), np.nan, np.float32)


def judged_samples(prepared: Prepared, plan: Plan) -> np.ndarray:
    """Which of the exam's M images give the samples by which the cost is measured: (m,) of those the plan scores."""
    return np.flatnonzero(np.isin(prepared.exam_source, plan.rows))[:SAMPLES]


def score_samples(
    composition: Composition, scorer: Scorer, bank: FeatureBank, sitting: np.ndarray, into: np.ndarray
) -> None:
    """Write the image scores of all kinds of samples of the exam's images `sitting` (m,) into (K, M)."""
    for rows in batches(sitting, TOGETHER):
        distances = scorer.score(arrange(bank.of_all_samples(rows), composition))
        into[:, rows] = image_scores(distances, composition).reshape(len(into), -1)


def nested(compositions: Sequence[Composition]) -> dict[Composition, list[Composition]]:
    """Compositions by the one whose fit holds theirs: those that differ in rank alone have the same directions."""
    alike: dict[Composition, list[Composition]] = defaultdict(list)
    for composition in compositions:
        alike[replace(composition, rank=0) if composition.is_low_rank else composition].append(composition)
    return {max(same, key=lambda c: c.rank): same for same in alike.values()}


def calibrated(parts: Sequence[Part], fitted: Fitted, plan: Plan) -> Calibration:
    """Image scores as `Detector.score` makes them, from the distances of those parts that give the image score."""
    scores, samples = [], []
    for part in parts:
        if part.for_image:
            own = image_scores(fitted.distances[part.composition], part.composition)
            scores.append(part.image_scale.apply(own))
            samples.append(part.image_scale.apply(fitted.samples[part.composition]))
    return Calibration(plan, *(np.mean(values, axis=0).astype(np.float32) for values in (scores, samples)))
