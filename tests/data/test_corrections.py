"""Corrections of data that are there: masks that come later or change, images of another kind, edits in place."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.version import list_offered
from components.foundation.errors import UserError
from components.images.dataset import list_records
from flows.commands.arrivals import say_summary
from flows.data.dvc_project import open_project
from flows.data.history import diff_versions, verify
from flows.data.stores import set_remote
from flows.data.transfer import pull, push
from flows.data.versions import Committed, commit_folder, commit_images
from tests.arriving import INBOX, ingest_here
from tests.project import Project, new_images, write_category, write_image

FOLDER = Path("data/tiny/widget")
CACHE = Path(".dvc/cache/files/md5")


@pytest.fixture
def delivery(git_project: Project, tmp_path: Path) -> Path:
    """The category as a person has it elsewhere, in a folder of its own; its version has no masks yet."""
    folder = tmp_path / "widget"
    shutil.copytree(FOLDER, folder)
    shutil.rmtree(FOLDER / "ground_truth")
    commit_folder("widget")
    return folder


def add(folder: Path) -> Committed:
    there = {record.name: record for record in list_records(FOLDER)}
    return commit_images("widget", list_offered(folder, there))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last_change(sheet: Path) -> dict[str, tuple[str, ...]]:
    ((_, difference, _),) = diff_versions("HEAD~1", "HEAD", "widget", sheet)
    return {words: names for words, names in vars(difference).items() if names}


@pytest.mark.slow
def test_masks_that_come_later_and_corrected_ones_are_versions_whose_difference_shows_them(
    delivery: Path, tmp_path: Path
) -> None:
    done = add(delivery)
    assert done.message == "Data of widget: +4 masks; 14 good and 8 test images in all"
    masks = tuple(f"ground_truth/blob/{number:03}_mask.png" for number in range(4))
    assert last_change(tmp_path / "sheet.png") == {"masks_added": masks}
    assert Image.open(tmp_path / "sheet.png").width > 4 * 48
    assert tree(FOLDER) == tree(delivery)
    write_image(delivery / masks[2], np.full((48, 48), 255, np.uint8))
    assert add(delivery).message == "Data of widget: ~1 masks; 14 good and 8 test images in all"
    assert last_change(tmp_path / "sheet.png") == {"masks_changed": (masks[2],)}
    assert tree(FOLDER) == tree(delivery)
    assert not add(delivery).is_new


def test_masks_may_come_without_their_images_and_an_image_again_without_its_mask(
    delivery: Path, tmp_path: Path
) -> None:
    shutil.copytree(delivery / "ground_truth", tmp_path / "masks" / "ground_truth")
    assert add(tmp_path / "masks").message == "Data of widget: +4 masks; 14 good and 8 test images in all"
    shutil.rmtree(delivery / "ground_truth")
    assert not add(delivery).is_new
    assert len(list((FOLDER / "ground_truth/blob").iterdir())) == 4


@pytest.mark.slow
def test_a_mask_under_another_name_takes_the_place_of_the_old_one(delivery: Path, tmp_path: Path) -> None:
    add(delivery)
    (delivery / "ground_truth/blob/000_mask.png").unlink()
    for number, value in enumerate((255, 128)):
        write_image(delivery / "ground_truth/blob/000" / f"{number}.png", np.full((48, 48), value, np.uint8))
    add(delivery)
    assert last_change(tmp_path / "sheet.png") == {
        "masks_added": ("ground_truth/blob/000/0.png", "ground_truth/blob/000/1.png"),
        "masks_removed": ("ground_truth/blob/000_mask.png",),
    }
    shutil.rmtree(delivery / "ground_truth/blob/000")
    write_image(delivery / "ground_truth/blob/000_mask.png", np.full((48, 48), 255, np.uint8))
    add(delivery)
    assert tree(FOLDER) == tree(delivery)
    assert not (FOLDER / "ground_truth/blob/000").exists()


def test_a_mask_that_does_not_fit_is_refused_by_name(delivery: Path) -> None:
    write_image(delivery / "ground_truth/blob/001_mask.png", np.zeros((8, 9), np.uint8))
    with pytest.raises(UserError, match=r"001_mask\.png is 9×8"):
        add(delivery)
    assert not (FOLDER / "ground_truth").exists()


def test_a_mask_corrected_in_the_folder_itself_is_looked_at_too(delivery: Path) -> None:
    add(delivery)
    write_image(FOLDER / "ground_truth/blob/001_mask.png", np.zeros((8, 9), np.uint8))
    with pytest.raises(UserError, match=r"001_mask\.png is 9×8"):
        commit_folder("widget")
    write_image(FOLDER / "ground_truth/blob/001_mask.png", np.full((48, 48), 255, np.uint8))
    (FOLDER / "train/good/003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"003\.png"):
        commit_folder("widget")


@pytest.mark.slow
def test_a_test_image_offered_as_another_kind_moves_there_with_its_mask(delivery: Path, tmp_path: Path) -> None:
    add(delivery)
    for old, new in (("test/blob/000.png", "test/scratch/000.png"), ("test/blob/001.png", "test/good/001b.png")):
        (delivery / new).parent.mkdir(exist_ok=True)
        (delivery / old).rename(delivery / new)
    shutil.rmtree(delivery / "ground_truth")
    done = add(delivery)
    assert {place.was: place.name for place in done.placements if place.was} == {
        "test/blob/000.png": "test/scratch/000.png",
        "test/blob/001.png": "test/good/001b.png",
    }
    assert last_change(tmp_path / "sheet.png") == {
        "added": ("test/good/001b.png", "test/scratch/000.png"),
        "removed": ("test/blob/000.png", "test/blob/001.png"),
        "masks_added": ("ground_truth/scratch/000_mask.png",),
        "masks_removed": ("ground_truth/blob/000_mask.png", "ground_truth/blob/001_mask.png"),
    }
    assert not add(delivery).is_new


@pytest.mark.slow
def test_a_defect_that_was_learned_as_good_goes_to_the_test_but_no_test_image_is_learned(
    git_project: Project, tmp_path: Path
) -> None:
    commit_folder("widget")
    write_category(tmp_path / "in", seed=7, defects=0, train=2)
    (tmp_path / "in/test/dent").mkdir()
    shutil.copy(FOLDER / "train/good/004.png", tmp_path / "in/test/dent/x.png")
    shutil.copy(FOLDER / "test/blob/002.png", tmp_path / "in/train/good/y.png")
    done = git_project.flawline("data", "add", tmp_path / "in", "--category", "widget")
    assert done.returncode == 0, done.stderr
    assert "moved to another kind: train/good/004.png → test/dent/x.png" in done.stdout
    assert "y.png (offered as good, is test/blob/002.png)" in done.stdout
    assert not (FOLDER / "train/good/004.png").exists()
    assert (FOLDER / "test/blob/002.png").exists()


def test_one_image_as_two_kinds_is_refused(delivery: Path) -> None:
    (delivery / "test/scratch").mkdir()
    shutil.copy(delivery / "test/blob/000.png", delivery / "test/scratch/again.png")
    with pytest.raises(UserError, match=r"test/blob/000\.png and test/scratch/again\.png are the same image"):
        add(delivery)


def test_a_file_changed_by_hand_is_not_replaced_unseen(delivery: Path) -> None:
    add(delivery)
    write_image(FOLDER / "ground_truth/blob/001_mask.png", np.full((48, 48), 7, np.uint8))
    write_image(delivery / "ground_truth/blob/001_mask.png", np.full((48, 48), 255, np.uint8))
    with pytest.raises(UserError, match=r"001_mask\.png would be replaced, but was changed by hand"):
        add(delivery)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["rename", "unlink", "repo.add"])
def test_killed_while_images_move_and_repeated_makes_one_version(
    git_project: Project, delivery: Path, step: str
) -> None:
    add(delivery)
    (delivery / "test/scratch").mkdir()
    (delivery / "test/blob/000.png").rename(delivery / "test/scratch/000.png")
    (delivery / "test/blob/001.png").rename(delivery / "test/good/001b.png")
    shutil.rmtree(delivery / "ground_truth")
    killed = git_project.run("-c", KILLED, step, str(delivery))
    assert killed.returncode == -9, killed.stderr
    assert add(delivery).message == ("Data of widget: +2 -2 test images, +1 -2 masks; 14 good and 8 test images in all")
    assert sorted(path.name for path in (FOLDER / "test/blob").iterdir()) == ["002.png", "003.png"]
    assert sorted(path.name for path in (FOLDER / "ground_truth").rglob("*.png")) == [
        "000_mask.png",
        "002_mask.png",
        "003_mask.png",
    ]


KILLED = """
import os, pathlib, signal, sys
import dvc.repo
from components.data.version import list_offered
from components.images.dataset import list_records
from flows.data.versions import commit_images

step, folder = sys.argv[1:]
def after_second(function):
    calls = []
    def called(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(result)
        if len(calls) == 2 or step == "repo.add": os.kill(os.getpid(), signal.SIGKILL)
        return result
    return called
owner = dvc.repo.Repo if step == "repo.add" else pathlib.Path
name = step.removeprefix("repo.")
setattr(owner, name, after_second(getattr(owner, name)))
there = {record.name: record for record in list_records(pathlib.Path("data/tiny/widget"))}
commit_images("widget", list_offered(pathlib.Path(folder), there))
"""


def edit_in_place(path: Path, content: bytes) -> None:
    """As an editor of the super-user does it: the file stays the same one on disk."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate()
        file.write(content)


@pytest.mark.slow
def test_an_image_that_was_checked_out_can_be_edited_without_harm_to_the_old_version(
    git_project: Project, tmp_path: Path
) -> None:
    commit_folder("widget")
    shutil.rmtree(FOLDER)
    assert git_project.dvc("checkout", "data/tiny/widget.dvc").returncode == 0
    path = FOLDER / "train/good/000.png"
    assert os.access(path, os.W_OK)
    before = path.read_bytes()
    edit_in_place(path, (FOLDER / "test/good/000.png").read_bytes())
    commit_folder("widget")
    assert verify().findings == ()
    git_project.git("checkout", "-q", "HEAD~1")
    assert git_project.dvc("checkout", "data/tiny/widget.dvc").returncode == 0
    assert path.read_bytes() == before


@pytest.fixture
def hard_linked(git_project: Project) -> Project:
    """A project that was made when data were hard links into the cache."""
    config = Path(".dvc/config").read_text()
    with open_project() as repo, repo.config.edit("repo") as values:
        values["cache"]["type"] = ["hardlink"]
    commit_folder("widget")
    assert (FOLDER / "train/good/000.png").stat().st_nlink > 1
    Path(".dvc/config").write_text(config)
    return git_project


@pytest.mark.slow
def test_what_an_edit_of_a_hard_link_took_from_the_old_version_is_said(hard_linked: Project) -> None:
    edit_in_place(FOLDER / "train/good/000.png", (FOLDER / "test/good/000.png").read_bytes()[:-1] + b"x")
    done = hard_linked.flawline("data", "add", FOLDER, "--category", "widget")
    assert done.returncode == 0, done.stderr
    assert "~1 good images" in done.stdout
    assert "lost for the versions of widget before this one" in done.stdout
    assert done.stdout.count("train/good/000.png") == 1
    assert {finding.state for finding in verify().findings} == {"missing"}  # and not taken for whole
    assert max(path.stat().st_nlink for path in FOLDER.rglob("*.png")) == 1


@pytest.mark.slow
def test_what_an_edit_of_a_hard_link_took_is_said_by_an_ingest_too(
    hard_linked: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    hard_linked.set_params({"ingest": {"settle_seconds": 0}})
    edit_in_place(FOLDER / "train/good/000.png", (FOLDER / "test/good/000.png").read_bytes()[:-1] + b"x")
    new_images(INBOX / "widget", 2)
    (summary,) = ingest_here()
    assert (summary["accepted"], summary["lost"]) == (2, ["train/good/000.png"])
    say_summary(summary)
    assert "lost for the versions of widget before this one" in capsys.readouterr().out


def test_what_an_edit_of_a_hard_link_took_comes_back_from_the_remote(hard_linked: Project, tmp_path: Path) -> None:
    with open_project() as repo:
        set_remote(repo, str(tmp_path / "store"))
    push()
    edit_in_place(FOLDER / "train/good/000.png", (FOLDER / "test/good/000.png").read_bytes()[:-1] + b"x")
    done = commit_folder("widget")
    assert done.lost == ()
    assert {finding.store for finding in verify().findings} == {"remote"}  # the new version is not sent yet


@pytest.mark.slow
def test_hard_links_of_an_older_project_become_copies_with_the_next_pull(hard_linked: Project) -> None:
    pull()
    assert max(path.stat().st_nlink for path in FOLDER.rglob("*.png")) == 1
    assert "up to date" in hard_linked.dvc("status", "data/tiny/widget.dvc").stdout


def test_ingested_images_are_no_links_into_the_cache(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    write_category(tmp_path / "in", seed=9, defects=0, train=2)
    commit_images("widget", list_offered(tmp_path / "in/train/good"), link=True)
    assert max(path.stat().st_nlink for path in FOLDER.rglob("*.png")) == 1
    subprocess.run(["rm", "-r", tmp_path / "in"], check=True)
    assert verify().findings == ()
