"""Versions of the data in a real project with real git and DVC: adding, refusing, repeating."""

from pathlib import Path

import numpy as np

from components.data_version import good_images
from flows.versions import Committed, commit_folder, commit_images
from tests.project import Project, surface, write_image

FOLDER = Path("data/tiny/widget")


def new_images(folder: Path, count: int, seed: int = 9) -> list[Path]:
    generator = np.random.default_rng(seed)
    paths = [folder / f"new-{number}.png" for number in range(count)]
    for path in paths:
        write_image(path, surface(generator))
    return paths


def add(paths: list[Path], category: str = "widget") -> Committed:
    return commit_images(category, good_images(paths))


def test_a_folder_becomes_a_version_and_new_images_the_next(git_project: Project, tmp_path: Path) -> None:
    first = commit_folder("widget")
    assert first.is_new
    assert (
        git_project.git("log", "-1", "--format=%s")
        == "Data of widget: +14 good images, 14 in all; +8 test images, 8 in all"
    )
    second = add(new_images(tmp_path / "in", 3))
    assert (
        git_project.git("log", "-1", "--format=%H %s") == f"{second.commit} Data of widget: +3 good images, 17 in all"
    )
    assert second.difference.added == tuple(f"train/good/new-{number}.png" for number in range(3))
    assert second.counts == {"train/good": 17, "test/good": 4, "test/blob": 4}
    assert git_project.git("status", "--porcelain", "--", "data/tiny/widget*", ".flawline") == ""
    assert sorted(git_project.git("ls-files", "data").split()) == ["data/tiny/.gitignore", "data/tiny/widget.dvc"]
