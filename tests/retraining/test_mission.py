"""The mission: good images that arrive come to serve with no human hand, poison does not, and all is told truly.

One Prefect server with what `flawline deploy` brings there, one `flawline worker`, git, DVC with a remote, MLflow, and
a network of random weights, whose densities learn what is good.
"""

import html
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.foundation.files import read_json
from components.registry import versions as registry
from components.registry.gate import records
from components.tracking.connection import connect
from flows.data.dvc_project import open_project
from flows.data.stores import set_remote
from flows.data.versions import commit_folder, recorded_digest
from tests.project import SIDE, Project, surface, write_image
from tests.retraining.test_prefect_server import runs_of, unless_locked, wait_for, worker
from tests.retraining.test_reproduction import said
from tests.servers import busy_prefect_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
LEARNED, TESTED = 40, 60  # good images; test images of either kind, enough for the gate to tell 5 points
GOOD, POISON = 20, 24  # images of a delivery
PATIENCE = 900.0  # seconds for a retraining on a busy machine
BRIGHTER = 40  # grey levels by which a defect is brighter
PARAMS: dict[str, Any] = {
    "method": "pretrained",
    "image": {"side": 64},
    "fit": {"layout": "shared", "levels": ["b1", "b2"]},
    "gate": {"resamples": 300},
    "ingest": {"settle_seconds": 0, "max_deviations": 1000.0},  # so that the poison is left to the champion to find
}


@pytest.fixture
def site(git_project: Project, tmp_path: Path) -> Iterator[Project]:
    """Two categories under git and DVC, with a remote, and a Prefect server; every minute it looks into the inbox."""
    shutil.rmtree("data/tiny/widget")
    write_widget(Path("data/tiny/widget"), np.random.default_rng(0))
    git_project.set_params(PARAMS)
    plan = Path("prefect.yaml").read_text().replace('"*/10 * * * *"', '"* * * * *"')
    Path("prefect.yaml").write_text(plan)
    with open_project() as repo:
        set_remote(repo, str(tmp_path / "remote"))
    git_project.git("add", "components", "flows", "infra", "params.yaml", "prefect.yaml", ".dvc")
    git_project.git("commit", "-qm", "A line of two products")
    for category in ("widget", "gadget"):
        commit_folder(category)
    with busy_prefect_server(tmp_path / "server") as url:
        profile = f'active = "here"\n[profiles.here]\nPREFECT_API_URL = "{url}"\n'
        (tmp_path / "profiles.toml").write_text(profile)
        own = {"PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        yield Project(git_project.folder, {**git_project.alone().environment, **own})


def write_widget(root: Path, generator: np.random.Generator) -> None:
    """Many test images, all defects of which are of one look."""
    for number in range(LEARNED):
        write_image(root / "train" / "good" / f"{number:03}.png", surface(generator))
    for number in range(TESTED):
        write_image(root / "test" / "good" / f"{number:03}.png", surface(generator))
    for number in range(TESTED):
        image, mask = flawed(generator)
        write_image(root / "test" / "glare" / f"{number:03}.png", image)
        write_image(root / "ground_truth" / "glare" / f"{number:03}_mask.png", mask)


def flawed(generator: np.random.Generator, spots: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An image with brighter squares, uint8 (48, 48, 3), and their mask, uint8 (48, 48)."""
    image, mask = surface(generator).astype(int), np.zeros((SIDE, SIDE), np.uint8)
    for row, column in generator.integers(4, SIDE - 12, (spots, 2)):
        mask[row : row + 8, column : column + 8] = 255
    image[mask > 0] += BRIGHTER
    return np.clip(image, 0, 255).astype(np.uint8), mask


def deliver(site: Project, name: str, images: list[np.ndarray]) -> None:
    """Let a folder of images arrive in the inbox of "widget", all at once."""
    for number, image in enumerate(images):
        write_image(site.folder.parent / name / f"{name}-{number:02}.png", image)
    inbox = Path("arriving/inbox/widget")
    inbox.parent.mkdir(parents=True, exist_ok=True)
    (site.folder.parent / name).rename(inbox)


def retrained(site: Project, count: int) -> Any:
    """The latest of the runs that an event has begun, once there are so many and all have ended."""

    def look() -> Any:
        runs = runs_of(site, "retrain-arrived")
        return runs[0] if len(runs) == count and all(run.state.is_final() for run in runs) else None

    with unless_locked(site):
        return wait_for(look, patience=PATIENCE)


def gate_report(number: int) -> dict[str, Any]:
    return dict(read_json(records.folder_of("widget", number) / "gate.json"))


def served() -> dict[str, int | None]:
    """Of each category the number of its champion."""
    champions = {name: registry.champion(name) for name in ("widget", "gadget")}
    return {name: champion.number if champion else None for name, champion in champions.items()}


def data_now() -> str:
    """The version of the data, as its .dvc file names it."""
    return recorded_digest(Path("data/tiny/widget.dvc").read_bytes()) or ""


def test_what_is_good_comes_to_serve_poison_does_not_and_what_is_said_of_it_is_true(site: Project) -> None:
    said(site.flawline("deploy"))
    said(site.flawline("run"))
    assert served() == {"widget": 1, "gadget": 1}
    known = {1: (datetime.now(UTC), data_now())}
    generator = np.random.default_rng(100)
    deliver(site, "good", [surface(generator) for _ in range(GOOD)])
    with worker(site):
        good_images_come_to_serve(site)
        known[2] = (datetime.now(UTC), data_now())
        generator = np.random.default_rng(200)
        deliver(site, "poison", [flawed(generator, spots=3)[0] for _ in range(POISON)])
        words = said(site.flawline("reproduce", "widget@2"))  # while the poison waits for the schedule
        assert "widget version 2 is identical: " in words
        poison_is_held_and_let_in_by_a_person(site)
        poison_is_rejected(site)
    history_is_told_truly(site, known)


def good_images_come_to_serve(site: Project) -> None:
    run = retrained(site, 1)
    assert (run.state_name, run.parameters) == ("Completed", {"category": "widget"}), run.state.message
    assert (run.created_by.type, runs_of(site, "retrain-changed")) == ("AUTOMATION", [])
    assert all(one.auto_scheduled for one in runs_of(site, "ingest-arrived"))
    assert f"Data of widget: +{GOOD} good images" in site.git("log", "-1", "--format=%s")
    stored = site.folder.parent / "remote" / "files" / "md5" / data_now()[:2] / data_now()[2:]
    assert len(json.loads(stored.read_text())) == LEARNED + GOOD + 3 * TESTED
    assert served() == {"widget": 2, "gadget": 1}
    assert [version.number for version in registry.list_versions("gadget")] == [1]
    assert registry.find_version("widget", 2).data_version == data_now()
    assert registry.journal("widget")[-1].who == records.THE_GATE
    report = gate_report(2)
    assert (report["verdict"], report["measured_on"], report["images"]["test"]) == ("promote", "test", 2 * TESTED)


def poison_is_held_and_let_in_by_a_person(site: Project) -> None:
    before = data_now()
    wait_for(lambda: True if not any(Path("arriving/inbox/widget").iterdir()) else None, patience=PATIENCE)
    held = json.loads(said(site.flawline("review", "--json")))
    assert [(one["name"], one["code"]) for one in held] == [
        (f"poison-{number:02}.png", "suspicious") for number in range(POISON)
    ]
    assert data_now() == before
    said(site.flawline("review", "accept", *(one["name"] for one in held)))
    assert data_now() != before


def poison_is_rejected(site: Project) -> None:
    run = retrained(site, 2)
    assert (run.state_name, run.parameters) == ("Completed", {"category": "widget"}), run.state.message
    version = registry.find_version("widget", 3)
    assert (served(), version.data_version) == ({"widget": 2, "gadget": 1}, data_now())
    report = gate_report(3)
    assert (report["verdict"], version.verdict) == ("reject", f"rejected: {report['summary']}")
    figures = {one["name"]: one for one in report["figures"]}
    assert figures["image_auroc"]["standing"] == "worse"
    for number, name in {2: "champion", 3: "challenger"}.items():  # the evaluation has measured the same by itself
        measured = registry.find_version("widget", number).metrics["image_auroc"]
        assert figures["image_auroc"][name] == pytest.approx(measured, abs=1e-4)
    assert all("AUROC" in one["words"] or "AUPRO" in one["words"] or "missed defects" in one["words"]
               for one in report["reasons"] if one["word"] == "reject")  # fmt: skip
    client, _ = connect()
    kept = Path(client.download_artifacts(version.run_id, "gate/gate.html")).read_text()
    assert kept == (records.folder_of("widget", 3) / "gate.html").read_text()
    assert report["summary"][1:] in html.unescape(kept)
    described = client.get_model_version(registry.model_name("widget"), "3").description or ""
    assert described.startswith(f"Gate: rejected: {report['summary']}")


def history_is_told_truly(site: Project, known: dict[int, tuple[datetime, str]]) -> None:
    """known: of versions 1 and 2, a time at which it served, and the data that were there then."""
    words = said(site.flawline("rollback", "widget"))
    assert "version 1 is the champion again; version 2 served until now" in words
    copy = site.copy(site.folder.parent / "copy")
    journal = copy.folder / registry.journal_path("widget")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], lines[1].replace("first version", "second version"), *lines[2:]]))
    assert journal.read_text() != "".join(lines)
    with ThreadPoolExecutor(2) as threads:
        verified, changed, now, *then = threads.map(
            lambda one: one[0].flawline(*one[1]),
            [
                (site, ("history", "widget", "--verify", "--json")),
                (copy, ("history", "widget", "--verify")),
                (site, ("which", "widget", "--json")),
                *((site, ("which", "widget", "--at", str(time), "--json")) for time, _ in known.values()),
            ],
        )
    acts = json.loads(said(verified))
    assert acts["faults"] == []
    assert [(act["kind"], act["source"], act["target"]) for act in acts["acts"]] == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("reject", 2, 3),
        ("roll back", 2, 1),
    ]
    assert changed.returncode == 1
    assert "line 3 was not written after line 2 as it stands" in changed.stderr
    told = [json.loads(said(one)) for one in (*then, now)]
    assert [one["version"] for one in told] == [1, 2, 1]
    assert [one["data_version"] for one in told] == [known[number][1] for number in (1, 2, 1)]
    for one in told:
        assert one["commit"] == site.git("rev-parse", f"flawline/widget/{one['version']}")
        assert one["command"] == f"flawline reproduce widget@{one['version']}"
