"""Bring a Prefect server to what the project needs: pool, queues, deployments, automations; again is the same."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.foundation.errors import UserError
from components.foundation.yaml_text import read_yaml
from flows.common.environment import HEARTBEAT_SECONDS
from flows.common.prefect_server import address_of, server_client

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

POOL = "flawline"
QUEUES = {"training": 1, "default": None}  # how many runs at once; prefect.yaml says what goes where
SILENCE = timedelta(seconds=4 * HEARTBEAT_SECONDS)  # after so long a process is taken for dead
STARTING = timedelta(minutes=10)  # from a worker's taking a run to its process's first word
# A worker says "Crashed" a second time when it has cleaned up, which would end a retry that has begun.
RETRY_DELAY = timedelta(minutes=1)
FLOWS = {"prefect.resource.role": "flow", "prefect.resource.name": "flawline-*"}
DEPLOYED = {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"}
NEXT = "Next, in this folder, and let it run: flawline worker"


def deploy() -> list[str]:
    """Make or bring up to date all that prefect.yaml's deployments need, on the server that is named.

    Returns lines that say what is there now. Raises UserError where no server is named or it does not answer.
    """
    with server_client() as client:
        _ensure_pool(client)
        _deploy_all()
        names = [_ensure_automation(client, automation) for automation in _automations()]
        return [
            f"Prefect server {address_of(client)}",
            f"work pool {POOL}; queue training: one run at a time",
            *(f"deployment {name}: {when}" for name, when in _schedules().items()),
            *(f"automation {name}" for name in names),
        ]


def start_worker(arguments: Sequence[str] = ()) -> None:
    """Become Prefect's worker for the pool, in the current folder; raises UserError where there is no such pool yet."""
    from prefect.exceptions import ObjectNotFound

    with server_client() as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound as error:
            raise UserError(
                f"{address_of(client)} has no work pool {POOL} yet: run `flawline deploy` first."
            ) from error
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, *arguments]
    os.execve(sys.executable, command, _environment() | {"PREFECT_LOGGING_TO_API_ENABLED": "true"})


def _environment() -> dict[str, str]:
    """Ours, in which Prefect says what it does."""
    return {**os.environ, "PREFECT_LOGGING_LEVEL": "INFO"}


def _ensure_pool(client: "SyncPrefectClient") -> None:
    """The pool (a person may have made one of another type) and its queues with their limits."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    present = {queue.name: queue for queue in client.read_work_queues(work_pool_name=POOL)}
    for name, limit in QUEUES.items():
        if name not in present:
            client.create_work_queue(name, concurrency_limit=limit, work_pool_name=POOL)
        elif present[name].concurrency_limit != limit:
            client.update_work_queue(present[name].id, concurrency_limit=limit)


def _deploy_all() -> None:
    """What prefect.yaml says, by Prefect's own program."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise UserError(f"`prefect deploy --all` failed: {said.rstrip('.')}.")


def _ensure_automation(client: "SyncPrefectClient", wanted: "AutomationCore") -> str:
    """Exactly one automation of this name, as it is wanted; its name."""
    present = client.read_automations_by_name(wanted.name)
    if present:
        client.update_automation(present[0].id, wanted)
    else:
        client.create_automation(wanted)
    for copy in present[1:]:
        client.delete_automation(copy.id)
    return wanted.name


def _automations() -> "list[AutomationCore]":
    """What the server does about processes that were killed, alone or with their machine."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore

    is_dead = f"No word from its process for {SILENCE.total_seconds():.0f} s: it or its machine has died."
    unstarted = "A worker took it and never started it."
    crash, again = StateType.CRASHED, StateType.SCHEDULED
    acts = {
        "a run whose process is silent has crashed": (_silent(), ChangeFlowRunState(state=crash, message=is_dead)),
        "a run that never starts has crashed": (_unstarted(), ChangeFlowRunState(state=crash, message=unstarted)),
        "a crashed run is tried once more": (
            _crashed_once(),
            ChangeFlowRunState(state=again, name="AwaitingRetry", message="It crashed, and is tried once more."),
        ),
    }
    return [
        AutomationCore(name=f"Flawline: {name}", trigger=trigger, actions=[action])
        for name, (trigger, action) in acts.items()
    ]


def _silent() -> "EventTrigger":
    after = [_event(word) for word in ("Running", "heartbeat", "Cancelling")]
    return _unless([_event("*")], after, SILENCE, match_related=FLOWS)


def _unstarted() -> "EventTrigger":
    return _unless([_event("*")], [_event("Pending")], STARTING, match_related=[FLOWS, DEPLOYED])


def _crashed_once() -> "EventTrigger":
    goes_on = [_event(word) for word in ("AwaitingRetry", "Scheduled", "Pending", "Cancelled")]
    first = {"prefect.resource.id": _event("*"), "prefect.run-count": "1"}
    return _unless(goes_on, [_event("Crashed")], RETRY_DELAY, match=first, match_related=[FLOWS, DEPLOYED])


def _unless(expect: Sequence[str], after: Sequence[str], within: timedelta, **which: Any) -> "EventTrigger":
    """Fires for a run which, so long after one of these events, has had none of those that are expected."""
    from prefect.events.schemas.automations import EventTrigger, Posture

    return EventTrigger(
        posture=Posture.Proactive,
        expect=set(expect),
        after=set(after),
        within=within,
        for_each={"prefect.resource.id"},
        **which,
    )


def _event(word: str) -> str:
    return f"prefect.flow-run.{word}"


def _schedules() -> dict[str, str]:
    """Deployment → its crons, or what else starts it, by prefect.yaml."""
    found = {}
    for entry in read_yaml(Path("prefect.yaml"))["deployments"]:
        crons = [f"{one['cron']} ({one.get('timezone', 'UTC')})" for one in entry.get("schedules", [])]
        events = [f"on {event}" for one in entry.get("triggers", []) for event in one["expect"]]
        found[entry["name"]] = ", ".join([*crons, *events]) or "when asked for"
    return found
