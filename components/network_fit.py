"""The network's place in a detector: its scale, its mark beside the detector without it, and which of the two serves.

Who asks for NSA must not get a worse detector than no training gives, unless told so: both sit the synthetic exam on
held-out images, of the kinds of defects that the network was not trained on.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from components.decoder import MapNetwork, load_network
from components.detector import Detector, Scale, as_tensor
from components.methods import HYBRID, serves_network
from components.network_exam import RASTER, examine_detector, part_of
from components.network_part import NetworkPart
from components.params import Params, ViewParams
from components.prepared import Prepared, batches

FOLDER = "network"  # of the network, beside the representation that the stage train wrote
NETWORK = "network"
BATCH = 16


def open_network(folder: Path, params: Params) -> MapNetwork | None:
    """The network that the stage train left in its folder; None where the method has none."""
    return load_network(folder / FOLDER) if serves_network(params.method) else None


def with_network(
    baseline: Detector, network: MapNetwork, prepared: Prepared, params: Params, view: ViewParams, baseline_name: str
) -> tuple[Detector, dict[str, Any]]:
    """The detector that serves, and what to add to the capsule's selection.

    baseline: the detector without the network, called `baseline_name`. The network alone, or for the hybrid method the
    mean of both, serves unless the exam says that the baseline is better by more than `fit.margin` and `network.keep`
    is "exam". Where the exam says so, stderr does too.
    """
    part = calibrated(part_of(network, params, view), prepared)
    parts = baseline if params.method == HYBRID else Detector({}, [], baseline.size, baseline.sigma)
    name = f"{baseline_name} + {NETWORK}" if params.method == HYBRID else NETWORK
    detector = Detector(parts.encoders, parts.parts, baseline.size, baseline.sigma, [part])
    marks = {baseline_name: examine_detector(baseline, prepared), name: examine_detector(detector, prepared)}
    before, after = marks[baseline_name].image, marks[name].image
    worse = after < before - params.fit.margin
    kept = worse and params.network.keep == "exam"
    if worse:
        print(_sentence(prepared.category, params.method, before, after, kept), file=sys.stderr)
    selection = {
        "encoder": baseline_name if kept else name,
        "held_out_marks": {which: mark.image for which, mark in marks.items()},
        "network_marks": {
            which: {"image": mark.image, "pixel": mark.pixel, "by_kind": dict(mark.by_kind)}
            for which, mark in marks.items()
        },
    }
    return (baseline if kept else detector), selection


def calibrated(part: NetworkPart, prepared: Prepared) -> NetworkPart:
    """The part on the scale of its own scores and pixels of the held-out good images."""
    scored = [
        part.log_odds(as_tensor(np.ascontiguousarray(prepared.images[rows])))
        for rows in batches(prepared.held_out_rows, BATCH)
    ]
    scores = np.concatenate([score for score, _ in scored])
    pixels = np.concatenate([maps[:, ::RASTER, ::RASTER].numpy() for _, maps in scored])
    return replace(part, image_scale=Scale.of(scores), map_scale=Scale.of(pixels))


def _sentence(category: str, method: str, before: float, after: float, kept: bool) -> str:
    end = (
        "the detector without it is kept; network.keep=always would serve the network."
        if kept
        else "it serves all the same, as network.keep is always."
    )
    return f"Training {method} did not help on {category}: exam mark {before:.4f} without, {after:.4f} with it; {end}"
