"""What becomes of each arriving image: accepted, held for a person, or quarantined, with the reason.

Cheap and certain checks come first: admission, exact and near duplicates, the category's limits, drift of the whole
delivery, and at last the present champion's opinion. The first reason that is found counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from components.arrivals.admission import check_listing
from components.arrivals.delivery import Delivery, Item
from components.arrivals.drift import Drift, find_drift
from components.arrivals.duplicates import NEAR, KnownImages
from components.arrivals.inspection import Inspection
from components.foundation.limits import ImageLimits
from components.foundation.params import Params
from components.images.decode import read_image
from components.images.perceptual_hash import small_grey
from components.registry.forgotten import Forgotten

if TYPE_CHECKING:
    import pandas as pd

    from components.detection.capsule import Capsule

Outcome = Literal["accepted", "held", "quarantine"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of one file.

    number: of the item. code, words: the reason, empty for an accepted image; the words follow the file's name.
    sha256: of the file; empty where it was not read. facts: of the image; empty where it was not admitted.
    score, p_value: the champion's, None where it was not asked.
    """

    number: int
    outcome: Outcome
    code: str = ""
    words: str = ""
    sha256: str = ""
    facts: Mapping[str, Any] | None = None
    score: float | None = None
    p_value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON-able dict; `Verdict(**…)` is the inverse."""
        return asdict(self)


@dataclass(frozen=True)
class Triage:
    """The verdicts of a delivery, one per item in order, and what its distribution says."""

    verdicts: list[Verdict]
    drift: list[Drift]


def arrival_limits(params: Params) -> ImageLimits:
    """What one arriving file may be at most."""
    limits = params.limits.image_limits()
    return replace(limits, max_bytes=min(limits.max_bytes, params.ingest.max_bytes))


def check_entry(item: Item, params: Params) -> Verdict | None:
    """The verdict on a file that its listing alone condemns; it is not fetched. None for any other."""
    refusal = check_listing(item.entry.key, item.entry.kind, item.entry.size, arrival_limits(params))
    return None if refusal is None else Verdict(item.number, "quarantine", *refusal)


def triage(
    delivery: Delivery, items: Sequence[Item], looks: Mapping[int, Inspection], history: "pd.DataFrame",
    held: Sequence[Mapping[str, Any]], capsule: "Capsule | None", params: Params,
    forgotten: Mapping[str, Forgotten] | None = None,
) -> Triage:  # fmt: skip
    """Check the fetched files of a delivery, in their order.

    looks: what the first look at each file found, by its item's number.
    history: the category's images (`image_facts.category_facts`). held: of each held image name, sha256 and facts.
    capsule: the champion; without one nothing is screened. forgotten: images that must not come back, by digest.
    """
    known = KnownImages(params.ingest.near_distance)
    known.add_category(history)
    for image in held:
        known.add(image["name"], image["sha256"], image["facts"])
    gone = forgotten or {}
    verdicts = [
        _unwanted(item, looks[item.number], gone) or _compared(item, looks[item.number], known, delivery, params)
        for item in items
    ]
    verdicts = _fit(verdicts, history, params)
    verdicts, drift = _drifted(verdicts, history, params)
    if capsule is not None:
        verdicts = _screened(verdicts, {item.number: item for item in items}, delivery, capsule, params)
    return Triage(verdicts, drift)


def _unwanted(item: Item, look: Inspection, forgotten: Mapping[str, Forgotten]) -> Verdict | None:
    """Quarantine what was forgotten."""
    if look.facts is None or look.sha256 not in forgotten:
        return None
    words = f"was forgotten ({forgotten[look.sha256].reason})"
    return Verdict(item.number, "quarantine", "forgotten", words, look.sha256)


def _compared(item: Item, look: Inspection, known: KnownImages, delivery: Delivery, params: Params) -> Verdict:
    """Quarantine what was refused, look for duplicates of what was admitted, and know that from now on."""
    if look.facts is None:
        return Verdict(item.number, "quarantine", look.code, look.words)

    def grey() -> np.ndarray:
        return small_grey(read_image(delivery.raw(item), arrival_limits(params)))

    duplicate = known.check(look.sha256, look.facts, grey)
    known.add(item.shown, look.sha256, look.facts)
    if duplicate is None:
        return Verdict(item.number, "accepted", sha256=look.sha256, facts=look.facts)
    outcome: Outcome = "held" if duplicate.code in NEAR else "quarantine"
    return Verdict(item.number, outcome, *duplicate, look.sha256, look.facts)


def _fit(verdicts: Sequence[Verdict], history: "pd.DataFrame", params: Params) -> list[Verdict]:
    """Hold what does not fit the category's own history."""
    import pandas as pd

    from components.arrivals.suite import unfit_images

    candidates = _candidates(verdicts)
    table = pd.DataFrame([dict(verdict.facts or {}) for verdict in candidates])
    unfit = unfit_images(table, history, params.validation, params.ingest.max_deviations)
    reasons = {candidates[position].number: words for position, words in unfit.items()}
    return [
        replace(verdict, outcome="held", code="unlike-category", words=reasons[verdict.number])
        if verdict.number in reasons
        else verdict
        for verdict in verdicts
    ]


def _drifted(verdicts: Sequence[Verdict], history: "pd.DataFrame", params: Params) -> tuple[list[Verdict], list[Drift]]:
    """Test the delivery against the training images; with `ingest.drift: stop`, hold all of a delivery that drifted."""
    import pandas as pd

    candidates, train = _candidates(verdicts), history[history["split"] == "train"]
    if min(len(candidates), len(train)) < params.ingest.drift_min:
        return list(verdicts), []
    now = pd.DataFrame([dict(verdict.facts or {}) for verdict in candidates])
    drift = find_drift(train, now, params.ingest.drift_level)
    moved = [one for one in drift if one.drifted]
    if not moved or params.ingest.drift == "warn":
        return list(verdicts), drift
    words = f"came in a delivery whose {', '.join(one.measure for one in moved)} differ from the training images'"
    return [
        replace(verdict, outcome="held", code="drift", words=words) if verdict.outcome == "accepted" else verdict
        for verdict in verdicts
    ], drift


def _screened(
    verdicts: Sequence[Verdict], items: Mapping[int, Item], delivery: Delivery, capsule: "Capsule", params: Params
) -> list[Verdict]:
    """Hold what the champion finds suspicious; whatever is held for another reason gets its score and map too."""
    from components.arrivals.screening import screen  # torch takes seconds to import

    asked = [verdict for verdict in verdicts if verdict.outcome != "quarantine"]
    paths = [delivery.raw(items[verdict.number]) for verdict in asked]
    pictures = [delivery.picture(items[verdict.number]) for verdict in asked]
    held = [verdict.outcome == "held" for verdict in asked]
    found = screen(capsule, paths, pictures, params.limits.image_limits(), params.ingest.hold_below, held)
    screened = {verdict.number: one for verdict, one in zip(asked, found, strict=True)}

    def with_score(verdict: Verdict) -> Verdict:
        if verdict.number not in screened:
            return verdict
        one = screened[verdict.number]
        scored = replace(verdict, score=one.score, p_value=one.p_value)
        if not one.suspicious or verdict.outcome == "held":
            return scored
        words = f"looks defective to the present model ({one.words})"
        return replace(scored, outcome="held", code="suspicious", words=words)

    return [with_score(verdict) for verdict in verdicts]


def _candidates(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.outcome == "accepted"]
