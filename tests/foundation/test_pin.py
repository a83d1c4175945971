"""`bases/CATEGORY.json` names a version or none, and whatever else it says is refused."""

import json
from pathlib import Path

import pytest

from components.foundation.errors import UserError
from components.foundation.pin import Pin, ensure_pin, read_pin, write_pin
from components.foundation.places import Places

PIN = Pin(3, "a" * 64)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_version_or_none_is_read_as_it_was_written() -> None:
    assert read_pin("bolt") is None
    for pin in (PIN, None):
        write_pin("bolt", pin)
        assert read_pin("bolt") == pin
    assert json.loads(Places("bolt").base.read_text()) == {"base": None}


def test_a_file_that_is_there_stays_and_one_that_is_not_is_made() -> None:
    ensure_pin("bolt")
    assert json.loads(Places("bolt").base.read_text()) == {"base": None}
    write_pin("bolt", PIN)
    written = Places("bolt").base.stat().st_mtime_ns
    ensure_pin("bolt")
    write_pin("bolt", PIN)
    assert read_pin("bolt") == PIN
    assert Places("bolt").base.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"base": {}}', '{"base": 3}', '{"base": {"version": 3, "capsule": "../../x"}}', '{"base": ""}'],
)
def test_anything_else_is_refused_in_one_sentence_and_can_be_written_over(content: str) -> None:
    ensure_pin("bolt")
    Places("bolt").base.write_text(content)
    with pytest.raises(UserError, match=r"bases/bolt.json cannot be read: [^\n]*flawline run bolt"):
        read_pin("bolt")
    write_pin("bolt", None)
    assert read_pin("bolt") is None
