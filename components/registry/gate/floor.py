"""What the first version of a category must have to serve without a person having looked at it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.detection.card import count_calibration, read_card
from components.foundation.params import FirstParams


def missing_for_first(capsule: Path, report: Mapping[str, Any], floor: FirstParams) -> list[str]:
    """What the first version of a category lacks to become its champion by itself, in words; nothing where it may.

    capsule: its folder. report: of the data's validation, with its errors.
    """
    selection, held_out = read_card(capsule)["selection"], count_calibration(capsule)
    mark = selection["held_out_marks"][selection["encoder"]]
    missing = []
    if held_out < floor.held_out:
        missing.append(f"{held_out} held-out good images, {floor.held_out} are needed (gate.first.held_out)")
    if mark < floor.mark:
        missing.append(f"exam mark {mark:.2f}, {floor.mark:.2f} is needed (gate.first.mark)")
    if errors := report["errors"]:
        missing.append(f"errors of the data check: {len(errors)}")
    return missing
