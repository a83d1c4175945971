"""The commands about versions: what they print is what a person decides by."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from components.foundation.errors import UserError
from components.registry.promotion import promote
from components.registry.versions import journal_path, register
from components.tracking import connection
from flows.commands import models
from flows.commands.cli import app
from tests.conftest import MakeCapsule
from tests.project import REPOSITORY, write_image


@pytest.fixture
def project(workspace: Path, make_capsule: MakeCapsule, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the product "bottle": two versions that differ in nothing but the threshold, and test images."""
    monkeypatch.setattr(models, "enter_project", lambda: workspace)  # which would set variables for the whole process
    params = (REPOSITORY / "params.yaml").read_text()
    Path("params.yaml").write_text(
        params.replace("data/demo", "data/line").replace("[brick, gravel, grass]", "[bottle]")
    )
    generator = np.random.default_rng(1)
    for number in range(2):
        write_image(
            workspace / f"data/line/bottle/test/good/{number}.png",
            generator.integers(90, 110, (32, 32, 3), dtype=np.uint8),
        )
        write_image(workspace / f"data/line/bottle/test/hole/{number}.png", np.zeros((32, 32, 3), np.uint8))
    write_image(workspace / "data/line/bottle/train/good/0.png", np.full((32, 32, 3), 100, np.uint8))
    kinds = {"hole": {"image_auroc": 1.0, "found": 1.0}}
    for number, threshold in enumerate([1e6, -1e6]):
        folder = make_capsule(workspace / str(number), threshold)
        register("bottle", folder, "", {"image_auroc": 0.9 + number / 100}, "pretrained", kinds)
    return workspace


def flawline(*arguments: str) -> str:
    """What a command prints; its UserError is raised."""
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, list(arguments))
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.mark.slow
def test_promotions_and_roll_backs_name_both_versions(project: Path) -> None:
    assert flawline("promote", "bottle", "1", "--reason", "first") == "bottle: version 1 is the champion.\n"
    said = flawline("promote", "bottle", "2", "--reason", "better")
    assert said == (
        "bottle: version 2 is the champion, in place of version 1: `flawline rollback bottle` takes it back.\n"
    )
    assert flawline("promote", "bottle", "2", "--reason", "again") == "bottle: version 2 is the champion already.\n"
    said = flawline("rollback", "bottle", "--reason", "misses holes")
    assert said.startswith("bottle: version 1 is the champion again; version 2 served until now")
    assert "version 2 is rejected" in flawline("reject", "bottle", "2", "--reason", "misses holes")
    acts = json.loads(flawline("history", "bottle", "--json"))["acts"]
    found = [(act["kind"], act["source"], act["target"], act["reason"]) for act in acts]
    assert found == [
        ("promote", None, 1, "first"),
        ("promote", 1, 2, "better"),
        ("roll back", 2, 1, "misses holes"),
        ("reject", 1, 2, "misses holes"),
    ]
    assert "The journal holds: each of its 8 lines" in flawline("history", "bottle", "--verify")


def test_models_lists_all_versions_and_notices_other_hands(project: Path) -> None:
    promote("bottle", 1, "first")
    connection.connect()[0].set_registered_model_alias("flawline-bottle", "champion", "2")
    second, first = json.loads(flawline("models", "bottle", "--json"))
    assert (second["number"], second["aliases"], second["metrics"]) == (
        2,
        ["challenger", "champion"],
        {"image_auroc": 0.91},
    )
    assert (first["number"], first["aliases"]) == (1, ["previous"])
    assert first["made_at"][:2] == "20"
    assert first["made_by"]
    assert "observed" in flawline("history", "bottle")
    assert "no model yet" in flawline("models", "cable")


def test_a_journal_that_was_edited_ends_with_an_error(project: Path) -> None:
    promote("bottle", 1, "first")
    promote("bottle", 2, "better")
    path = journal_path("bottle")
    path.write_text(path.read_text().replace("better", "BETTER"))
    with pytest.raises(UserError, match=r"The journal of bottle does not hold: line 4 was not written after line 3"):
        flawline("history", "bottle", "--verify")


def test_compare_shows_figures_flips_and_what_differs(project: Path) -> None:
    found = json.loads(flawline("compare", "bottle", "1", "2", "--json"))
    assert found["figures"] == [["image_auroc", 0.9, 0.91]]
    assert found["images"] == 4
    assert sorted((flip["name"], flip["is_right"]) for flip in found["flips"]) == [
        ("test/good/0.png", False),
        ("test/good/1.png", False),
        ("test/hole/0.png", True),
        ("test/hole/1.png", True),
    ]
    assert found["made_of"] == [["threshold", "1e+06", "-1e+06"]]
    shown = flawline("compare", "bottle", "1", "2")
    assert "Of 4 test images 4 flip: version 2 is right on 2 of them, version 1 on 2." in shown
    assert "flip" not in flawline("compare", "bottle", "1", "2", "--no-images")


@pytest.mark.slow
def test_scores_are_kept_by_content(project: Path) -> None:
    first = flawline("compare", "bottle", "1", "2", "--json")
    kept = {path: path.read_bytes() for path in Path(".flawline/scores").iterdir()}
    assert len(kept) == 2
    for path in kept:
        path.write_text("{damaged")
    assert flawline("compare", "bottle", "1", "2", "--json") == first
    assert {path: path.read_bytes() for path in kept} == kept
