"""New test images and masks change the evaluation and nothing that was learned; new good images change all."""

import json
from pathlib import Path

import numpy as np
import pytest

from components.foundation.files import digest_tree
from tests.project import Project, surface, write_image

LEARNING = ("synthesize@widget", "train@widget", "fit@widget")


def ran_stages(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def figures(project: Project) -> dict[str, object]:
    return dict(json.loads((project.folder / "artifacts/widget/evaluation/figures.json").read_text()))


@pytest.fixture
def more_tests(ran: Project, tmp_path: Path) -> Project:
    """The project after a run; since then a test image with its mask came, and another mask was corrected."""
    project = ran.copy(tmp_path / "more")
    folder = project.folder / "data/tiny/widget"
    image, mask = surface(np.random.default_rng(77)), np.zeros((48, 48), np.uint8)
    image[20:28, 20:28], mask[20:28, 20:28] = 235, 255
    write_image(folder / "test/blob/900.png", image)
    write_image(folder / "ground_truth/blob/900_mask.png", mask)
    write_image(folder / "ground_truth/blob/000_mask.png", np.full((48, 48), 255, np.uint8))
    return project


@pytest.mark.slow
def test_test_images_and_masks_are_evaluated_without_learning_anew(more_tests: Project, ran: Project) -> None:
    before, capsule = figures(ran), (ran.folder / "artifacts/widget/capsule/capsule.json").read_bytes()
    done = more_tests.flawline("run", "widget")
    assert done.returncode == 0, done.stderr
    for stage, outcome in (("validate", "done"), ("synthesize", "up"), ("train", "up"), ("fit", "up")):
        assert f"widget: {stage} {'done in' if outcome == 'done' else 'is up to date'}" in done.stderr
    assert "widget: evaluate done in" in done.stderr
    after = figures(more_tests)
    assert (before["counts"], after["counts"]) == ({"good": 4, "defect": 4}, {"good": 4, "defect": 5})
    assert after["pixel_auroc"] != before["pixel_auroc"]
    assert (more_tests.folder / "artifacts/widget/capsule/capsule.json").read_bytes() == capsule
    (row,) = json.loads(more_tests.flawline("status", "--json").stdout)[-1:]
    assert (row["version"], row["pixel_auroc"]) == (1, after["pixel_auroc"])


@pytest.mark.slow
def test_a_new_good_image_is_learned(ran: Project, tmp_path: Path) -> None:
    project = ran.copy(tmp_path / "good")
    write_image(project.folder / "data/tiny/widget/train/good/900.png", surface(np.random.default_rng(78)))
    assert project.dvc("repro", "-s", "validate@widget").returncode == 0
    said = project.dvc("status", *LEARNING).stdout
    assert "artifacts/widget/validation/learned.json" in said
    assert "data/tiny/widget/train" in said


@pytest.mark.slow
def test_other_names_of_the_good_images_teach_nothing_new(ran: Project, tmp_path: Path) -> None:
    project = ran.copy(tmp_path / "renamed")
    good = project.folder / "data/tiny/widget/train/good"
    for number, path in enumerate(sorted(good.iterdir(), reverse=True)):
        path.rename(good / f"part {number}.png")
    prepared = digest_tree(project.folder / "artifacts/widget/prepared")
    done = project.dvc("repro", "-s", "validate@widget", "synthesize@widget")
    assert done.returncode == 0, done.stderr
    assert digest_tree(project.folder / "artifacts/widget/prepared") == prepared
    assert "artifacts/widget/prepared" not in project.dvc("status", "train@widget", "fit@widget").stdout
