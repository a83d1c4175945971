"""The images that are held for a person: list them, accept them into the data, or refuse them."""

import json
from collections.abc import Sequence
from typing import Any

from components.arrivals.entries import GoneError
from components.arrivals.inbox import Source
from components.arrivals.outcome import PICTURE, REASON
from components.foundation.errors import UserError

Held = dict[str, Any]  # the reason that lies beside a held image, as `outcome.store_outcomes` writes it


def list_held(source: Source, category: str) -> list[Held]:
    """The held images of a category, oldest delivery first; a decision that was cut short is completed."""
    places = set(source.places(f"held/{category}"))
    found = []
    for place in sorted(place for place in places if place.endswith(REASON)):
        held = _read(source, place)
        if held is None:
            continue
        if held["outcome"] != "held":
            _relocate(source, place.removesuffix(REASON), held)
        elif place.removesuffix(REASON) in places:
            found.append(held)
    return found


def review_name(place: str) -> str:
    """The name of a held image, by its place, as it is listed and as `choose` takes it."""
    return place.removeprefix("held/")


def choose(held: Sequence[Held], names: Sequence[str]) -> list[Held]:
    """The held images that names mean: the end of a place, such as "00003-a.png", or the name that the file came with.

    Raises UserError for a name that means none or several.
    """
    return [_choose(held, name) for name in dict.fromkeys(names)]


def decide(source: Source, held: Held, outcome: str, decision: dict[str, Any]) -> None:
    """Move a held image, its anomaly map and its reason to `accepted` or `quarantine`, with who decided and when."""
    old = str(held["place"])
    new = f"{outcome}/{old.removeprefix('held/')}"
    decided = {**held, **decision, "place": new, "outcome": outcome, "map": held["map"] and new + PICTURE}
    source.write(old + REASON, (json.dumps(decided, indent=2, ensure_ascii=False) + "\n").encode())
    _relocate(source, old, decided)


def _relocate(source: Source, old: str, decided: Held) -> None:
    """Bring the files of a decided image to its new place; the reason goes last, as it knows where to."""
    for ending in (PICTURE, "", REASON):
        if ending != PICTURE or decided["map"]:
            source.relocate(old + ending, decided["place"] + ending)


def _choose(held: Sequence[Held], name: str) -> Held:
    fitting = [one for one in held if f"/{one['place']}".endswith(f"/{name}")]
    fitting = fitting or [one for one in held if one["name"] == name]
    if len(fitting) != 1:
        words = "means several held images" if fitting else "is no held image"
        raise UserError(f"{name} {words}: `flawline review` lists their names.")
    return fitting[0]


def _read(source: Source, place: str) -> Held | None:
    try:
        held = json.loads(source.read(place))
    except (GoneError, ValueError):
        return None
    return held if isinstance(held, dict) and {"place", "outcome", "facts", "map"} <= held.keys() else None
