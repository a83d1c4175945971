"""A project that was moved, copied or put under an odd name finds its own models, and writes to its own folder."""

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.foundation.errors import UserError
from components.foundation.files import digest_tree
from components.foundation.mlflow_store import check_place
from components.registry import promotion
from components.registry import versions as registry
from components.tracking import connection
from components.tracking import runs as tracking
from tests.conftest import MakeCapsule
from tests.project import Project, is_one_sentence, surface, write_image

ODD = 'it\'s 100% "so" #1; $(touch x) [ü] & %s'


@pytest.fixture
def registered(workspace: Path, tmp_path: Path, make_capsule: MakeCapsule) -> str:
    """The digest of a capsule which is the champion of the workspace, and not among those that were fetched."""
    capsule = make_capsule(tmp_path / "capsule")
    version = registry.register("bottle", capsule, "", {"image_auroc": 0.9}, "pretrained")
    promotion.promote("bottle", version.number, "first version")
    return version.digest


def stored_places(workspace: Path) -> set[str]:
    with sqlite3.connect(workspace / ".flawline/mlflow/mlflow.db") as connection:
        rows = connection.execute(
            "SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs "
            "UNION SELECT source FROM model_versions UNION SELECT storage_location FROM model_versions "
            "UNION SELECT dataset_source FROM datasets"
        )
        return {place for (place,) in rows if "mlruns" not in place}  # of MLflow's own default experiment


def go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def log_a_run(workspace: Path) -> Path:
    """The folder that a file logged to a new run lands in."""
    data = tracking.DataVersion("bottle", "ab" * 32, Path("data/bottle"), {"train/good": 1})
    (workspace / "figure.png").write_bytes(b"picture")
    with tracking.open_run("bottle", os.urandom(8).hex(), {"method": "pretrained"}, data, "train") as run:
        run.log_figure_files(Path("figure.png"))
    (found,) = (workspace / ".flawline/mlflow/artifacts").glob(f"{run.run_id}/artifacts/figure.png")
    return found


@pytest.mark.parametrize("name", ["moved", ODD])
def test_after_a_move_models_are_found_and_new_artifacts_come_to_the_new_place(
    registered: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    log_a_run(workspace)
    workspace.rename(tmp_path / name)
    moved = go(tmp_path / name, monkeypatch)
    assert registry.download_capsule("bottle").name == registered
    assert log_a_run(moved).is_file()
    places = stored_places(moved)
    assert len(places) > 4
    assert all(place.startswith((moved.as_uri(), '{"uri": ')) for place in places)
    assert all(str(workspace) + "/" not in place for place in places)
    assert not workspace.exists()

    import mlflow

    mlflow.set_tracking_uri(connection.tracking_uri())
    model = mlflow.pyfunc.load_model("models:/flawline-bottle@champion")
    write_image(Path("part.png"), surface(np.random.default_rng(0)))
    scored = model.predict(pd.DataFrame({"image": [Path("part.png").read_bytes()]}))
    assert scored["threshold"].tolist() == [5.0]


def test_a_copy_neither_reads_from_the_original_nor_writes_to_it(
    registered: str, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(workspace, tmp_path / "copy"))
    before = digest_tree(workspace)
    go(copy, monkeypatch)
    log_a_run(copy)
    promotion.promote("bottle", 1, "again")
    assert digest_tree(workspace) == before
    shutil.rmtree(workspace)
    assert registry.download_capsule("bottle").name == registered


def test_a_project_in_an_odd_folder_keeps_its_records_in_it(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_capsule: MakeCapsule
) -> None:
    workspace.rename(tmp_path / ODD)
    odd = go(tmp_path / ODD, monkeypatch)
    log_a_run(odd)
    registry.register("bottle", make_capsule(tmp_path / "capsule"), "", {}, "pretrained")
    assert registry.download_capsule("bottle", 1).is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["capsule", ODD])


def test_the_projects_own_database_named_in_the_environment_is_the_projects_own(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///.flawline/mlflow/mlflow.db")
    assert log_a_run(workspace).is_file()


@pytest.mark.parametrize("name", ["what?", "{part}", "feature%2Fcamera"])
def test_a_folder_that_a_library_cannot_work_in_is_refused_at_once(
    project: Project, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / name
    copy = project.copy(folder)
    shutil.rmtree(folder / ".flawline", ignore_errors=True)  # which commands of other tests may have left there
    for done in (copy.flawline("run"), copy.stage("validate", "widget")):
        assert done.returncode == 1
        assert is_one_sentence(done.stderr), done.stderr
        assert f"The project's folder {str(folder)!r} has" in done.stderr
    assert not (folder / ".flawline").exists()
    assert not (folder / "artifacts").exists()
    assert os.listdir(tmp_path) == [name]


def test_a_percent_escape_in_the_path_does_no_harm_where_a_server_keeps_the_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_place(Path("/work/feature%2Fcamera"))
    with pytest.raises(UserError):
        check_place(Path("/work/{feature}"))
