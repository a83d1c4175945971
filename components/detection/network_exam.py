"""The synthetic exam of whole detectors, networks among them, on held-out images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from components.detection.detector import Detector
from components.detection.exam import auroc_of
from components.detection.network_part import NetworkPart
from components.evaluation.metrics import pixel_auroc
from components.foundation.params import Params, ViewParams
from components.learning.decoder import MapNetwork
from components.synthesis.prepared import Prepared
from components.synthesis.views import scored_window

TRAINED_ON = ("nsa",)  # what a network has learned to see says little of what it has not
TOP = 0.01
RASTER = 4


@dataclass(frozen=True)
class ExamMark:
    """Mean over kinds of image and of pixel AUROC on held-out images, and the image AUROC of each kind."""

    image: float
    pixel: float
    by_kind: Mapping[str, float]


def part_of(network: MapNetwork, params: Params, view: ViewParams) -> NetworkPart:
    """The network as a part, not yet on any scale."""
    return NetworkPart(network, TOP if params.nsa.score == "top" else 1.0, scored_window(view, params.image.side))


def examine_network(network: MapNetwork, prepared: Prepared, params: Params, view: ViewParams) -> ExamMark:
    """Mark the network alone, in training; its scale does not matter."""
    part = part_of(network, params, view)
    return examine_detector(Detector({}, [], params.image.side, 0.0, networks=[part]), prepared)


def examine_detector(detector: Detector, prepared: Prepared) -> ExamMark:
    """Mark a detector by held-out good images and their samples, of the kinds that no network was trained on."""
    rows = np.flatnonzero(prepared.held_out[prepared.exam_source])
    good, _ = detector.score(np.asarray(prepared.images[prepared.exam_source[rows]]))
    images, pixels = {}, {}
    for kind, samples, masks in zip(prepared.exam_kinds, prepared.exam_images, prepared.exam_masks, strict=True):
        changed = rows[masks[rows].any(axis=(1, 2))]
        if kind in TRAINED_ON or not len(changed):
            continue
        scores, maps = detector.score(np.asarray(samples[changed]))
        images[kind] = auroc_of(good, scores)
        coarse = slice(RASTER // 2, None, RASTER)
        pixels[kind] = pixel_auroc(masks[changed][:, coarse, coarse], maps[:, coarse, coarse]) or 0.0
    return ExamMark(_mean(images), _mean(pixels), images)


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else 0.5
