"""The user's git is the user's: its settings, its hooks, its refusals; what we read and write stays the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.data.version import good_images
from components.foundation.errors import UserError
from flows.data import git
from flows.data.history import diff_versions, list_versions
from flows.data.transfer import pull
from flows.data.versions import commit_folder, commit_images
from tests.project import Project, new_images, write_category

HOSTILE = {
    "color.ui": "always",
    "commit.cleanup": "strip",
    "commit.gpgSign": "true",
    "commit.verbose": "true",
    "core.autocrlf": "true",
    "core.pager": "false",
    "core.quotePath": "true",
    "core.safecrlf": "true",
    "diff.external": "false",
    "diff.noprefix": "true",
    "diff.relative": "true",
    "diff.renames": "copies",
    "format.pretty": "oneline",
    "i18n.commitEncoding": "latin1",
    "i18n.logOutputEncoding": "latin1",
    "log.date": "relative",
    "log.decorate": "full",
    "log.follow": "true",
    "log.showRoot": "false",
    "log.showSignature": "true",
    "status.showUntrackedFiles": "no",
}
SIGNER = """#!/bin/sh
cat >/dev/null
echo "[GNUPG:] SIG_CREATED D" >&2
echo "gpg: a word on the signature" >&2
printf -- '-----BEGIN PGP SIGNATURE-----\\n\\nnone\\n-----END PGP SIGNATURE-----\\n'
"""


@pytest.fixture
def hostile(git_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project of a user whose settings change all that git prints, and who signs each commit."""
    signer = tmp_path / "signer"
    signer.write_text(SIGNER)
    signer.chmod(0o755)
    settings = tmp_path / "gitconfig"
    for name, value in {**HOSTILE, "gpg.program": str(signer)}.items():
        subprocess.run(["git", "config", "--file", settings, name, value], check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    return Project(git_project.folder, {**git_project.environment, "GIT_CONFIG_GLOBAL": str(settings)})


@pytest.mark.slow
def test_versions_are_the_same_whatever_the_users_git_prints(
    hostile: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit_images("bolt", good_images(new_images(tmp_path / "in", 3)), root="data/Größe")
    note = "Vom Nachtschicht-Prüfstand.\n\n# 2 € je Stück"
    second = commit_images("bolt", good_images(new_images(tmp_path / "more", 2, seed=8)), note=note)
    assert [(one.commit, one.message) for one in list_versions()] == [
        (second.commit, "Data of bolt: +2 good images; 5 good images in all"),
        (first.commit, "Data of bolt: +3 good images; 3 good images in all"),
    ]
    ((_, difference, _),) = diff_versions("HEAD~1", "HEAD", "bolt", tmp_path / "sheet.png")
    assert len(difference.added) == 2
    assert not commit_folder("bolt").is_new
    assert hostile.git("status", "--porcelain", "--", "data", "params.yaml") == ""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    shown = Project(hostile.folder, {**hostile.environment, "GIT_CONFIG_GLOBAL": os.devnull})
    assert shown.git("log", "-1", "--format=%b") == note
    assert "gpgsig" in shown.git("cat-file", "commit", "HEAD")  # the user's own setting holds


def test_what_lies_in_the_stash_is_no_version(git_project: Project, tmp_path: Path) -> None:
    done = commit_folder("widget")
    Path("data/tiny/widget.dvc").write_text(Path("data/tiny/widget.dvc").read_text().replace("size: ", "size: 1"))
    git_project.git("stash")
    assert [one.commit for one in list_versions()] == [done.commit]


def test_in_a_hook_of_another_repository_the_project_is_still_its_own(
    git_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", other], check=True)
    for name, value in {"GIT_DIR": other / ".git", "GIT_INDEX_FILE": other / "index", "GIT_PREFIX": "x/"}.items():
        monkeypatch.setenv(name, str(value))
    done = commit_images("widget", good_images(new_images(tmp_path / "in", 1)))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"):
        monkeypatch.delenv(name)
    assert git_project.git("rev-parse", "HEAD") == done.commit
    assert not (other / "index").exists()


def test_a_work_tree_beside_the_first_has_versions_of_its_own(
    git_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git_project.git("worktree", "add", "-q", "-b", "trial", str(tmp_path / "tree"))
    monkeypatch.chdir(tmp_path / "tree")
    done = commit_images("bolt", good_images(new_images(tmp_path / "in", 1)))
    assert git_project.git("rev-parse", "trial") == done.commit
    assert [one.is_current for one in list_versions()] == [True]


def test_a_project_as_a_submodule_on_a_branch_keeps_versions(
    git_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = tmp_path / "plant"
    subprocess.run(["git", "init", "-q", plant], check=True)
    source = str(git_project.folder)
    add = ["git", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", source, "line"]
    subprocess.run(add, cwd=plant, check=True)
    monkeypatch.chdir(plant / "line")
    for name in ("user.name", "user.email"):
        subprocess.run(["git", "config", name, "tester@localhost"], check=True)
    done = commit_images("bolt", good_images(new_images(tmp_path / "in", 1)))
    assert subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip() == done.commit


def test_a_repository_of_another_user_is_refused_in_gits_own_words(
    git_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = good_images(new_images(tmp_path / "in", 1))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    remedy = f"git config --global --add safe.directory {git_project.folder}"
    for act in (lambda: commit_images("widget", images), list_versions, pull):
        with pytest.raises(UserError, match=remedy):
            act()
    assert not Path("data/tiny/widget/train/good/new-0.png").exists()


def test_a_folder_without_git_and_a_machine_without_it_are_told_apart(
    git_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = good_images(new_images(tmp_path / "in", 1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no program `git`"):
        commit_images("widget", images)
    monkeypatch.undo()
    monkeypatch.chdir(git_project.folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    Path(".git").rename(tmp_path / "away")
    with pytest.raises(UserError, match="git init"):
        commit_images("widget", images)


def test_a_merge_that_is_not_finished_is_said_before_anything_is_copied(git_project: Project, tmp_path: Path) -> None:
    head = git_project.git("rev-parse", "HEAD")
    Path(".git/MERGE_HEAD").write_text(head)
    with pytest.raises(UserError, match="merge is not finished"):
        commit_images("widget", good_images(new_images(tmp_path / "in", 1)))
    assert not Path("data/tiny/widget/train/good/new-0.png").exists()


def committed_params(project: Project) -> str:
    return project.git("show", "HEAD:params.yaml")


def test_a_new_category_is_in_its_commit_without_other_changes_of_the_file(
    git_project: Project, tmp_path: Path
) -> None:
    git_project.set_params({"seed": 1})
    git_project.git("add", "params.yaml")  # staged by the user for a commit of his own
    git_project.set_params({"seed": 2})
    done = commit_images("bolt", good_images(new_images(tmp_path / "in", 2)))
    changed = git_project.git("show", "--format=", "--name-only", done.commit).split()
    assert changed == ["data/tiny/.gitignore", "data/tiny/bolt.dvc", "params.yaml"]
    stages = {"HEAD": 0, "": 1}
    for revision, seed in stages.items():
        content = yaml.safe_load(git_project.git("show", f"{revision}:params.yaml"))
        assert (content["data"]["categories"], content.get("seed", 0)) == (["widget", "gadget", "bolt"], seed)
    on_disk = yaml.safe_load(Path("params.yaml").read_text())
    assert (on_disk["data"]["categories"], on_disk["seed"]) == (["widget", "gadget", "bolt"], 2)
    assert git_project.git("status", "--porcelain", "params.yaml") == "MM params.yaml"
    assert not list(Path(".git").glob("flawline-index*"))


@pytest.mark.slow
def test_two_new_categories_at_once_are_both_entered(git_project: Project, tmp_path: Path) -> None:
    for seed, name in enumerate(("left", "right")):
        write_category(tmp_path / name, seed=seed, defects=0, train=30)
    children = [
        subprocess.Popen([sys.executable, "-c", ADD, name, tmp_path / name], env=dict(git_project.environment))
        for name in ("left", "right")
    ]
    assert [child.wait() for child in children] == [0, 0]
    categories = yaml.safe_load(Path("params.yaml").read_text())["data"]["categories"]
    assert sorted(categories) == ["gadget", "left", "right", "widget"]
    assert yaml.safe_load(committed_params(git_project))["data"]["categories"] == categories


ADD = """
import sys, time
from pathlib import Path
from components.data.version import list_offered
from flows.data.git import BusyError
from flows.data.versions import commit_images

while True:
    try:
        commit_images(sys.argv[1], list_offered(Path(sys.argv[2])), root="data/tiny")
        break
    except BusyError:
        time.sleep(0.2)
"""


@pytest.mark.slow
def test_edits_of_the_parameters_at_once_are_all_there(git_project: Project) -> None:
    edit = "import sys; from flows.data.settings import edit_params; edit_params(settings=[sys.argv[1]])"
    settings = ("seed=7", "threads=2", "method=pretrained", "training.steps=9")
    children = [
        subprocess.Popen([sys.executable, "-c", edit, setting], env=dict(git_project.environment))
        for setting in settings
    ]
    assert [child.wait() for child in children] == [0] * 4
    content = yaml.safe_load(Path("params.yaml").read_text())
    assert (content["seed"], content["threads"], content["method"]) == (7, 2, "pretrained")
    assert content["training"]["steps"] == 9


def test_a_commit_beside_the_users_work_is_the_same_whatever_the_users_git_prints(hostile: Project) -> None:
    Path("metrics").mkdir()
    Path("metrics/Größe.json").write_text("changed, and known to nobody")
    head, content, message = git.head_commit(), b"{}\r\n", "Maße: 2 €\n\nFlawline-Category: bolt\n"
    commit = git.commit_aside("flawline/bolt/1", {"metrics/Größe.json": content}, message, [head])
    assert git.list_refs("refs/heads/flawline/*/*") == [("refs/heads/flawline/bolt/1", commit, message)]
    assert git.read_at(commit, "metrics/Größe.json") == content
    assert git.list_files(commit, "metrics") == ["metrics/Größe.json"]
    assert git.read_many(commit, ["metrics", "none", "metrics/Größe.json"]) == {"metrics/Größe.json": content}
    assert "metrics/" in git.changed_files()
    git.clone_at(commit, Path(".flawline/scratch/bolt"))
    assert Path(".flawline/scratch/bolt/metrics/Größe.json").read_bytes() == content
    assert Path(".flawline/scratch/bolt/params.yaml").read_bytes() == git.read_at(head, "params.yaml")
    assert git.head_commit() == head
