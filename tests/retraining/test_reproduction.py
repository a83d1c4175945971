"""Making a version again from its commit: what differs is said, and why. Whole reproductions are in test_update.py."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.foundation.dvc_digests import folder_digest, md5_bytes
from components.foundation.errors import UserError
from components.foundation.processor import processor
from flows.commands.reproduction import read_moment, read_version
from flows.data.versions import commit_folder
from flows.retraining import commits
from flows.retraining.commits import Commit
from flows.retraining.reproducing import compare_files, find_recorded, reasons_for
from flows.retraining.scratch import Scratch, bring_data, scratch_clone
from tests.project import Project

UP_TO_DATE = "Data and pipelines are up to date."


def project_with_remotes(project: Project, folder: Path) -> Project:
    """A copy of one category, whose code is committed and sent, with a git remote and a DVC remote."""
    fresh = project.copy(folder / "here")
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "DVC_SITE_CACHE_DIR": str(folder / "a")}
    project = Project(fresh.folder, {**fresh.environment, **own})
    project.set_params({"data": {"categories": ["widget"]}})
    shutil.move(project.folder / "data/tiny/widget", folder / "images")
    shutil.rmtree(project.folder / "data/tiny")
    for key, value in {"user.name": "Tester", "user.email": "tester@localhost"}.items():
        project.git("config", key, value)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", folder / "remote.git"], check=True)
    project.git("checkout", "-qb", "main")
    project.git("remote", "add", "origin", str(folder / "remote.git"))
    said(project.flawline("data", "remote", folder / "store"))
    project.git("add", ".")
    project.git("commit", "-qm", "Code")
    return project


def said(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def recorded(outputs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {"train@widget": {"outs": [{"path": path, "md5": md5} for path, md5 in outputs.items()]}}


def test_the_files_that_differ_are_named_also_those_that_are_lacking_or_there_besides(git_project: Project) -> None:
    scratch = Scratch(git_project.folder / "scratch", git_project.folder / "scratch")
    contents = {"same": b"1", "other": b"2", "besides": b"3"}
    for name, content in contents.items():
        path = scratch.project / "artifacts/widget/encoder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (scratch.project / "widget.json").write_bytes(b"{}")
    before = {"same": md5_bytes(b"1"), "other": md5_bytes(b"4"), "gone": md5_bytes(b"5")}
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(before.items())]
    digest = folder_digest(before)
    kept = Path(".dvc/cache/files/md5", digest[:2], digest[2:])
    kept.parent.mkdir(parents=True)
    kept.write_bytes(json.dumps(listing, sort_keys=True).encode())
    then = recorded({"artifacts/widget/encoder": digest, "widget.json": md5_bytes(b"{}")})
    now = folder_digest({name: md5_bytes(content) for name, content in contents.items()})
    found = compare_files(scratch, then, recorded({"artifacts/widget/encoder": now, "widget.json": md5_bytes(b"{}")}))
    assert found == (4, tuple(f"artifacts/widget/encoder/{name}" for name in ("besides", "gone", "other")))
    assert compare_files(scratch, then, then) == (4, ())


def test_the_reasons_are_other_inputs_other_parameters_and_another_processor() -> None:
    def stages(code: str, seed: int) -> dict[str, dict[str, Any]]:
        made = [{"path": "artifacts/widget/prepared", "md5": f"made from {code}"}]
        return {
            "synthesize@widget": {"deps": [{"path": "components/images", "md5": code}], "outs": made},
            "train@widget": {"deps": made, "params": {"params.yaml": {"seed": seed}}},
        }

    facts = {commits.PROCESSOR: "Abacus 1", commits.LACKING: "components/images/decode.py"}
    assert reasons_for(Commit("flawline/widget/1", "0" * 40, facts), stages("a", 0), stages("b", 1)) == (
        "components/images is another",
        "other parameters: seed",
        f"another processor: Abacus 1 then, {processor()} here",
        "when it was made these were not committed: components/images/decode.py",
    )
    same = Commit("flawline/widget/1", "0" * 40, {commits.PROCESSOR: processor()})
    assert reasons_for(same, stages("a", 0), stages("a", 0)) == ()


def test_a_version_without_a_commit_is_one_sentence(git_project: Project) -> None:
    with pytest.raises(UserError, match="widget has no version 3"):
        find_recorded("widget", "3")


def test_what_a_user_types_is_read_or_refused_in_one_sentence() -> None:
    assert read_version("bottle@7") == ("bottle", "7")
    assert read_version("bottle@champion") == ("bottle", "champion")
    for text in ("bottle", "@7", "bottle@", "bo ttle@7"):
        with pytest.raises(UserError):
            read_version(text)
    assert read_moment("2026-03-02 14:05+01:00").astimezone(UTC) == datetime(2026, 3, 2, 13, 5, tzinfo=UTC)
    assert read_moment("2026-03-02 14:05") == datetime(2026, 3, 2, 14, 5).astimezone()
    for text in ("yesterday", "2026-13-01", ""):
        with pytest.raises(UserError, match="is no time"):
            read_moment(text)


def test_a_processor_is_named_with_what_its_sums_depend_on(tmp_path: Path) -> None:
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("model name\t: Abacus  9000\nflags\t\t: fpu avx2 avx512f\nmodel name\t: Abacus 1\n")
    card = tmp_path / "gpus" / "0" / "information"
    card.parent.mkdir(parents=True)
    card.write_text("Model: \t NVIDIA L4\n")
    assert processor(cpu, tmp_path / "gpus") == "Abacus 9000 (avx2 avx512f), NVIDIA L4"
    assert processor(tmp_path / "none", tmp_path / "none")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_scratch_clone_gets_the_images_of_its_commit_or_says_what_is_nowhere(git_project: Project) -> None:
    folder = Path("data/tiny/widget")
    first = commit_folder("widget")
    images = files_in(folder)
    (folder / "train/good/000.png").unlink()
    second = commit_folder("widget")
    seen = git_project.git("status", "--porcelain")
    with scratch_clone("widget-1", first.commit, keep=False) as scratch:
        bring_data(scratch, "widget", [folder.as_posix(), f"{folder}/train", "components/density"])
        assert files_in(scratch.project / folder) == images
        assert not (scratch.project / "data/tiny/gadget").exists()
    assert not scratch.folder.exists()
    assert git_project.git("status", "--porcelain") == seen
    with scratch_clone("gadget-1", second.commit, keep=True) as scratch:
        bring_data(scratch, "gadget", ["data/tiny/gadget"])  # which is in no version
    assert files_in(scratch.project / "data/tiny/gadget") == files_in(Path("data/tiny/gadget"))
    lost = md5_bytes(images["train/good/000.png"])
    Path(".dvc/cache/files/md5", lost[:2], lost[2:]).unlink()
    with (
        scratch_clone("widget-1", first.commit, keep=False) as scratch,
        pytest.raises(UserError, match=rf"{folder} \(version {first.digest}\) is neither in DVC's cache nor"),
    ):
        bring_data(scratch, "widget", [folder.as_posix()])
