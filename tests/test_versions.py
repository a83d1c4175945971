"""Versions of the data in a real project with real git and DVC: adding, refusing, repeating."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.data_version import good_images
from components.errors import UserError
from flows.git import BusyError
from flows.versions import Committed, commit_folder, commit_images
from tests.project import Project, surface, write_category, write_image

FOLDER = Path("data/tiny/widget")


@pytest.fixture
def here(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A copy of the tiny project, under git with an identity of its own, as the current folder of this process."""
    copy = project.copy(tmp_path / "here")
    monkeypatch.chdir(copy.folder)
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    git("config", "user.name", "Tester")
    git("config", "user.email", "tester@localhost")
    git("add", ".gitignore", "dvc.yaml", "params.yaml", ".dvc", ".dvcignore")
    git("commit", "-qm", "Begin")
    yield copy


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def new_images(folder: Path, count: int, seed: int = 9) -> list[Path]:
    generator = np.random.default_rng(seed)
    paths = [folder / f"new-{number}.png" for number in range(count)]
    for path in paths:
        write_image(path, surface(generator))
    return paths


def add(paths: list[Path], category: str = "widget") -> Committed:
    return commit_images(category, good_images(paths))


def test_a_folder_becomes_a_version_and_new_images_the_next(here: Project, tmp_path: Path) -> None:
    first = commit_folder("widget")
    assert first.is_new
    assert git("log", "-1", "--format=%s") == "Data of widget: +14 good images, 14 in all; +8 test images, 8 in all"
    second = add(new_images(tmp_path / "in", 3))
    assert git("log", "-1", "--format=%H %s") == f"{second.commit} Data of widget: +3 good images, 17 in all"
    assert second.difference.added == tuple(f"train/good/new-{number}.png" for number in range(3))
    assert second.counts == {"train/good": 17, "test/good": 4, "test/blob": 4}
    assert git("status", "--porcelain", "--", "data/tiny/widget*", ".flawline") == ""
    assert sorted(git("ls-files", "data").split()) == ["data/tiny/.gitignore", "data/tiny/widget.dvc"]
