"""A person's own Prefect server, named by a profile: what `flawline deploy` makes there, and what the server then does.

Schedules fire, events retrain, and what was killed is noticed, tried once more, and keeps no slot.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import psutil
import pytest
import yaml

from flows.retraining.asking import DEPLOYMENT
from tests.project import STEPS, Project
from tests.retraining.test_kill import attempts, checkpoint_step, mlflow_client
from tests.servers import busy_prefect_server, end

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.slow
PATIENCE = 400.0  # seconds until a wait is given up, on a busy machine
LEASE = 300.0  # seconds after which Prefect itself takes back the slot of a run that is silent
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
    site = Project(copy.folder, {**copy.alone().environment, **own})
    site.git("add", ".gitignore", ".dvcignore", ".dvc", "dvc.yaml", "params.yaml", "prefect.yaml")
    site.git("commit", "-qm", "Begin")
    with busy_prefect_server(folder / "server") as url:
        assert site.run("-m", "prefect", "config", "set", f"PREFECT_API_URL={url}").returncode == 0
        deployed = site.flawline("deploy")
        assert (deployed.returncode, deployed.stderr) == (0, "")
        assert url in deployed.stdout
        assert deployed.stdout.splitlines()[-1].endswith("flawline worker")
        yield site


@contextmanager
def client_of(site: Project) -> "Iterator[SyncPrefectClient]":
    yield opened_client(server_url(site))


@cache
def opened_client(url: str) -> "SyncPrefectClient":
    """A client that stays open: each costs a quarter of a second to make, and waiting takes hundreds of looks."""
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(url).__enter__()


def server_url(site: Project) -> str:
    found = re.search(r'PREFECT_API_URL = "(.*)"', (site.folder.parent / "profiles.toml").read_text())
    assert found
    return found[1]


@contextmanager
def worker(site: Project) -> Iterator["subprocess.Popen[bytes]"]:
    """`flawline worker`, until the block ends."""
    with (site.folder.parent / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.commands.cli", "worker"],
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


def wait_for(look: Callable[[], Found | None], often: float = 1.0, patience: float = PATIENCE) -> Found:
    """What `look` finds, as soon as it finds something."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        time.sleep(often)
    raise AssertionError("nothing was found in time")


def runs_of(site: Project, deployment: str) -> list[Any]:
    """The flow runs of a deployment that are not only planned, the latest first."""
    from prefect.client.schemas import filters

    wanted = filters.DeploymentFilter(id=filters.DeploymentFilterId(any_=[deployment_id(server_url(site), deployment)]))
    not_planned = filters.FlowRunFilterStateName(not_any_=["Scheduled"])
    begun = filters.FlowRunFilter(state=filters.FlowRunFilterState(name=not_planned))
    with client_of(site) as client:
        runs = client.read_flow_runs(deployment_filter=wanted, flow_run_filter=begun, limit=200)
    return sorted(runs, key=lambda run: run.created, reverse=True)


@cache
def deployment_id(url: str, name: str) -> UUID:
    """The one deployment of that name; to deploy again changes it, and makes no other."""
    (wanted,) = [one.id for one in opened_client(url).read_deployments() if one.name == name]
    return wanted


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
    assert before["deployments"]["gate"] == ("flows/retraining/schedule.py:gate", [], "default")
    with client_of(site) as client:  # the name by which a retraining asks for it
        assert client.read_deployment_by_name(DEPLOYMENT).name == "gate"
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


def flow_process(process: "subprocess.Popen[bytes]", site: Project, deployment: str) -> psutil.Process | None:
    """The process in which a worker runs the running flow of a deployment."""
    running = {str(run.id) for run in runs_of(site, deployment) if not run.state.is_final()}
    for child in psutil.Process(process.pid).children():
        try:
            if child.environ().get("PREFECT__FLOW_RUN_ID") in running:
                return child
        except psutil.Error:
            continue
    return None


def be_impatient(site: Project) -> None:
    """The automations as they are, but for how long they wait: a little over Prefect's least interval of heartbeats."""
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    waits = {"a run whose process is silent has crashed": 40, "a crashed run is tried once more": 15}
    with client_of(site) as client:
        for name, seconds in waits.items():
            (one,) = client.read_automations_by_name(f"Flawline: {name}")
            assert isinstance(one.trigger, EventTrigger)
            one.trigger.within = timedelta(seconds=seconds)
            client.update_automation(one.id, AutomationCore(**one.model_dump(exclude={"id", "owner_resource"})))


def test_a_retraining_that_was_killed_with_its_worker_goes_on_and_nothing_keeps_a_slot(site: Project) -> None:
    with unless_locked(site):
        kill_and_see_it_go_on(site)


@contextmanager
def unless_locked(site: Project) -> Iterator[None]:
    """Skip where Prefect's SQLite database was locked on a busy machine: its server loses events then."""
    try:
        yield
    except AssertionError:
        if "database is locked" in (site.folder.parent / "server" / "server.log").read_text():
            pytest.skip("Prefect's server was locked out of its SQLite database, and lost an event by that")
        raise


def kill_and_see_it_go_on(site: Project) -> None:
    be_impatient(site)
    with worker(site) as first:
        added = site.flawline("data", "add", "data/tiny/widget", "--category", "widget")
        assert (added.returncode, added.stderr) == (0, "")
        assert f"The Prefect server at {server_url(site)} was told." in added.stdout
        victim = wait_for(lambda: flow_process(first, site, "retrain-arrived"))
        wait_for(lambda: checkpoint_step(site), often=0.01)
        os.kill(first.pid, signal.SIGKILL)
        victim.kill()
    restarted = time.time()
    reached = checkpoint_step(site)
    assert reached is not None
    (run,) = runs_of(site, "retrain-arrived")
    assert (run.state_name, run.parameters) == ("Running", {"category": "widget"})  # nobody was left to say more
    assert reached < STEPS

    with worker(site) as second:
        wait_for(lambda: flow_process(second, site, "ingest-arrived")).kill()  # this one its worker survives
        (run,) = wait_for(lambda: [one for one in runs_of(site, "retrain-arrived") if is_over(one)] or None)
        wait_for(lambda: completed_after_the_killed(runs_of(site, "ingest-arrived")))  # else it has kept the only slot
        wait_for(lambda: nothing_is_held(site) or None, patience=LEASE / 2)  # between two looks into the inbox
    assert (run.state_name, run.run_count) == ("Completed", 2), worker_log(site)

    client = mlflow_client(site)
    (child,) = attempts(site)
    everything = client.search_runs([child.info.experiment_id])
    assert [one.info.status for one in everything] == ["FINISHED", "FINISHED"]  # the retraining and its category
    assert child.data.tags["mlflow.parentRunId"] in {one.info.run_id for one in everything}
    logged = {point.step: point.timestamp for point in client.get_metric_history(child.info.run_id, "train/loss")}
    assert sorted(logged) == list(range(1, STEPS + 1))
    trained = [step for step, time in sorted(logged.items()) if 1000 * restarted <= time <= logged[STEPS]]
    assert trained == list(range(reached + 1, STEPS + 1))  # what the killed one had not sent is filled in after these
    with client_of(site) as prefect:
        left = [one for one in prefect.read_flow_runs(limit=200) if one.state_name in ("Running", "Cancelling")]
    assert left == []


def nothing_is_held(site: Project) -> bool:
    """Whether no flow run is at work or about to be, and no slot is taken."""
    with client_of(site) as prefect:
        slots = [one.active_slots for one in prefect.read_global_concurrency_limits()]
        runs = [one.state_name for one in prefect.read_flow_runs(limit=200)]
    return not any(slots) and not {"Pending", "Running", "Cancelling"} & set(runs)


def completed_after_the_killed(runs: list[Any]) -> list[Any] | None:
    """The runs that a schedule has started since the one that was killed, and that have completed."""
    killed = max(one.expected_start_time for one in runs if one.state_name == "Crashed" or one.run_count == 2)
    return [one for one in runs if one.state_name == "Completed" and one.expected_start_time > killed] or None


def is_over(run: Any) -> bool:
    """Whether a run has ended, and will not be tried once more."""
    return run.state.is_final() and not (run.state_name == "Crashed" and run.run_count == 1)
