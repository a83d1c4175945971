"""The version of the data that a run names is the one that `flawline data versions` shows, with its commit."""

from pathlib import Path

import yaml

from components.data.version import good_images
from components.tracking.lineage import Lineage, lineage_of
from flows.data.history import list_versions
from flows.data.versions import commit_folder, commit_images
from tests.project import Project, new_images

ROOT = Path("data/tiny")


def shown() -> list[Lineage]:
    return [Lineage(version.digest, version.commit) for version in list_versions("widget")]


def test_a_version_has_one_name_everywhere_also_an_old_one(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    first = lineage_of(ROOT, "widget")
    assert [first] == shown()
    commit_images("widget", good_images(new_images(tmp_path / "in", 2)))
    second = lineage_of(ROOT, "widget")
    assert [second, first] == shown()
    git_project.git("checkout", "-q", first.commit, "--", "data/tiny/widget.dvc")
    git_project.git("commit", "-qm", "Back to the first")
    assert lineage_of(ROOT, "widget") == Lineage(first.version, git_project.git("rev-parse", "HEAD"))


def test_what_was_validated_counts_not_what_was_committed_since(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    first = lineage_of(ROOT, "widget")
    deps = [
        {"path": "components/foundation/files.py", "md5": "0" * 32},
        {"path": "data/tiny/widget", "md5": first.version},
    ]
    stage = {"cmd": "infra/stage validate widget", "deps": deps}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"validate@widget": stage}}))
    commit_images("widget", good_images(new_images(tmp_path / "in", 2)))
    assert lineage_of(ROOT, "widget") == first


def test_data_under_no_version_have_no_name(git_project: Project) -> None:
    assert lineage_of(ROOT, "widget") == Lineage("", "")
    Path("dvc.lock").write_text("stages: {validate@widget: {deps")  # another process is just writing it
    assert lineage_of(ROOT, "widget") == Lineage("", "")
