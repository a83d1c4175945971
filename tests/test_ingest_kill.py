"""`kill -9` of an ingest at every step: no image is lost or doubled, and the next run finishes the work."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.files import read_json
from tests.arriving import INBOX, die, ended, ingest_process, whereabouts, with_first_version
from tests.project import Project, new_images, surface, write_image

pytestmark = pytest.mark.slow  # a minute or more: each case adds to DVC and commits to git

STEPS = ("claim", "fetched", "judged", "committed", "pushed", "announced")
OUTCOMES = {"accepted": 4, "held": 0, "quarantine": 3}


@pytest.fixture
def arrived(git_project: Project, mlflow_database: Path) -> Project:
    """A project with a version, a remote, and seven files in its inbox of which four are to be accepted."""
    from flows.dvc_project import open_project
    from flows.stores import set_remote

    with_first_version(git_project, mlflow_database)
    with open_project() as repo:
        set_remote(repo, str(git_project.folder.parent / "remote"))
    fill_inbox(INBOX / "widget")
    return git_project


def fill_inbox(folder: Path) -> None:
    """Four new images, a copy of one, a copy of a test image, a truncated file."""
    new = new_images(folder, 4)
    shutil.copy(new[1], folder / "twin.png")
    shutil.copy("data/tiny/widget/test/good/001.png", folder / "test.png")
    path = folder / "cut.png"
    write_image(path, surface(np.random.default_rng(99)))
    path.write_bytes(path.read_bytes()[:700])


def before_record(step: str) -> None:
    from components import batch

    record = batch.Batch.record

    def fatal(self: batch.Batch, name: str, value: object) -> None:
        if name == step:
            die()
        record(self, name, value)

    batch.Batch.record = fatal  # type: ignore[method-assign]


def after_record(step: str) -> None:
    from components import batch

    record = batch.Batch.record

    def fatal(self: batch.Batch, name: str, value: object) -> None:
        record(self, name, value)
        if name == step:
            die()

    batch.Batch.record = fatal  # type: ignore[method-assign]


def during_fetch() -> None:
    from components.inbox import Entry, FolderInbox

    fetch = FolderInbox.fetch

    def fatal(self: FolderInbox, category: str, entry: Entry, path: Path) -> None:
        if entry.key == "new-2.png":
            die()
        fetch(self, category, entry, path)

    FolderInbox.fetch = fatal  # type: ignore[method-assign]


def before_git_commit() -> None:
    from flows import git

    git.commit = lambda paths, message: die() or ""  # type: ignore[func-returns-value]


def while_copying_into_the_category() -> None:
    from components import data_version

    move_in = data_version.move_in

    def fatal(staging: Path, folder: Path) -> None:
        first = next(path for path in staging.rglob("*") if path.is_file())
        first.rename(folder / first.relative_to(staging))
        die()
        move_in(staging, folder)

    data_version.move_in = fatal


def before_moves() -> None:
    from components.inbox import FolderInbox

    FolderInbox.acknowledge = lambda *_: die()  # type: ignore[method-assign]


def between_moves() -> None:
    from components.inbox import FolderInbox, Move

    acknowledge = FolderInbox._acknowledge

    def fatal(self: FolderInbox, path: Path, move: Move) -> None:
        if move.entry.key == "new-2.png":
            die()
        acknowledge(self, path, move)

    FolderInbox._acknowledge = fatal  # type: ignore[method-assign]


def before_finish() -> None:
    from components.batch import Batch

    Batch.finish = lambda *_: die()  # type: ignore[method-assign]


def while_cleaning_up() -> None:
    rmtree = shutil.rmtree

    def fatal(path: Path, **options: Any) -> None:
        if os.path.exists(os.path.join(path, "claim.json")):
            os.unlink(os.path.join(path, "claim.json"))
            die()
        rmtree(path, **options)

    shutil.rmtree = fatal  # type: ignore[assignment]


KILLS: dict[str, tuple[Any, ...]] = {
    **{f"before {step} is written down": (before_record, step) for step in STEPS},
    **{f"after {step} is written down": (after_record, step) for step in STEPS},
    **{
        function.__name__.replace("_", " "): (function,)
        for function in (during_fetch, before_git_commit, while_copying_into_the_category, before_moves, between_moves)
    },
    **{function.__name__.replace("_", " "): (function,) for function in (before_finish, while_cleaning_up)},
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_ingest_is_finished_by_the_next(arrived: Project, moment: str) -> None:
    delivered = whereabouts(Path("arriving"))
    before = arrived.git("rev-list", "--count", "HEAD")

    assert ended(ingest_process(arrived, *KILLS[moment])) == -9
    assert whereabouts(Path("arriving")).keys() == delivered.keys()  # nothing is lost meanwhile
    assert ended(ingest_process(arrived)) == 0

    places = whereabouts(Path("arriving"))
    assert places.keys() == delivered.keys()
    assert sorted(place for found in places.values() for place in found) == sorted(
        outcome for outcome, count in OUTCOMES.items() for _ in range(count)
    )
    assert int(arrived.git("rev-list", "--count", "HEAD")) == int(before) + 1
    assert arrived.git("log", "-1", "--format=%s") == "Data of widget: +4 good images, 18 in all"
    assert arrived.dvc("status", "data/tiny/widget.dvc").stdout.strip() == "Data and pipelines are up to date."
    assert arrived.dvc("status", "--cloud").stdout.strip() == "Cache and remote 'storage' are in sync."
    assert arrived.parts() == []
    state = Path(".flawline/ingest/widget")
    assert [read_json(path)["accepted"] for path in (state / "done").iterdir()] == [4]
    assert list((state / "batches").iterdir()) == []
    assert not any((INBOX / "widget").iterdir())
