"""What the gate has said of a version, kept with the version: tags, the first line of its description, the page.

A version waits for a person while it is the challenger and its tag `gate` says so: that is the truth of it, whichever
process, server or machine asks. Whoever answers by `answer` ends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from components.foundation.errors import UserError
from components.registry import promotion
from components.registry.versions import (
    CHALLENGER,
    aliases_of,
    model_name,
    note_verdict,
    version_of,
)
from components.tracking.connection import NOTE, STATE, connect, server_errors_explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from components.registry.gate.comparison import Judged

THE_GATE = "the gate"  # who acts, in the journal
FIRST_LINE = "Gate: "
WAITS = "waits for a person"
MOST_WORDS = 900  # signs of a summary in tags and descriptions
_STATE, _KEY, _CHAMPION, _SUMMARY = "gate", "gate.key", "gate.champion", "gate.summary"
Decision = Literal["promote", "reject"]


@dataclass(frozen=True)
class Waiting:
    """A version that waits for a person.

    Attributes:
        category, number: which one.
        champion: the version that it was compared with; None where it is the first.
        summary: why the gate does not decide itself, or what it would have decided.
        page: where its page lies in this project.
        key: of all that the verdict follows from.
    """

    category: str
    number: int
    champion: int | None
    summary: str
    page: Path
    key: str


def folder_of(category: str, number: int) -> Path:
    """Where page and report of a version lie in this project."""
    return STATE / "gate" / category / str(number)


def keep(category: str, number: int, judged: "Judged", key: str, champion: int | None, state: str) -> None:
    """Write verdict, page and report to the version and to its run.

    key: of all that the verdict follows from. champion: compared with. state: what becomes of the version, in words.
    """
    summary = judged.verdict.summary[:MOST_WORDS]
    with server_errors_explained():
        client, _ = connect()
        run_id = client.get_model_version(model_name(category), str(number)).run_id
        if run_id:
            client.log_artifacts(run_id, str(judged.folder), "gate")
        _write_first_line(client, category, number, f"{FIRST_LINE}{state}: {summary}")
        tags = {_STATE: state, _KEY: key, _CHAMPION: str(champion or ""), _SUMMARY: summary}
        for name, value in tags.items():
            client.set_model_version_tag(model_name(category), str(number), name, value)
    if state == WAITS:
        note_verdict(category, number, f"{CHALLENGER}: {WAITS}: {summary}")


def waiting(category: str) -> Waiting | None:
    """The version of a category that waits for a person; None for none."""
    with server_errors_explained():
        client, _ = connect()
        number = aliases_of(client, category).get(CHALLENGER)
        if number is None:
            return None
        tags = client.get_model_version(model_name(category), str(number)).tags
    if tags.get(_STATE) != WAITS:
        return None
    champion = tags.get(_CHAMPION, "")
    page = folder_of(category, number) / "gate.html"
    compared = int(champion) if champion else None
    return Waiting(category, number, compared, tags.get(_SUMMARY, ""), page, tags.get(_KEY, ""))


def waits_with(category: str, number: int, key: str) -> bool:
    """Whether a version waits for a person with a verdict that follows from the same as `key` does."""
    found = waiting(category)
    return found is not None and found.number == number and found.key == key


def answer(category: str, number: int, decision: Decision, reason: str, who: str = "") -> None:
    """Do what a person has decided of a version that waits; UserError where that version waits no more.

    A promotion fails where another champion serves by now than the one that the version was compared with.
    """
    found = waiting(category)
    if found is None or found.number != number:
        with server_errors_explained():
            verdict = version_of(connect()[0], category, number).verdict
        raise UserError(f"Version {number} of {category} waits for no answer ({verdict or 'no verdict'}).")
    reason = reason or f"{decision} by a person; the gate: {found.summary}"
    if decision == "promote":
        promotion.promote(category, number, reason, who=who, expected=found.champion)
        said = "promoted by a person"
    else:
        promotion.reject(category, number, reason, who=who)
        said = "rejected by a person"
    with server_errors_explained():
        client, _ = connect()
        client.set_model_version_tag(model_name(category), str(number), _STATE, said)
        _write_first_line(client, category, number, f"{FIRST_LINE}{said}: {reason}")


def all_waiting(categories: Sequence[str]) -> list[Waiting]:
    """Those of these categories that wait for a person."""
    return [found for category in categories if (found := waiting(category))]


def with_first_line(note: str, line: str) -> str:
    """The description with this first line, in the place of one that the gate wrote before."""
    rest = note.partition("\n\n")[2] if note.startswith(FIRST_LINE) else note
    return f"{line}\n\n{rest}".strip()


def _write_first_line(client: "MlflowClient", category: str, number: int, line: str) -> None:
    found = client.get_model_version(model_name(category), str(number))
    client.update_model_version(model_name(category), str(number), with_first_line(found.description or "", line))
    if found.run_id:
        note = client.get_run(found.run_id).data.tags.get(NOTE, "")
        client.set_tag(found.run_id, NOTE, with_first_line(note, line))
