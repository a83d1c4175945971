"""`bases/CATEGORY.json`: which version an update keeps encoder and compositions of; {"base": null} to learn all anew.

It is an input of the stage train, and a part of each retraining's commit.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.files import is_digest, read_json, write_json
from components.foundation.places import CAPSULES, Places


@dataclass(frozen=True)
class Pin:
    """A version that is kept: its number, and the digest of its capsule, by which it is found and checked."""

    version: int
    capsule: str

    @property
    def folder(self) -> Path:
        """Where its capsule lies once it was fetched."""
        return CAPSULES / self.capsule


def read_pin(category: str, project: Path = Path()) -> Pin | None:
    """The version that is kept; None where everything is learned anew. UserError where the file says neither."""
    path = project / Places(category).base
    try:
        base = read_json(path)["base"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        base = ""
    return pin_of(category, base, path)


def pin_of(category: str, base: Any, path: Path) -> Pin | None:
    """The same from the value of "base"; path: of the file that it is from."""
    if base is None:
        return None
    match base:
        case {"version": int(version), "capsule": capsule} if is_digest(capsule):
            return Pin(version, capsule)
    raise UserError(f'{path} cannot be read: write {{"base": null}} into it, or run `flawline run {category}`.')


def write_pin(category: str, pin: Pin | None) -> None:
    """Let the next training of the category keep this version, or nothing; a file that says so stays as it is."""
    path, content = Places(category).base, {"base": asdict(pin) if pin else None}
    try:
        present = read_json(path)
    except (OSError, ValueError):
        present = None
    if present != content:
        write_json(path, content)


def ensure_pin(category: str) -> None:
    """Write the file where there is none: DVC wants what a stage depends on to be there."""
    if not Places(category).base.is_file():
        write_pin(category, None)
