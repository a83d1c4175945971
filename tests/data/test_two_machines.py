"""Own data and its models on another machine: sent by one command, there after `git clone` and `dvc pull`."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.data.dvc_project import open_project
from flows.data.stores import set_remote
from flows.data.transfer import pull, push
from flows.data.versions import commit_folder
from tests.project import CATEGORIES, Project

UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture
def sent(ran: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project after a run, its data under DVC, all committed to git and sent to a folder as the remote."""
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "DVC_SITE_CACHE_DIR": str(tmp_path / "a")}
    project = Project(ran.copy(tmp_path / "here").folder, {**ran.environment, **own})
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project.folder)
    for key, value in {"user.name": "Tester", "user.email": "tester@localhost"}.items():
        project.git("config", key, value)
    with open_project() as repo:
        set_remote(repo, str(tmp_path / "store"))
    for category in CATEGORIES:
        commit_folder(category)
    project.git("add", ".")
    project.git("commit", "-qm", "Code, models and figures")
    assert push().left_out == ()
    return project


def other_machine(project: Project, folder: Path) -> Project:
    """A clone with a cache of its own."""
    subprocess.run(["git", "clone", "-q", project.folder, folder], check=True)
    return Project(folder, {**project.environment, "DVC_SITE_CACHE_DIR": str(folder.parent / "b")})


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_clone_pulls_data_and_models_and_has_nothing_to_do(sent: Project, tmp_path: Path) -> None:
    there = other_machine(sent, tmp_path / "there")
    for command in (["pull"], ["checkout"]):
        done = there.dvc(*command)
        assert done.returncode == 0, done.stderr
    assert there.dvc("status").stdout.strip() == UP_TO_DATE
    assert UP_TO_DATE in there.dvc("repro").stdout
    assert there.git("status", "--porcelain") == ""
    for name in ("data/tiny", "artifacts/widget/capsule", "artifacts/gadget/evaluation"):
        assert files(there.folder / name) == files(sent.folder / name)


@pytest.mark.slow
def test_what_the_remote_does_not_have_of_the_models_is_named_and_the_rest_is_there(
    sent: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = yaml.safe_load((sent.folder / "dvc.lock").read_text())
    (capsule,) = lock["stages"]["fit@gadget"]["outs"]
    (tmp_path / "store" / "files" / "md5" / capsule["md5"][:2] / capsule["md5"][2:]).unlink()
    there = other_machine(sent, tmp_path / "there")
    monkeypatch.chdir(there.folder)
    done = pull()
    assert done.left_out == ("fit@gadget",)
    assert done.objects > 0
    for name in ("data/tiny", "artifacts/widget", "artifacts/gadget/encoder"):
        wanted = {file: data for file, data in files(sent.folder / name).items() if "report/" not in file}
        assert files(there.folder / name) == wanted
