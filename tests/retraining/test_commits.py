"""A retraining is one git commit, beside whatever the user is doing; killed anywhere, it is made once, whole."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from mlflow.exceptions import MlflowException

from components.foundation.dvc_digests import folder_digest, md5_bytes, md5_file
from components.foundation.errors import UserError
from components.foundation.files import write_json
from components.foundation.params import load_params
from components.foundation.pin import Pin, write_pin
from components.registry import versions as registry
from components.tracking import connection
from flows.data import lock_entries
from flows.data.git import BusyError
from flows.retraining import commits
from flows.retraining.committing import commit_threshold, commit_version, send
from flows.retraining.reproducing import chain_of, reset_of
from tests.project import REPOSITORY, Project

CODE = "components/density"
DATA = "d" * 32 + ".dir"
KILLER = """#!/bin/sh
case " $* " in *" {step} "*) {before}; {git} "$@"; {after}; exit;; esac
exec {git} "$@"
"""


def lock_text(category: str, evaluated: str = "") -> str:
    """A lock as DVC writes it, of a category's first and last stage."""
    files = {path.relative_to(CODE).as_posix(): md5_file(path) for path in Path(CODE).rglob("*.py")}
    metrics = Path("metrics", f"{category}.json")
    stages = {
        f"validate@{category}": {
            "cmd": "infra/stage validate",
            "deps": [
                {"path": CODE, "hash": "md5", "md5": folder_digest(files)},
                {"path": f"data/tiny/{category}", "hash": "md5", "md5": DATA},
            ],
            "params": {"params.yaml": {"threads": 1}},
            "outs": [{"path": f"artifacts/{category}/validation", "hash": "md5", "md5": "a" * 32 + ".dir"}],
        },
        f"evaluate@{category}": {
            "cmd": "infra/stage evaluate",
            "deps": [{"path": f"artifacts/{category}/validation", "hash": "md5", "md5": "a" * 32 + ".dir"}],
            "outs": [
                {"path": f"artifacts/{category}/evaluation", "hash": "md5", "md5": (evaluated or "b" * 32) + ".dir"},
                {"path": metrics.as_posix(), "hash": "md5", "md5": md5_file(metrics)},
            ],
        },
    }
    return yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False)


def write_results(*categories: str, evaluated: str = "") -> None:
    """What the stages leave in the project's folder: dvc.lock and the figures."""
    texts = []
    for category in categories:
        write_json(Path("metrics", f"{category}.json"), {"image_auroc": 0.75, "evaluated": evaluated})
        texts.append(lock_text(category, evaluated).partition("stages:\n")[2])
    Path("dvc.lock").write_text(lock_entries.HEADER + "".join(texts))


@pytest.fixture
def made(git_project: Project) -> Project:
    """A project with its code and data in HEAD, and a first version of "widget" whose results lie in the folder."""
    for category in ("widget", "gadget"):
        Path(f"data/tiny/{category}.dvc").write_text(f"outs:\n- md5: {DATA}\n  path: {category}\n")
    Path("data/tiny/.gitignore").write_text("/widget\n/gadget\n")
    git_project.git("add", "components", "flows", "infra", "prefect.yaml", "data/tiny/*.dvc", "data/tiny/.gitignore")
    git_project.git("commit", "-qm", "Code and data")
    write_results("widget", "gadget")
    register("widget", "1" * 64)
    register("gadget", "2" * 64)
    return git_project


def register(category: str, digest: str) -> int:
    """A version whose capsule is only named."""
    client, _ = connection.connect()
    with suppress(MlflowException):
        client.create_registered_model(f"flawline-{category}")
    tags = {"capsule_digest": digest, "threshold": "1.0", "metric.image_auroc": "0.75"}
    return int(client.create_model_version(f"flawline-{category}", "nowhere", tags=tags).version)


def state(project: Project) -> tuple[str, ...]:
    """What a person sees of the repository."""
    return (
        project.git("rev-parse", "HEAD"),
        project.git("symbolic-ref", "HEAD"),
        project.git("diff", "--cached"),
        project.git("diff"),
        project.git("status", "--porcelain"),
        project.git("stash", "list"),
    )


def changed(project: Project, commit: str) -> dict[str, str]:
    """Path -> how a commit differs from HEAD there."""
    lines = project.git("diff", "--name-status", "HEAD", commit).splitlines()
    return {path: status for status, path in (line.split("\t") for line in lines)}


def test_the_commit_holds_the_categorys_results_and_nothing_else_of_what_is_changed(made: Project) -> None:
    made.set_params({"seed": 7})
    Path("staged.txt").write_text("staged")
    made.git("add", "staged.txt")
    Path("flows/common/keeper.py").write_text("# half an edit\n")
    Path("notes.txt").write_text("not to be committed")
    Path("metrics/gadget.json").write_text("{}")
    before = state(made)
    done = commit_version("widget", 1, load_params())
    assert state(made) == before
    assert done.is_new
    assert done.commit.branch == "flawline/widget/1"
    commit = made.git("rev-parse", "flawline/widget/1")
    assert changed(made, commit) == {"dvc.lock": "A", "metrics/widget.json": "A", "params.yaml": "M"}
    assert made.git("rev-parse", f"{commit}^") == made.git("rev-parse", "HEAD")
    assert made.git("show", f"{commit}:params.yaml") == Path("params.yaml").read_text().rstrip("\n")
    lock = yaml.safe_load(made.git("show", f"{commit}:dvc.lock"))
    assert set(lock["stages"]) == {"validate@widget", "evaluate@widget"}
    version = registry.find_version("widget", 1)
    assert (version.git_commit, version.git_branch) == (commit, "flawline/widget/1")


def test_what_is_changed_besides_is_said_and_what_the_result_depends_on_apart(made: Project) -> None:
    Path("notes.txt").write_text("not to be committed")
    Path("flows/common/keeper.py").write_text("# half an edit\n")
    assert commit_version("gadget", 1, load_params()).remark == ""
    Path(CODE, "kernel.py").write_text("# half an edit\n")
    write_results("widget")
    done = commit_version("widget", 1, load_params())
    assert done.commit[commits.LACKING] == f"{CODE}/kernel.py"
    assert done.commit[commits.DIRTY] == "flows/common/keeper.py, notes.txt"
    assert f"lacks what it depends on ({CODE}/kernel.py)" in done.remark
    assert commits.find_commit("widget", 1) == done.commit
    assert not commit_version("widget", 1, load_params()).is_new
    made.git("commit", "-qam", "The edits")
    again = commit_version("widget", 1, load_params())
    assert (again.is_new, again.remark) == (True, "")
    assert not commit_version("widget", 1, load_params()).is_new
    message = made.git("log", "-1", "--format=%B", done.commit.commit)
    assert message.startswith("widget version 1: image AUROC 0.750\n")
    assert f"Flawline-Not-In-Commit: {CODE}/kernel.py" in message


def test_data_that_were_read_otherwise_than_their_version_are_named(made: Project) -> None:
    Path("data/tiny/widget.dvc").write_text("outs:\n- md5: " + "e" * 32 + ".dir\n  path: widget\n")
    done = commit_version("widget", 1, load_params())
    assert done.commit[commits.LACKING] == "data/tiny/widget"


def test_a_data_version_that_is_not_committed_yet_goes_into_the_commit(made: Project) -> None:
    for path in ("data/tiny/widget.dvc", "data/tiny/gadget.dvc"):
        made.git("rm", "-q", "--cached", path)
    made.git("commit", "-qm", "The data are in no version")
    done = commit_version("widget", 1, load_params())
    assert done.remark == ""
    assert set(changed(made, done.commit.commit)) == {"dvc.lock", "metrics/widget.json", "data/tiny/widget.dvc"}


def test_the_same_version_again_has_its_commit_and_another_evaluation_a_further_one_behind_it(made: Project) -> None:
    first = commit_version("widget", 1, load_params())
    Path("README").write_text("HEAD moves on")
    made.git("add", "README")
    made.git("commit", "-qm", "Something else")
    again = commit_version("widget", 1, load_params())
    assert (again.is_new, again.commit.commit) == (False, first.commit.commit)
    write_results("widget", "gadget", evaluated="c" * 32)
    other = commit_version("widget", 1, load_params())
    assert other.is_new
    parents = made.git("log", "-1", "--format=%P", "flawline/widget/1").split()
    assert parents == [made.git("rev-parse", "HEAD"), first.commit.commit]
    assert registry.find_version("widget", 1).git_commit == other.commit.commit


def test_a_branch_that_is_checked_out_is_not_moved(made: Project) -> None:
    commit_version("widget", 1, load_params())
    made.git("symbolic-ref", "HEAD", "refs/heads/flawline/widget/1")
    before = made.git("rev-parse", "HEAD")
    write_results("widget", "gadget", evaluated="c" * 32)
    with pytest.raises(UserError, match="is checked out, and is not moved under you"):
        commit_version("widget", 1, load_params())
    assert made.git("rev-parse", "HEAD") == before


def test_another_threshold_is_a_commit_behind_that_of_the_version_it_was_set_for(made: Project) -> None:
    base = commit_version("widget", 1, load_params()).commit
    register("widget", "3" * 64)
    version = registry.find_version("widget", 2)
    origin = {"of_version": 1, "of_capsule": "1" * 64, "false_alarm_rate": 0.25, "confidence": 0.95}
    assert [commit_threshold(version, origin).is_new for _ in range(2)] == [True, False]
    assert made.git("rev-parse", "flawline/widget/2^") == base.commit
    assert changed(made, "flawline/widget/2") == changed(made, base.commit)
    reset = reset_of("widget", "2")
    assert reset is not None
    assert (reset.number, reset.digest) == (2, "3" * 64)
    assert reset.origin == {name: value for name, value in origin.items() if name != "of_capsule"}
    assert reset_of("widget", "1") is None
    with pytest.raises(UserError, match="version 1, whose threshold it changes, has none"):
        commit_threshold(registry.find_version("gadget", 1), origin)


@pytest.mark.slow
def test_an_update_leads_to_the_version_that_it_kept(made: Project) -> None:
    commit_version("widget", 1, load_params())
    register("widget", "3" * 64)
    write_pin("widget", Pin(1, "1" * 64))
    write_results("widget", "gadget", evaluated="c" * 32)
    done = commit_version("widget", 2, load_params())
    assert "bases/widget.json" in changed(made, done.commit.commit)
    assert chain_of("widget", "2") == ["1", "2"]
    assert chain_of("widget", "1") == ["1"]
    made.git("branch", "-qD", "flawline/widget/1")
    assert chain_of("widget", "2") == ["2"]


def test_another_category_is_as_its_own_commit_has_it_or_else_as_in_head(made: Project) -> None:
    def stages(category: str) -> set[str]:
        lock = yaml.safe_load(made.git("show", f"flawline/{category}/1:dvc.lock"))
        return {name.partition("@")[2] for name in lock["stages"]}

    commit_version("widget", 1, load_params())
    assert stages("widget") == {"widget"}  # of "gadget" nothing is committed yet
    done = commit_version("gadget", 1, load_params())
    assert stages("gadget") == {"gadget", "widget"}
    assert set(changed(made, done.commit.commit)) == {"dvc.lock", "metrics/gadget.json", "metrics/widget.json"}
    write_results("widget", "gadget", evaluated="c" * 32)  # "widget" is just being made anew
    commit_version("gadget", 1, load_params())
    assert stages("gadget") == {"gadget"}


def test_other_parameters_than_those_of_the_results_are_refused(made: Project) -> None:
    made.set_params({"threads": 2})
    with pytest.raises(UserError, match=r"params\.yaml says something else now \(threads\)"):
        commit_version("widget", 1, load_params())


def test_the_branch_of_another_registrys_version_stays_what_it_is(made: Project, mlflow_database: Path) -> None:
    first = commit_version("widget", 1, load_params())
    shutil.copy(mlflow_database, ".flawline/mlflow/mlflow.db")
    register("widget", "3" * 64)
    other = commit_version("widget", 1, load_params())
    assert made.git("rev-parse", "flawline/widget/1") == first.commit.commit
    assert other.commit.branch == "flawline/widget/1-33333333"
    assert made.git("rev-parse", other.commit.branch) == other.commit.commit


def test_without_a_commit_to_build_on_one_sentence_says_so(made: Project) -> None:
    made.git("update-ref", "-d", "HEAD")
    with pytest.raises(UserError, match="there is no commit yet to build on"):
        commit_version("widget", 1, load_params())
    shutil.rmtree(".git")
    with pytest.raises(UserError, match="in no git repository"):
        commit_version("widget", 1, load_params())


def test_where_git_does_not_know_the_user_flawline_commits(made: Project) -> None:
    for key in ("user.name", "user.email"):
        made.git("config", "--unset", key)
    made.git("config", "user.useConfigOnly", "true")
    done = commit_version("widget", 1, load_params())
    assert made.git("log", "-1", "--format=%an <%ae>", done.commit.commit) == "Flawline <flawline@localhost>"


def _commit(category: str) -> None:
    commit_version(category, 1, load_params())


@pytest.mark.slow
def test_two_categories_at_once_get_one_commit_each(made: Project) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_commit, args=(name,)) for name in ("widget", "gadget")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    head = made.git("rev-parse", "HEAD")
    for category in ("widget", "gadget"):
        assert made.git("log", "-1", "--format=%P", f"flawline/{category}/1") == head
        assert registry.find_version(category, 1).git_branch == f"flawline/{category}/1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("update-index", "kill -9 $PPID", ":"),
        ("commit-tree", ":", "kill -9 $PPID"),
        ("update-ref", "kill -9 $PPID", "exit"),
        ("update-ref", ":", "kill -9 $PPID"),
    ],
)
def test_killed_at_any_step_the_next_try_makes_one_commit(
    made: Project, tmp_path: Path, step: str, before: str, after: str
) -> None:
    seen = state(made)
    real = shutil.which("git")
    killer = tmp_path / "bin" / "git"
    killer.parent.mkdir()
    killer.write_text(KILLER.format(step=step, before=before, after=after, git=real))
    killer.chmod(0o755)
    script = "from tests.retraining.test_commits import _commit\n_commit('widget')"
    search = f"{killer.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": search, "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert registry.find_version("widget", 1).git_commit == ""
    commit_version("widget", 1, load_params())
    commit = made.git("rev-parse", "flawline/widget/1")
    assert made.git("for-each-ref", "--format=%(objectname)", "refs/heads/flawline") == commit
    assert made.git("rev-list", "--count", f"HEAD..{commit}") == "1"
    assert registry.find_version("widget", 1).git_commit == commit
    assert state(made) == seen
    assert list(Path(".git").glob("flawline-index-*")) == []


def test_the_commit_is_sent_to_the_git_remote_where_the_data_are_in_a_version(made: Project, tmp_path: Path) -> None:
    done = commit_version("widget", 1, load_params())
    assert send("widget", done, load_params()) == ""  # there is no remote
    remote = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", remote], check=True)
    made.git("remote", "add", "origin", str(remote))
    assert send("widget", done, load_params()) == "sent to origin"
    assert made.git("ls-remote", "origin").split() == [done.commit.commit, "refs/heads/flawline/widget/1"]
    assert send("widget", done, load_params()) == ""
    Path("data/tiny/gadget.dvc").unlink()
    assert send("gadget", commit_version("gadget", 1, load_params()), load_params()) == ""
    shutil.rmtree(remote)
    write_results("widget", "gadget", evaluated="c" * 32)
    with pytest.raises(UserError, match="git push failed"):
        send("widget", commit_version("widget", 1, load_params()), load_params())


def test_a_lock_that_git_left_is_named(made: Project) -> None:
    lock = Path(".git/refs/heads/flawline/widget/1.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    with pytest.raises(BusyError, match=r"flawline/widget/1\.lock"):
        commit_version("widget", 1, load_params())


def test_an_entry_of_a_lock_is_taken_over_as_it_is_written() -> None:
    text = lock_entries.HEADER + (
        "  train@a:\n    outs:\n    - path: x\n      md5: '12e4567'\n"
        "  train@b-c:\n    cmd: two\n      words\n  'train@0x1':\n    cmd: y\n"
    )
    entries = lock_entries.read_entries(text.encode())
    assert set(entries) == {"train@a", "train@b-c", "train@0x1"}
    assert lock_entries.as_text(entries) == text
    assert lock_entries.outputs(lock_entries.parse_entries(entries)) == {"x": "12e4567"}
    assert set(lock_entries.of_category(entries, "b-c")) == {"train@b-c"}
    assert lock_entries.read_entries(None) == {}
    with pytest.raises(UserError, match="cannot be read"):
        lock_entries.read_entries(text.replace("  train@b-c", "<<<<<<< HEAD\n  train@b-c").encode())


def test_the_digest_of_a_folder_is_dvcs(tmp_path: Path) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    files = {name: md5_bytes(name.encode()) for name in ("a/b.png", "a-c.png", "Ä.png", "a/b/c.png", "z")}
    tree = Tree()
    for name, md5 in files.items():
        tree.add(tuple(name.split("/")), None, HashInfo("md5", md5))
    tree.digest()
    assert folder_digest(files) == tree.hash_info.value
    assert folder_digest({"b": "2", "a": "1"}) == folder_digest({"a": "1", "b": "2"}) != folder_digest({"a": "1"})
