"""The gate at the end of a retraining: judge a version unless that is done, then act, or ask a person."""

from typing import TYPE_CHECKING

from components.foundation.files import digest_of
from components.foundation.params import Params
from components.registry import promotion
from components.registry import versions as registry
from components.registry.evidence import list_evidence
from components.registry.gate import records
from components.registry.journal import decided
from components.registry.versions import Version

if TYPE_CHECKING:
    from components.registry.gate.comparison import Judged


def pass_gate(category: str, number: int, params: Params) -> str:
    """Judge a version that was just registered, and do what the verdict and `gate.policy` say; in words.

    What was decided before stays; what waits for a person with the same evidence is not judged again.
    """
    champion = registry.champion(category)
    if champion is not None and champion.number == number:
        return f"is the {registry.CHAMPION}"
    version = registry.find_version(category, number)
    if decided(registry.journal(category), number) is not None:
        return f"stays as it was decided ({version.verdict})"
    key = evidence_key(version, champion, params)
    if records.waits_with(category, number, key):
        return _words_of_waiting(category, version.verdict.partition(f"{records.WAITS}: ")[2])
    from flows.retraining.judging import judge_against, judge_as_first  # takes seconds to import

    judged = judge_against(version, champion, params) if champion else judge_as_first(version, params)
    return act_upon(category, number, judged, champion, key, params)


def act_upon(category: str, number: int, judged: "Judged", champion: Version | None, key: str, params: Params) -> str:
    """Promote, reject, or leave it to a person; the words that say so."""
    verdict, before = judged.verdict, champion.number if champion else None
    if verdict.word == "reject":
        promotion.reject(category, number, verdict.summary, who=records.THE_GATE)
        records.keep(category, number, judged, key, before, "rejected")
        return f"is rejected by the gate, and version {before} stays the {registry.CHAMPION}: {verdict.summary}"
    if verdict.word == "promote" and params.gate.policy == "auto":
        promotion.promote(category, number, verdict.summary, who=records.THE_GATE, expected=before)
        records.keep(category, number, judged, key, before, "promoted")
        return f"is the {registry.CHAMPION}: {verdict.summary}"
    records.keep(category, number, judged, key, before, records.WAITS)
    return _words_of_waiting(category, verdict.summary)


def evidence_key(version: Version, champion: Version | None, params: Params) -> str:
    """A digest of what a verdict follows from: both capsules, the images by DVC's digest, and the gate's parameters."""
    evidence = sorted((one.digest, one.kind, one.mask) for one in list_evidence(version.category))
    followed = [version.digest, champion.digest if champion else "", version.data_version, dict(version.metrics)]
    return digest_of([*followed, evidence, params.gate.model_dump(mode="json"), params.threshold.false_alarm_rate])


def _words_of_waiting(category: str, summary: str) -> str:
    return (
        f"stays the {registry.CHALLENGER} and {records.WAITS}: {summary}. `flawline gate {category}` shows why and how "
        "to answer"
    )
