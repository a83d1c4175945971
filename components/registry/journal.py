"""The journal of a category: every move of its champion, one JSON line each, written before and after the move."""

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

Kind = Literal["promote", "roll back", "observed"]


@dataclass(frozen=True)
class Move:
    """The champion of a category moves, or is found moved, from one version to another.

    Attributes:
        time: ISO 8601, UTC; for the state "done", of the move itself.
        state: "intended", then "done", or "abandoned" where it has become impossible.
        kind: "promote", "roll back", or "observed" for a move that was not made here.
        source, target: version numbers; None for no champion.
        previous: version that the alias `previous` gets.
        digest: of the target's capsule.
        reason: in the user's words.
    """

    time: str
    state: Literal["intended", "done", "abandoned"]
    kind: Kind
    source: int | None
    target: int | None
    previous: int | None
    digest: str
    reason: str

    def closed(self, state: Literal["done", "abandoned"], time: str | None = None) -> "Move":
        """The same move in its last state, at `time` or now."""
        return replace(self, state=state, time=time or now())


def now() -> str:
    """The present time as the journal writes it."""
    return datetime.now(UTC).isoformat()


def read_moves(path: Path) -> list[Move]:
    """All moves, oldest first; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [Move(**json.loads(line)) for line in lines]


def append_move(path: Path, move: Move) -> None:
    """Add one line, on the disk when this returns; a last line that a crash cut short is cut off first.

    The caller holds the category's lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        file.seek(file.read().rfind(b"\n") + 1)
        file.truncate()
        file.write(json.dumps(asdict(move), ensure_ascii=False, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def champion_at(moves: list[Move], moment: datetime) -> Move | None:
    """The done move by which the champion at `moment` became it; None where there was no champion."""
    done = [move for move in moves if move.state == "done" and datetime.fromisoformat(move.time) <= moment]
    return done[-1] if done and done[-1].target is not None else None


def champion_before(moves: list[Move], number: int) -> int | None:
    """The version that was champion before version `number`, where a roll-back takes the moves since then back."""
    line: list[int] = []
    for move in moves:
        if move.state == "done" and move.target is not None:
            undone = move.kind == "roll back" and move.target in line
            line = _up_to(line, move.target) if undone else [*line, move.target]
    before = _up_to(line, number)[:-1] if number in line else []
    return before[-1] if before else None


def _up_to(line: list[int], number: int) -> list[int]:
    """The part of `line` that ends with the last `number` in it."""
    return line[: len(line) - line[::-1].index(number)]
