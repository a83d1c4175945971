"""`kill -9` of an ingest at every step: no image is lost or doubled, and the next run finishes the work."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.foundation.files import read_json
from tests.arriving import INBOX, die, ended, ingest_process, whereabouts, with_first_version
from tests.project import Project, new_images, surface, write_image
from tests.servers import S3Server

pytestmark = pytest.mark.slow  # a minute or more: each case adds to DVC and commits to git

STEPS = ("claim", "fetched", "triaged", "committed", "pushed", "announced")
OUTCOMES = {"accepted": 4, "held": 0, "quarantine": 3}


@pytest.fixture
def arrived(git_project: Project) -> Project:
    """A project with a version, a remote, and seven files in its inbox of which four are to be accepted."""
    from flows.data.dvc_project import open_project
    from flows.data.stores import set_remote

    with_first_version(git_project)
    with open_project() as repo:
        set_remote(repo, str(git_project.folder.parent / "remote"))
    fill_inbox(INBOX / "widget")
    return git_project


def fill_inbox(folder: Path) -> None:
    """Four new images, a copy of one, a copy of a test image, a truncated file."""
    new = new_images(folder, 4)
    shutil.copy(new[1], folder / "duplicate.png")
    shutil.copy("data/tiny/widget/test/good/001.png", folder / "test.png")
    path = folder / "cut.png"
    write_image(path, surface(np.random.default_rng(99)))
    path.write_bytes(path.read_bytes()[:700])


def before_record(step: str) -> None:
    from components.arrivals import delivery

    record = delivery.Delivery.record

    def fatal(self: delivery.Delivery, name: str, value: object) -> None:
        if name == step:
            die()
        record(self, name, value)

    delivery.Delivery.record = fatal  # type: ignore[method-assign]


def after_record(step: str) -> None:
    from components.arrivals import delivery

    record = delivery.Delivery.record

    def fatal(self: delivery.Delivery, name: str, value: object) -> None:
        record(self, name, value)
        if name == step:
            die()

    delivery.Delivery.record = fatal  # type: ignore[method-assign]


def during_fetch() -> None:
    from components.arrivals.entries import Entry
    from components.arrivals.inbox import FolderInbox

    fetch = FolderInbox.fetch

    def fatal(self: FolderInbox, category: str, entry: Entry, path: Path) -> None:
        if entry.key == "new-2.png":
            die()
        fetch(self, category, entry, path)

    FolderInbox.fetch = fatal  # type: ignore[method-assign]


def before_git_commit() -> None:
    from flows.data import git

    git.commit = lambda *_: die() or ""  # type: ignore[func-returns-value]


def while_copying_into_the_category() -> None:
    from components.data import version as data_version

    move_in = data_version.move_in

    def fatal(staging: Path, folder: Path, goes: Sequence[str] = ()) -> None:
        first = next(path for path in staging.rglob("*") if path.is_file())
        first.rename(folder / first.relative_to(staging))
        die()
        move_in(staging, folder, goes)

    data_version.move_in = fatal


def before_moves() -> None:
    from components.arrivals.inbox import FolderInbox

    FolderInbox.acknowledge = lambda *_: die()  # type: ignore[method-assign]


def between_moves() -> None:
    from components.arrivals.entries import Move
    from components.arrivals.inbox import FolderInbox

    acknowledge = FolderInbox._acknowledge

    def fatal(self: FolderInbox, path: Path, move: Move) -> None:
        if move.entry.key == "new-2.png":
            die()
        acknowledge(self, path, move)

    FolderInbox._acknowledge = fatal  # type: ignore[method-assign]


def before_finish() -> None:
    from components.arrivals.delivery import Delivery

    Delivery.finish = lambda *_: die()  # type: ignore[method-assign]


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
    assert arrived.git("log", "-1", "--format=%s") == "Data of widget: +4 good images; 18 good and 8 test images in all"
    assert arrived.dvc("status", "data/tiny/widget.dvc").stdout.strip() == "Data and pipelines are up to date."
    assert arrived.dvc("status", "--cloud").stdout.strip() == "Cache and remote 'storage' are in sync."
    assert arrived.parts() == []
    state = Path(".flawline/ingest/widget")
    assert [read_json(path)["accepted"] for path in (state / "done").glob("*.json")] == [4]
    assert list((state / "batches").iterdir()) == []
    assert not any((INBOX / "widget").iterdir())


# The same from S3, where moving is copying and deleting


def after_a_copy() -> None:
    from components.arrivals.inbox_s3 import Move, S3Inbox

    place = S3Inbox._place

    def fatal(self: S3Inbox, prefix: str, move: Move) -> None:
        place(self, prefix, move)
        die()

    S3Inbox._place = fatal  # type: ignore[method-assign]


def after_a_reason() -> None:
    from components.arrivals.inbox_s3 import S3Inbox

    write = S3Inbox.write

    def fatal(self: S3Inbox, place: str, data: bytes) -> None:
        write(self, place, data)
        die()

    S3Inbox.write = fatal  # type: ignore[method-assign]


def before_deleting() -> None:
    from components.arrivals.inbox_s3 import S3Inbox

    S3Inbox._delete = lambda *_: die()  # type: ignore[method-assign]


def between_deletions() -> None:
    from components.arrivals import inbox_s3

    delete = inbox_s3.S3Inbox._delete_together

    def fatal(self: inbox_s3.S3Inbox, keys: Any) -> None:
        delete(self, keys)
        die()

    inbox_s3.DELETED_AT_ONCE = 2
    inbox_s3.S3Inbox._delete_together = fatal  # type: ignore[method-assign]


def while_pushing() -> None:
    from s3fs import S3FileSystem  # type: ignore[import-untyped]

    put, sent = S3FileSystem._put_file, []

    async def fatal(self: S3FileSystem, *arguments: Any, **options: Any) -> Any:
        done = await put(self, *arguments, **options)
        sent.append(done)
        if len(sent) == 2:
            die()
        return done

    S3FileSystem._put_file = fatal


S3_KILLS: tuple[Callable[[], None], ...] = (
    after_a_copy,
    after_a_reason,
    before_deleting,
    between_deletions,
    while_pushing,
)


@pytest.mark.parametrize("kill", S3_KILLS, ids=lambda kill: kill.__name__.replace("_", " "))
def test_a_killed_ingest_from_s3_is_finished_by_the_next(
    git_project: Project, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kill: Callable[[], None],
) -> None:  # fmt: skip
    from flows.data.dvc_project import open_project
    from flows.data.stores import set_remote

    url, root = f"s3://bucket/{tmp_path.name}", s3.root / "bucket" / tmp_path.name
    project = Project(git_project.folder, {**git_project.environment, **s3.environment})
    with_first_version(project)
    with open_project() as repo:
        set_remote(repo, f"{url}/versions")
    fill_inbox(tmp_path / "camera")
    for path in (tmp_path / "camera").iterdir():
        s3.client().upload_file(str(path), "bucket", f"{tmp_path.name}/inbox/widget/{path.name}")
    delivered = whereabouts(root)

    assert ended(ingest_process(project, kill, url=f"{url}/inbox")) == -9
    assert whereabouts(root).keys() == delivered.keys()
    assert ended(ingest_process(project, url=f"{url}/inbox")) == 0

    places = whereabouts(root)
    assert places.keys() == delivered.keys()
    assert sorted(place for found in places.values() for place in found) == ["accepted"] * 4 + ["quarantine"] * 3
    assert project.git("log", "-1", "--format=%s") == "Data of widget: +4 good images; 18 good and 8 test images in all"
    assert project.dvc("status", "--cloud").stdout.strip() == "Cache and remote 'storage' are in sync."
