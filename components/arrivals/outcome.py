"""What is written down of a triaged delivery: reasons beside images that did not pass, a manifest of the others."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.arrivals.delivery import Delivery, Item
from components.arrivals.entries import Move
from components.arrivals.inbox import Source
from components.arrivals.names import encode_key, shown_name

if TYPE_CHECKING:  # who looks for a folder only need not import what triage computes with
    from components.arrivals.triage import Verdict

REASON, PICTURE, MANIFEST = ".json", ".map.png", "batch.json"


def store_outcomes(delivery: Delivery, source: Source, verdicts: Sequence["Verdict"]) -> None:
    """Write reasons and anomaly maps, then move each file out of the inbox; may be repeated."""
    items, claim = {item.number: item for item in delivery.items()}, delivery.result("claim")
    arrival = {
        "category": delivery.category,
        "batch": delivery.name,
        "source": claim.get("source"),
        "time": claim.get("time"),
    }
    for verdict in verdicts:
        if verdict.outcome != "accepted":
            _write_reason(delivery, source, items[verdict.number], verdict, arrival)
    passed = [verdict for verdict in verdicts if verdict.outcome == "accepted"]
    if passed:
        manifest = [_reason(delivery, items[verdict.number], verdict, arrival) for verdict in passed]
        source.write(f"accepted/{delivery.category}/{delivery.name}/{MANIFEST}", _as_bytes(manifest))
    source.acknowledge(delivery.category, [_move(delivery, items[verdict.number], verdict) for verdict in verdicts])


def summarise(verdicts: Sequence["Verdict"]) -> dict[str, Any]:
    """Counts of a delivery: arrived, accepted, held, quarantined, and reasons: how many per code."""
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    reasons = Counter(verdict.code for verdict in verdicts if verdict.code)
    return {
        "arrived": len(verdicts),
        "accepted": outcomes["accepted"],
        "held": outcomes["held"],
        "quarantined": outcomes["quarantine"],
        "reasons": dict(sorted(reasons.items())),
    }


def count_words(counts: Mapping[str, Any]) -> str:
    """The counts in words: "20 arrived, 14 accepted, 2 held, 4 quarantined (3 duplicate, 1 suspicious, …)"."""
    reasons = ", ".join(f"{count} {code}" for code, count in counts["reasons"].items())
    words = ", ".join(f"{counts[name]} {name}" for name in ("arrived", "accepted", "held", "quarantined"))
    return f"{words} ({reasons})" if reasons else words


def image_name(item: Item, verdict: "Verdict") -> str:
    """The name of an accepted image in the category: it recalls the original one, and its digest makes it unique."""
    stem, _, suffix = item.file_name.partition("-")[2].rpartition(".")
    return f"train/good/{stem}-{verdict.sha256[:12]}.{suffix}"


def _write_reason(
    delivery: Delivery, source: Source, item: Item, verdict: "Verdict", arrival: Mapping[str, Any]
) -> None:
    place = delivery.place(verdict.outcome, item)
    reason = _reason(delivery, item, verdict, arrival)
    if delivery.picture(item).is_file():
        reason["map"] = place + PICTURE
        source.write(place + PICTURE, delivery.picture(item).read_bytes())
    source.write(place + REASON, _as_bytes(reason))


def _reason(delivery: Delivery, item: Item, verdict: "Verdict", arrival: Mapping[str, Any]) -> dict[str, Any]:
    reason: dict[str, Any] = {
        "place": delivery.place(verdict.outcome, item),
        "name": item.shown,
        "key": encode_key(item.entry.key),
        **arrival,
        "outcome": verdict.outcome,
        "code": verdict.code,
        "reason": f"{item.shown} {verdict.words}." if verdict.words else "",
        "bytes": item.entry.size,
        "sha256": verdict.sha256,
        "score": verdict.score,
        "p_value": verdict.p_value,
        "map": None,
    }
    if item.entry.kind == "link":
        reason["target"] = shown_name(item.entry.target)
    if verdict.outcome == "accepted":
        return reason | {"image": image_name(item, verdict)}
    return reason | {"facts": verdict.facts}


def _move(delivery: Delivery, item: Item, verdict: "Verdict") -> Move:
    copy = delivery.raw(item)
    return Move(item.entry, delivery.place(verdict.outcome, item), copy if copy.is_file() else None)


def _as_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
