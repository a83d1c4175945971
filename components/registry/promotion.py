"""Acts on the versions of a category: promote, reject, roll back; and what other hands did to the aliases.

MLflow sets aliases without looking, so every act happens under the project's own lock, after what is there was read
again. It is written to the journal before (`intended`) and after (`done`): a crash in between leaves one champion, and
the next call completes the act. An alias that was moved elsewhere, such as in MLflow's pages, is noticed by the next
call and entered as `observed`: where a roll-back returns to is known all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from components.foundation.errors import UserError
from components.registry.journal import (
    Chain,
    Kind,
    Move,
    append_move,
    champions_before,
    now,
    read_moves,
    rejected,
    verify_journal,
)
from components.registry.person import who_am_i
from components.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Version,
    aliases_of,
    exists,
    journal_path,
    locked,
    model_name,
    version_of,
    write_verdict,
)
from components.tracking.connection import connect, server_errors_explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEEN = "journal."  # tag of the model: + the journal's first digest -> the latest digest, which tells a shortened one
Expected = int | None | Literal["any"]


@dataclass(frozen=True)
class Verified:
    """What a check of the journal found.

    Attributes:
        lines: in the journal.
        begins: the first of them that holds the digest of the one before; None where none does.
        champion: the version that the registry says is served.
        faults: clauses that say what is wrong; none where the chain holds and journal and registry agree.
    """

    lines: int
    begins: int | None
    champion: int | None
    faults: tuple[str, ...]


def promote(category: str, number: int, reason: str, *, who: str = "", expected: Expected = "any") -> Version:
    """Make a version the champion, and the champion until now `previous`; no effect where it is the champion already.

    An act that was cut short before is completed first.

    Args:
        category, number: which version.
        reason: for the journal and the verdict, in the user's words.
        who: did it; the user of this process if empty.
        expected: the champion with which the version was compared; UserError where another one serves by now.

    Raises UserError for a version that does not exist.
    """
    with locked(category), server_errors_explained():
        client, _ = connect()
        target = version_of(client, category, number)
        champion = _settle(client, category)
        if expected not in ("any", champion):
            raise UserError(
                f"Version {number} of {category} was compared with {_words(expected)}, but the champion is "
                f"{_words(champion)} by now: compare it with that one."
            )
        if champion != number:
            _act(client, category, _intended("promote", champion, target, champion, reason, who))
        return version_of(client, category, number)


def reject(category: str, number: int, reason: str, *, who: str = "") -> Version:
    """Say of a version that it is not to serve: it loses `challenger` and `previous`, and its verdict says why.

    No effect where it is rejected already. It can still be promoted by a person. Raises UserError for the champion, and
    for a version that does not exist.
    """
    with locked(category), server_errors_explained():
        client, _ = connect()
        target = version_of(client, category, number)
        champion = _settle(client, category)
        if champion == number:
            raise UserError(
                f"Version {number} of {category} is the champion: `flawline rollback {category}` takes it back first."
            )
        moves = read_moves(journal_path(category))
        if number not in rejected(moves):
            previous = aliases_of(client, category).get(PREVIOUS)
            if previous == number:
                previous = _fallback(client, category, moves, champion, {number})
            _act(client, category, _intended("reject", champion, target, previous, reason, who))
        return version_of(client, category, number)


def roll_back(category: str, reason: str = "roll-back", *, who: str = "") -> Version:
    """Make the champion of before the champion again, however the present one became it; returns it.

    The alias `previous` then names the champion before that one, where the journal has one. Versions that do not exist
    any more, and those that were rejected, are passed over. The journal's last line names both versions: `source` and
    `target`. Raises UserError where there is nothing to return to.
    """
    with locked(category), server_errors_explained():
        client, _ = connect()
        champion = _settle(client, category)
        moves = read_moves(journal_path(category))
        number = _previous(client, category, moves, champion)
        if number is None:
            raise UserError(
                f"{category} has no previous version to return to: `flawline models {category}` lists the versions, "
                f"and `flawline promote {category} VERSION --reason WHY` makes one the champion."
            )
        target = version_of(client, category, number)
        before = _fallback(client, category, moves, number, {champion})
        _act(client, category, _intended("roll back", champion, target, before, reason, who))
        return version_of(client, category, number)


def settle(category: str) -> int | None:
    """Complete what was cut short, and enter what other hands did; the number of the champion, None for none."""
    with locked(category), server_errors_explained():
        return _settle(connect()[0], category)


def verify(category: str) -> Verified:
    """Check the journal's chain, and that journal and registry agree, once what was cut short is completed."""
    path = journal_path(category)
    with locked(category), server_errors_explained():
        client, _ = connect()
        chain = verify_journal(path)
        faults = (*chain.faults, *_unseen(_seen(client, category), chain))
        if faults:
            return Verified(chain.lines, chain.begins, aliases_of(client, category).get(CHAMPION), faults)
        champion = _settle(client, category)
        chain = verify_journal(path)
        return Verified(chain.lines, chain.begins, champion, chain.faults)


def _intended(kind: Kind, source: int | None, target: Version, previous: int | None, reason: str, who: str) -> Move:
    if not reason.strip():
        raise UserError("A reason is needed, for those who read the journal later: say why.")
    return Move(now(), "intended", kind, source, target.number, previous, target.digest, reason, who or who_am_i())


def _act(client: "MlflowClient", category: str, move: Move) -> None:
    """Write the intent, move the aliases, write that it is done."""
    append_move(journal_path(category), move)
    _move_aliases(client, category, move)
    _close(client, category, move.closed("done"))


def _close(client: "MlflowClient", category: str, move: Move) -> None:
    """Write a line after which nothing is to be done, and let the registry know how far the journal goes."""
    from mlflow.exceptions import MlflowException

    path = journal_path(category)
    latest = append_move(path, move)
    try:
        client.set_registered_model_tag(model_name(category), SEEN + verify_journal(path).digests[0][:12], latest)
    except MlflowException:
        return  # the act is done and written down: the next one tells the registry


def _move_aliases(client: "MlflowClient", category: str, move: Move) -> None:
    """Bring the aliases to what the move says; the same again changes nothing, so a cut-short move is just repeated."""
    name = model_name(category)
    _set_previous(client, category, move.previous)
    if move.kind != "reject":
        client.set_registered_model_alias(name, CHAMPION, str(move.target))
    if aliases_of(client, category).get(CHALLENGER) == move.target:
        client.delete_registered_model_alias(name, CHALLENGER)
    for number, verdict in _verdicts(move).items():
        write_verdict(client, category, number, verdict)


def _set_previous(client: "MlflowClient", category: str, number: int | None) -> None:
    name = model_name(category)
    if number is None:
        client.delete_registered_model_alias(name, PREVIOUS)
    else:
        client.set_registered_model_alias(name, PREVIOUS, str(number))


def _verdicts(move: Move) -> dict[int, str]:
    """What a move makes of the versions that it concerns, in words."""
    assert move.target is not None
    if move.kind == "reject":
        return {move.target: f"rejected: {move.reason}"}
    found = {move.target: f"champion: {move.reason}"}
    if move.source is not None and move.source != move.target:
        found[move.source] = f"was champion until version {move.target}: {move.reason}"
    return found


def _settle(client: "MlflowClient", category: str) -> int | None:
    """Bring journal and aliases together, whatever happened since; return the number of the champion.

    An intended move that was cut short is completed, if its target still exists and nobody moved the champion
    elsewhere since; a champion, or a `previous`, that the journal does not know is noted as observed.
    """
    moves = read_moves(journal_path(category))
    if moves and moves[-1].state == "intended":
        _complete(client, category, moves[-1])
        moves = read_moves(journal_path(category))
    aliases = aliases_of(client, category)
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    known, expected = _last(moves)
    if champion != known:
        _observe_champion(client, category, known, champion, previous if previous != expected else known)
    elif previous != expected:
        reason = f"the alias {PREVIOUS} was moved outside the project, to {_words(previous)}"
        _close(client, category, _observed(client, category, champion, champion, previous, reason))
    return champion


def _observe_champion(
    client: "MlflowClient", category: str, known: int | None, champion: int | None, previous: int | None
) -> None:
    """Note a champion that others have set; `previous` becomes the one until then, where it is not set by them too."""
    if not exists(client, category, previous) or previous == champion:
        previous = None
    if champion is not None or previous is not None:
        _set_previous(client, category, previous)  # before the line: a crash in between comes to the same
    _close(client, category, _observed(client, category, known, champion, previous, "moved outside the project"))


def _observed(
    client: "MlflowClient", category: str, source: int | None, target: int | None, previous: int | None, reason: str
) -> Move:
    digest = "" if target is None else version_of(client, category, target).digest
    return Move(now(), "done", "observed", source, target, previous, digest, reason, f"noticed by {who_am_i()}")


def _last(moves: Sequence[Move]) -> tuple[int | None, int | None]:
    """Champion and `previous` by the journal."""
    done = [move for move in moves if move.state == "done"]
    champions = [move.target for move in done if move.moves_champion]
    return (champions[-1] if champions else None), (done[-1].previous if done else None)


def _complete(client: "MlflowClient", category: str, move: Move) -> None:
    champion = aliases_of(client, category).get(CHAMPION)
    allowed = (move.source,) if move.kind == "reject" else (move.source, move.target)
    if champion not in allowed or not exists(client, category, move.target):
        _close(client, category, move.closed("abandoned"))
        return
    previous = move.previous if exists(client, category, move.previous) else None
    _move_aliases(client, category, replace(move, previous=previous))
    time = move.time if champion == move.target else None  # where the champion had moved, it was before the crash
    _close(client, category, replace(move, previous=previous).closed("done", time))


def _previous(client: "MlflowClient", category: str, moves: Sequence[Move], champion: int | None) -> int | None:
    """What a roll-back returns to: the version with the alias, or else the latest champion before this one."""
    number = aliases_of(client, category).get(PREVIOUS)
    if number not in (None, champion) and number not in rejected(moves):
        return number
    return _fallback(client, category, moves, champion, set())


def _fallback(
    client: "MlflowClient", category: str, moves: Sequence[Move], number: int | None, without: set[int | None]
) -> int | None:
    """The latest champion before version `number` that exists, is not rejected and not among `without`."""
    unfit = rejected(moves) | without | {number}
    fit = (before for before in champions_before(moves, number) if before not in unfit)
    return next((before for before in fit if exists(client, category, before)), None)


def _seen(client: "MlflowClient", category: str) -> dict[str, str]:
    """Of each journal that the registry knows: the beginning of its first line's digest → its latest digest."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(model_name(category)).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {name.removeprefix(SEEN): value for name, value in tags.items() if name.startswith(SEEN)}


def _unseen(seen: dict[str, str], chain: Chain) -> list[str]:
    """What the registry has seen of journals and this one lacks."""
    if seen and not chain.lines:
        return ["there is no journal here, but the registry has seen one: it was removed, or is in another project"]
    if not seen or chain.begins is None:
        return []
    latest = seen.get(chain.digests[0][:12], "")
    if not latest:
        return ["the registry knows no journal that begins like this one: its first line was changed"]
    if latest in chain.digests:
        return []
    return [
        f"the registry has seen a line with the digest {latest[:12]}… that is not there: lines were removed at the "
        "end, or a copy of this project has written them"
    ]


def _words(number: int | str | None) -> str:
    return "none" if number is None else f"version {number}"
