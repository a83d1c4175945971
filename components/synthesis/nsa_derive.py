"""Settings of the NSA generator for a new category, from its good images alone, and what its samples look like.

The paper sets them by hand for 15 categories (`components.synthesis.nsa_params.PAPER_SETTINGS`); the rules here
follow what its choices have in common. What the section `nsa` of params.yaml gives is taken as it is, and the rest
derived in keeping with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu

from components.foundation.draws import SampleKeys
from components.foundation.errors import UserError
from components.foundation.params import NsaSection
from components.synthesis.nsa import CHANGE_RULE, NsaImage, NsaSample, nsa_batch, prepare
from components.synthesis.nsa_params import Label, NsaParams

_SAMPLES = 64
_SMALLEST_SIDE = 10  # pixels: without its border, a square of them has over SMALLEST_MASK
_RING = 0.04  # of the side: what counts as the image's rim
_PLAIN_RIM, _OBJECT_INSIDE, _SEPARATION = 0.05, 0.15, 0.7
_ALIGNED = 0.6
_CELLS = 8  # a side
_UNEVEN = 3.0  # photographs of brick, gravel and grass have 1 to 2, brushed metal in uneven light 6
_THIN = 0.25
_LOWER_BOUND = 0.03
_UPPER_BOUNDS = (0.06, 0.4)
_STEEPNESS = 2.4  # k · x0; the paper's choices lie between 2 and 3
_MOST_UNCHANGED = 0.5  # share of samples; small images alone lose some to the rule of size

_ALL_DERIVED = NsaSection()

Grey = NDArray[np.float32]


@dataclass(frozen=True)
class NsaStatistics:
    """What the settings were derived from.

    background, tolerance: grey levels. separation: share of the variance of distances to the background that the
    tolerance explains. rim_share, inner_share, object_share: of pixels beyond the tolerance, at the rim, in the middle
    half and everywhere. alignment: median correlation of two images. unevenness: how much more than its neighbours a
    place differs in fineness from any other, as a ratio of variances, 1 for a uniform texture. extent: height and
    width of the object's box, thickness: diameter of its largest inner circle, as shares of the side. differences:
    quantiles .1, .25, .5, .75, .9 and mean of the continuous label, in grey levels. kind: "object" or "texture".
    """

    kind: str
    aligned: bool
    background: float
    tolerance: float
    separation: float
    rim_share: float
    inner_share: float
    object_share: float
    alignment: float
    unevenness: float
    extent: tuple[float, float]
    thickness: float
    differences: tuple[float, ...]


def derive_params(
    images: Sequence[NDArray[np.uint8]],
    category: str,
    seed: int = 0,
    label: Label = "logistic",
    given: NsaSection = _ALL_DERIVED,
) -> tuple[NsaParams, NsaStatistics]:
    """Settings for a category from its good images, uint8 (H, W, 3) each of one size, and from what is `given`.

    Background: the rim's median grey level, and a tolerance half-way between Otsu's two classes of distances to it;
    taken only if the rim is plain and the middle is not. Object: has such a background, or is aligned. Size bounds: .45
    of an aligned object's box, .8 of the thickness of any other. Gradients: the source's, and mixed for a texture that
    looks the same everywhere, where a patch with the source's alone would not be seen. Midpoint x0: the mean difference
    of trial samples, or their lower quartile for an object that is not aligned, where small changes count already;
    steepness 2.4 / x0. Raises UserError (NoPatchError) if the images are too small for any patch.
    """
    statistics = _geometry(np.stack([image.mean(axis=-1, dtype=np.float32) for image in images]), given)
    params = apply_given(_shape_params(statistics, min(images[0].shape[:2])), given)
    differences = _differences([prepare(image, params) for image in images], category, seed, params)
    if differences.size:
        quantiles = [float(value) for value in np.quantile(differences, (0.1, 0.25, 0.5, 0.75, 0.9))]
        statistics = replace(statistics, differences=(*quantiles, float(differences.mean())))
        unaligned_object = statistics.kind == "object" and not statistics.aligned
        x0 = max(quantiles[1] if unaligned_object else float(differences.mean()), 2 * params.change_tolerance)
        x0 = given.x0 or x0
        params = replace(params, x0=x0, k=given.k or _STEEPNESS / x0)
    return replace(params, label=label), statistics


def apply_given(params: NsaParams, given: NsaSection) -> NsaParams:
    """The same settings, but for what is given; raises UserError for an object mask without its tolerance."""
    values = {
        "background": given.background,
        "tolerance": given.tolerance,
        "height_bounds": given.height,
        "width_bounds": given.width,
        "resize_bounds": given.resize,
        "patches": given.max_patches,
        "gradients": None if given.gradients == "auto" else given.gradients,
        "min_object": given.min_object,
        "min_overlap": given.min_overlap,
        "k": given.k,
        "x0": given.x0,
    }
    chosen: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if given.mask == "none":
        chosen |= {"background": None, "tolerance": 0.0}
    params = replace(params, **chosen, tries=given.tries, faithful=given.faithful, exact_mask=given.exact_mask)
    wants_mask = given.mask == "background" or (given.background, given.tolerance) != (None, None)
    if wants_mask and (params.background is None or not params.tolerance):
        raise UserError(
            "The object mask needs both nsa.background and nsa.tolerance in params.yaml: set the other too."
        )
    return params


def sample_statistics(samples: Sequence[NsaSample]) -> dict[str, float | list[int] | dict[str, int]]:
    """What to write beside a contact sheet: shares of pixels changed, of samples unchanged and of tries refused.

    "label_histogram" counts the pixels of the mask by their label, in ten bins from 0 to the largest (or 1).
    """
    labels = np.concatenate([sample.label[sample.mask] for sample in samples])
    refused = sum((sample.refused for sample in samples), Counter[str]())
    top = max(1.0, float(labels.max(initial=0.0)))
    return {
        "changed_pixels": float(np.mean([sample.mask.mean() for sample in samples])),
        "unchanged_samples": float(np.mean([not sample.changed for sample in samples])),
        "patches": float(np.mean([sample.patches for sample in samples])),
        "refused_tries": sum(refused.values()) / max(sum(sample.tries for sample in samples), 1),
        "refused_by_rule": dict(refused),
        "label_histogram": np.histogram(labels, bins=10, range=(0, top))[0].tolist(),
    }


def sample_warnings(images: Sequence[NsaImage], samples: Sequence[NsaSample], category: str) -> list[str]:
    """Sentences for a person: a category of one image, or one whose samples mostly stay unchanged."""
    warnings = []
    if len(images) == 1:
        warnings.append(f"{category} has one good image only, so its patches come from the image they are pasted into.")
    unchanged = float(np.mean([not sample.changed for sample in samples]))
    refused = sum((sample.refused for sample in samples), Counter[str]())
    if unchanged > _MOST_UNCHANGED:
        tries = sum(sample.tries for sample in samples)
        reasons = [f"the rule '{rule}' refused {count} of {tries} tries" for rule, count in refused.most_common()]
        unseen = sum(not sample.changed and sample.patches > 0 for sample in samples)
        if unseen:
            reasons.append(f"the patches of {unseen} do not meet the rule '{CHANGE_RULE}'")
        warnings.append(
            f"{unchanged:.0%} of {category}'s synthetic samples stay unchanged: {' and '.join(reasons)}; "
            "see nsa_sheet.png, and set mask, background, tolerance, height or width in section nsa of params.yaml."
        )
    return warnings


def _geometry(grey: Grey, given: NsaSection) -> NsaStatistics:
    """All that needs no samples, from grey images (N, H, W)."""
    rim, inner = _rim(grey.shape[1:]), _inner(grey.shape[1:])
    background = float(np.median(grey[:, rim])) if given.background is None else given.background
    distance = np.abs(grey - background)
    tolerance = _tolerance(distance) if given.tolerance is None else given.tolerance
    beyond = distance > tolerance
    shares = [float(beyond[:, part].mean()) for part in (rim, inner)]
    separation, alignment = _separation(distance, beyond), _alignment(grey)
    plain = shares[0] < _PLAIN_RIM and shares[1] > _OBJECT_INSIDE and separation > _SEPARATION
    masked = plain if given.mask == "auto" else given.mask == "background"
    masked = masked or (given.background, given.tolerance) != (None, None)
    extent, thickness = _object_size(beyond) if masked and beyond.any() else ((1.0, 1.0), 1.0)
    aligned = alignment > _ALIGNED if given.aligned is None else given.aligned
    kind = ("object" if plain or aligned else "texture") if given.object == "auto" else given.object
    return NsaStatistics(
        kind=kind,
        aligned=aligned,
        background=background,
        tolerance=tolerance if masked else 0.0,
        separation=separation,
        rim_share=shares[0],
        inner_share=shares[1],
        object_share=float(beyond.mean()) if masked else 1.0,
        alignment=alignment,
        unevenness=_unevenness(grey),
        extent=extent,
        thickness=thickness,
        differences=(),
    )


def _shape_params(statistics: NsaStatistics, side: int) -> NsaParams:
    """Everything but the logistic label's k and x0, for images of `side` pixels; the label is continuous."""
    masked: dict[str, Any] = (
        {"background": statistics.background, "tolerance": statistics.tolerance} if statistics.tolerance else {}
    )
    least = min(max(_LOWER_BOUND, round(_SMALLEST_SIDE / 2 / side, 3)), _UPPER_BOUNDS[1])
    if statistics.kind == "texture":
        bounds = least, _UPPER_BOUNDS[1]
        return NsaParams(
            label="continuous",
            height_bounds=bounds,
            width_bounds=bounds,
            resize_bounds=(0.5, 2.0),
            patches=4,
            gradients="source" if statistics.unevenness > _UNEVEN else "mixed",
            **masked,
        )
    thin = statistics.thickness < _THIN
    sides = [0.45 * extent for extent in statistics.extent] if statistics.aligned else [0.8 * statistics.thickness] * 2
    least_upper = max(_UPPER_BOUNDS[0], _SMALLEST_SIDE / side)
    height, width = (round(min(max(length, least_upper), _UPPER_BOUNDS[1]), 3) for length in sides)
    return NsaParams(
        label="continuous",
        height_bounds=(least, height),
        width_bounds=(least, width),
        patches=4 if thin else 3,
        min_object=0.5 if thin else 0.7,
        **masked,
    )


def _differences(pictures: list[NsaImage], category: str, seed: int, params: NsaParams) -> NDArray[np.float32]:
    own = np.arange(len(pictures))
    samples = nsa_batch(pictures, own, SampleKeys.cycled(seed, f"{category} trial", 0, own, _SAMPLES), params)
    return np.concatenate([sample.label[sample.mask] for sample in samples])


def _rim(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    margin = max(round(_RING * min(shape)), 1)
    rim = np.ones(shape, bool)
    rim[margin:-margin, margin:-margin] = False
    return rim


def _inner(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    inner = np.zeros(shape, bool)
    inner[shape[0] // 4 : -(shape[0] // 4), shape[1] // 4 : -(shape[1] // 4)] = True
    return inner


def _tolerance(distance: Grey) -> float:
    """Half-way between the mean distances of Otsu's two classes; 0 for images of one colour."""
    if distance.max() < 1:
        return 0.0
    beyond = distance > threshold_otsu(distance.astype(np.int64))
    return float(distance[beyond].mean() + distance[~beyond].mean()) / 2


def _separation(distance: Grey, beyond: NDArray[np.bool_]) -> float:
    """Between-class share of the variance (Otsu's criterion)."""
    share, variance = float(beyond.mean()), float(distance.var())
    if variance == 0 or share in (0.0, 1.0):
        return 0.0
    apart = float(distance[beyond].mean() - distance[~beyond].mean())
    return share * (1 - share) * apart**2 / variance


def _alignment(grey: Grey) -> float:
    """Median correlation of two images, seen coarsely; 0 for one image or images of one colour."""
    coarse = grey[:, ::8, ::8].reshape(len(grey), -1)
    coarse = coarse - coarse.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(coarse, axis=1)
    coarse = coarse[norms > 0] / norms[norms > 0, None]
    pairs = np.triu_indices(len(coarse), 1)
    return float(np.median((coarse @ coarse.T)[pairs])) if len(pairs[0]) else 0.0


def _unevenness(grey: Grey) -> float:
    """Variance of the log fineness of cells over half the mean squared difference of neighbours; 1 for flat images.

    Fineness: mean grey-level step from pixel to pixel, down and across, which is what a Poisson blend carries over.
    """
    cell = max(min(grey.shape[1:]) // _CELLS, 1)
    ratios = []
    for axis in (1, 2):
        steps = np.abs(np.diff(grey, axis=axis))
        rows, columns = (side // cell for side in steps.shape[1:])
        cells = steps[:, : rows * cell, : columns * cell].reshape(len(grey), rows, cell, columns, cell)
        fineness = np.log1p(cells.mean(axis=(2, 4), dtype=np.float64))  # (N, rows, columns)
        near = np.concatenate([np.diff(fineness, axis=along).ravel() ** 2 for along in (1, 2)])
        if len(near) and near.mean() > 0:
            ratios.append(2 * fineness.var() / near.mean())
    return float(np.mean(ratios)) if ratios else 1.0


def _object_size(beyond: NDArray[np.bool_]) -> tuple[tuple[float, float], float]:
    """Median height and width of the object's box and median thickness, as shares of the side."""
    boxes, thicknesses = [], []
    for mask in beyond[beyond.any(axis=(1, 2))]:
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        boxes.append(((np.ptp(rows) + 1) / mask.shape[0], (np.ptp(columns) + 1) / mask.shape[1]))
        thicknesses.append(2 * distance_transform_edt(mask).max() / min(mask.shape))
    height, width = np.median(boxes, axis=0).tolist()
    return (height, width), float(np.median(thicknesses))
