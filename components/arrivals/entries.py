"""Files of an inbox as they were listed, and where they are to go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OUTCOMES = ("accepted", "held", "quarantine")
Kind = Literal["file", "link", "other"]


class GoneError(Exception):
    """A file is no longer there, or no longer the one that was listed: the next listing will tell."""


@dataclass(frozen=True)
class Entry:
    """One file in the inbox, as it was listed.

    key: path in the category's inbox, with forward slashes. kind: "link" and "other" are never opened.
    size: bytes. revision: changes with the content (ETag, or inode and times). changed: last change, seconds since
    1970. target: where a link leads.
    """

    key: str
    kind: Kind
    size: int
    revision: str
    changed: float
    target: str = ""


@dataclass(frozen=True)
class Move:
    """A file of the inbox is to go to `place`; `copy` is what was read of it, None where it was not."""

    entry: Entry
    place: str
    copy: Path | None
