"""dvc.lock is read as DVC reads it and written to the bytes that DVC writes, whatever stands in it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.data.dvc_project import repo_at, whole_files
from flows.data.quick_lock import quick_lockfile

LOCK = Path("dvc.lock")
PIPELINE = """\
stages:
  make:
    foreach: [plain, große Schraube, "off"]
    do:
      cmd: |
        mkdir -p out
        cp params.yaml "out/${item}"
      params: [odd]
      outs: ["out/${item}"]
  read:
    cmd: 'cp "out/off" "read #1"'
    deps: ["out/off"]
    params: [odd.text]
    outs: ["read #1"]
"""
ODD = """\
odd:
  text: '{text}'
  off: "off"
  digits: "12e4567"
  small: 1.0e-05
  less: 1e-7
  none:
  empty: ["", {{}}, []]
  "long": {long}
  sign: "😀 ü #: - x"
  deep: {{a: [1, 2.5, true, {{b: null}}]}}
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`pipeline(name)` makes a project with stages of odd names and parameters, and enters it."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")

    def make(name: str) -> Path:
        folder = tmp_path / name
        (folder / ".dvc").mkdir(parents=True)
        subprocess.run(["git", "init", "-q", folder], check=True)
        (folder / ".dvc/config").touch()
        (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
        monkeypatch.chdir(folder)
        set_text("first")
        return folder

    return make


def set_text(text: str) -> None:
    Path("params.yaml").write_text(ODD.format(text=text, long="word " * 40), encoding="utf-8")


def reproduce(quick: bool) -> list[Any]:
    """Run what has changed, by DVC as it is or as the flows use it; the stages that ran."""
    from dvc import dvcfile
    from dvc.repo import Repo

    if quick:
        with repo_at(Path.cwd(), whole_files()()) as repo:
            return list(repo.reproduce())
    dvcfile.Lockfile = quick_lockfile().__base__
    with Repo(os.getcwd()) as repo:
        return list(repo.reproduce())


def test_a_lock_has_the_bytes_that_dvc_writes_whatever_changes(pipeline: Callable[[str], Path]) -> None:
    locks: dict[bool, list[bytes]] = {}
    for quick in (False, True):
        pipeline(str(quick))
        locks[quick] = []
        for text in ("first", "off", "1e5"):
            set_text(text)
            assert len(reproduce(quick)) == 4
            assert reproduce(quick) == []
            locks[quick].append(LOCK.read_bytes())
    assert locks[True] == locks[False]
    assert len(set(locks[True])) == 3


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["comment", "order", "no stage", "another key", "crlf", "gone"])
def test_a_lock_that_others_have_edited_is_written_as_dvc_writes_it(pipeline: Callable[[str], Path], edit: str) -> None:
    locks = {}
    for quick in (False, True):
        pipeline(str(quick))
        reproduce(quick)
        set_text("second")
        edit_lock(edit)
        reproduce(quick)
        locks[quick] = LOCK.read_bytes()
        assert reproduce(quick) == []
    assert locks[True] == locks[False]


def edit_lock(edit: str) -> None:
    text = LOCK.read_text()
    first, second = text.index("  make@plain:"), text.index("  make@große")
    match edit:
        case "comment":
            text = text.replace("stages:\n", "stages:\n  # by hand\n", 1)
        case "order":
            text = text[:first] + text[second:] + text[first:second]
        case "no stage":
            text = "schema: '2.0'\nstages: {}\n"
        case "another key":
            text += "datasets: []\n"
        case "crlf":
            text = text.replace("\n", "\r\n")
        case _:
            LOCK.unlink()
            return
    LOCK.write_bytes(text.encode())


def test_a_damaged_lock_is_said_as_dvc_says_it(pipeline: Callable[[str], Path]) -> None:
    from dvc.exceptions import DvcException

    pipeline("damaged")
    reproduce(quick=True)
    good = LOCK.read_bytes()
    for damage in (good + b"<<<<<<< HEAD\n", good + b"\xff", good + b"  @x:\n", good + b"  make@plain: 3\n", b""):
        LOCK.write_bytes(damage)
        said = []
        for quick in (False, True):
            with pytest.raises(DvcException) as error:
                reproduce(quick)
            said.append((type(error.value), str(error.value)))
        assert said[0] == said[1]


ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), ENTRIES, max_size=3))
def test_what_is_remembered_of_a_text_is_what_it_says(data: dict[str, Any]) -> None:
    from flows.data import quick_lock

    quick_lock._remember("text", data)
    assert repr(json_of("text")) == repr(data)


def json_of(text: str) -> Any:
    import json

    from flows.data import quick_lock

    return json.loads(quick_lock._parsed[text])
