"""What MLflow could not take is kept, and comes to it once and whole with the next connection."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from components.foundation.errors import UserError
from components.foundation.files import read_json, write_json
from components.foundation.places import Places
from components.registry import promotion
from components.registry import versions as registry
from components.tracking import connection, outbox
from components.tracking import runs as tracking
from components.tracking.runs import DataVersion, Run, finish_parent_run, finish_run, open_run, start_parent_run
from tests.conftest import MakeCapsule
from tests.project import CATEGORIES, Project

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

DIGEST = "ab" * 32
AWAY = "http://127.0.0.1:9"
PARAMS = {"method": "cutpaste-3way", "training": {"rate": 0.1}}


@pytest.fixture
def away(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A workspace whose MLflow server is away until `undo` is called; then its records go to the usual database."""
    with pytest.MonkeyPatch.context() as server:
        server.setenv("MLFLOW_TRACKING_URI", AWAY)
        server.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield server


def opened(stage: str, identity: str = "cd" * 32) -> Run:
    data = DataVersion("bottle", DIGEST, Path("data/bottle"), {"train/good": 209})
    return open_run("bottle", identity, PARAMS, data, stage)


def train_and_evaluate(identity: str = "cd" * 32) -> None:
    with opened("train", identity) as run:
        for step in range(3):
            run.log_metrics({"train/loss": 1 / (step + 1)}, step)
    Path("roc.png").write_bytes(b"picture")
    with opened("evaluate", identity) as run:
        run.log_history_if_missing([{"step": step, "train/loss": 1 / (step + 1)} for step in range(4)])
        run.log_metrics({"image_auroc": 0.9})
        run.log_figure_files(Path("roc.png"), folder="evaluation")
        finish_run(run, "capsule")


def stored() -> "list[MlflowRun]":
    client, experiment = connection.connect()
    return list(client.search_runs([experiment], order_by=["attributes.start_time ASC"]))


def points(run_id: str, name: str) -> list[tuple[int, float]]:
    client, _ = connection.connect()
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def is_whole(run: "MlflowRun") -> bool:
    """Whether the run has all that `train_and_evaluate` tells."""
    client, _ = connection.connect()
    (entry,) = run.inputs.dataset_inputs if run.inputs else []
    return (
        run.info.status == "FINISHED"
        and run.data.params == {"method": "cutpaste-3way", "training.rate": "0.1"}
        and run.data.tags[tracking.CAPSULE_DIGEST] == "capsule"
        and points(run.info.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]
        and points(run.info.run_id, "image_auroc") == [(0, 0.9)]
        and [file.path for file in client.list_artifacts(run.info.run_id, "evaluation")] == ["evaluation/roc.png"]
        and entry.dataset.digest == DIGEST[:36]
    )


@pytest.mark.slow
def test_a_retraining_without_a_server_comes_to_it_whole_with_the_next_run(
    away: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = start_parent_run("retrain bottle", ["bottle"], PARAMS)
    away.setenv(tracking.PARENT_VARIABLE, parent.run_id)
    train_and_evaluate()
    away.undo()
    finish_parent_run(parent)
    sent = stored()
    assert [run.info.run_name for run in sent] == ["retrain bottle", "bottle · cutpaste-3way · cdcdcd"]
    assert is_whole(sent[1])
    assert sent[1].data.tags[tracking.PARENT_RUN] == sent[0].info.run_id
    assert sent[1].data.tags[tracking.ATTEMPT] == "1"
    assert sent[0].info.status == "FINISHED"
    assert outbox.is_empty()
    assert "the records of 2 runs that had been kept were sent to MLflow" in capsys.readouterr().err
    assert tracking.find_run("capsule") == sent[1].info.run_id


@pytest.mark.slow
def test_a_server_that_comes_back_in_between_gets_one_run_under_one_parent(away: pytest.MonkeyPatch) -> None:
    parent = start_parent_run("retrain bottle", ["bottle"], PARAMS)
    with opened("train") as run:
        run.log_metrics({"train/loss": 1.0}, 0)
    away.undo()
    with pytest.MonkeyPatch.context() as variable:
        variable.setenv(tracking.PARENT_VARIABLE, parent.run_id)
        train_and_evaluate()
    assert [run.info.run_name for run in stored()] == ["bottle · cutpaste-3way · cdcdcd"]  # the parent is held by us
    finish_parent_run(parent)
    child, first = sorted(stored(), key=lambda run: run.info.run_name)
    assert is_whole(child)
    assert child.data.tags[tracking.PARENT_RUN] == first.info.run_id


@pytest.mark.slow
def test_a_finished_run_is_followed_by_an_attempt_that_is_compared_with_it(away: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as there:
        there.delenv("MLFLOW_TRACKING_URI")
        train_and_evaluate()
    train_and_evaluate()
    away.undo()
    tracking.send_kept_records()
    first, second = stored()
    assert [first.data.tags[tracking.ATTEMPT], second.data.tags[tracking.ATTEMPT]] == ["1", "2"]
    assert second.data.tags[tracking.BYTES_AGREE] == "true"
    assert is_whole(first)
    assert is_whole(second)


class CutOff(BaseException):
    """Stands for the process's end."""


@pytest.mark.slow
@pytest.mark.parametrize("last", ["create_run", "log_batch", "log_artifacts", "set_terminated"])
def test_sending_that_is_cut_off_is_completed_and_nothing_comes_twice(away: pytest.MonkeyPatch, last: str) -> None:
    from mlflow import MlflowClient

    train_and_evaluate()
    away.undo()
    really = getattr(MlflowClient, last)

    def and_end(self: MlflowClient, *arguments: Any, **named: Any) -> None:
        really(self, *arguments, **named)
        raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, last, and_end)
        with pytest.raises(CutOff):
            tracking.send_kept_records()
    tracking.send_kept_records()
    (run,) = stored()
    assert is_whole(run)
    assert outbox.is_empty()


@pytest.mark.slow
def test_a_run_that_another_process_is_writing_is_not_sent_and_a_killed_ones_is(away: pytest.MonkeyPatch) -> None:
    code = """
from tests.tracking.test_outbox import opened
run = opened("train")
run.log_metrics({"train/loss": 1.0}, 0)
run.flush()
print("written", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        away.undo()
        tracking.send_kept_records()
        assert stored() == []
        writer.send_signal(signal.SIGKILL)
    tracking.send_kept_records()
    (run,) = stored()
    assert points(run.info.run_id, "train/loss") == [(0, 1.0)]
    train_and_evaluate()
    (run,) = stored()
    assert is_whole(run)


@pytest.mark.slow
def test_an_outage_during_a_run_loses_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = workspace / ".flawline/mlflow/mlflow.db"
    Path("roc.png").write_bytes(b"picture")
    with opened("train") as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        run.flush()
        database.rename(database.with_suffix(".away"))
        database.mkdir()  # whatever is asked of it, SQLite cannot open a folder
        _forget_connections()
        run.log_figure_files(Path("roc.png"), folder="evaluation")
        run.log_metrics({"train/loss": 0.5}, 1)
    database.rmdir()
    database.with_suffix(".away").rename(database)
    assert not outbox.is_empty()
    train_and_evaluate()
    (found,) = stored()
    assert is_whole(found)
    assert outbox.is_empty()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_outbox_takes_no_more_and_says_so(
    away: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outbox, "MOST_BYTES", 1000)
    train_and_evaluate()  # its first run begins when nothing is kept yet
    said = capsys.readouterr().err
    assert "its record cannot be kept either (.flawline/outbox holds" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_an_outbox_moves_with_its_project(away: pytest.MonkeyPatch, workspace: Path) -> None:
    train_and_evaluate()
    moved = workspace.rename(workspace.with_name("moved"))
    os.chdir(moved)  # the fixture goes back
    away.undo()
    tracking.send_kept_records()
    (run,) = stored()
    assert is_whole(run)


def _forget_connections() -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


@pytest.mark.slow
def test_what_could_not_be_registered_is_registered_later_unless_it_has_changed(
    away: pytest.MonkeyPatch, tmp_path: Path, make_capsule: MakeCapsule, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.common.figures import TITLES
    from flows.retraining import unregistered
    from flows.retraining.pipeline import catch_up

    with pytest.MonkeyPatch.context() as there:
        there.delenv("MLFLOW_TRACKING_URI")
        for category in ("bottle", "screw"):  # each has a champion already
            registry.register(category, make_capsule(tmp_path / category, category=category), "", {}, "pretrained")
            promotion.promote(category, 1, "first version")
    for category in ("bottle", "screw"):
        capsule = make_capsule(Places(category).capsule, threshold=6.0, category=category)
        figures = dict.fromkeys(TITLES, 0.9)
        digest = read_json(capsule / "capsule.json")["digest"]
        known = {"capsule_digest": digest, "method": "pretrained", "by_kind": {}, **figures}
        write_json(Places(category).figures, known)
        unregistered.note(category)
    catch_up()
    assert capsys.readouterr().err.count("still not registered: MLflow at http://127.0.0.1:9 could not") == 2
    shutil.rmtree(Places("screw").capsule)
    make_capsule(Places("screw").capsule, threshold=7.0, category="screw")
    away.undo()
    catch_up()
    assert "bottle: version 2 is registered, but was not judged: " in capsys.readouterr().err  # its data are not here
    assert unregistered.categories() == []
    assert [(row.category, row.version) for row in registry.list_status()] == [
        ("bottle", 1),
        ("bottle", 2),
        ("screw", 1),
    ]
    with pytest.raises(UserError):
        registry.download_capsule("screw", 2)


@pytest.mark.slow
def test_a_server_that_is_away_stops_no_category_and_what_was_not_registered_is_caught_up(
    ran: Project, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path / "project")
    shutil.rmtree(copy.folder / ".flawline/mlflow")
    shutil.rmtree(copy.folder / ".flawline/journal")
    server = Project(copy.folder, {**copy.environment, "MLFLOW_TRACKING_URI": AWAY})
    done = server.flawline("run")
    assert done.returncode == 1
    for category in CATEGORIES:
        assert f"{category}: computed, but not registered: MLflow at {AWAY} could not do this" in done.stderr
    assert "Traceback" not in done.stderr
    done = copy.flawline("run", "widget")
    assert done.returncode == 0, done.stderr
    (late,) = [line for line in done.stderr.splitlines() if line.endswith("registered late")]
    assert late.startswith("gadget: version 1 is the champion")
    assert "widget: version 1 is the champion" in done.stderr
    assert list((copy.folder / ".flawline/unregistered").iterdir()) == []
