"""The command line as its users meet it: help, settings, scoring."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from components.foundation.errors import UserError
from flows.data.settings import edit_params
from tests.project import CATEGORIES, REPOSITORY, Project, is_one_sentence


@pytest.fixture
def params_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's params.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(REPOSITORY / "params.yaml", tmp_path))


def test_help_names_every_command(project: Project) -> None:
    done = project.flawline("--help")
    assert done.returncode == 0
    for command in ("demo", "run", "score", "status", "models", "promote", "rollback", "history", "data"):
        assert f" {command} " in done.stdout


def test_signs_that_a_terminal_lacks_are_no_error(project: Project) -> None:
    western = Project(project.folder, {**project.cold().environment, "PYTHONIOENCODING": "latin-1"})
    done = western.flawline("run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2026" in done.stdout


def test_data_list_counts_images(project: Project) -> None:
    done = project.flawline("data", "list")
    widget = next(line for line in done.stdout.splitlines() if "widget" in line)
    assert done.returncode == 0
    assert [cell.strip() for cell in widget.strip("│ ").split("│")] == ["widget", "14", "4", "4"]


def test_commands_work_from_any_folder_of_the_project(project: Project) -> None:
    inside = Project(project.folder / "data" / "tiny", {**project.environment, "PYTHONPATH": str(project.folder)})
    assert "gadget" in inside.flawline("data", "list").stdout


@pytest.mark.slow
def test_score_prints_a_verdict_for_each_image(ran: Project) -> None:
    """Of the good test images that with the lowest score: three in ten may be called defective here."""
    images = ran.folder / "data" / "tiny" / "widget"
    with (ran.folder / "artifacts/widget/evaluation/scores.csv").open() as file:
        scores = {row["name"]: float(row["score"]) for row in csv.DictReader(file) if row["kind"] == "good"}
    done = ran.flawline("score", images / min(scores, key=scores.__getitem__), images / "test" / "blob" / "000.png")
    good, defect = (line for line in done.stdout.splitlines() if "│" in line)
    assert done.returncode == 0, done.stderr
    assert "│ good " in good
    assert "│ defect " in defect


@pytest.mark.slow
def test_score_as_json_is_what_was_evaluated_with_a_map(ran: Project, tmp_path: Path) -> None:
    image = ran.folder / "data" / "tiny" / "widget" / "test" / "blob" / "001.png"
    done = ran.flawline("score", image, "--json", "--maps", tmp_path / "maps", "--version", "1")
    (row,) = json.loads(done.stdout)
    outputs = ran.folder / "artifacts" / "widget"
    with (outputs / "evaluation" / "scores.csv").open() as file:
        written = next(line for line in csv.DictReader(file) if line["name"] == "test/blob/001.png")
    assert (row["image"], row["category"], row["verdict"]) == (str(image), "widget", "defect")
    assert row["threshold"] == json.loads((outputs / "capsule" / "capsule.json").read_text())["threshold"]
    assert row["score"] == pytest.approx(float(written["score"]), rel=1e-4)
    assert row["p_value"] == pytest.approx(float(written["p_value"]), rel=1e-4)
    assert Path(row["map"]).parent == tmp_path / "maps"
    with Image.open(row["map"]) as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_status_of_a_project_without_models(project: Project, mlflow_database: Path, tmp_path: Path) -> None:
    database = shutil.copy(mlflow_database, tmp_path)
    empty = Project(project.folder, {**project.environment, "MLFLOW_TRACKING_URI": f"sqlite:///{database}"})
    assert json.loads(empty.flawline("status", "--json").stdout) == []


def test_outside_of_a_project_one_sentence(project: Project, tmp_path: Path) -> None:
    nowhere = Project(tmp_path, {**project.environment, "PYTHONPATH": str(project.folder)})
    done = nowhere.flawline("status")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr)


def test_settings_are_written_where_git_shows_them_and_comments_stay(params_file: Path) -> None:
    before = params_file.read_text()
    params = edit_params(None, ["training.steps=7", "synthesis.area=[0.1, 0.2]"], {"seed": 3})
    after = params_file.read_text()
    assert (params.training.steps, params.synthesis.area, params.seed) == (7, (0.1, 0.2), 3)
    comments = [line.partition("#")[2] for line in before.splitlines() if "#" in line]
    assert [line.partition("#")[2] for line in after.splitlines() if "#" in line] == comments


def test_without_options_the_file_is_left_alone(params_file: Path) -> None:
    before = params_file.read_bytes(), params_file.stat().st_mtime_ns
    edit_params()
    assert (params_file.read_bytes(), params_file.stat().st_mtime_ns) == before


def test_a_preset_replaces_all_but_data_seed_and_machine(params_file: Path) -> None:
    edit_params(None, ["fit.margin=0.5", "limits.max_pixels=1000"], {"seed": 5, "threads": 1})
    params = edit_params("paper-cutpaste")
    assert (params.backbone.name, params.training.steps, params.image.side) == ("resnet18", 65536, 256)
    assert params.fit.margin == 0
    assert (params.seed, params.threads, params.limits.max_pixels) == (5, 1, 1000)


def test_an_impossible_setting_changes_nothing(params_file: Path) -> None:
    before = params_file.read_bytes()
    with pytest.raises(UserError, match=r"image\.side"):
        edit_params(None, ["image.side=-4"])
    assert params_file.read_bytes() == before


def test_the_tiny_project_has_the_categories_it_says(project: Project) -> None:
    assert sorted(path.name for path in (project.folder / "data" / "tiny").iterdir()) == sorted(CATEGORIES)
