"""A person's own Prefect server, named by a profile: what `flawline deploy` makes there, and what the server then does.

Schedules fire, and late runs do not pile up.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import yaml

from tests.project import Project
from tests.servers import end, prefect_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow
PATIENCE = 400.0  # seconds until a wait is given up, on a busy machine
Found = TypeVar("Found")


@pytest.fixture(scope="module")
def site(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, committed, with a server that only Prefect's profile names; every minute it looks into the inbox."""
    folder = tmp_path_factory.mktemp("site")
    copy = project.copy(folder / "project")
    copy.set_params({"data": {"categories": ["widget"]}, "ingest": {"retrain_images": 1, "settle_seconds": 0}})
    plan = (copy.folder / "prefect.yaml").read_text().replace('"*/10 * * * *"', '"* * * * *"')
    (copy.folder / "prefect.yaml").write_text(plan)
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    own |= {f"GIT_{who}_{what}": "tester@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    own |= {"PREFECT_PROFILES_PATH": str(folder / "profiles.toml"), "DVC_SITE_CACHE_DIR": str(folder / "site")}
    site = Project(copy.folder, {**copy.environment, **own})
    site.git("add", ".gitignore", ".dvcignore", ".dvc", "dvc.yaml", "params.yaml", "prefect.yaml")
    site.git("commit", "-qm", "Begin")
    with prefect_server(folder / "server") as url:
        assert site.run("-m", "prefect", "config", "set", f"PREFECT_API_URL={url}").returncode == 0
        deployed = site.flawline("deploy")
        assert (deployed.returncode, deployed.stderr) == (0, "")
        assert url in deployed.stdout
        assert deployed.stdout.splitlines()[-1].endswith("flawline worker")
        yield site


@contextmanager
def client_of(site: Project) -> "Iterator[SyncPrefectClient]":
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(server_url(site)) as client:
        yield client


def server_url(site: Project) -> str:
    found = re.search(r'PREFECT_API_URL = "(.*)"', (site.folder.parent / "profiles.toml").read_text())
    assert found
    return found[1]


@contextmanager
def worker(site: Project) -> Iterator["subprocess.Popen[bytes]"]:
    """`flawline worker`, until the block ends."""
    with (site.folder.parent / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "worker"],
            cwd=site.folder,
            env=dict(site.environment),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process, 60)


def wait_for(look: Callable[[], Found | None], often: float = 0.5) -> Found:
    """What `look` finds, as soon as it finds something."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        time.sleep(often)
    raise AssertionError("nothing was found in time")


def runs_of(site: Project, deployment: str) -> list[Any]:
    """The flow runs of a deployment that are not only planned, the latest first."""
    with client_of(site) as client:
        (wanted,) = [one.id for one in client.read_deployments() if one.name == deployment]
        runs = [run for run in client.read_flow_runs(limit=200) if run.deployment_id == wanted]
    return sorted([run for run in runs if run.state_name != "Scheduled"], key=lambda run: run.created, reverse=True)


def snapshot(site: Project) -> dict[str, Any]:
    """What is on the server, without what each deployment makes anew (numbers, times)."""
    with client_of(site) as client:
        return {
            "pool": client.read_work_pool("flawline").type,
            "queues": {one.name: one.concurrency_limit for one in client.read_work_queues("flawline")},
            "deployments": {
                one.name: (one.entrypoint, [str(plan.schedule) for plan in one.schedules], one.work_queue_name)
                for one in client.read_deployments()
            },
            "limits": {one.name: one.limit for one in client.read_global_concurrency_limits()},
            "automations": sorted(one.name for one in client.read_automations()),
        }


def test_deploying_again_and_again_has_the_same_end(site: Project) -> None:
    from prefect.events.schemas.automations import AutomationCore

    before = snapshot(site)
    with client_of(site) as client:  # what a person may have changed, or a second machine made twice
        (training,) = [one for one in client.read_work_queues("flawline") if one.name == "training"]
        client.update_work_queue(training.id, concurrency_limit=7)
        (again,) = client.read_automations_by_name("Flawline: a crashed run is tried once more")
        client.create_automation(AutomationCore(**again.model_dump(exclude={"id"})))
    assert snapshot(site) != before
    done = site.flawline("deploy")
    assert (done.returncode, done.stderr) == (0, "")
    assert snapshot(site) == before
    names = [one["name"] for one in yaml.safe_load((site.folder / "prefect.yaml").read_text())["deployments"]]
    assert sorted(before["deployments"]) == sorted(names)
    assert (before["pool"], before["queues"]) == ("process", {"default": None, "training": 1})
    assert len(before["automations"]) == 4
    assert all(name.startswith("Flawline: ") for name in before["automations"])
    assert all(name in done.stdout for name in names)


def test_a_schedule_fires_and_a_worker_runs_it(site: Project) -> None:
    with worker(site):
        done = wait_for(
            lambda: [one for one in runs_of(site, "ingest-arrived") if one.state_name == "Completed"] or None
        )
        late = wait_for(lambda: ended(runs_of(site, "ingest-arrived")))
    assert all(one.auto_scheduled for one in done)
    assert {one.state_name for one in late} <= {"Completed", "Cancelled"}  # of those that came too late one is enough
    with client_of(site) as client:
        planned = [run for run in client.read_flow_runs(limit=200) if run.state_name == "Scheduled"]
        nightly = client.read_deployment_by_name("flawline-retrain-changed/retrain-changed").id
    assert any(run.deployment_id == nightly for run in planned)
    assert server_errors(site) == []


def ended(runs: list[Any]) -> list[Any] | None:
    """The runs, if none of them is waiting or running any more."""
    return runs if all(run.state.is_final() for run in runs) else None


def server_errors(site: Project) -> list[str]:
    """What the server's log has of errors; a busy SQLite file that a service asks again for is none."""
    log = (site.folder.parent / "server" / "server.log").read_text()
    entries = re.split(r"(?m)^(?=\d\d:\d\d:\d\d\.\d+ \| )", log)
    wrong = [entry for entry in entries if "Traceback" in entry or re.match(r"\S+ \| (ERROR|CRITICAL)", entry)]
    return [entry for entry in wrong if "database is locked" not in entry]


def worker_log(site: Project) -> str:
    return (site.folder.parent / "worker.log").read_text()[-5000:]
