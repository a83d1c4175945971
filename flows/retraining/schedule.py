"""The flows that deployments run (prefect.yaml): take in new images; retrain one category, or whatever has new data."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from prefect import flow, runtime, suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from components.foundation.errors import UserError
from flows.common.environment import enter_project
from flows.common.lifetime import end_children_with_me, end_in_order

if "PREFECT__FLOW_RUN_ID" in os.environ:  # a process of a worker, for this flow run alone
    end_children_with_me()
    end_in_order()
enter_project()  # a worker starts in the project's folder; settings come before the libraries that read them

from components.foundation.disk import check_room  # noqa: E402
from components.foundation.params import load_params  # noqa: E402
from components.registry.gate import records  # noqa: E402
from components.tracking.runs import end_abandoned_runs  # noqa: E402
from flows.arrivals.ingest import ingest  # noqa: E402
from flows.retraining.pending import Pending, find_pending  # noqa: E402
from flows.retraining.pipeline import catch_up, retrain  # noqa: E402


@flow(name="flawline-retrain-category", flow_run_name="retrain {category}")
def retrain_category(category: str, kind: str | None = None) -> None:
    """Bring one category to a registered version; the flow run fails where the category does.

    kind: "full", "update" or "auto"; `retrain.kind` of params.yaml where it is not given.
    """
    _retrain_all([category], kind)


@flow(name="flawline-retrain-changed", flow_run_name="retrain what changed")
def retrain_changed(min_images: int | None = None, max_hours: float | None = None) -> list[str]:
    """Retrain every category whose data changed; returns their names.

    min_images: how many images must have been added, removed or changed. max_hours: after so long fewer are enough.
    `ingest.retrain_images` and `retrain_hours` of params.yaml where they are not given.
    """
    catch_up()
    enough = load_params().ingest
    images = enough.retrain_images if min_images is None else min_images
    hours = enough.retrain_hours if max_hours is None else max_hours
    now = datetime.now(UTC)
    due = [one.category for one in find_pending() if one.is_due(images, hours, now)]
    if due:
        _retrain_all(due)
    return due


@flow(name="flawline-retrain-arrived", flow_run_name="retrain {category} if due")
def retrain_arrived(category: str) -> bool:
    """Retrain a category of which a new version was committed, if enough is new to it; whether it was.

    How much is enough: `ingest.retrain_images` and `retrain_hours` of params.yaml. What is not due now is looked at
    again when the next version comes, when it has waited for `retrain_hours`, and by `retrain_changed`.
    """
    catch_up()
    enough = load_params().ingest
    now = datetime.now(UTC)
    pending = find_pending([category])
    due = any(one.is_due(enough.retrain_images, enough.retrain_hours, now) for one in pending)
    if due:
        _retrain_all([category])
    for one in [] if due else pending:
        _look_again(one, enough.retrain_hours)
    return due


@flow(name="flawline-ingest-arrived", flow_run_name="take in what arrived")
def ingest_arrived(source: str | None = None) -> list[dict[str, Any]]:
    """Take in what lies in the inbox, as `flawline ingest`; the flow run fails where a category does."""
    check_room()
    end_abandoned_runs()  # the next who comes by: a retraining that was killed twice has no next try
    summaries = ingest(source)
    errors = [summary["error"] for summary in summaries if "error" in summary]
    if errors:
        raise UserError(" ".join(errors))
    return summaries


class Answer(RunInput):
    """What a person decides of a version that waits."""

    decision: Literal["promote", "reject"] = Field(description="promote: it becomes the champion; reject: it does not")
    reason: str = Field("", description="for the journal; the gate's own words if empty")


@flow(name="flawline-gate", flow_run_name="gate {category} version {version}", persist_result=True)
def gate(category: str, version: int) -> str:
    """Wait, suspended, for a person's answer on a version that the gate does not decide; what became of it, in words.

    The run holds no process and no slot while it waits. Whoever answers elsewhere (`flawline gate`) ends it.
    """
    found = records.waiting(category)
    if found is None or found.number != version:
        return f"version {version} of {category} waits for no answer"
    asked = Answer.with_initial_data(
        description=f"{category} version {version}: {found.summary}\n\nThe page: {found.page.resolve()}", reason=""
    )
    given = suspend_flow_run(wait_for_input=asked, key="answer")
    found = records.waiting(category)  # who answers by the command decides first, and then ends this run
    if found is not None and found.number == version:
        records.answer(category, version, given.decision, given.reason, who="a person, in Prefect")
    return f"{given.decision}: {given.reason}"


def _look_again(pending: Pending, hours: float) -> None:
    """Schedule this deployment for when the first of the new images will have waited for so long; once for each."""
    from prefect.deployments import run_deployment

    if pending.since is None or runtime.deployment.id is None:
        return
    at = pending.since + timedelta(hours=hours)
    run_deployment(
        UUID(runtime.deployment.id),
        parameters={"category": pending.category},
        scheduled_time=at,
        idempotency_key=f"{pending.category} waits until {at.isoformat()}",
        as_subflow=False,
        timeout=0,  # it is for a worker to wait
    )


def _retrain_all(categories: Sequence[str], kind: str | None = None) -> None:
    check_room()
    failed = retrain(categories, kind=kind or load_params().retrain.kind)
    if failed:
        raise UserError(f"{', '.join(failed)} did not get a model: the log of the stages says why.")
