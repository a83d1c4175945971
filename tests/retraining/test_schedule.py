"""The deployments of prefect.yaml on a real Prefect server, run by a real worker."""

import asyncio
import importlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.data.version import good_images
from flows.data.versions import commit_folder, commit_images
from tests.project import REPOSITORY, Project, new_images
from tests.servers import prefect_server

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_names_a_flow_and_parameters_that_it_takes(
    deployment: dict[str, Any], git_project: Project
) -> None:
    path, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)


@pytest.fixture
def served(git_project: Project, tmp_path: Path) -> Iterator[Project]:
    """The project, with a Prefect server for it."""
    with prefect_server(tmp_path / "prefect") as url:
        own = {"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "home"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        yield Project(git_project.folder, {**git_project.environment, **own})


def prefect(project: Project, *arguments: str) -> str:
    done = project.run("-m", "prefect", "--no-prompt", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def flow_runs(url: str) -> list[Any]:
    from prefect.client.orchestration import PrefectClient

    async def read() -> list[Any]:
        async with PrefectClient(url) as client:
            return await client.read_flow_runs()

    return asyncio.run(read())


def schedules(url: str, name: str) -> list[Any]:
    from prefect.client.orchestration import PrefectClient

    async def read() -> list[Any]:
        async with PrefectClient(url) as client:
            return list((await client.read_deployment_by_name(name)).schedules)

    return asyncio.run(read())


def logs(url: str, flow_run: Any) -> list[str]:
    """What the log of a flow run says, as Prefect's page shows it."""
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    async def read() -> list[str]:
        async with PrefectClient(url) as client:
            own = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run]))
            return [log.message for log in await client.read_logs(log_filter=own)]

    return asyncio.run(read())


def artifacts(url: str, flow_run: Any) -> list[str]:
    """The markdown pages that were kept beside a flow run."""
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    async def read() -> list[str]:
        async with PrefectClient(url) as client:
            own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
            return [str(one.data) for one in await client.read_artifacts(artifact_filter=own)]

    return asyncio.run(read())


@pytest.mark.slow
def test_a_worker_retrains_what_changed_and_its_failure_is_the_runs(served: Project) -> None:
    served.set_params({"data": {"categories": ["widget"]}, "validation": {"min_good": 100}})  # so that it ends early
    prefect(served, "work-pool", "create", "flawline", "--type", "process")
    prefect(served, "work-queue", "create", "training", "--pool", "flawline", "--limit", "1")
    prefect(served, "deploy", "--all")
    url = served.environment["PREFECT_API_URL"]
    (nightly,) = schedules(url, "flawline-retrain-changed/retrain-changed")
    assert (nightly.active, nightly.schedule.cron) == (True, "0 2 * * *")
    prefect(served, "deployment", "run", "flawline-retrain-changed/retrain-changed", "--param", "min_images=1")
    served.flawline("worker", "--run-once")
    (run,) = [run for run in flow_runs(url) if run.deployment_id and not run.auto_scheduled]
    assert run.state_name == "Failed"
    assert "widget did not get a model" in (run.state.message or "")
    (inner,) = [run for run in flow_runs(url) if run.name == "retrain widget"]
    why = "widget: stopped at validate@widget: Validation of widget failed"
    assert any(why in line for line in logs(url, inner.id))
    (page,) = artifacts(url, inner.id)
    assert "| widget |" in page
    assert f"- {why}" in page
    pages = list((served.folder / ".flawline" / "mlflow" / "artifacts").rglob("validation/widget/report.html"))
    assert "Not fit to learn from" in pages[0].read_text()  # the run of the retraining has it, as there is no other


def learn(digest: str) -> None:
    """Say that the last stage of "widget" was computed from this version of its data, as DVC does after a run."""
    data = {"path": "data/tiny/widget", "hash": "md5", "md5": digest}
    stage = {"cmd": "infra/stage evaluate widget", "deps": [data]}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"evaluate@widget": stage}}))


@pytest.mark.slow
def test_the_nightly_look_asks_params_yaml_how_much_is_enough(git_project: Project, tmp_path: Path) -> None:
    from flows.retraining.schedule import retrain_changed

    git_project.set_params({"data": {"categories": ["widget"]}, "ingest": {"retrain_images": 2, "retrain_hours": 5}})
    learn(commit_folder("widget").digest)
    assert retrain_changed.fn() == []
    commit_images("widget", good_images(new_images(tmp_path, 1)))
    assert retrain_changed.fn() == []


@pytest.mark.slow
def test_a_few_new_images_are_looked_at_again_when_they_have_waited_long_enough(
    served: Project, tmp_path: Path
) -> None:
    learn(commit_folder("widget").digest)
    commit_images("widget", good_images(new_images(tmp_path / "in", 2)))
    served.set_params({"ingest": {"retrain_images": 10, "retrain_hours": 6}})
    prefect(served, "work-pool", "create", "flawline", "--type", "process")
    prefect(served, "deploy", "--name", "retrain-arrived")
    for _ in range(2):
        prefect(served, "deployment", "run", "flawline-retrain-arrived/retrain-arrived", "--param", "category=widget")
        served.run("-m", "prefect", "worker", "start", "--pool", "flawline", "--run-once")
    runs = flow_runs(served.environment["PREFECT_API_URL"])
    waiting = [run for run in runs if run.state_name == "Scheduled"]
    assert sorted(run.state_name for run in runs) == ["Completed", "Completed", "Scheduled"]
    assert waiting[0].parameters == {"category": "widget"}
    late = datetime.now(UTC) + timedelta(hours=6) - waiting[0].expected_start_time
    assert timedelta() <= late < timedelta(minutes=10)
