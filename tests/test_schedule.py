"""The deployments of prefect.yaml on a real Prefect server, run by a real worker."""

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project import REPOSITORY, Project
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
    served.run("-m", "prefect", "worker", "start", "--pool", "flawline", "--run-once")
    (run,) = [run for run in flow_runs(url) if run.deployment_id and not run.auto_scheduled]
    assert run.state_name == "Failed"
    assert "widget did not get a model" in (run.state.message or "")
