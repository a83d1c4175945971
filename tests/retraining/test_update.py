"""An update keeps encoder and compositions, learns what is new, and is made again like any other version.

The tests look at one line of versions: two that were learned anew, an update, and an update of the update.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from components.detection.capsule import load_capsule
from components.detection.card import read_card
from components.detection.choice import make_banks
from components.detection.detector import Detector
from components.detection.keeping import Kept, keep, load_kept
from components.foundation.params import CacheParams, Params, load_params
from components.foundation.pin import Pin, read_pin
from components.foundation.places import KNOWN, Places
from components.registry.forgotten import list_forgotten
from components.stages import fit
from components.synthesis.prepared import load_prepared
from flows.retraining import bases
from tests.dying import kill_flawline
from tests.project import Project, is_one_sentence, new_images
from tests.retraining.test_kill import wait_for
from tests.retraining.test_reproduction import UP_TO_DATE, project_with_remotes, said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # five retrainings and as many reproductions

NEW, GONE = 4, "train/good/more-0.png"
SCHEDULED = "from flows.retraining.schedule import retrain_changed; print(retrain_changed(min_images=1))"
SETTLED = r"os\.rename .* bases/widget\.json"
KILLS = (
    (r"Popen .*infra/stage fit", r"os\.rename .*dvc\.lock"),
    (r"Popen git .* commit-tree",),
)


@dataclass
class Line:
    """A project with its versions, and what each was when it was made: its capsule's card, its figures, the time."""

    project: Project
    folder: Path
    words: dict[int, str] = field(default_factory=dict)
    cards: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    figures: dict[int, bytes] = field(default_factory=dict)
    times: dict[int, datetime] = field(default_factory=dict)

    def add(self, name: str, count: int) -> None:
        """New good images come into the data; the length of the name decides what they show."""
        images = new_images(self.folder / name, count, seed=len(name))
        for path in images:
            path.rename(path.with_name(path.name.replace("new", name)))
        said(self.project.flawline("data", "add", self.folder / name, "--category", "widget"))

    def note(self, words: str) -> None:
        """What was said when the next version was made."""
        number = len(self.words) + 1
        assert f"widget: version {number} is commit" in words
        assert f"widget: version {number} sent to origin" in words
        self.words[number] = words
        self.cards[number] = read_card(self.project.folder / Places("widget").capsule)
        self.figures[number] = (self.project.folder / "metrics/widget.json").read_bytes()
        self.times[number] = datetime.now(UTC)


@pytest.fixture(scope="module")
def line(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Line:
    folder = tmp_path_factory.mktemp("updates")
    made = Line(project_with_remotes(project, folder), folder)
    project = made.project
    said(project.flawline("data", "add", folder / "images", "--category", "widget"))
    made.note(said(project.flawline("run", "widget")))
    made.add("more", 3)
    made.note(said(project.flawline("run", "widget")))
    made.add("later", NEW)
    kill_flawline(project, [SETTLED], "update", "widget")
    kill_in_training(project)
    for steps in KILLS:
        kill_flawline(project, steps, "update", "widget")
    made.note(said(project.flawline("status", "widget")))  # which registers what was computed
    forgetting = ("forget", "widget", f"data/tiny/widget/{GONE}", "--reason", "a scratch")
    kill_flawline(project, [r"Popen git .* commit "], *forgetting)
    said(project.flawline(*forgetting))
    project.set_params({"retrain": {"kind": "auto", "update_share": 0.5}})
    made.note(said(project.run("-c", SCHEDULED)))
    project.git("push", "-q", "origin", "main")
    return made


def kill_in_training(project: Project) -> None:
    """kill -9 of `flawline update` and all it has started, once the stage train has kept the encoders."""
    command = [sys.executable, "-m", "flows.commands.cli", "update", "widget"]
    program = subprocess.Popen(
        command, cwd=project.folder, env=dict(project.environment), stderr=subprocess.PIPE, start_new_session=True
    )
    index = project.folder / "artifacts/widget/encoder/kept.json"
    wait_for(lambda: index.is_file() or None, program)
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def test_whatever_was_killed_each_version_is_there_once_with_one_commit(line: Line) -> None:
    project = line.project
    branches = [f"flawline/widget/{number}" for number in (1, 2, 3, 4)]
    assert project.git("branch", "--format=%(refname:short)").split() == [*branches, "main"]
    assert len(json.loads(said(project.flawline("models", "widget", "--json")))) == 4
    assert project.git("log", "--format=%s", "main").splitlines() == [
        "Data of widget: -1 good images; 20 good and 8 test images in all",
        "Data of widget: +4 good images; 21 good and 8 test images in all",
        "Data of widget: +3 good images; 17 good and 8 test images in all",
        "Data of widget: +14 good images, +8 test images, +4 masks; 14 good and 8 test images in all",
        "Code",
    ]
    assert len(list_forgotten(project.folder / "data/tiny/widget.forgotten.json")) == 1
    assert project.git("status", "--porcelain", "--untracked-files=no") == "M params.yaml"
    assert project.dvc("status").stdout.strip() == UP_TO_DATE
    assert "is up to date" in said(project.flawline("update", "widget"))


def test_an_update_keeps_encoder_and_compositions_and_says_of_which_version(line: Line) -> None:
    added = f"updated from version 2 with {NEW} images"
    assert "encoder and compositions of version 3 are kept" in line.words[4]
    for number, words in ((3, added), (4, "updated from version 3 with 0 images, without 1 that it knew")):
        before, card = line.cards[number - 1], line.cards[number]
        updated = card["provenance"]["updated"]
        assert (updated["in_words"], updated["of_capsule"]) == (words, before["digest"])
        assert updated["full_images"] == 17
        assert [part["composition"] for part in card["parts"]] == [part["composition"] for part in before["parts"]]
        encoders = {name: digest for name, digest in card["files"].items() if name.startswith("encoders/")}
        assert encoders
        assert encoders.items() <= before["files"].items()


def test_an_update_of_an_update_is_a_fit_from_scratch(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(line.project.folder)
    compare_with_scratch(Pin(3, line.cards[3]["digest"]), line.folder / "scratch")


def test_every_version_is_made_again_on_another_machine_to_the_same_bytes(line: Line) -> None:
    here, folder = line.project, line.folder
    subprocess.run(["git", "clone", "-q", folder / "remote.git", folder / "there"], check=True)
    own = {"DVC_SITE_CACHE_DIR": str(folder / "b"), "HOME": str(folder / "home")}
    there = Project(folder / "there", {**here.environment, **own})
    for number, figures in line.figures.items():
        there.git("checkout", "-q", f"flawline/widget/{number}")
        said(there.dvc("pull"))
        assert there.dvc("status").stdout.strip() == UP_TO_DATE
        assert (there.folder / "metrics/widget.json").read_bytes() == figures
    assert len(set(line.figures.values())) > 1
    assert UP_TO_DATE in said(there.dvc("repro"))
    said(there.dvc("repro", "--force", "train@widget"))
    assert there.git("status", "--porcelain") == ""

    words = said(there.flawline("reproduce", "widget@1")) + said(there.flawline("reproduce", "widget@4"))
    identical = [line for line in words.splitlines() if " is identical: " in line]
    assert [words.split()[2] for words in identical] == ["1", "2", "3", "4"]  # the last with those it builds on
    for number, words in enumerate(identical, 1):
        assert there.git("rev-parse", f"origin/flawline/widget/{number}")[:10] in words
    assert there.git("status", "--porcelain") == ""
    assert [path for path in (there.folder / ".flawline/scratch").iterdir() if path.is_dir()] == []


def test_a_time_leads_to_the_version_that_was_served_then(line: Line) -> None:
    project = line.project
    found = json.loads(said(project.flawline("which", "widget", "--at", line.times[1].isoformat(), "--json")))
    versions = json.loads(said(project.flawline("data", "versions", "widget", "--json")))
    assert found["version"] == 1
    assert found["commit"] == project.git("rev-parse", "flawline/widget/1")
    assert found["data_version"] == versions[-1]["digest"]
    assert [one["models"] for one in versions] == [[4], [3], [2], [1]]
    assert found["command"] == "flawline reproduce widget@1"
    assert is_one_sentence(project.flawline("which", "widget", "--at", "2020-01-01").stderr)


def test_a_scheduled_retraining_learns_all_anew_where_much_is_new_or_the_champion_cannot_be_updated(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of the line, which it makes longer."""
    project = line.project
    project.set_params({"retrain": {"update_share": 0.2}})
    line.add("newest", 1)
    line.note(said(project.run("-c", SCHEDULED)))  # 21 images, of which an update would still know 17
    assert "widget: everything is learned anew, as the images have become more or fewer by 24%" in line.words[5]
    monkeypatch.chdir(project.folder)
    assert read_pin("widget") is None
    assert "updated" not in line.cards[5]["provenance"]
    small = load_params().model_copy(update={"image": load_params().image.model_copy(update={"side": 24})})
    words = bases.settle("widget", bases.AUTO, small)
    assert words.startswith("everything is learned anew, as it was made with other parameters (image.side: 32 then, 24")
    assert read_pin("widget") is None


def compare_with_scratch(pin: Pin, folder: Path) -> None:
    """The current project's capsule has the very arrays of a fit of the same compositions without cache or update."""
    params = load_params().model_copy(update={"cache": CacheParams(max_bytes=0)})
    assert KNOWN.is_file()
    folder.mkdir()
    keep(pin, "widget", params, folder)
    kept = load_kept(folder)
    assert kept is not None
    made = fitted(kept, params)
    capsule = load_capsule(Places("widget").capsule)
    images = load_prepared(Places("widget").prepared).exam_images[0]
    for mine, theirs in zip(made.score(images), capsule.detector.score(images), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    stored = load_file(Places("widget").capsule / "density.safetensors")
    for index, part in enumerate(made.parts):
        for name, value in part.scorer.arrays().items():
            np.testing.assert_array_equal(stored[f"{index}.{name}"], value)


def fitted(kept: Kept, params: Params) -> Detector:
    """A detector of these compositions, with banks that make all levels."""
    prepared = load_prepared(Places("widget").prepared)
    banks = make_banks(kept.encoders, prepared, params)
    plan = fit.Plan.of(prepared, params, taught=kept.is_taught, refit=fit.learns_held_out(prepared, params))
    return fit.fit_detector(kept, banks, prepared, params, kept.heads, plan).detector
