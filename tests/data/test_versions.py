"""Versions of the data in a real project with real git and DVC: adding, refusing, repeating after a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.data.version import good_images, list_offered
from components.foundation.errors import UserError
from flows.data.git import BusyError
from flows.data.versions import Committed, commit_folder, commit_images
from tests.project import Project, new_images, write_category

FOLDER = Path("data/tiny/widget")


def add(paths: list[Path], category: str = "widget") -> Committed:
    return commit_images(category, good_images(paths))


def subject(project: Project) -> str:
    return project.git("log", "-1", "--format=%s")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_folder_becomes_a_version_and_new_images_the_next(git_project: Project, tmp_path: Path) -> None:
    first = commit_folder("widget")
    assert first.is_new
    assert (
        subject(git_project)
        == "Data of widget: +14 good images, +8 test images, +4 masks; 14 good and 8 test images in all"
    )
    second = add(new_images(tmp_path / "in", 3))
    assert subject(git_project) == second.message == "Data of widget: +3 good images; 17 good and 8 test images in all"
    assert git_project.git("rev-parse", "HEAD") == second.commit
    assert second.difference.added == tuple(f"train/good/new-{number}.png" for number in range(3))
    assert second.counts == {"train/good": 17, "test/good": 4, "test/blob": 4}
    assert git_project.git("ls-files", "data").split() == ["data/tiny/.gitignore", "data/tiny/widget.dvc"]
    assert git_project.git("status", "--porcelain", "--", "data/tiny/widget.dvc", "data/tiny/.gitignore") == ""
    assert "up to date" in git_project.dvc("status", "data/tiny/widget.dvc").stdout


@pytest.mark.slow
def test_the_same_images_again_make_no_version(git_project: Project, tmp_path: Path) -> None:
    images = new_images(tmp_path / "in", 2)
    commit_folder("widget")
    done, again = add(images), add(images)
    assert (done.is_new, again.is_new) == (True, False)
    assert (again.commit, again.digest, again.message) == (done.commit, done.digest, done.message)
    assert [place.is_new for place in again.placements] == [False, False]


def test_a_copy_of_a_test_image_is_not_learned(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    copy = tmp_path / "in" / "copy.png"
    copy.parent.mkdir()
    copy.write_bytes((FOLDER / "test/good/001.png").read_bytes())
    done = add([copy, *new_images(tmp_path / "in", 1)])
    assert [(place.name, place.is_new) for place in done.placements] == [
        ("test/good/001.png", False),
        ("train/good/new-0.png", True),
    ]
    assert done.counts["train/good"] == 15


def test_a_new_category_with_masks_is_entered_into_the_parameters(git_project: Project, tmp_path: Path) -> None:
    write_category(tmp_path / "bolts", seed=3, defects=2, train=11)
    done = commit_images("bolt", list_offered(tmp_path / "bolts"), note="From line 2.")
    assert tree(Path("data/tiny/bolt")) == tree(tmp_path / "bolts")
    assert yaml.safe_load(Path("params.yaml").read_text())["data"]["categories"] == ["widget", "gadget", "bolt"]
    assert git_project.git("log", "-1", "--format=%b") == "From line 2."
    changed = git_project.git("show", "--format=", "--name-only", done.commit).split()
    assert changed == ["data/tiny/.gitignore", "data/tiny/bolt.dvc", "params.yaml"]


def test_only_its_own_files_are_committed(git_project: Project, tmp_path: Path) -> None:
    Path("notes.txt").write_text("staged by someone")
    git_project.git("add", "notes.txt")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "# changed by hand\n")
    done = commit_images("bolt", good_images(new_images(tmp_path / "in", 2)))
    changed = git_project.git("show", "--format=", "--name-only", done.commit).split()
    assert changed == ["data/tiny/.gitignore", "data/tiny/bolt.dvc", "params.yaml"]
    assert "changed by hand" not in git_project.git("show", "HEAD:params.yaml")
    assert git_project.git("status", "--porcelain", "notes.txt", "params.yaml") == "A  notes.txt\n M params.yaml"


@pytest.mark.slow
def test_another_root_becomes_that_of_the_project(git_project: Project, tmp_path: Path) -> None:
    commit_images("bolt", good_images(new_images(tmp_path / "in", 2)), root="data/line1")
    data = yaml.safe_load(Path("params.yaml").read_text())["data"]
    assert data == {"root": "data/line1", "categories": ["bolt"]}
    assert len(list(Path("data/line1/bolt/train/good").iterdir())) == 2


def test_a_broken_image_is_named_and_nothing_is_copied(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    before, head = tree(FOLDER), git_project.git("rev-parse", "HEAD")
    images = new_images(tmp_path / "in", 3)
    images[1].write_bytes(images[1].read_bytes()[:3000])
    with pytest.raises(UserError, match=r"new-1\.png cannot be decoded"):
        add(images)
    assert (tree(FOLDER), git_project.git("rev-parse", "HEAD")) == (before, head)


def test_a_folder_that_a_stage_makes_is_refused(git_project: Project, tmp_path: Path) -> None:
    Path("data/dvc.yaml").write_text("stages:\n  make:\n    wdir: ..\n    cmd: echo\n    outs: [data/made]\n")
    with pytest.raises(UserError, match=r"data/made/bolt is made by the stage data/dvc\.yaml:make"):
        commit_images("bolt", good_images(new_images(tmp_path / "in", 1)), root="data/made")
    assert not Path("data/made").exists()


def test_the_folder_of_the_demo_is_refused(git_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data/demo/bolt belongs to the demo.* --data"):
        commit_images("bolt", good_images(new_images(tmp_path / "in", 1)), root="data/demo")
    assert not Path("data/demo").exists()


def test_a_folder_that_git_tracks_is_refused(git_project: Project, tmp_path: Path) -> None:
    git_project.git("add", "data/tiny/widget")
    with pytest.raises(UserError, match="git rm -r --cached data/tiny/widget"):
        add(new_images(tmp_path / "in", 1))


def test_a_folder_outside_of_the_project_is_refused(git_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside of the project"):
        commit_images("bolt", good_images(new_images(tmp_path / "in", 1)), root="../elsewhere")


def test_without_an_identity_git_is_not_even_asked_to_commit(git_project: Project, tmp_path: Path) -> None:
    git_project.git("config", "--unset", "user.name")
    git_project.git("config", "--unset", "user.email")
    git_project.git("config", "user.useConfigOnly", "true")
    with pytest.raises(UserError, match=r"git config user\.name"):
        add(new_images(tmp_path / "in", 1))
    assert not (FOLDER / "train/good/new-0.png").exists()


def test_off_a_branch_nothing_is_committed(git_project: Project, tmp_path: Path) -> None:
    git_project.git("checkout", "-q", "--detach")
    with pytest.raises(UserError, match="git switch"):
        add(new_images(tmp_path / "in", 1))


def test_a_held_lock_of_git_is_said_and_later_it_works(git_project: Project, tmp_path: Path) -> None:
    images = new_images(tmp_path / "in", 1)
    commit_folder("widget")
    lock = Path(".git/index.lock")
    lock.touch()
    with pytest.raises(BusyError, match=r"index\.lock"):
        add(images)
    lock.unlink()
    assert add(images).is_new


@pytest.mark.slow
def test_a_stage_that_reads_the_folder_is_left_alone(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    holder = "\n".join(
        [
            "import sys; from dvc.repo import Repo; from dvc.rwlock import rwlock; repo = Repo()",
            f"with rwlock(repo.tmp_dir, repo.fs, 'dvc repro', [{os.fspath(FOLDER.resolve())!r}], [], False):",
            "    print('held', flush=True); sys.stdin.read()",
        ]
    )
    environment = dict(git_project.environment)
    with subprocess.Popen(
        [sys.executable, "-c", holder], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match="is busy"):
            add(new_images(tmp_path / "in", 1))
        process.communicate()
    assert not (FOLDER / "train/good/new-0.png").exists()
    assert add(new_images(tmp_path / "in", 1)).is_new


def test_images_that_are_not_fetched_are_not_dropped_from_the_version(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    (FOLDER / "train/good/000.png").unlink()
    with pytest.raises(UserError, match=r"1 files .* such as train/good/000\.png"):
        add(new_images(tmp_path / "in", 1))
    assert commit_folder("widget").message == "Data of widget: -1 good images; 13 good and 8 test images in all"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["move_in", "repo.add", "git add", "git commit"])
def test_killed_anywhere_and_repeated_makes_one_whole_version(git_project: Project, tmp_path: Path, step: str) -> None:
    commit_folder("widget")
    images = new_images(tmp_path / "in", 4)
    killed = git_project.run("-c", KILLED, step, *map(str, images))
    assert killed.returncode == -9, killed.stderr
    assert git_project.git("rev-list", "--count", "HEAD") == "2"
    (Path(".git") / "index.lock").unlink(missing_ok=True)
    done = add(images)
    assert git_project.git("rev-list", "--count", "HEAD") == "3"
    assert (done.is_new, done.message) == (True, "Data of widget: +4 good images; 18 good and 8 test images in all")
    assert all(place.is_new for place in done.placements)
    assert not list(Path("data").rglob("*.part"))
    assert "up to date" in git_project.dvc("status", "data/tiny/widget.dvc").stdout


KILLED = """
import os, pathlib, signal, sys
from components.data import version as data_version
from flows.data import git
from flows.data import versions
import dvc.repo

step, *images = sys.argv[1:]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
rename, run, add = pathlib.Path.rename, git.git, dvc.repo.Repo.add
moved = []
def second_rename(path, target):
    if moved: die()
    moved.append(path)
    return rename(path, target)
match step:
    case "move_in": pathlib.Path.rename = second_rename
    case "repo.add": dvc.repo.Repo.add = lambda *a, **k: (add(*a, **k), die())
    case "git add": git.git = lambda *a: (run(*a), die()) if a[0] == "add" else run(*a)
    case "git commit": git.git = lambda *a: die() if a[0] == "commit" else run(*a)
versions.commit_images("widget", data_version.good_images(map(pathlib.Path, images)))
"""
