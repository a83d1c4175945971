"""The whole line on a tiny project: one `flawline run`, then what a user relies on afterwards."""

import csv
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.project import CATEGORIES, STEPS, Project, is_one_sentence

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

pytestmark = pytest.mark.slow  # the one run that all look at takes more than a minute
STAGES = ("validate", "synthesize", "train", "fit", "evaluate")


@pytest.fixture(scope="module")
def client(ran: Project) -> "MlflowClient":
    """MLflow's client on the database that the first run made."""
    from components.tracking.connection import prepare_environment

    prepare_environment()
    from mlflow import MlflowClient

    uri = f"sqlite:///{ran.folder}/.flawline/mlflow/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def runs(client: "MlflowClient", wanted: str = "") -> "list[Run]":
    """The runs that a filter finds, the earliest first."""
    experiment = client.get_experiment_by_name("flawline")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], wanted, order_by=["attributes.start_time"]))


def metrics_of(project: Project, category: str) -> dict[str, Any]:
    """All figures; those that git keeps are the same."""
    figures = dict(json.loads((project.folder / "artifacts" / category / "evaluation" / "figures.json").read_text()))
    kept = json.loads((project.folder / "metrics" / f"{category}.json").read_text())
    assert kept == {name: figures[name] for name in kept}
    return figures


def test_a_run_ends_with_a_table_of_all_categories(
    first_run: tuple[Project, subprocess.CompletedProcess[str]],
) -> None:
    _, done = first_run
    assert done.returncode == 0, done.stderr
    for word in ("image AUROC", "pixel AUROC", "AUPRO", "threshold", "version", "alias", *CATEGORIES, "champion"):
        assert word in done.stdout
    assert "Running stage" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_says_each_stage_of_each_category_in_order(
    first_run: tuple[Project, subprocess.CompletedProcess[str]],
) -> None:
    project, done = first_run
    said = [line.split(" done in ")[0] for line in done.stderr.splitlines() if " done in " in line]
    assert said == [f"{category}: {stage}" for category in CATEGORIES for stage in STAGES]
    assert project.parts() == []


def test_a_defect_is_found_and_its_pixels_too(ran: Project) -> None:
    metrics = metrics_of(ran, "widget")
    assert metrics["image_auroc"] == 1.0  # bright squares on a dark surface
    assert metrics["pixel_auroc"] > 0.8
    assert metrics["counts"] == {"good": 4, "defect": 4}
    assert set(metrics["by_kind"]) == {"blob"}


def test_a_category_without_any_defect_gets_a_model_and_nulls(ran: Project) -> None:
    metrics = metrics_of(ran, "gadget")
    assert {metrics[name] for name in ("image_auroc", "pixel_auroc", "aupro", "f1_max")} == {None}
    assert metrics["counts"] == {"good": 4, "defect": 0}
    assert 0 <= metrics["false_alarm_rate"] <= 1
    assert 0 < metrics["exam_mark"] <= 1
    with (ran.folder / "artifacts" / "gadget" / "evaluation" / "scores.csv").open() as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["good"] * 4


def test_status_as_json_is_a_list_of_objects_with_the_known_keys(ran: Project) -> None:
    done = ran.flawline("status", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0
    assert [row["category"] for row in rows] == sorted(CATEGORIES)
    for row in rows:
        metrics = metrics_of(ran, row["category"])
        figures = {name: metrics[name] for name in ("category", "image_auroc", "pixel_auroc", "aupro", "threshold")}
        assert row == {**figures, "version": 1, "alias": "champion", "method": "cutpaste-3way"}


def test_dvc_finds_everything_up_to_date_after_a_run(ran: Project) -> None:
    lock = (ran.folder / "dvc.lock").read_bytes()
    assert ran.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    done = ran.dvc("repro")
    assert done.returncode == 0
    assert "Data and pipelines are up to date." in done.stdout
    assert "Running stage" not in done.stdout
    assert (ran.folder / "dvc.lock").read_bytes() == lock


def test_a_second_run_computes_nothing_and_registers_nothing(ran: Project, client: "MlflowClient") -> None:
    attempts = "tags.`flawline.attempt` != ''"
    before = len(runs(client, attempts)), len(client.search_model_versions())
    lock = (ran.folder / "dvc.lock").read_bytes()
    done = ran.flawline("run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is up to date") == len(STAGES) * len(CATEGORIES)
    assert " done in " not in done.stderr
    assert (len(runs(client, attempts)), len(client.search_model_versions())) == before
    assert (ran.folder / "dvc.lock").read_bytes() == lock


def test_a_run_is_the_parent_of_one_run_per_category(ran: Project, client: "MlflowClient") -> None:
    parent = runs(client, "tags.`flawline.categories` = 'widget gadget'")[0]
    children = runs(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert parent.info.status == "FINISHED"
    assert [child.data.tags["flawline.category"] for child in children] == list(CATEGORIES)
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        assert (
            child.data.tags["flawline.capsule_digest"]
            == metrics_of(ran, child.data.tags["flawline.category"])["capsule_digest"]
        )


def test_mlflow_has_parameters_data_figures_curve_and_pictures(ran: Project, client: "MlflowClient") -> None:
    run = runs(client, "tags.`flawline.category` = 'widget'")[0]
    run_id = run.info.run_id
    assert (run.data.params["method"], run.data.params["backbone.name"]) == ("cutpaste-3way", "lcnet_035")
    assert run.data.params["training.steps"] == "20"
    assert run.inputs is not None
    dataset = run.inputs.dataset_inputs[0].dataset
    lock = yaml.safe_load((ran.folder / "dvc.lock").read_text())["stages"]["validate@widget"]
    version = next(dep["md5"] for dep in lock["deps"] if dep["path"] == "data/tiny/widget")
    assert (dataset.name, dataset.digest, run.data.tags["data_version"]) == ("widget", version, version)
    assert run.data.metrics["figures/image_auroc"] == run.data.metrics["kinds/found blob"] == 1.0
    assert not [name for name in run.data.params if name.startswith(("network.", "nsa.", "patch.", "ingest."))]
    curve = client.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in curve) == list(range(1, STEPS + 1))
    files = {
        file.path
        for folder in ("evaluation", "training", "validation")
        for file in client.list_artifacts(run_id, folder)
    }
    wanted = {"evaluation/gallery.png", "evaluation/roc.png", "evaluation/scores.png", "validation/report.html"}
    assert files >= wanted | {"training/contact_sheet.png", "training/training.json", "training/history.png"}
    assert files >= {"training/nsa.json", "training/nsa_sheet.png"}
    everything = yaml.safe_load(Path(client.download_artifacts(run_id, "params.yaml")).read_text())
    assert everything["training"]["steps"] == 20
    assert everything["network"]


def test_the_same_pictures_of_every_run_can_be_compared(ran: Project, client: "MlflowClient") -> None:
    for category, keys in (("widget", 3), ("gadget", 2)):  # the second has no defect that could be missed
        run = runs(client, f"tags.`flawline.category` = '{category}'")[0]
        files = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
        names = {path.removeprefix("images/").split("+step+")[0] for path in files}
        assert len(names) == keys
        assert names <= {
            f"pictures~{key}" for key in ("worst misses", "worst false alarms", "nearest to the threshold")
        }
        assert run.data.tags["mlflow.loggedImages"] == "True"


def test_a_retraining_sums_up_its_categories(ran: Project, client: "MlflowClient") -> None:
    parent = runs(client, "tags.`flawline.categories` = 'widget gadget'")[0]
    assert parent.data.metrics["figures/image_auroc"] == 1.0  # of the only category that has one
    assert parent.inputs is not None
    assert sorted(entry.dataset.name for entry in parent.inputs.dataset_inputs) == sorted(CATEGORIES)
    assert parent.data.tags["verdict"] == "champions: 2, challengers: 0"
    assert parent.data.tags["mlflow.source.name"] == "flawline run"
    lines = parent.data.tags["mlflow.note.content"].splitlines()
    for category, line in zip(CATEGORIES, lines[2:], strict=True):
        child = runs(client, f"tags.`flawline.category` = '{category}'")[0]
        assert f"[{category}](#/experiments/{child.info.experiment_id}/runs/{child.info.run_id}" in line
        assert f"(#/models/flawline-{category}/versions/1)" in line
        assert child.data.tags["verdict"] == "champion: first version"
        assert f"(#/models/flawline-{category}/versions/1)" in child.data.tags["mlflow.note.content"]


def test_the_status_of_one_category_says_all_about_a_version(ran: Project) -> None:
    said = ran.flawline("status", "widget")
    assert said.returncode == 0, said.stderr
    metrics = metrics_of(ran, "widget")
    for words in ("champion: first version", "blob", metrics["capsule_digest"], metrics["promise"]):
        assert words in said.stdout
    version = json.loads(ran.flawline("status", "widget", "--version", "1", "--json").stdout)
    assert (version["number"], version["digest"]) == (1, metrics["capsule_digest"])
    assert version["metrics"]["image_auroc"] == metrics["image_auroc"]
    missing = ran.flawline("status", "widget", "--version", "9")
    assert missing.returncode == 1
    assert is_one_sentence(missing.stderr)


def test_dvc_shows_figures_that_fit_a_screen_and_plots(ran: Project) -> None:
    shown = ran.dvc("metrics", "show").stdout
    assert max(map(len, shown.splitlines())) <= 120
    assert "image_auroc" in shown
    drawn = ran.dvc("plots", "show", "--json")
    assert drawn.returncode == 0, drawn.stderr
    plots = json.loads(drawn.stdout)["data"]
    assert {name.split("/")[-1] for name in plots if "/widget/" in name} == {
        "roc.csv", "precision_recall.csv", "scores.csv", "training.csv",
    }  # fmt: skip
    assert all(plot for name, plot in plots.items() if "/widget/" in name)


def test_a_version_leads_to_the_run_that_made_it(ran: Project, client: "MlflowClient") -> None:
    version = client.get_model_version_by_alias("flawline-widget", "champion")
    run = client.get_run(version.run_id or "")
    assert run.data.tags["flawline.capsule_digest"] == version.tags["capsule_digest"]
    assert run.data.tags["flawline.category"] == "widget"


def test_the_training_curve_is_in_the_outputs_and_moves(ran: Project) -> None:
    with (ran.folder / "artifacts" / "widget" / "encoder" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert len({row["loss"] for row in rows}) > STEPS // 2


def test_a_capsule_says_no_parameter_that_its_stage_does_not_depend_on(ran: Project) -> None:
    card = json.loads((ran.folder / "artifacts" / "widget" / "capsule" / "capsule.json").read_text())
    stage = yaml.safe_load((ran.folder / "dvc.yaml").read_text())["stages"]["fit"]
    assert set(card["provenance"]["params"]) == set(stage["params"])


def test_a_forced_repetition_gives_the_same_bytes_and_says_so(ran: Project, client: "MlflowClient") -> None:
    lock = (ran.folder / "dvc.lock").read_bytes()
    metrics = (ran.folder / "metrics" / "widget.json").read_bytes()
    done = ran.dvc("repro", "--force", "evaluate@widget")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Running stage") == len(STAGES)
    assert (ran.folder / "dvc.lock").read_bytes() == lock
    assert (ran.folder / "metrics" / "widget.json").read_bytes() == metrics
    first, second = runs(client, "tags.`flawline.category` = 'widget'")[:2]
    assert (first.data.tags["flawline.attempt"], second.data.tags["flawline.attempt"]) == ("1", "2")
    assert second.data.tags["flawline.bytes_agree"] == "true"
    assert second.data.tags["flawline.compared_with"] == first.info.run_id


def test_outputs_name_no_place_on_this_machine(ran: Project) -> None:
    """What goes to other machines by DVC must mean the same there."""
    named = [
        path.relative_to(ran.folder)
        for path in (ran.folder / "artifacts").rglob("*")
        if path.suffix in {".json", ".csv", ".html"} and str(ran.folder) in path.read_text(encoding="utf-8")
    ]
    assert named == []
