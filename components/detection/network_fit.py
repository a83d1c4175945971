"""The network's place in a detector: its scale, its mark beside the detector without it, and which of the two serves.

Who asks for NSA must not get a worse detector than no training gives, unless told so: both sit the synthetic exam on
held-out images, of the kinds of defects that the network was not trained on.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.detection.calibration import Calibration, Plan, judged_samples, learns_held_out, no_samples
from components.detection.detector import BATCH, Detector
from components.detection.network_exam import RASTER, examine_detector, part_of
from components.detection.network_part import NetworkPart
from components.detection.scale import Scale
from components.evaluation.map_range import map_range
from components.foundation.params import Params, ViewParams
from components.images.tensors import as_tensor
from components.learning.decoder import MapNetwork, load_network
from components.synthesis.methods import HYBRID, NETWORK
from components.synthesis.prepared import Prepared, batches


def open_network(folder: Path) -> MapNetwork | None:
    """The network that the stage train left in its folder; None where it left none."""
    return load_network(folder / NETWORK) if (folder / NETWORK).is_dir() else None


@dataclass(frozen=True)
class Served:
    """What serves: the detector, its scores of good images as if they were new, the range of its maps, and why it does.

    selection: what replaces and adds to the capsule's selection.
    """

    detector: Detector
    calibration: Calibration
    map_range: tuple[float, float]
    selection: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """The detector without the network.

    Attributes:
        name: of its representation, such as "pretrained".
        served: as it would serve.
        unseen: the same detector, fitted without the held-out images; it sits the exam.
    """

    name: str
    served: Served
    unseen: Detector


def with_network(
    baseline: Baseline, network: MapNetwork, prepared: Prepared, params: Params, view: ViewParams
) -> Served:
    """The detector that serves, and what the exam said of it.

    The network alone, or for the hybrid method the mean of both, serves unless the exam says that the baseline is
    better by more than `fit.margin` and `network.keep` is "exam". Where the exam says so, stderr does too.
    """
    hybrid = params.method == HYBRID
    plan = Plan.of(prepared, params, taught=True, refit=hybrid and learns_held_out(prepared, params))
    part, own = calibrated(part_of(network, params, view), prepared, plan)
    name = f"{baseline.name} + {NETWORK}" if hybrid else NETWORK
    examined = _joined(baseline.unseen, part, hybrid)
    marks = {baseline.name: examine_detector(baseline.unseen, prepared), name: examine_detector(examined, prepared)}
    before, after = marks[baseline.name].image, marks[name].image
    worse = after < before - params.fit.margin
    kept = worse and params.network.keep == "exam"
    if worse:
        print(_sentence(prepared.category, params.method, before, after, kept), file=sys.stderr)
    selection = {
        "encoder": baseline.name if kept else name,
        "held_out_marks": {which: mark.image for which, mark in marks.items()},
        "network_marks": {
            which: {"image": mark.image, "pixel": mark.pixel, "by_kind": dict(mark.by_kind)}
            for which, mark in marks.items()
        },
    }
    if kept:
        return replace(baseline.served, selection=selection)
    if hybrid:
        own = averaged(own, baseline, prepared)
    shown = map_range(
        examined.score(np.asarray(prepared.images[rows]))[1] for rows in batches(prepared.held_out_rows, BATCH)
    )
    return Served(_joined(baseline.served.detector, part, hybrid), own, shown, selection)


def _joined(baseline: Detector, part: NetworkPart, hybrid: bool) -> Detector:
    """The network with the baseline, or alone."""
    if not hybrid:
        return Detector({}, [], baseline.size, baseline.sigma, networks=[part])
    return Detector(baseline.encoders, baseline.parts, baseline.size, baseline.sigma, baseline.heads, [part])


def averaged(own: Calibration, baseline: Baseline, prepared: Prepared) -> Calibration:
    """The network's scores with the baseline's, as `Detector.score` averages them."""
    beside = baseline.served.calibration.of(own.plan, prepared)
    parts = sum(part.for_image for part in baseline.served.detector.parts)
    scores, samples = (
        ((parts * one + other) / (parts + 1)).astype(np.float32)
        for one, other in ((beside.scores, own.scores), (beside.samples, own.samples))
    )
    return Calibration(own.plan, scores, samples)


def calibrated(part: NetworkPart, prepared: Prepared, plan: Plan) -> tuple[NetworkPart, Calibration]:
    """The part on the scale of its own scores and pixels of the plan's images, and what it says of them on it."""
    scored = [
        part.log_odds(as_tensor(np.ascontiguousarray(prepared.images[rows]))) for rows in batches(plan.rows, BATCH)
    ]
    scores = np.concatenate([score for score, _ in scored])
    pixels = np.concatenate([maps[:, ::RASTER, ::RASTER].numpy() for _, maps in scored])
    scale, samples = Scale.of(scores), no_samples(prepared)
    for kind, images in enumerate(prepared.exam_images):
        for rows in batches(judged_samples(prepared, plan), BATCH):
            samples[kind, rows] = part.log_odds(as_tensor(np.ascontiguousarray(images[rows])))[0]
    own = Calibration(plan, scale.apply(scores).astype(np.float32), scale.apply(samples))
    return replace(part, image_scale=scale, map_scale=Scale.of(pixels)), own


def _sentence(category: str, method: str, before: float, after: float, kept: bool) -> str:
    """Which of the two serves and why, with both marks."""
    if kept:
        return (
            f"{category}: the detector without {method} serves, exam mark {before:.4f}; with it {after:.4f} "
            "(network.keep=always would serve the network)."
        )
    return (
        f"{category}: {method} serves, exam mark {after:.4f}, as network.keep is always; the detector without it "
        f"has {before:.4f}."
    )
