"""What a person overrules a model on is kept under DVC, and counted against every model to come."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from components.foundation.errors import UserError
from components.foundation.files import sha256_file
from components.foundation.limits import ImageLimits
from components.registry.evidence import list_evidence
from components.registry.promotion import promote
from components.registry.versions import register
from flows.commands import feedback as command
from flows.commands.cli import app
from flows.commands.feedback import evidence_words
from flows.data.versions import commit_folder
from flows.retraining import summary
from tests.conftest import MakeCapsule
from tests.project import Project, write_image


@pytest.fixture
def served(git_project: Project, make_capsule: MakeCapsule, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in git whose champion of "widget" calls everything good."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(command, "enter_project", lambda: git_project.folder)  # it sets variables of the whole process
    register("widget", make_capsule(Path("../one"), 1e6, "widget"), "", {}, "pretrained")
    register("widget", make_capsule(Path("../two"), -1e6, "widget"), "", {}, "pretrained")
    promote("widget", 1, "first")
    return git_project


def image_file(name: str, level: int) -> Path:
    path = Path("../in") / name
    write_image(path, np.full((48, 48, 3), level, np.uint8))
    return path


def flawline(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def tell(image: Path, truth: str, *more: str | Path) -> str:
    return flawline("feedback", image, "--category", "widget", "--is", truth, *more)


@pytest.mark.slow
def test_a_missed_defect_is_kept_with_its_mask_and_the_verdict_on_it(served: Project) -> None:
    image, mask = image_file("hole.png", 0), image_file("mask.png", 255)
    said = tell(image, "defect", "--kind", "hole", "--mask", mask, "--note", "line 3")
    assert "the champion (version 1) says good" in said
    assert said.rstrip().endswith("and is wrong.")
    (found,) = list_evidence("widget")
    assert found.path.read_bytes() == image.read_bytes()
    assert found.digest == sha256_file(image) == found.path.stem
    assert (found.kind, found.name, found.note) == ("hole", "hole.png", "line 3")
    assert (found.verdict["version"], found.verdict["verdict"]) == (1, "good")
    assert found.who
    assert found.record.masks[0].read_bytes() == mask.read_bytes()
    assert served.git("log", "-1", "--format=%s") == "Evidence of widget: a missed defect (hole)"
    assert served.git("ls-files", "evidence").split() == ["evidence/.gitignore", "evidence/widget.dvc"]
    assert "up to date" in served.dvc("status", "evidence/widget.dvc").stdout


@pytest.mark.slow
def test_the_same_again_changes_nothing_and_another_verdict_replaces_the_first(served: Project) -> None:
    image = image_file("glare.png", 240)
    tell(image, "good")
    head = served.git("rev-parse", "HEAD")
    tell(image, "good")
    assert served.git("rev-parse", "HEAD") == head
    tell(image, "defect", "--kind", "glare")
    assert [one.kind for one in list_evidence("widget")] == ["glare"]
    assert served.git("log", "-1", "--format=%s") == "Evidence of widget: a missed defect (glare), judged anew"


@pytest.mark.slow
def test_each_champion_is_measured_by_all_that_was_kept(served: Project) -> None:
    assert evidence_words("widget") == ""
    tell(image_file("a.png", 0), "defect")
    tell(image_file("b.png", 1), "defect")
    tell(image_file("c.png", 100), "good")
    first = "misses 2 of 2 defects and calls 0 of 1 good images defective."
    assert evidence_words("widget") == f"widget: of what people kept as evidence, the champion (version 1) {first}"
    assert "evidence, version 2 misses 0 of 2 defects" in evidence_words("widget", 2)
    notes = summary.evidence_notes(summary.versions_made({"widget": 2, "gadget": None}), ImageLimits())
    words = "misses 0 of 2 defects and calls 1 of 1 good images defective"
    assert notes == [f"Of what people kept as evidence, widget version 2 {words}."]
    assert notes[0] in summary.as_page(summary.versions_made({"widget": 2}), {}, "", notes)
    promote("widget", 2, "it calls everything defective")
    assert "(version 2) misses 0 of 2 defects and calls 1 of 1 good images defective." in evidence_words("widget")


def test_what_is_also_learned_from_is_said(served: Project) -> None:
    said = tell(Path("data/tiny/widget/train/good/000.png"), "good")
    assert "this image is also learned from, as train/good/000.png" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["../in/none.png", "--is", "good"], "There is no image at"),
        (["../in/a.png", "--is", "good", "--mask", "../in/mask.png"], "A good image has no defect"),
        (["../in/a.png", "--is", "defect", "--mask", "../in/small.png"], r"is 8 × 8 pixels, its image 48 × 48"),
        (["../in/a.png", "--is", "defect", "--kind", "good"], "No defect is called good"),
        (["../in/text.png", "--is", "defect"], "text.png"),
    ],
)
def test_what_is_not_in_order_is_refused_and_nothing_kept(served: Project, arguments: list[str], words: str) -> None:
    image_file("a.png", 0)
    image_file("mask.png", 255)
    write_image(Path("../in/small.png"), np.full((8, 8, 3), 255, np.uint8))
    Path("../in/text.png").write_text("no image")
    with pytest.raises(UserError, match=words):
        flawline("feedback", *arguments, "--category", "widget")
    assert not Path("evidence").exists()


@pytest.mark.slow
def test_evidence_goes_to_the_remote_and_comes_back(served: Project, tmp_path: Path) -> None:
    from flows.data.transfer import pull, push

    commit_folder("widget")
    tell(image_file("a.png", 0), "defect")
    tell(image_file("b.png", 1), "good")
    kept = {path.name: path.read_bytes() for path in Path("evidence/widget").iterdir()}
    served.dvc("remote", "add", "-d", "store", str(tmp_path / "remote"))
    push("widget")
    shutil.rmtree("evidence/widget")
    shutil.rmtree(".dvc/cache")
    with pytest.raises(UserError, match="`flawline data pull widget`"):
        list_evidence("widget")
    with pytest.raises(UserError, match="Not all evidence of widget is here"):
        tell(image_file("c.png", 2), "good")
    pull("widget")
    assert {path.name: path.read_bytes() for path in Path("evidence/widget").iterdir()} == kept


def test_a_killed_feedback_is_completed_by_the_next(served: Project) -> None:
    tell(image_file("a.png", 0), "defect")
    record = next(Path("evidence/widget").glob("*.json"))
    content = json.loads(record.read_text())
    image = image_file("b.png", 1)
    half = Path("evidence/widget") / f"{sha256_file(image)}.png"
    half.write_bytes(image.read_bytes()[:20])  # killed before the record was written
    tell(image, "defect")
    assert half.read_bytes() == image.read_bytes()
    assert {one.digest for one in list_evidence("widget")} == {content["digest"], sha256_file(image)}


@pytest.mark.slow
def test_evidence_is_not_learned_from_without_a_word(served: Project) -> None:
    from components.data.version import good_images
    from flows.data.versions import commit_images

    commit_folder("widget")
    image = image_file("glare.png", 240)
    tell(image, "good")
    with pytest.raises(UserError, match=r"glare\.png is kept as evidence \(evidence/widget/.*\.png, good\)"):
        commit_images("widget", good_images([image]))
    shutil.copy(image, "data/tiny/widget/train/good/glare.png")
    with pytest.raises(UserError, match="is kept as evidence"):
        commit_folder("widget")
