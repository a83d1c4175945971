"""The ingest in a real project with git and DVC: what it leaves behind, what stops it, what a person decides."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from components.arrivals.delivery import category_lock
from components.arrivals.inbox import FolderInbox, open_source
from components.arrivals.names import encode_key
from components.foundation.errors import UserError
from components.foundation.files import sha256_file
from components.foundation.params import load_params
from components.images.dataset import list_category
from flows.arrivals.review import accept, held_images, refuse
from flows.arrivals.steps import awaited, call, ingest_category
from flows.data.git import BusyError
from tests.arriving import INBOX, die, ended, ingest_here, ingest_process, whereabouts, with_first_version
from tests.faulty_proxy import Fault, faulty_proxy
from tests.project import SIDE, Project, is_one_sentence, new_images, surface, write_image
from tests.servers import S3Server

DELIVERED = INBOX / "widget"


@pytest.fixture
def line(git_project: Project) -> Project:
    """A project whose category "widget" has a first version, and an inbox in which files are settled at once."""
    with_first_version(git_project)
    return git_project


def outcomes() -> dict[str, int]:
    """How many files are in each of accepted, held, quarantine and inbox; each content must be in one place."""
    counts: dict[str, int] = {}
    for found in whereabouts(Path("arriving")).values():
        for outcome in found:
            counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def reasons(outcome: str) -> dict[str, str]:
    """The code beside each file of an outcome, by the name that it came with."""
    found = [json.loads(path.read_text()) for path in Path("arriving", outcome, "widget").rglob("*.json")]
    return {one["name"]: one["code"] for one in found}


def images() -> int:
    return len(list_category(Path("data/tiny/widget")).train)


@pytest.mark.slow
def test_what_the_system_refuses_of_one_category_stops_no_other(line: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.arrivals.ingest

    monkeypatch.setattr(flows.arrivals.ingest, "_as_task", call)  # no server is needed to see it
    new_images(DELIVERED, 2)
    new_images(INBOX / "gadget", 2)
    Path(".flawline/ingest/gadget").parent.mkdir(parents=True, exist_ok=True)
    Path(".flawline/ingest/gadget").write_text("a file, where its deliveries were to be")
    gadget, widget = flows.arrivals.ingest.ingest.fn(str(INBOX), ["gadget", "widget"])
    assert ".flawline/ingest/gadget" in gadget["error"]
    assert widget["accepted"] == 2


@pytest.mark.slow
def test_what_passes_becomes_one_version_and_the_rest_has_its_reasons(line: Project) -> None:
    new = new_images(DELIVERED / "line 2", 3)
    digests = {sha256_file(path) for path in new}
    shutil.copy("data/tiny/widget/train/good/004.png", DELIVERED / "old.png")
    shutil.copy("data/tiny/widget/test/blob/002.png", DELIVERED / "test.png")
    (DELIVERED / "notes.txt").write_text("hello")
    (DELIVERED / "link.png").symlink_to("/etc/passwd")
    write_image(DELIVERED / "dark.png", (surface(np.random.default_rng(3)) * 0.2).astype(np.uint8))
    before = int(line.git("rev-list", "--count", "HEAD"))

    (summary,) = ingest_here()

    counts = {name: summary[name] for name in ("arrived", "accepted", "held", "quarantined", "left")}
    assert counts == {"arrived": 8, "accepted": 3, "held": 1, "quarantined": 4, "left": 0}
    assert outcomes() == {"accepted": 3, "held": 1, "quarantine": 3}  # of the link, only the reason is kept
    assert reasons("held") == {"dark.png": "unlike-category"}
    assert reasons("quarantine") == {
        "old.png": "duplicate",
        "test.png": "test-image",
        "notes.txt": "name-extension",
        "link.png": "link",
    }
    assert int(line.git("rev-list", "--count", "HEAD")) == before + 1
    assert line.git("log", "-1", "--format=%s") == "Data of widget: +3 good images; 17 good and 8 test images in all"
    assert "8 arrived, 3 accepted, 1 held, 4 quarantined (1 duplicate" in line.git("log", "-1", "--format=%b")
    learned = {path for path in Path("data/tiny/widget/train/good").iterdir() if path.name.startswith("new-")}
    assert {sha256_file(path) for path in learned} == digests
    (manifest,) = Path("arriving/accepted").rglob("batch.json")
    assert {f"data/tiny/widget/{one['image']}" for one in json.loads(manifest.read_text())} == set(map(str, learned))
    page = Path(summary["page"]).read_text()
    assert "3 of 8 accepted: Data of widget: +3 good images; 17 good and 8 test images in all" in page
    assert all(f"{code} <span" in page for code in summary["reasons"])
    assert page.count("data:image/jpeg;base64,") == 3 + 3  # accepted; dark, old and test: the rest was never opened
    assert "notes.txt does not end in" in page
    assert not re.search(r"(?:src|href)=.(?!data:)", page)


@pytest.mark.slow
def test_a_batch_without_an_accepted_image_has_its_page(line: Project) -> None:
    write_image(DELIVERED / "dark.png", (surface(np.random.default_rng(3)) * 0.2).astype(np.uint8))
    (summary,) = ingest_here()
    assert summary["commit"] is None
    assert "0 of 1 accepted" in Path(summary["page"]).read_text()


@pytest.mark.slow
def test_the_same_delivery_again_is_acknowledged_as_duplicates(line: Project) -> None:
    new_images(DELIVERED, 3)
    ingest_here()
    commit = line.git("rev-parse", "HEAD")
    new_images(DELIVERED, 3)
    (summary,) = ingest_here()
    assert summary["reasons"] == {"duplicate": 3}
    assert line.git("rev-parse", "HEAD") == commit
    assert images() == 17
    assert not any(DELIVERED.iterdir())
    assert ingest_here() == []


@pytest.mark.slow
def test_a_file_that_is_still_copied_is_left_alone(line: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    line.set_params({"ingest": {"settle_seconds": 60}})
    new_images(DELIVERED, 2)

    def copy_on(seconds: float) -> None:
        assert seconds == 60
        with (DELIVERED / "new-1.png").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr("flows.arrivals.steps.time.sleep", copy_on)
    (summary,) = ingest_here()
    assert (summary["arrived"], summary["accepted"]) == (1, 1)
    assert [path.name for path in DELIVERED.iterdir()] == ["new-1.png"]


@pytest.mark.slow
def test_a_batch_takes_no_more_files_and_bytes_than_it_may(line: Project) -> None:
    paths = new_images(DELIVERED, 5)
    line.set_params({"ingest": {"max_files": 4, "max_batch_bytes": sum(path.stat().st_size for path in paths[:2])}})
    assert [ingest_here()[0]["accepted"] for _ in range(3)] == [2, 2, 1]
    assert ingest_here() == []
    assert images() == 19


def test_unknown_categories_are_said(line: Project) -> None:
    write_image(INBOX / "wigdet" / "a.png", surface(np.random.default_rng(0)))
    params = load_params()
    assert awaited(open_source(str(INBOX)), params) == ["wigdet"]
    with pytest.raises(UserError, match=r"has a folder 'wigdet', which is not in data\.categories"):
        ingest_category("wigdet", open_source(str(INBOX)), params)
    assert (INBOX / "wigdet" / "a.png").exists()


@pytest.mark.slow
def test_files_beside_the_categories_are_said_and_the_others_taken_in(line: Project) -> None:
    write_image(INBOX / "loose.png", surface(np.random.default_rng(0)))
    new_images(DELIVERED, 1)
    done = line.flawline("ingest")
    assert (done.returncode, is_one_sentence(done.stderr)) == (1, True)
    assert "1 file lies beside the categories' folders in the inbox arriving/inbox, such as 'loose.png'" in done.stderr
    assert outcomes() == {"accepted": 1}
    assert line.flawline("ingest").returncode == 1


def test_the_first_images_of_a_category_may_arrive(line: Project) -> None:
    line.set_params({"data": {"categories": ["widget", "gadget", "new"]}})
    shutil.move(new_images(INBOX / "tmp", 3)[0].parent, INBOX / "new")
    (summary,) = ingest_category("new", open_source(str(INBOX)), load_params())
    assert summary["accepted"] == 3
    assert len(list_category(Path("data/tiny/new")).train) == 3


# What stops an ingest


@pytest.mark.slow
def test_a_held_git_lock_is_said_and_the_next_run_finishes(line: Project) -> None:
    new_images(DELIVERED, 3)
    lock = Path(".git/index.lock")
    lock.touch()
    with pytest.raises(BusyError, match="Another git command holds"):
        ingest_here()
    assert outcomes() == {"inbox": 3}
    assert images() == 14
    lock.unlink()
    (summary,) = ingest_here()
    assert summary["accepted"] == 3
    assert outcomes() == {"accepted": 3}
    assert line.dvc("status", "data/tiny/widget.dvc").stdout.strip() == "Data and pipelines are up to date."


@pytest.mark.slow
def test_two_ingests_at_once_share_the_work(line: Project) -> None:
    new_images(DELIVERED, 6)
    before = int(line.git("rev-list", "--count", "HEAD"))
    first, second = ingest_process(line), ingest_process(line)
    assert (ended(first), ended(second)) == (0, 0)
    assert outcomes() == {"accepted": 6}
    assert int(line.git("rev-list", "--count", "HEAD")) == before + 1
    assert images() == 20


@pytest.mark.slow
def test_an_ingest_waits_for_the_one_before(line: Project) -> None:
    new_images(DELIVERED, 1)
    done = threading.Event()

    def run() -> None:
        ingest_here()
        done.set()

    thread = threading.Thread(target=run)
    with category_lock("widget"):
        thread.start()
        assert not done.wait(0.5)
        assert outcomes() == {"inbox": 1}
    thread.join(60)
    assert done.is_set()
    assert outcomes() == {"accepted": 1}


PLACES: dict[str, Callable[[], Path]] = {
    "the delivery's folder": lambda: Path(".flawline/ingest"),
    "DVC's cache": lambda: Path(".dvc/cache"),
    "the images": lambda: Path("data/tiny"),
    "the outcomes": lambda: Path("arriving/quarantine"),
}


@pytest.fixture
def full(line: Project, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A place of the project on a file system without room for the delivery's images."""
    folder = PLACES[request.param]()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.rename(folder.with_name("kept"))
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system of limited size can only be mounted by root on Linux")
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    space = os.statvfs(folder)
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={used + 16_384}", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("full", PLACES, indirect=True)
def test_a_full_disk_loses_nothing_and_the_next_run_finishes(line: Project, full: Path) -> None:
    new_images(DELIVERED, 12)
    shutil.copy("data/tiny/widget/train/good/004.png", DELIVERED / "old.png")
    for number in range(12):
        (DELIVERED / f"text-{number}.txt").write_bytes(os.urandom(6000))
    with pytest.raises((OSError, UserError)):
        ingest_here()
    found = outcomes()
    assert sum(found.values()) == 25
    assert line.dvc("status", "data/tiny/widget.dvc").returncode == 0
    subprocess.run(["mount", "-o", "remount,size=64m", str(full)], check=True)
    (summary,) = ingest_here()
    assert summary["accepted"] == 12
    assert outcomes() == {"accepted": 12, "quarantine": 13}
    assert images() == 26
    assert line.parts() == []
    assert line.dvc("status", "data/tiny/widget.dvc").stdout.strip() == "Data and pipelines are up to date."


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "slow"])
def test_an_ingest_from_a_failing_s3(
    line: Project, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    client, prefix = s3.client(), tmp_path.name
    for path in new_images(tmp_path / "camera", 4):
        client.upload_file(str(path), "bucket", f"{prefix}/incoming/widget/{path.name}")
    client.put_object(Bucket="bucket", Key=f"{prefix}/incoming/widget/cut.png", Body=path.read_bytes()[:800])
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("components.arrivals.inbox_s3.BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    with faulty_proxy(s3.url) as (proxy, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        proxy.fail(fault, "GET", times=1000 if fault != "slow" else 1)
        if fault != "slow":
            with pytest.raises(UserError, match="run again"):
                ingest_here(url=f"s3://bucket/{prefix}/incoming")
            proxy.fail(None)
            assert len(open_source(f"s3://bucket/{prefix}/incoming").entries("widget")) == 5
        proxy.fail(fault, "PUT", times=1)
        summaries = ingest_here(url=f"s3://bucket/{prefix}/incoming")
    assert [(summary["accepted"], summary["quarantined"]) for summary in summaries] == [(4, 1)]
    keys = [
        found["Key"].removeprefix(f"{prefix}/")
        for found in client.list_objects_v2(Bucket="bucket", Prefix=f"{prefix}/")["Contents"]
    ]
    assert sum(key.startswith("accepted/widget/") and key.endswith(".png") for key in keys) == 4
    assert sum(key.startswith("quarantine/widget/") and key.endswith(".png") for key in keys) == 1
    assert not any(key.startswith("incoming/") for key in keys)
    assert images() == 18


# What a person decides


@pytest.fixture
def held(line: Project) -> list[str]:
    """Two held images, by the names under which they are listed."""
    for number, factor in enumerate((0.2, 0.3)):
        write_image(
            DELIVERED / f"dark-{number}.png", (surface(np.random.default_rng(number)) * factor).astype(np.uint8)
        )
    ingest_here()
    return [one["place"].removeprefix("held/") for one in held_images()]


def test_held_images_are_listed_with_their_reasons(held: list[str]) -> None:
    listed = held_images()
    assert [one["name"] for one in listed] == ["dark-0.png", "dark-1.png"]
    assert all(one["code"] == "unlike-category" and "brightness" in one["reason"] for one in listed)
    assert all(Path(one["file"]).is_file() for one in listed)
    assert len(held) == 2


@pytest.mark.slow
def test_an_accepted_image_becomes_a_version_and_a_refused_one_does_not(line: Project, held: list[str]) -> None:
    ((done, announced),) = accept([held[0]])
    assert announced.startswith("No Prefect server was told")
    assert done.message == "Data of widget: +1 good images; 15 good and 8 test images in all"
    assert refuse(["dark-1.png"]) == 1
    assert held_images() == []
    assert outcomes() == {"accepted": 1, "quarantine": 1}
    decisions = [json.loads(path.read_text()) for path in Path("arriving").rglob("*dark*.json")]
    assert sorted(one["decision"] for one in decisions) == ["accepted", "refused"]
    assert images() == 15


@pytest.mark.slow
def test_names_that_mean_nothing_or_several_are_refused(held: list[str]) -> None:
    with pytest.raises(UserError, match=r"nothing\.png is no held image"):
        accept(["nothing.png"])
    new_images(DELIVERED, 1)
    write_image(DELIVERED / "dark-0.png", (surface(np.random.default_rng(7)) * 0.25).astype(np.uint8))
    ingest_here()
    with pytest.raises(UserError, match="means several held images"):
        refuse(["dark-0.png"])
    assert refuse([held[0]]) == 1
    assert len(held_images()) == 2


def test_a_held_copy_of_a_test_image_cannot_be_accepted(line: Project) -> None:
    from PIL import Image

    with Image.open("data/tiny/widget/test/good/001.png") as image:
        pixels = np.clip(np.array(image) + 2.0, 0, 255).astype(np.uint8)
    write_image(DELIVERED / "near.png", pixels)
    ingest_here()
    with pytest.raises(UserError, match="would make the test worthless"):
        accept(["near.png"])
    assert refuse(["near.png"]) == 1


def test_what_a_person_kept_as_evidence_is_not_learned_when_it_is_delivered_again(line: Project) -> None:
    from flows.data.evidence import keep

    (kept,) = new_images(Path("../kept"), 1)
    keep("widget", kept, None, kind="good", note="a false alarm", verdict={})
    DELIVERED.mkdir(parents=True)
    shutil.copy(kept, DELIVERED / "again.png")
    ingest_here()
    assert reasons("quarantine") == {"again.png": "test-image"}


@pytest.mark.parametrize("moment", ["before the first move", "after the image's move"])
def test_a_decision_that_was_killed_is_completed(line: Project, held: list[str], moment: str) -> None:
    relocate = FolderInbox.relocate

    def interrupted(self: FolderInbox, old: str, new: str) -> None:
        if not moment.startswith("before"):
            relocate(self, old, new)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderInbox, "relocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            accept([held[0]])
    remaining = held_images()
    assert [one["name"] for one in remaining] == ["dark-1.png"]
    assert outcomes() == {"accepted": 1, "held": 1}
    assert images() == 15


@pytest.mark.slow
def test_a_review_waits_until_an_ingest_was_finished(line: Project, held: list[str]) -> None:
    new_images(DELIVERED, 1)
    assert ended(ingest_process(line, kill_before_commit)) == -9
    with pytest.raises(UserError, match="run `flawline ingest` first"):
        refuse(held)
    ingest_here()
    assert refuse(held) == 2


def kill_before_commit() -> None:
    from flows.arrivals import steps as arrivals

    arrivals.STEPS["committed"] = lambda *_: die()


def test_a_hostile_name_reaches_no_message_unescaped(line: Project) -> None:
    name = "<img src=x>\x1b[31m\n.png"
    DELIVERED.mkdir(parents=True)
    (DELIVERED / name).write_bytes(b"x" * SIDE)
    ingest_here()
    (reason,) = [json.loads(path.read_text()) for path in Path("arriving/quarantine").rglob("*.json")]
    assert reason["key"] == encode_key(name)
    assert reason["name"].isprintable()
    assert not set("<>\x1b\n") & set(reason["reason"])
    assert all(path.name.isascii() for path in Path("arriving/quarantine").rglob("*"))
