"""What a stored capsule says of itself, read without the detector and the libraries that it needs."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from components.foundation.errors import UserError
from components.foundation.files import read_json
from components.images.identity import Roles

FORMAT = 1
ROLES = "roles.json"


def read_card(folder: Path) -> dict[str, Any]:
    """What `capsule.json` says, without loading or checking the rest; UserError where there is no capsule."""
    try:
        card = dict(read_json(folder / "capsule.json"))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"There is no readable capsule at {folder}: run the pipeline for this category.") from error
    if card.get("format") != FORMAT:
        raise UserError(
            f"The capsule at {folder} has format {card.get('format')}, this version reads {FORMAT}: "
            "make it anew with `flawline run`."
        )
    return card


def read_roles(folder: Path) -> Roles | None:
    """What each good image was for in a stored capsule, without loading the rest; None where it does not say so.

    Of two versions, `identity.both_held_out` says on which images to compare them, `identity.changes` what differs.
    """
    return Roles.from_json(read_json(folder / ROLES)) if (folder / ROLES).is_file() else None


def count_calibration(folder: Path) -> int:
    """How many good images, near-duplicates counted once, set the threshold of a stored capsule."""
    with safe_open(folder / "density.safetensors", "numpy") as arrays:
        return int(arrays.get_slice("calibration").get_shape()[0])
