"""The flow that takes in new images: `flows.arrivals.steps` as Prefect tasks; one category's failure stops no other."""

from collections.abc import Sequence
from typing import Any

from prefect import Task, flow

from components.arrivals.delivery import Delivery
from components.arrivals.inbox import open_source
from components.foundation.errors import UserError, error_sentence
from components.foundation.params import Params, load_params
from flows.arrivals.steps import Step, awaited, ingest_category, sentence_on_strays
from flows.data.git import may_pass


@flow(name="flawline-ingest", flow_run_name="ingest", validate_parameters=False)
def ingest(source: str | None = None, categories: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Take in what lies in an inbox; one summary per delivery, or with the keys category and error where one failed.

    source: `ingest.source` of params.yaml if None. categories: those that something has arrived for if None.
    """
    params = load_params()
    inbox = open_source(source or params.ingest.source)
    summaries: list[dict[str, Any]] = []
    for category in categories or awaited(inbox, params):
        try:
            summaries += ingest_category(category, inbox, params, _as_task)
        except (UserError, OSError) as error:
            summaries.append({"category": category, "error": error_sentence(error)})
    if categories is None and (sentence := sentence_on_strays(inbox)):
        summaries.append({"category": "", "error": sentence})
    return summaries


def _as_task(step: Step, delivery: Delivery, params: Params) -> Any:
    own: Task[..., Any] = Task(
        step,
        name=step.__name__,
        task_run_name=f"{step.__name__}@{delivery.category}",
        retries=5,
        retry_delay_seconds=3,
        retry_condition_fn=may_pass,
    )
    return own(delivery, params)
