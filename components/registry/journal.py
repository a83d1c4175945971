"""The journal of a category: every act on its versions, one JSON line each, written before and after the act.

Each line holds the SHA-256 of the line before it (`before`), so that a line that was changed, removed or put in
afterwards is found by `verify_journal`. Lines of a journal that was begun before there was such a chain are read as
they are: the chain begins at the first line after them, which holds the digest of the last of them.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from components.foundation.errors import UserError

Kind = Literal["promote", "roll back", "observed", "reject"]
BEFORE = "before"


@dataclass(frozen=True)
class Move:
    """The champion of a category moves, or is found moved, from one version to another; or a version is rejected.

    Attributes:
        time: ISO 8601, UTC; for the state "done", of the move itself.
        state: "intended", then "done", or "abandoned" where it has become impossible.
        kind: "promote", "roll back", "observed" for a move that was not made here, or "reject", by which the champion
            stays what it is.
        source, target: version numbers; None for no champion. Of "reject": the champion, and what is rejected.
        previous: version that the alias `previous` gets.
        digest: of the target's capsule.
        reason: in the user's words.
        who: did it; of "observed": noticed it. Empty in lines from before this was written down.
    """

    time: str
    state: Literal["intended", "done", "abandoned"]
    kind: Kind
    source: int | None
    target: int | None
    previous: int | None
    digest: str
    reason: str
    who: str = ""

    @property
    def moves_champion(self) -> bool:
        """Whether the champion is another one, by this line: an intention moves nothing, nor does a rejection."""
        return self.state == "done" and self.kind != "reject" and self.source != self.target

    def closed(self, state: Literal["done", "abandoned"], time: str | None = None) -> "Move":
        """The same move in its last state, at `time` or now."""
        return replace(self, state=state, time=time or now())


@dataclass(frozen=True)
class Chain:
    """What the digests in a journal say.

    Attributes:
        lines: how many there are.
        begins: the first line (from 1) that holds a digest; None where no line does.
        digests: of each line, hex.
        faults: what is wrong, a clause each; none where the chain holds.
    """

    lines: int
    begins: int | None
    digests: tuple[str, ...]
    faults: tuple[str, ...]


def now() -> str:
    """The present time as the journal writes it."""
    return datetime.now(UTC).isoformat()


def read_moves(path: Path) -> list[Move]:
    """All moves, oldest first; a last line that a crash cut short is left out. UserError for a damaged line."""
    return [_move(path, number, line) for number, line in enumerate(_lines(path), 1)]


def append_move(path: Path, move: Move) -> str:
    """Add one line, on the disk when this returns; a last line that a crash cut short is cut off first.

    The caller holds the category's lock. Returns the new line's digest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        line = _encoded(move, content[:end].split(b"\n")[-2] if end else None)
        file.seek(end)
        file.truncate()
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return _digest(line)


def verify_journal(path: Path) -> Chain:
    """Check that each line holds the digest of the line before; no line at all is in order, and so is a torn last one.

    What is cut off at the end leaves no trace in the journal itself: who has seen a later digest can tell.
    """
    lines = _lines(path)
    digests = tuple(_digest(line) for line in lines)
    held = [_held(line) for line in lines]
    begins = next((number for number, digest in enumerate(held, 1) if digest is not None), None)
    faults = tuple(_faults(digests, held, begins)) if begins else ()
    return Chain(len(lines), begins, digests, (*_damage(path, lines), *faults))


def champion_at(moves: Sequence[Move], moment: datetime) -> Move | None:
    """The done move by which the champion at `moment` became it; None where there was no champion."""
    done = [move for move in moves if move.moves_champion and datetime.fromisoformat(move.time) <= moment]
    return done[-1] if done and done[-1].target is not None else None


def champions_before(moves: Sequence[Move], number: int | None) -> list[int]:
    """The versions that were champion before version `number`, the latest first; of the moves that were not taken back.

    A roll-back takes the moves since its target back. None for `number` means that there is no champion now.
    """
    line: list[int] = []
    for move in moves:
        if move.moves_champion and move.target is not None:
            undone = move.kind == "roll back" and move.target in line
            line = _up_to(line, move.target) if undone else [*line, move.target]
    if number is not None:
        line = _up_to(line, number)[:-1] if number in line else []
    return line[::-1]


def rejected(moves: Sequence[Move]) -> set[int]:
    """The versions of which the last that was decided is that they are rejected."""
    last = {move.target: move.kind for move in moves if move.state == "done" and move.target is not None}
    return {number for number, kind in last.items() if kind == "reject"}


def decided(moves: Sequence[Move], number: int) -> Move | None:
    """The last done move that concerns a version, as its target or as the champion that had to go; None for none."""
    about = [move for move in moves if move.state == "done" and number in _concerned(move)]
    return about[-1] if about else None


def _concerned(move: Move) -> tuple[int | None, ...]:
    return (move.source, move.target) if move.moves_champion else (move.target,)


def _up_to(line: list[int], number: int) -> list[int]:
    """The part of `line` that ends with the last `number` in it."""
    return line[: len(line) - line[::-1].index(number)]


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def _encoded(move: Move, before: bytes | None) -> bytes:
    chained = asdict(move) | {BEFORE: "" if before is None else _digest(before)}
    return json.dumps(chained, ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _content(line: bytes) -> dict[str, Any] | None:
    """The mapping in a line; None where it is damaged."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _move(path: Path, number: int, line: bytes) -> Move:
    known = {field.name for field in fields(Move)}
    content = {name: value for name, value in (_content(line) or {}).items() if name in known}
    try:
        return Move(**content)
    except TypeError as error:
        raise UserError(f"Line {number} of the journal {path} is damaged: put the file back from a copy.") from error


def _held(line: bytes) -> str | None:
    """The digest that a line holds of the one before; None where it holds none."""
    digest = (_content(line) or {}).get(BEFORE)
    return digest if isinstance(digest, str) else None


def _damage(path: Path, lines: Sequence[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            _move(path, number, line)
        except UserError:
            yield f"line {number} is damaged"


def _faults(digests: Sequence[str], held: Sequence[str | None], begins: int) -> Iterator[str]:
    for number in range(begins, len(held) + 1):
        expected = digests[number - 2] if number > 1 else ""
        if held[number - 1] is None:
            yield f"line {number} holds no digest of the line before"
        elif held[number - 1] != expected:
            before = f"line {number - 1}" if number > 1 else "none"
            yield f"line {number} was not written after {before} as it stands: a line was changed, removed or put in"
