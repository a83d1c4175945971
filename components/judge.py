"""What becomes of each arriving image: accepted, held for a person, or quarantined, with the reason.

Cheap and certain checks come first: the door, exact and near duplicates, the category's limits, drift of the whole
batch, and at last the present champion's opinion. The first reason that is found counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from components.arrival_names import Refusal
from components.arrival_suite import unfit_images
from components.batch import Batch, Item
from components.door import check_listing, open_arrival
from components.drift import Drift, find_drift
from components.duplicates import NEAR, KnownImages
from components.image_facts import Facts, image_facts
from components.images import ImageLimits
from components.params import Params
from components.perceptual_hash import own_hash, small_grey

if TYPE_CHECKING:
    from components.capsule import Capsule

CHUNK = 256  # images that may be opened ahead of the search for duplicates: what is kept of them has 64 kB each
Outcome = Literal["accepted", "held", "quarantine"]


@dataclass(frozen=True)
class Verdict:
    """What becomes of one file.

    number: of the item. code, words: the reason, empty for an accepted image; the words follow the file's name.
    sha256: of the file; empty where it was not read. facts: of the image; empty where it did not pass the door.
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
class Judgement:
    """The verdicts of a batch, one per item in order, and what its distribution says."""

    verdicts: list[Verdict]
    drift: list[Drift]


def arrival_limits(params: Params) -> ImageLimits:
    """What one arriving file may be at most."""
    return ImageLimits(params.limits.max_pixels, min(params.limits.max_bytes, params.ingest.max_bytes))


def check_entry(item: Item, params: Params) -> Verdict | None:
    """The verdict on a file that its listing alone condemns; it is not fetched. None for any other."""
    refusal = check_listing(item.entry.key, item.entry.kind, item.entry.size, arrival_limits(params))
    return None if refusal is None else Verdict(item.number, "quarantine", *refusal)


def judge(
    batch: Batch, items: Sequence[Item], history: pd.DataFrame, held: Sequence[Mapping[str, Any]],
    capsule: "Capsule | None", params: Params,
) -> Judgement:  # fmt: skip
    """Judge the fetched files of a batch.

    history: the category's images (`image_facts.category_facts`). held: of each held image name, sha256 and facts.
    capsule: the champion; without one nothing is screened.
    """
    known = KnownImages(params.ingest.near_distance)
    known.add_category(history)
    for image in held:
        known.add(image["name"], image["sha256"], image["facts"])
    verdicts = list(_open_all(batch, items, known, params))
    verdicts = _fit(verdicts, history, params)
    verdicts, drift = _drifted(verdicts, history, params)
    if capsule is not None:
        verdicts = _screened(verdicts, {item.number: item for item in items}, batch, capsule, params)
    return Judgement(verdicts, drift)


def _open_all(batch: Batch, items: Sequence[Item], known: KnownImages, params: Params) -> Iterator[Verdict]:
    """Open every file, several at once, and look for duplicates in the order of the items."""
    limits = arrival_limits(params)

    def read(item: Item) -> "tuple[Item, Refusal | _Read]":
        return item, _read(batch, item, limits)

    # Each image has a thread already: threads of the linear algebra beside these would only wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(params.threads) as pool:
        for item, found in chain.from_iterable(pool.map(read, items[at : at + CHUNK]) for at in _starts(items)):
            if isinstance(found, Refusal):
                yield Verdict(item.number, "quarantine", *found)
                continue
            twin = known.check(found.sha256, found.facts, found.grey)
            known.add(item.shown, found.sha256, found.facts)
            if twin is None:
                yield Verdict(item.number, "accepted", sha256=found.sha256, facts=found.facts)
            else:
                outcome: Outcome = "held" if twin.code in NEAR else "quarantine"
                yield Verdict(item.number, outcome, *twin, found.sha256, found.facts)


@dataclass(frozen=True)
class _Read:
    sha256: str
    facts: Facts
    grey: np.ndarray  # (256, 256) uint8, for the perceptual hashes


def _read(batch: Batch, item: Item, limits: ImageLimits) -> "Refusal | _Read":
    opened = open_arrival(batch.raw(item).read_bytes(), item.shown, limits)
    if isinstance(opened, Refusal):
        return opened
    grey = small_grey(opened.pixels)
    return _Read(opened.sha256, image_facts(opened.pixels, opened.mode, own_hash(grey)), grey)


def _starts(items: Sequence[Item]) -> range:
    return range(0, len(items), CHUNK)


def _fit(verdicts: Sequence[Verdict], history: pd.DataFrame, params: Params) -> list[Verdict]:
    """Hold what does not fit the category's own history."""
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


def _drifted(verdicts: Sequence[Verdict], history: pd.DataFrame, params: Params) -> tuple[list[Verdict], list[Drift]]:
    """Test the batch against the training images; with `ingest.drift: stop`, hold all of a batch that drifted."""
    candidates, train = _candidates(verdicts), history[history["split"] == "train"]
    if min(len(candidates), len(train)) < params.ingest.drift_min:
        return list(verdicts), []
    now = pd.DataFrame([dict(verdict.facts or {}) for verdict in candidates])
    drift = find_drift(train, now, params.ingest.drift_level)
    moved = [one for one in drift if one.drifted]
    if not moved or params.ingest.drift == "warn":
        return list(verdicts), drift
    words = f"came in a batch whose {', '.join(one.measure for one in moved)} differ from the training images'"
    return [
        replace(verdict, outcome="held", code="drift", words=words) if verdict.outcome == "accepted" else verdict
        for verdict in verdicts
    ], drift


def _screened(
    verdicts: Sequence[Verdict], items: Mapping[int, Item], batch: Batch, capsule: "Capsule", params: Params
) -> list[Verdict]:
    """Hold what the champion finds suspicious; whatever is held for another reason gets its score and map too."""
    from components.screening import screen  # torch takes seconds to import

    asked = [verdict for verdict in verdicts if verdict.outcome != "quarantine"]
    paths = [batch.raw(items[verdict.number]) for verdict in asked]
    pictures = [batch.picture(items[verdict.number]) for verdict in asked]
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
        words = f"looks defective to the present model (p = {one.p_value:.3g})"
        return replace(scored, outcome="held", code="suspicious", words=words)

    return [with_score(verdict) for verdict in verdicts]


def _candidates(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.outcome == "accepted"]
