"""The flows that deployments run (prefect.yaml): retrain one category, or whatever has new data."""

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import flow

from components.errors import UserError
from flows.environment import enter_project

enter_project()  # a worker starts in the project's folder; settings come before the libraries that read them

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


def _retrain_all(categories: Sequence[str]) -> None:
    failed = retrain(categories)
    if failed:
        raise UserError(f"{', '.join(failed)} did not get a model: the log of the stages says why.")
