"""Objects that are missing or corrupt are found by their digest, and mended from the other store."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from components.data.integrity import Finding, check_objects, compare_stores, repair

CONTENTS = [b"", b"one", b"two" * 700_000, b"three"]
OIDS = [hashlib.md5(content).hexdigest() for content in CONTENTS[:-1]] + [hashlib.md5(b"three").hexdigest() + ".dir"]


@dataclass
class Folder:
    """A store: one file per object."""

    name: str
    root: Path

    def open(self, oid: str) -> BinaryIO:
        return (self.root / oid).open("rb")

    def put(self, oid: str, source: Path) -> None:
        (self.root / oid).write_bytes(source.read_bytes())


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Folder]:
    made = {name: Folder(name, tmp_path / name) for name in ("near", "far")}
    for store in made.values():
        store.root.mkdir()
        for oid, content in zip(OIDS, CONTENTS, strict=True):
            (store.root / oid).write_bytes(content)
    return made


def found(stores: dict[str, Folder]) -> list[Finding]:
    return compare_stores({name: check_objects(store, OIDS, 2) for name, store in stores.items()})


def test_whole_stores_have_no_finding(stores: dict[str, Folder]) -> None:
    assert found(stores) == []


def test_every_kind_of_damage_is_found_and_mended_from_the_other_side(stores: dict[str, Folder]) -> None:
    near, far = stores["near"].root, stores["far"].root
    (near / OIDS[0]).unlink()
    (near / OIDS[1]).write_bytes(b"onE")
    (far / OIDS[2]).write_bytes(CONTENTS[2][:-1])
    (far / OIDS[3]).write_bytes(b"[]")
    findings = found(stores)
    states = {(finding.store, finding.oid): finding.state for finding in findings}
    assert states == {
        ("near", OIDS[0]): "missing",
        ("near", OIDS[1]): "corrupt",
        ("far", OIDS[2]): "corrupt",
        ("far", OIDS[3]): "corrupt",
    }
    assert all(finding.is_repaired for finding in repair(findings, stores, 2))
    assert found(stores) == []


def test_what_no_side_has_whole_is_left_as_it_is(stores: dict[str, Folder]) -> None:
    for store, content in ((stores["near"], b"bad"), (stores["far"], b"worse")):
        (store.root / OIDS[1]).write_bytes(content)
    assert [finding.is_repaired for finding in repair(found(stores), stores, 2)] == [False, False]
    assert (stores["near"].root / OIDS[1]).read_bytes() == b"bad"


def test_progress_counts_to_the_end(stores: dict[str, Folder]) -> None:
    steps: list[tuple[str, int, int]] = []
    check_objects(stores["near"], OIDS, 2, lambda *step: steps.append(step))
    assert steps == [("near", number, 4) for number in (1, 2, 3, 4)]
