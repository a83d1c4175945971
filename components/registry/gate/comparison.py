"""A challenger against its champion: what both say of the same images, the verdict, and the files that tell of it."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from components.detection.capsule import Capsule, load_capsule
from components.foundation.files import write_json, write_text
from components.foundation.params import Params
from components.foundation.runtime import use_threads
from components.images.dataset import ImageRecord
from components.registry.gate.both import (
    Both,
    Maker,
    Shown,
    at_most,
    readable,
    score_both,
    score_exam,
    taken,
    unlearned_by_both,
)
from components.registry.gate.decision import (
    Compared,
    Cost,
    Evidence,
    Rates,
    Verdict,
    count_comparisons,
    decide,
    decide_first,
    is_few,
    margin_of,
    shown_name,
)
from components.registry.gate.flips import Flip, find_flips
from components.registry.gate.page import Facts, render_comparison, render_first
from components.registry.gate.probe import probe
from components.registry.gate.statistics import (
    Levels,
    Rate,
    auroc_difference,
    more_often,
    pixel_differences,
    resamples,
    resolution,
)
from components.registry.gate.training_set import SelfScreened, screen_itself

PAGE, REPORT = "gate.html", "gate.json"
EXAM_IMAGES = 120  # most good images of which synthetic defects are made
LISTED = 500  # flipped images in the report


@dataclass(frozen=True)
class Model:
    """A version, as the gate sees it.

    Attributes:
        number, digest, method, data: what it is; `data` names the version of its data.
        folder: of its capsule.
        learned: SHA-256 of the images that it has learned.
    """

    number: int
    digest: str
    method: str
    data: str
    folder: Path
    learned: Collection[str] = ()


@dataclass(frozen=True)
class Case:
    """A challenger, its champion, and the images that are to tell them apart.

    Attributes:
        category: the product.
        champion, challenger: the two.
        known: good and defective images by SHA-256, of which those count that neither has learned.
        delivery: good images that came since the champion learned.
        production: the latest images of the line, the latest first; what they show need not be known.
        errors: of the check of the challenger's data.
        exam: makes synthetic defects, for where no real one is known.
    """

    category: str
    champion: Model
    challenger: Model
    known: Mapping[str, ImageRecord]
    delivery: Sequence[ImageRecord] = ()
    production: Sequence[ImageRecord] = ()
    errors: Sequence[str] = ()
    exam: Maker | None = None


@dataclass(frozen=True)
class Judged:
    """The verdict, the folder with `gate.html` and `gate.json`, and the figures that were compared."""

    verdict: Verdict
    folder: Path
    compared: Sequence[Compared] = field(default=())


def judge(case: Case, params: Params, folder: Path) -> Judged:
    """Compare, decide, and write the page and the report to `folder`."""
    use_threads(params.threads)
    costs = probe(case.champion.folder, params.threads), probe(case.challenger.folder, params.threads)
    if any(cost.error for cost in costs):
        return _told(case, params, folder, _unseen(case, costs, params))
    capsules = load_capsule(case.champion.folder), load_capsule(case.challenger.folder)
    with tempfile.TemporaryDirectory() as scratch:
        both, paper = score_all(case, capsules, params, Path(scratch))
        evidence = weigh(case, capsules, both, paper, costs, params)
        return _told(case, params, folder, evidence, both, capsules)


def judge_first(
    category: str, challenger: Model, missing: Sequence[str], names: Sequence[str], images: np.ndarray,
    screened: SelfScreened, folder: Path,
) -> Judged:  # fmt: skip
    """Decide on a category's first version, by what it lacks and by what stands out of its own training set.

    names, images: of the good images, (N, S, S, 3) uint8, that `screened` looked at.
    """
    found = [names[screened.rows[place]] for place in screened.outliers]
    verdict = decide_first(missing, found)
    report = {
        "category": category,
        "challenger": _summary(challenger),
        "champion": None,
        "verdict": verdict.word,
        "summary": verdict.summary,
        "reasons": [asdict(reason) for reason in verdict.reasons],
        "outliers": found,
        "outlier_limit": screened.limit,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT, report)
    write_text(folder / PAGE, render_first(category, challenger.number, verdict, screened, names, images))
    return Judged(verdict, folder)


def screen_training_set(encoder: Any, images: np.ndarray, params: Params) -> SelfScreened:
    """What the first training set says of itself; see `training_set`."""
    use_threads(params.threads)
    return screen_itself(encoder, images, params.gate.first.max_deviations)


def score_all(case: Case, capsules: tuple[Capsule, Capsule], params: Params, scratch: Path) -> tuple[Both, Both | None]:
    """What both say of all images, and of the exam's where no defect is known."""
    limits = params.limits.image_limits()
    known = unlearned_by_both(case.known, case.champion.learned, case.challenger.learned)
    known = at_most(known, params.gate.test_images)
    seen = {record.path for record in known}
    delivery = [one for one in at_most(case.delivery, params.gate.test_images) if one.path not in seen]
    seen |= {record.path for record in delivery}
    production = readable((one for one in case.production[: params.gate.replay] if one.path not in seen), limits)
    images = [
        *(Shown(record, "test" if record.split == "test" else "held-out") for record in known),
        *(Shown(record, "delivery") for record in delivery),
        *(Shown(record, "replay") for record in production),
    ]
    folders = [scratch / name for name in ("images", "exam")]
    for folder in folders:
        folder.mkdir()
    both = score_both(*capsules, images, limits, folders[0])
    good = at_most([record for record in known if record.is_good], EXAM_IMAGES)
    if case.exam is None or not good or not all(record.is_good for record in known):
        return both, None
    return both, score_exam(*capsules, good, case.exam, limits, folders[1])


def weigh(
    case: Case,
    capsules: tuple[Capsule, Capsule],
    both: Both,
    paper: Both | None,
    costs: tuple[Cost, Cost],
    params: Params,
) -> Evidence:
    """All figures, with their bounds."""
    gate = params.gate
    test = both.of(both.rows("test", "held-out"))
    measured = paper or test
    kinds = sorted({one.record.kind for one in measured.images} - {"good"})
    levels = Levels.of(gate.confidence, count_comparisons(len(kinds)))
    figures = compared(measured, kinds, params, levels) if len(measured.images) else []
    return Evidence(
        figures=figures,
        source="none" if not figures else "exam" if paper else "test",
        false_alarms=_alarms(test, ~test.labels, capsules, gate.confidence),
        misses=_alarms(test, test.labels, capsules, gate.confidence, missed=True),
        delivery=_alarms(both, np.isin(np.arange(len(both.images)), both.rows("delivery")), capsules, gate.confidence),
        costs=costs,
        errors=case.errors,
        stated_false_alarms=_stated(params),
        stated_misses=gate.misses_per_1000,
    )


def compared(both: Both, kinds: Sequence[str], params: Params, levels: Levels) -> list[Compared]:
    """Image AUROC, pixel AUROC and AUPRO, and image AUROC of each kind, as far as there are images for them."""
    gate, labels = params.gate, both.labels
    drawn = resamples(labels, gate.resamples, params.seed, both.groups)
    delong = both.groups is None
    counts = int((~labels).sum()), int(labels.sum())
    found = []
    if overall := auroc_difference(labels, *both.scores, drawn, levels, delong=delong):
        found.append(Compared("image_auroc", overall, *counts))
    has_truth = np.array([one.record.is_good or masked for one, masked in zip(both.images, _masked(both), strict=True)])
    (truth,) = np.nonzero(has_truth)
    masks, maps = ((taken(own[0], truth), taken(own[1], truth)) for own in (both.masks, both.maps))
    if pixels := pixel_differences(masks, maps, drawn[:, truth], params.evaluation.aupro_fpr_limit, levels):
        masked = int(labels[truth].sum())
        found += [
            Compared(name, one, len(truth) - masked, masked)
            for name, one in zip(("pixel_auroc", "aupro"), pixels, strict=True)
        ]
    for kind in kinds:
        (rows,) = np.nonzero([one.record.is_good or one.record.kind == kind for one in both.images])
        old, new = (values[rows] for values in both.scores)
        if one := auroc_difference(labels[rows], old, new, drawn[:, rows], levels, delong=delong):
            found.append(Compared(kind, one, counts[0], int(labels[rows].sum()), is_kind=True))
    return found


def _masked(both: Both) -> list[bool]:
    """Of each image whether any of its pixels is marked as defective."""
    return [bool(mask.any()) for mask in both.masks[0]]


def _alarms(
    both: Both, rows: np.ndarray, capsules: tuple[Capsule, Capsule], confidence: float, *, missed: bool = False
) -> Rates | None:
    """How often each model calls the images in `rows` (N,) defective, or with `missed` does not."""
    if not rows.any():
        return None
    happened = [
        (scores[rows] > capsule.threshold) != missed for scores, capsule in zip(both.scores, capsules, strict=True)
    ]
    old, new = (Rate.of(mask, confidence) for mask in happened)
    return Rates(old, new, more_often(*happened), more_often(happened[1], happened[0]))


def _unseen(case: Case, costs: tuple[Cost, Cost], params: Params) -> Evidence:
    """The evidence where a model does not run: none but that."""
    return Evidence([], "none", None, None, None, costs, case.errors, _stated(params), params.gate.misses_per_1000)


def _stated(params: Params) -> float:
    """False alarms per 1000 that the plant bears, or else those that the threshold is to keep to."""
    return params.gate.false_alarms_per_1000 or 1000 * params.threshold.false_alarm_rate


def _told(
    case: Case,
    params: Params,
    folder: Path,
    evidence: Evidence,
    both: Both | None = None,
    capsules: tuple[Capsule, Capsule] | None = None,
) -> Judged:
    """Decide, and write the report and the page."""
    verdict = decide(evidence, params.gate)
    flips: list[Flip] = []
    if both is not None and capsules is not None:
        flips = find_flips(both, (capsules[0].threshold, capsules[1].threshold))
    report = _report(case, params, evidence, verdict, flips, both)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT, report)
    facts = Facts(report, verdict, evidence, flips, both, capsules, params.limits.image_limits())
    write_text(folder / PAGE, render_comparison(facts))
    return Judged(verdict, folder, evidence.figures)


def _report(
    case: Case, params: Params, evidence: Evidence, verdict: Verdict, flips: Sequence[Flip], both: Both | None
) -> dict[str, Any]:
    """All of it as JSON."""
    gate = params.gate
    roles = [one.role for one in both.images] if both else []
    label = partial(_figure, verdict=verdict, params=params)
    return {
        "category": case.category,
        "champion": _summary(case.champion),
        "challenger": _summary(case.challenger),
        "verdict": verdict.word,
        "summary": verdict.summary,
        "reasons": [asdict(reason) for reason in verdict.reasons],
        "measured_on": evidence.source,
        "figures": [label(one) for one in evidence.figures],
        "false_alarms": _rates(evidence.false_alarms, evidence.stated_false_alarms),
        "misses": _rates(evidence.misses, evidence.stated_misses),
        "delivery": _rates(evidence.delivery, evidence.stated_false_alarms),
        "costs": {"champion": asdict(evidence.costs[0]), "challenger": asdict(evidence.costs[1])},
        "images": {role: roles.count(role) for role in ("test", "held-out", "delivery", "replay")},
        "flipped": len(flips),
        "flips": [{**asdict(flip), "words": flip.words} for flip in flips[:LISTED]],
        "confidence": gate.confidence,
        "resamples": gate.resamples,
        "seed": params.seed,
        "policy": gate.policy,
    }


def _summary(model: Model) -> dict[str, Any]:
    return {"version": model.number, "digest": model.digest, "method": model.method, "data": model.data}


def _figure(one: Compared, verdict: Verdict, params: Params) -> dict[str, Any]:
    gate = params.gate
    tellable = resolution(one.good, one.defects, gate.confidence)
    return {
        "name": one.name,
        "words": shown_name(one),
        "is_kind": one.is_kind,
        **asdict(one.difference),
        "estimate": one.difference.estimate,
        "margin": margin_of(one, gate),
        "good": one.good,
        "defects": one.defects,
        "standing": verdict.standings[f"kind {one.name}" if one.is_kind else one.name],
        "few": is_few(one, gate),
        "tellable": tellable if np.isfinite(tellable) else None,
    }


def _rates(rates: Rates | None, per_1000: float | None) -> dict[str, Any] | None:
    """Rates with the side of the plant's stated one that each model stands on."""
    if rates is None:
        return None
    sides = {
        name: asdict(rate) | ({"side": rate.side_of(per_1000)} if per_1000 is not None else {})
        for name, rate in (("champion", rates.champion), ("challenger", rates.challenger))
    }
    return {**sides, "per_1000": per_1000, "p_more": rates.more, "p_fewer": rates.fewer}
