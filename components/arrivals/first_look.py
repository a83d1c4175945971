"""The first look at a file that has arrived: may it pass the door, and what is kept of its image to compare it by.

It takes nothing but the file, so that some files can be looked at while others are still on their way.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.arrivals.admission import open_arrival
from components.arrivals.names import Refusal
from components.foundation.limits import ImageLimits
from components.images.measures import image_facts


@dataclass(frozen=True)
class Look:
    """What a first look at a file found.

    code, words: why the door refused it, both empty where it did not. sha256: of the file. facts:
    `image_measures.image_facts` of the image. The latter two are empty where the door refused it.
    """

    code: str = ""
    words: str = ""
    sha256: str = ""
    facts: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON-able dict; `Look(**…)` is the inverse."""
        return asdict(self)


def first_look(path: Path, name: str, limits: ImageLimits) -> Look:
    """Look at the file at `path`, which messages call `name`. Whatever it holds, no exception comes of it."""
    opened = open_arrival(path.read_bytes(), name, limits)
    if isinstance(opened, Refusal):
        return Look(*opened)
    return Look(sha256=opened.sha256, facts=image_facts(opened.pixels, opened.mode))
