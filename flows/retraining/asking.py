"""Ask a person by Prefect: for each version that waits, a flow run that is suspended until it gets an answer.

The registry says what waits (`components.registry.gate.records`); a suspended run is one way to answer, on the
server's page. It holds no process, no slot and no other category, and is there after any restart.
"""

from typing import TYPE_CHECKING, Any
from uuid import UUID

from components.registry.gate.records import Decision, Waiting, waiting
from flows.common.prefect_server import server_client, server_url

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

DEPLOYMENT = "flawline-gate/gate"


def ask_if_waiting(category: str) -> None:
    """Begin the flow run that waits for an answer, and end those for earlier versions.

    Nothing where no server is named or the deployment is not there. UserError where the server does not answer.
    """
    found = waiting(category)
    if server_url() is None:
        return
    with server_client() as client:
        deployment = _deployment(client)
        if deployment is None:
            return
        asked = _asked(client, deployment, category)
        for run in asked:
            if found is None or run.parameters["version"] != found.number:
                _resume(client, run, "reject", "another version came after it, or it was decided elsewhere")
        if found is not None and all(run.parameters["version"] != found.number for run in asked):
            parameters = {"category": category, "version": found.number}
            client.create_flow_run_from_deployment(deployment, parameters=parameters)


def tell_answered(answered: Waiting, decision: Decision, reason: str) -> None:
    """Let the flow run that waits know what was decided elsewhere, so that it ends."""
    if server_url() is None:
        return
    with server_client() as client:
        deployment = _deployment(client)
        for run in _asked(client, deployment, answered.category) if deployment else ():
            if run.parameters["version"] == answered.number:
                _resume(client, run, decision, reason)


def link_to(found: Waiting) -> str:
    """The address of the page on which a person can answer; empty where there is none."""
    if server_url() is None:
        return ""
    with server_client() as client:
        deployment = _deployment(client)
        runs = _asked(client, deployment, found.category) if deployment else []
        page = str(client.api_url).rstrip("/").removesuffix("/api")
        return next((f"{page}/runs/flow-run/{run.id}" for run in runs if run.parameters["version"] == found.number), "")


def _deployment(client: "SyncPrefectClient") -> UUID | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(DEPLOYMENT).id
    except ObjectNotFound:
        return None


def _asked(client: "SyncPrefectClient", deployment: UUID, category: str) -> "list[FlowRun]":
    """The flow runs that wait, or are about to, for an answer on this category."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    of_gate: Any = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    runs = client.read_flow_runs(deployment_filter=of_gate)
    return [
        run
        for run in runs
        if run.parameters.get("category") == category and run.state is not None and not run.state.is_final()
    ]


def _resume(client: "SyncPrefectClient", run: "FlowRun", decision: Decision, reason: str) -> None:
    """Resume a suspended run with its answer; one that has not begun yet looks for itself."""
    if run.state is not None and run.state.is_paused():
        client.resume_flow_run(run.id, run_input={"decision": decision, "reason": reason})
