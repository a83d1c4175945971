"""A delivery of arriving images on its way: a folder of its own in which each finished step leaves one JSON file.

A step that is there is not done again; a step that was cut short is repeated, and repeating it does no harm. So a
delivery that was killed anywhere is brought to its end by whoever takes the category's lock next.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.arrivals.entries import Entry
from components.arrivals.names import decode_key, encode_key, safe_stem, safe_suffix, shown_name
from components.foundation.errors import UserError
from components.foundation.files import digest_of, held_lock, read_json, write_json
from components.foundation.names import check_category_name

STATE = Path(".flawline/ingest")
LOCK_SECONDS = 600.0
ID_SIGNS = 6  # of the claim's digest, behind the time


@dataclass(frozen=True)
class Item:
    """One file of a delivery: its number, from 0, and what the inbox said of it."""

    number: int
    entry: Entry

    @property
    def file_name(self) -> str:
        """A harmless name, unique in the delivery, that recalls the original one: "00003-shot.png"."""
        return f"{self.number:05}-{safe_stem(self.entry.key)}{safe_suffix(self.entry.key)}"

    @property
    def shown(self) -> str:
        """The original name, fit for messages, tables and pages."""
        return shown_name(self.entry.key)


class Delivery:
    """The folder of one delivery: `NAME.json` of each finished step, `raw/` with files, `maps/` with anomaly maps."""

    def __init__(self, category: str, name: str) -> None:
        """Take the delivery `name` of a category, which need not exist yet."""
        self.category, self.name = category, name
        self.folder = _state(category) / "batches" / name

    def step(self, name: str) -> Any | None:
        """What a finished step left; None where it is still to be done."""
        path = self.folder / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def result(self, name: str) -> dict[str, Any]:
        """What a step left that is known to be finished."""
        return dict(read_json(self.folder / f"{name}.json"))

    def record(self, name: str, value: Any) -> None:
        """Finish a step: from now on it is not repeated."""
        write_json(self.folder / f"{name}.json", value)

    def items(self) -> list[Item]:
        """The files that were claimed."""
        claim = self.step("claim") or {"entries": []}
        return [Item(number, _entry(fields)) for number, fields in enumerate(claim["entries"])]

    def raw(self, item: Item) -> Path:
        """Where the file lies once it was fetched; its name is harmless."""
        return self.folder / "raw" / item.file_name

    def picture(self, item: Item) -> Path:
        """Where the anomaly map of a suspicious image is drawn."""
        return self.folder / "maps" / f"{item.file_name}.map.png"

    def place(self, outcome: str, item: Item) -> str:
        """Where the file goes in the end, beside the inbox."""
        return f"{outcome}/{self.category}/{self.name}/{item.file_name}"

    @property
    def page(self) -> Path:
        """Where the page about the delivery is, also after its end."""
        return _state(self.category) / "done" / f"{self.name}.html"

    def finish(self, summary: Any) -> None:
        """End the delivery: its summary stays, the rest goes."""
        write_json(_state(self.category) / "done" / f"{self.name}.json", summary)
        shutil.rmtree(self.folder)


def new_delivery(category: str, source: str, entries: list[Entry], time: str) -> Delivery:
    """Claim files of the inbox `source` as a new delivery; `time` is ISO 8601, UTC."""
    claim = {"source": source, "time": time, "entries": [_fields(entry) for entry in entries]}
    stamp = time.partition(".")[0].partition("+")[0].replace("-", "").replace(":", "")
    delivery = Delivery(category, f"{stamp}-{digest_of(claim)[:ID_SIGNS]}")
    delivery.record("claim", claim)
    return delivery


def open_deliveries(category: str) -> list[Delivery]:
    """The deliveries that were claimed and not brought to their end, oldest first; what never was one is removed."""
    folder = _state(category) / "batches"
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if not (path / "claim.json").is_file() or (_state(category) / "done" / f"{path.name}.json").is_file():
            shutil.rmtree(path)
    return [Delivery(category, path.name) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def facts_cache(category: str) -> Path:
    """Where the facts of a category's images are kept."""
    return _state(category) / "facts.json"


@contextmanager
def category_lock(category: str) -> Iterator[None]:
    """One ingest (or review) of a category at a time in this workspace; others wait for their turn."""
    check_category_name(category)
    path = _state(category) / "lock"
    busy = UserError(
        f"Another process has been ingesting {category} for {LOCK_SECONDS:.0f} s ({path}): wait for it or end it."
    )
    with held_lock(path, LOCK_SECONDS, busy):
        yield


def _state(category: str) -> Path:
    return STATE / category


def _fields(entry: Entry) -> dict[str, Any]:
    fields = {"kind": entry.kind, "size": entry.size, "revision": entry.revision, "changed": entry.changed}
    return fields | {"key": encode_key(entry.key), "target": encode_key(entry.target)}


def _entry(fields: dict[str, Any]) -> Entry:
    known = {"revision": fields.get("mark", ""), **{name: value for name, value in fields.items() if name != "mark"}}
    return Entry(**{**known, "key": decode_key(fields["key"]), "target": decode_key(fields["target"])})
