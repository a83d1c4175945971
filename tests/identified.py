"""Images by their digests, for tests that make a prepared category or a validated one by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.foundation.files import sha256_file
from components.images.identity import CALIBRATE, EXAMINE, LEARN, Roles


def digest_of_key(key: int) -> str:
    """A digest whose key is this number, so that digests are in the numbers' order."""
    return f"{key:016x}".ljust(64, "0")


def roles_of(held_out: np.ndarray, calibrate: Sequence[int] = ()) -> Roles:
    """Roles of images with the keys 0, 1, 2, … of which those (N,) bool are held out; none are near-duplicates.

    calibrate: which of these sit no exam.
    """
    digests = tuple(digest_of_key(key) for key in range(len(held_out)))
    roles = [CALIBRATE if row in calibrate else EXAMINE if held else LEARN for row, held in enumerate(held_out)]
    return Roles(digests, tuple(roles), digests)


def validated(good: Path) -> dict[str, Any]:
    """What validation writes into `learned.json` of the images in a folder train/good, but for their order."""
    images = {f"train/good/{path.name}": sha256_file(path) for path in sorted(good.iterdir())}
    return {"images": images, "data_digest": "d" * 64, "near_duplicates": [], "bits": 16}
