"""A version that waits for a person, on a real Prefect server: a suspended run, resumed with the answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.registry import versions as registry
from components.registry.gate import records
from components.registry.gate.comparison import Judged
from components.registry.gate.decision import decide_first
from tests.conftest import MakeCapsule
from tests.project import Project
from tests.retraining.test_schedule import flow_runs, prefect
from tests.servers import prefect_server

pytestmark = pytest.mark.slow
ASK = """
from flows.common.environment import enter_project
enter_project()
from flows.retraining.asking import ask_if_waiting
ask_if_waiting("widget")
"""


def make_wait(make_capsule: MakeCapsule, place: Path, threshold: float) -> int:
    """A new version that the gate leaves to a person."""
    capsule = make_capsule(place, threshold=threshold, category="widget")
    number = registry.register("widget", capsule, "", {}, "pretrained").number
    judged = Judged(decide_first(["exam mark 0.40"], []), records.folder_of("widget", number))
    judged.folder.mkdir(parents=True)
    (judged.folder / "gate.html").write_text("page")
    records.keep("widget", number, judged, "key", None, records.WAITS)
    return number


def resume(url: str, run: Any, answer: dict[str, str]) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(url) as client:
        client.resume_flow_run(run.id, run_input=answer)


def test_a_run_is_suspended_until_it_is_answered_here_or_there(
    git_project: Project, mlflow_database: Path, make_capsule: MakeCapsule, tmp_path: Path
) -> None:
    folder = git_project.folder / ".flawline" / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(mlflow_database, folder / "mlflow.db")
    first = make_wait(make_capsule, tmp_path / "one", 5.0)
    with prefect_server(tmp_path / "prefect") as url:
        own = {"PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path / "home"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        served = Project(git_project.folder, {**git_project.environment, **own})
        prefect(served, "work-pool", "create", "flawline", "--type", "process")
        prefect(served, "deploy", "--name", "gate")
        for _ in range(2):  # once is enough
            asked = served.run("-c", ASK)
            assert asked.returncode == 0, asked.stderr
        work(served)
        (run,) = flow_runs(url)
        assert (run.state_name, run.parameters) == ("Suspended", {"category": "widget", "version": first})
        (row,) = json.loads(served.flawline("gate", "--json").stdout)
        assert (row["version"], row["link"]) == (first, f"{url.removesuffix('/api')}/runs/flow-run/{run.id}")

        resume(url, run, {"decision": "promote", "reason": "looked at it"})
        work(served)
        assert [one.state_name for one in flow_runs(url)] == ["Completed"]
        champion = registry.champion("widget")
        assert champion is not None
        assert champion.number == first
        assert registry.journal("widget")[-1].who == "a person, in Prefect"

        second = make_wait(make_capsule, tmp_path / "two", 6.0)
        served.run("-c", ASK)
        work(served)
        done = served.flawline("gate", "widget", "--reject", "--reason", "no")
        assert done.stdout.strip() == f"widget: version {second} is rejected.", done.stderr
        work(served)  # the run learns of it, and ends
        assert {one.state_name for one in flow_runs(url)} == {"Completed"}
        assert registry.find_version("widget", second).verdict == "rejected: no"


def work(project: Project) -> None:
    done = project.run("-m", "prefect", "worker", "start", "--pool", "flawline", "--run-once")
    assert done.returncode == 0, done.stderr
