"""The settings of NSA for one category: derived from its good images, or the paper's, or set in params.yaml."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.foundation.errors import UserError
from components.foundation.files import read_json
from components.foundation.params import NsaSection
from components.synthesis.nsa import NoPatchError
from components.synthesis.nsa_derive import NsaStatistics, apply_given, derive_params
from components.synthesis.nsa_params import PAPER_SETTINGS, UNALIGNED, Label, Method, NsaParams

MOST_IMAGES = 64
FILE = "nsa.json"
DERIVED, GIVEN, PAPER = "derived", "override", "paper"

Image = NDArray[np.uint8]


def nsa_params_of(
    section: NsaSection,
    images: Sequence[Image] | Image,
    category: str,
    seed: int = 0,
    method: Method = "nsa",
    label: Label = "logistic",
) -> tuple[NsaParams, dict[str, Any]]:
    """The settings for a category, and a JSON-able report of them.

    images: good ones, uint8 (H, W, 3) each of one size; at most 64 of them, evenly spread, are looked at.
    The report has "settings" ("derived" or "paper"), "kind" ("object" or "texture"), "aligned", "values" (by the keys
    of params.yaml, each with its "value" and "from": "derived", "override" or "paper"), and "measured", what derived
    values come from (None for the paper's). Raises UserError where the paper has no row for the category, or no
    patch fits in the images (NoPatchError).
    """
    measured = None
    if section.settings == "paper":
        params = apply_given(paper_row(category), section)
    else:
        chosen = [images[row] for row in spread(np.arange(len(images)))]
        params, measured = derive_params(chosen, category, seed, given=section)
    report = {"settings": section.settings, **_described(params, measured, category, section)}
    return _for_method(params, method, label, report), report


def paper_row(category: str) -> NsaParams:
    """The paper's settings of one of its 15 categories; UserError for any other."""
    if category not in PAPER_SETTINGS:
        raise UserError(
            f"The paper has no NSA settings for {category}: set nsa.settings to derived in params.yaml, or run one of "
            f"{', '.join(PAPER_SETTINGS)}."
        )
    return PAPER_SETTINGS[category]


def spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most 64 of the rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, MOST_IMAGES).astype(int))]


def load_nsa_params(
    folder: Path, method: Method = "nsa", label: Label = "logistic"
) -> tuple[NsaParams, dict[str, Any]]:
    """The settings which the stage synthesize wrote to nsa.json in `folder`, for this method and label; and its report.

    Raises NoPatchError, with the rule, where no sample can be made, or all that were made stay unchanged.
    """
    report = read_json(folder / FILE)
    if report["params"] is None or report["samples"]["unchanged_samples"] == 1:
        raise NoPatchError(" ".join(report["warnings"]))
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in report["params"].items()
    }
    return _for_method(NsaParams(**values), method, label, report), report


def _for_method(params: NsaParams, method: Method, label: Label, report: dict[str, Any]) -> NsaParams:
    """PII mixes gradients on objects too, unless told otherwise (Tan et al. 2021; as a baseline of the NSA paper)."""
    told = method != "pii" or report["values"]["gradients"]["from"] == GIVEN
    return replace(params, method=method, label=label, gradients=params.gradients if told else "mixed")


def _described(params: NsaParams, measured: NsaStatistics | None, category: str, section: NsaSection) -> dict[str, Any]:
    if measured:
        kind, aligned = measured.kind, measured.aligned
    else:
        kind = "texture" if paper_row(category).gradients == "mixed" else "object"
        aligned = kind == "object" and category not in UNALIGNED
    values = {
        "object": kind,
        "aligned": aligned,
        "mask": "none" if params.background is None else "background",
        "background": params.background,
        "tolerance": params.tolerance if params.background is not None else None,
        "height": params.height_bounds,
        "width": params.width_bounds,
        "resize": params.resize_bounds,
        "max_patches": params.patches,
        "gradients": params.gradients,
        "min_object": params.min_object,
        "min_overlap": params.min_overlap,
        "k": params.k,
        "x0": params.x0,
    }
    return {
        "kind": kind,
        "aligned": aligned,
        "values": {name: {"value": value, "from": _origin(name, measured, section)} for name, value in values.items()},
        "measured": asdict(measured) if measured else None,
    }


def _origin(name: str, measured: NsaStatistics | None, section: NsaSection) -> str:
    """Where a value comes from; a category whose trial samples stay unchanged says nothing of the label."""
    if getattr(section, name) not in (None, "auto"):
        return GIVEN
    if name == "mask" and (section.background, section.tolerance) != (None, None):
        return GIVEN
    underived = measured is None or name == "min_overlap" or (name in ("k", "x0") and not measured.differences)
    return PAPER if underived else DERIVED
