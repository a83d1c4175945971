"""New images in an S3 inbox to a retrained model, with a real S3 server, Prefect server, worker, git and DVC."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.foundation.files import read_json
from tests.project import Project, surface, write_category, write_image
from tests.retraining.test_schedule import flow_runs, prefect
from tests.servers import S3Server, end, prefect_server

pytestmark = pytest.mark.slow
PATIENCE = 400.0  # seconds for a retraining on a busy machine
TRAIN = 60  # enough that a good image is rarely above all of the calibration's scores


@pytest.fixture
def served(git_project: Project, s3: S3Server, tmp_path: Path) -> Iterator[Project]:
    """Two categories with a first version of data and of model, and Prefect and S3 servers."""
    for seed, category in enumerate(("widget", "gadget")):
        shutil.rmtree(git_project.folder / "data" / "tiny" / category)
        write_category(git_project.folder / "data" / "tiny" / category, seed=seed, defects=4, train=TRAIN)
        assert git_project.flawline("data", "add", f"data/tiny/{category}", "--category", category).returncode == 0
    wide = {"max_deviations": 100.0}  # so that the defect is left to the champion to find
    git_project.set_params({"ingest": {"settle_seconds": 0, "retrain_images": 10, **wide}})
    done = git_project.flawline("run")
    assert done.returncode == 0, done.stderr
    with prefect_server(tmp_path / "prefect") as url:
        own = {"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "home"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        yield Project(git_project.folder, {**git_project.environment, **own, **s3.environment})


@contextmanager
def worker(project: Project) -> Iterator[None]:
    """A worker that takes what is scheduled, until the block ends."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "flawline"]
    with (project.folder.parent / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=project.folder, env=dict(project.environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        end(process, 60)


def delivery(folder: Path, project: Project) -> dict[str, str]:
    """Twenty images as in the field; what is to become of each, by its name."""
    generator = np.random.default_rng(4)
    data = project.folder / "data" / "tiny" / "widget"
    expected = {}
    for number in range(14):
        write_image(folder / f"good-{number:02}.png", calm_surface(generator))
        expected[f"good-{number:02}.png"] = "accepted"
    shutil.copy(data / "train" / "good" / "004.png", folder / "seen-before.png")
    shutil.copy(folder / "good-03.png", folder / "sent-twice.png")
    shutil.copy(folder / "good-05.png", folder / "sent-twice-again.png")
    shutil.copy(data / "test" / "good" / "002.png", folder / "test-copy.png")
    write_image(folder / "torn.png", surface(generator))
    (folder / "torn.png").write_bytes((folder / "torn.png").read_bytes()[:2000])
    defect = surface(generator)
    defect[10:18, 20:28] = 235
    write_image(folder / "defect.png", defect)
    return expected | {
        "seen-before.png": "duplicate",
        "sent-twice.png": "duplicate",
        "sent-twice-again.png": "duplicate",
        "test-copy.png": "test-image",
        "torn.png": "undecodable",
        "defect.png": "suspicious",
    }


def calm_surface(generator: np.random.Generator) -> np.ndarray:
    """A good image with less noise than most: by chance alone, one in 61 would score above all of 60 others."""
    return ((surface(generator).astype(np.uint16) + surface(generator)) // 2).astype(np.uint8)


def wait_for_run(url: str, deployment: str) -> Any:
    """The flow run of a deployment, as soon as it has ended."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended = [run for run in flow_runs(url) if run.deployment_id == deployment and run.state.is_final()]
        if ended:
            return ended[0]
        time.sleep(1)
    raise AssertionError(f"no run has ended: {[(run.name, run.state_name) for run in flow_runs(url)]}")


def deployment_id(url: str, name: str) -> Any:
    from prefect.client.orchestration import PrefectClient

    async def read() -> Any:
        async with PrefectClient(url) as client:
            return (await client.read_deployment_by_name(name)).id

    return asyncio.run(read())


def test_new_images_in_s3_retrain_their_category_alone(served: Project, s3: S3Server, tmp_path: Path) -> None:
    url = served.environment["PREFECT_API_URL"]
    prefect(served, "work-pool", "create", "flawline", "--type", "process")
    prefect(served, "deploy", "--name", "retrain-arrived")
    retraining = deployment_id(url, "flawline-retrain-arrived/retrain-arrived")
    expected = delivery(tmp_path / "camera", served)
    for name in expected:
        s3.client().upload_file(str(tmp_path / "camera" / name), "bucket", f"line/incoming/widget/{name}")
    assert len(expected) == 20

    with worker(served):
        done = served.flawline("ingest", "--source", "s3://bucket/line/incoming")
        assert done.returncode == 0, done.stderr
        run = wait_for_run(url, retraining)

    log = (served.folder.parent / "worker.log").read_text()
    assert (run.state_name, run.parameters) == ("Completed", {"category": "widget"}), log
    assert "20 arrived, 14 accepted" in done.stdout
    versions = json.loads(served.flawline("data", "versions", "widget", "--json").stdout)
    assert [(one["message"], one["good"]) for one in versions][:2] == [
        (f"Data of widget: +14 good images; {TRAIN + 14} good and 8 test images in all", TRAIN + 14),
        (
            f"Data of widget: +{TRAIN} good images, +8 test images, +4 masks; {TRAIN} good and 8 test images in all",
            TRAIN,
        ),
    ]
    assert found(s3) == expected
    models = model_versions(served)
    assert models == {"flawline-widget": 2, "flawline-gadget": 1}
    report = read_json(served.folder / "artifacts" / "widget" / "validation" / "report.json")
    assert report["counts"]["train/good"] == TRAIN + 14
    listed = json.loads(served.flawline("review", "--source", "s3://bucket/line/incoming", "--json").stdout)
    assert [(one["name"], one["map"].startswith("s3://bucket/line/held/widget/")) for one in listed] == [
        ("defect.png", True)
    ]
    assert [run.parameters for run in flow_runs(url) if run.deployment_id == retraining] == [{"category": "widget"}]


def found(s3: S3Server) -> dict[str, str]:
    """What S3 says has become of each file: "accepted", or the code of the reason."""
    client = s3.client()
    keys = [one["Key"] for one in client.list_objects_v2(Bucket="bucket", Prefix="line/")["Contents"]]
    assert not any(key.startswith("line/incoming/") for key in keys)
    outcome: dict[str, str] = {}
    for key in keys:
        if key.endswith(".json"):
            reasons = json.loads(client.get_object(Bucket="bucket", Key=key)["Body"].read())
            for one in reasons if isinstance(reasons, list) else [reasons]:
                assert f"line/{one['place']}" in keys
                outcome[one["name"]] = one["code"] or "accepted"
    return outcome


def model_versions(project: Project) -> dict[str, int]:
    from components.tracking.connection import prepare_environment

    prepare_environment()
    from mlflow import MlflowClient

    uri = f"sqlite:///{project.folder}/.flawline/mlflow/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    names = [model.name for model in client.search_registered_models()]
    return {name: len(client.search_model_versions(f"name='{name}'")) for name in names}
