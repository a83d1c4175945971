"""The flows that deployments run (prefect.yaml): take in new images; retrain one category, or whatever has new data."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow

from components.errors import UserError
from flows.environment import enter_project

enter_project()  # a worker starts in the project's folder; settings come before the libraries that read them

from components.params import load_params  # noqa: E402
from flows.ingest import ingest  # noqa: E402
from flows.pending import find_pending  # noqa: E402
from flows.pipeline import retrain  # noqa: E402


@flow(name="flawline-retrain-category", flow_run_name="retrain {category}")
def retrain_category(category: str) -> None:
    """Bring one category to a registered version; the flow run fails where the category does."""
    _retrain_all([category])


@flow(name="flawline-retrain-changed")
def retrain_changed(min_images: int = 1, max_hours: float = 24.0) -> list[str]:
    """Retrain every category whose data changed; returns their names.

    min_images: how many images must have been added, removed or changed. max_hours: after so long fewer are enough.
    """
    now = datetime.now(UTC)
    due = [one.category for one in find_pending() if one.is_due(min_images, max_hours, now)]
    if due:
        _retrain_all(due)
    return due


@flow(name="flawline-retrain-arrived", flow_run_name="retrain {category} if due")
def retrain_arrived(category: str) -> bool:
    """Retrain a category of which a new version was committed, if enough is new to it; whether it was.

    How much is enough: `ingest.retrain_images` and `retrain_hours` of params.yaml. What is not due now is looked at
    again when the next version comes, and by `retrain_changed`.
    """
    enough = load_params().ingest
    now = datetime.now(UTC)
    pending = find_pending([category])
    due = any(one.is_due(enough.retrain_images, enough.retrain_hours, now) for one in pending)
    if due:
        _retrain_all([category])
    return due


@flow(name="flawline-ingest-arrived")
def ingest_arrived(source: str | None = None) -> list[dict[str, Any]]:
    """Take in what lies in the inbox, as `flawline ingest`; the flow run fails where a category does."""
    summaries = ingest(source)
    errors = [summary["error"] for summary in summaries if "error" in summary]
    if errors:
        raise UserError(" ".join(errors))
    return summaries


def _retrain_all(categories: Sequence[str]) -> None:
    failed = retrain(categories)
    if failed:
        raise UserError(f"{', '.join(failed)} did not get a model: the log of the stages says why.")
