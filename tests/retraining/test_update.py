"""An update keeps encoder and compositions, learns what is new, and is made again like any other version."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from components.detection.capsule import load_capsule, read_card
from components.detection.choice import make_banks
from components.detection.detector import Detector
from components.detection.keeping import Kept, keep, load_kept
from components.foundation.params import CacheParams, Params, load_params
from components.foundation.pin import Pin, read_pin
from components.foundation.places import KNOWN, Places
from components.stages import fit
from components.synthesis.prepared import load_prepared
from tests.project import Project, new_images
from tests.retraining.test_kill import wait_for
from tests.retraining.test_reproduction import UP_TO_DATE, project_with_remotes, said

NEW = 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_update_is_killed_ended_made_once_equal_to_a_fit_from_scratch_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project_with_remotes(tmp_path)
    said(here.flawline("data", "add", tmp_path / "images", "--category", "widget"))
    said(here.flawline("run", "widget"))
    first = read_card(here.folder / "artifacts/widget/capsule")
    said(here.flawline("data", "add", new_images(tmp_path / "more", NEW)[0].parent, "--category", "widget"))

    kill_during_update(here)
    words = said(here.flawline("update", "widget"))
    assert "encoder and compositions of version 1 are kept" in words
    assert "widget: version 2 is commit" in words
    assert "is up to date" in said(here.flawline("update", "widget"))
    assert here.git("branch", "--format=%(refname:short)").split() == ["flawline/widget/1", "flawline/widget/2", "main"]
    versions = json.loads(said(here.flawline("models", "widget", "--json")))
    assert len(versions) == 2

    capsule = here.folder / "artifacts/widget/capsule"
    card = read_card(capsule)
    updated = card["provenance"]["updated"]
    assert updated["in_words"] == f"updated from version 1 with {NEW} images"
    assert (updated["of_capsule"], len(updated["added"]), updated["removed"]) == (first["digest"], NEW, [])
    assert [part["composition"] for part in card["parts"]] == [part["composition"] for part in first["parts"]]
    encoders = {name: digest for name, digest in card["files"].items() if name.startswith("encoders/")}
    assert encoders
    assert encoders.items() <= first["files"].items()
    monkeypatch.chdir(here.folder)
    compare_with_scratch(here, Pin(1, first["digest"]), tmp_path / "scratch")

    assert here.dvc("status").stdout.strip() == UP_TO_DATE
    here.git("push", "-q", "origin", "main")
    subprocess.run(["git", "clone", "-q", tmp_path / "remote.git", tmp_path / "there"], check=True)
    there = Project(tmp_path / "there", {**here.environment, "DVC_SITE_CACHE_DIR": str(tmp_path / "b")})
    there.git("checkout", "-q", "flawline/widget/2")
    said(there.dvc("pull"))
    assert there.dvc("status").stdout.strip() == UP_TO_DATE
    said(there.dvc("repro", "--force", "train@widget"))
    assert there.git("status", "--porcelain") == ""
    words = said(there.flawline("reproduce", "widget@2"))
    assert [f"widget version {number} is identical: " in words for number in (1, 2)] == [True, True]

    said(here.flawline("run", "widget"))
    assert read_pin("widget") is None
    assert "updated" not in read_card(capsule)["provenance"]


def kill_during_update(project: Project) -> None:
    """kill -9 of `flawline update` and all it has started, once the encoders are kept and the fit goes on."""
    command = [sys.executable, "-m", "flows.commands.cli", "update", "widget"]
    program = subprocess.Popen(
        command, cwd=project.folder, env=dict(project.environment), stderr=subprocess.PIPE, start_new_session=True
    )
    index = project.folder / "artifacts/widget/encoder/kept.json"
    wait_for(lambda: index.is_file() or None, program)
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def compare_with_scratch(project: Project, pin: Pin, folder: Path) -> None:
    """The capsule in the project has the very arrays of a fit of the same compositions without cache or update."""
    params = load_params(project.folder / "params.yaml").model_copy(update={"cache": CacheParams(max_bytes=0)})
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
