"""Runs are found by the identity of what they compute, and tracking never gets in the way of it."""

import base64
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from components.tracking import connection
from components.tracking.connection import shown_uri
from components.tracking.names import chosen_text
from components.tracking.runs import (
    DataVersion,
    Run,
    code_digest,
    finish_parent_run,
    finish_run,
    open_run,
    run_identity,
    start_parent_run,
)

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

PARAMS = {"method": "cutpaste-3way", "seed": 0, "training": {"rate": 0.1, "projection": [512]}}
DIGEST = "ab" * 32
REFUSED = "http://someone:secret@127.0.0.1:9"


def identity(**changes: Any) -> str:
    return run_identity(DIGEST, PARAMS | changes, "code", "bottle")


def opened(stage: str = "train", **changes: Any) -> Run:
    data = DataVersion("bottle", DIGEST, Path("data/mvtec/bottle"), {"train/good": 209, "test/broken": 20})
    return open_run("bottle", identity(**changes), PARAMS | changes, data, stage)


def stored(run: Run) -> "MlflowRun":
    client, _ = connection.connect()
    return client.get_run(run.run_id)


def points(run: Run, name: str) -> list[tuple[int, float]]:
    client, _ = connection.connect()
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.run_id, name))


@pytest.mark.parametrize(
    "changed",
    [
        ("other data", PARAMS, "code", "bottle"),
        (DIGEST, PARAMS | {"seed": 1}, "code", "bottle"),
        (DIGEST, PARAMS, "other code", "bottle"),
        (DIGEST, PARAMS, "code", "screw"),
    ],
)
def test_identity_changes_with_each_input(changed: tuple[Any, ...]) -> None:
    assert run_identity(*changed) != identity()


def test_identity_does_not_depend_on_the_order_of_parameters() -> None:
    assert run_identity(DIGEST, dict(reversed(PARAMS.items())), "code", "bottle") == identity()


def test_code_digest_changes_with_a_source_and_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    digests = [code_digest(tmp_path)]
    (tmp_path / "a.py").write_text("x = 2\n")
    digests.append(code_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    digests.append(code_digest(tmp_path))
    (tmp_path / "notes.txt").write_text("no code")
    assert len(set(digests)) == 3
    assert code_digest(tmp_path) == digests[-1]


def test_a_run_says_what_it_was_made_of(workspace: Path) -> None:
    with opened() as run:
        pass
    found = stored(run)
    assert found.info.run_name == f"bottle · cutpaste-3way · {identity()[:6]}"
    assert found.data.params == {
        "method": "cutpaste-3way",
        "seed": "0",
        "training.rate": "0.1",
        "training.projection": "[512]",
    }
    assert found.data.tags["flawline.category"] == "bottle"
    assert found.data.tags["flawline.attempt"] == "1"
    assert found.data.tags["flawline.data_digest"] == DIGEST
    assert found.inputs is not None
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("bottle", DIGEST[:36])
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    from mlflow.data import get_source

    assert get_source(entry.dataset).to_dict() == {"uri": str(workspace / "data/mvtec/bottle")}
    assert not [path for path in workspace.iterdir() if path.name != ".flawline"]


def test_the_experiment_is_one_of_model_training_and_its_page_is_known(workspace: Path) -> None:
    client, experiment = connection.connect()
    found = client.get_experiment(experiment)
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    assert connection.experiment_page().startswith(f"/#/experiments/{experiment}/runs?workflowType=machine_learning&")


def test_the_page_of_the_runs_shows_figures_method_data_and_verdict_as_columns(workspace: Path) -> None:
    from mlflow import MlflowClient

    old = MlflowClient(connection.tracking_uri()).create_experiment("flawline")  # made by a version that knew no views
    key = connection.experiment_page().partition("viewStateShareKey=")[2]
    client, experiment = connection.connect()
    assert experiment == old
    view = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"][:4] == [
        f"metrics.`figures/{name}`" for name in ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate")
    ]
    assert {"params.`method`", "tags.`data_version`", "tags.`verdict`"} < set(state["columnOrder"])
    found = client.search_runs([experiment], state["searchFilter"], order_by=[state["orderByKey"]])
    assert found == []
    model = opened()
    start_parent_run("retraining", ["bottle"], PARAMS)
    found = client.search_runs([experiment], state["searchFilter"], order_by=[state["orderByKey"]])
    assert [run.info.run_id for run in found] == [model.run_id]


def test_figures_of_kinds_with_any_name_arrive_and_the_run_ends(workspace: Path) -> None:
    kinds = {"#2": 0.1, "50% worn": 0.2, "a&b, c": 0.3, "bent (deep)": 0.4, "Kratzer": 0.5}
    with opened("evaluate") as run:
        run.log_metrics({f"kinds/found {kind}": value for kind, value in kinds.items()})
    finish_run(run, "digest")
    found = stored(run)
    assert found.info.status == "FINISHED"
    assert {chosen_text(name): value for name, value in found.data.metrics.items()} == {
        f"kinds/found {kind}": value for kind, value in kinds.items()
    }


def test_a_metric_that_mlflow_refuses_loses_no_other_and_the_run_ends(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_long = "/".join(["x" * 99] * 3)
    with opened("evaluate") as run:
        run.log_metrics({"before": 1.0, too_long: 2.0, "after": 3.0})
    finish_run(run, "digest")
    assert stored(run).data.metrics == {"before": 1.0, "after": 3.0}
    assert stored(run).info.status == "FINISHED"
    assert capsys.readouterr().err.count("does not take a metric") == 1


def test_a_run_leads_to_its_data_and_to_all_runs_on_them(workspace: Path) -> None:
    version, commit = "0" * 32 + ".dir", "c" * 40
    data = DataVersion("bottle", DIGEST, Path("data/bottle"), {"train/good": 2}, version, commit)
    run = open_run("bottle", identity(), PARAMS, data, "train", everything="method: all\n")
    finish_run(run, "digest", "What the figures say.")
    found = stored(run)
    assert found.inputs is not None
    assert found.inputs.dataset_inputs[0].dataset.digest == version
    assert (found.data.tags["data_version"], found.data.tags["data_commit"]) == (version, commit)
    assert found.data.tags["mlflow.source.name"] == "dvc repro"
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith("What the figures say.")
    link = note.partition("](#")[2].partition(")")[0]
    client, experiment = connection.connect()
    wanted = parse_qs(urlsplit(link).query)["searchFilter"][0]
    assert [one.info.run_id for one in client.search_runs([experiment], wanted)] == [run.run_id]
    text = client.download_artifacts(run.run_id, "params.yaml")
    assert Path(text).read_text() == "method: all\n"


def test_pictures_of_runs_have_the_same_keys(workspace: Path) -> None:
    from PIL import Image

    with opened("evaluate") as run:
        for step in range(2):
            run.log_picture(Image.new("RGB", (8, 8)), "pictures/worst misses", step)
    client, _ = connection.connect()
    assert stored(run).data.tags["mlflow.loggedImages"] == "True"
    names = [item.path for item in client.list_artifacts(run.run_id, "images") if item.path.endswith(".png")]
    assert sorted(name.split("+timestamp")[0] for name in names) == [
        "images/pictures~worst misses+step+0",
        "images/pictures~worst misses+step+1",
    ]


def test_the_git_commit_and_changes_to_the_code_are_recorded(workspace: Path) -> None:
    def git(*arguments: str) -> str:
        words = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    Path("params.yaml").write_text("seed: 0\n")
    git("add", "params.yaml")
    git("commit", "-qm", "first")
    tags = stored(opened()).data.tags
    assert (tags["mlflow.source.git.commit"], tags["flawline.git_dirty"]) == (git("rev-parse", "HEAD"), "false")
    Path("params.yaml").write_text("seed: 1\n")
    assert stored(opened(seed=1)).data.tags["flawline.git_dirty"] == "true"


def test_the_next_stage_continues_the_run_and_a_finished_run_is_followed_by_an_attempt(workspace: Path) -> None:
    with opened("train") as train:
        train.log_metrics({"loss": 0.5}, step=1)
    with opened("evaluate") as evaluate:
        evaluate.log_metrics({"image_auroc": 0.99})
    assert evaluate.run_id == train.run_id
    assert stored(train).info.status == "RUNNING"
    finish_run(evaluate, "capsule 1")
    assert stored(train).info.status == "FINISHED"

    again = opened()
    assert again.run_id != train.run_id
    assert stored(again).data.tags["flawline.attempt"] == "2"
    assert opened(seed=1).run_id not in (train.run_id, again.run_id)


def test_an_attempt_says_whether_its_bytes_agree_with_the_one_before(workspace: Path) -> None:
    runs = []
    for digest in ("first", "first", "second"):
        runs.append(opened())
        finish_run(runs[-1], digest)
    tags = [stored(run).data.tags for run in runs]
    assert [tag.get("flawline.bytes_agree") for tag in tags] == [None, "true", "false"]
    assert [tag.get("flawline.compared_with") for tag in tags] == [None, runs[0].run_id, runs[1].run_id]


def test_a_failed_stage_marks_the_run_and_the_next_try_continues_it(workspace: Path) -> None:
    run = opened()

    def fail() -> None:
        with run:
            run.log_metrics({"loss": 1.0}, step=3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert stored(run).info.status == "FAILED"
    assert points(run, "loss") == [(3, 1.0)]
    assert opened().run_id == run.run_id
    assert stored(run).info.status == "RUNNING"


def _train_until_killed(ready: Any) -> None:
    run = opened()
    run.log_metrics({"loss": 0.9}, step=1)
    run.log_metrics({"loss": 0.8}, step=2)
    run.flush()
    ready.send(run.run_id)
    signal.pause()


@pytest.mark.slow
def test_a_killed_training_is_continued_without_repeated_points(workspace: Path) -> None:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_train_until_killed, args=(sending,))
    process.start()
    run_id = receiving.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    with opened() as run:
        for step, loss in [(2, 0.8), (3, 0.7)]:  # resumed from the checkpoint of step 1
            run.log_metrics({"loss": loss}, step)
    assert run.run_id == run_id
    assert points(run, "loss") == [(1, 0.9), (2, 0.8), (3, 0.7)]


def test_history_fills_only_what_is_missing(workspace: Path) -> None:
    with opened() as run:
        run.log_metrics({"loss": 0.9}, step=1)
    rows = [{"step": "1", "loss": "0.1", "exam": ""}, {"step": "2", "loss": "0.8", "exam": "0.7"}]
    with opened("evaluate") as run:
        run.log_history_if_missing(rows)
        run.log_history_if_missing(rows)
    assert points(run, "loss") == [(1, 0.9), (2, 0.8)]
    assert points(run, "exam") == [(2, 0.7)]


def test_many_points_from_many_threads_all_arrive(workspace: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with opened() as run, ThreadPoolExecutor(8) as pool:
        for step in range(1300):
            pool.submit(run.log_metrics, {"loss": float(step)}, step)
    assert points(run, "loss") == [(step, float(step)) for step in range(1300)]


def test_files_and_folders_become_artifacts(workspace: Path) -> None:
    (workspace / "maps").mkdir()
    (workspace / "maps" / "one.png").write_bytes(b"1")
    (workspace / "roc.png").write_bytes(b"2")
    with opened() as run:
        run.log_figure_files(workspace / "maps", workspace / "roc.png", folder="evaluation")
    client, _ = connection.connect()
    assert {item.path for item in client.list_artifacts(run.run_id, "evaluation")} == {
        "evaluation/one.png",
        "evaluation/roc.png",
    }
    folder = workspace / ".flawline/mlflow/artifacts" / run.run_id / "artifacts"
    assert (folder / "evaluation" / "roc.png").read_bytes() == b"2"


def test_a_retraining_is_a_parent_with_a_child_per_category(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = start_parent_run("retraining", ["bottle", "screw"], PARAMS)
    monkeypatch.setenv("FLAWLINE_PARENT_RUN", parent.run_id)
    child = opened()
    finish_parent_run(parent, succeeded=False)
    assert stored(child).data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored(parent).info.status == "FAILED"
    assert stored(parent).data.params["categories"] == "bottle screw"


@pytest.mark.slow
def test_without_a_server_one_line_says_so_and_every_call_is_accepted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", REFUSED)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with opened() as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_history_if_missing([{"step": 1, "loss": 1.0}])
        run.log_figure_files(workspace / ".flawline/mlflow/mlflow.db")
        run.set_tags({"a": "b"})
    finish_run(run, "digest")
    said = [line for line in capfd.readouterr().err.splitlines() if "flawline" in line]
    assert len(said) == 1
    assert "MLflow at http://127.0.0.1:9 cannot be reached" in said[0]
    assert "the record of this run is kept in .flawline/outbox and sent by the next run that reaches it" in said[0]
    assert "secret" not in said[0]


@pytest.mark.slow
def test_a_failure_later_on_is_one_warning_and_nothing_is_lost(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = workspace / ".flawline/mlflow/mlflow.db"
    with opened() as run:
        database.rename(database.with_suffix(".away"))
        database.mkdir()  # whatever is asked of it, SQLite cannot open a folder
        _forget_connections()
        for step in range(3):
            run.log_metrics({"loss": float(step)}, step)
            run.flush()
        run.log_figure_files(workspace / "missing.png")
        database.rmdir()
        database.with_suffix(".away").rename(database)
    said = capsys.readouterr().err
    assert said.count("does not take the records of this run") == 1
    assert "Traceback" not in said
    assert points(run, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def _forget_connections() -> None:
    """Close MLflow's pooled connections, which would go on writing to the file that was moved."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


def test_password_is_not_shown() -> None:
    assert shown_uri("postgresql+psycopg2://flawline:secret@db:5432/mlflow") == "postgresql+psycopg2://db:5432/mlflow"
    assert shown_uri("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, components.tracking.runs, components.registry.versions; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
