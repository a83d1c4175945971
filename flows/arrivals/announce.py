"""The event that says: there is a new version of a category's data. Prefect's automations listen to it."""

from components.foundation.errors import UserError
from flows.common.prefect_server import send_event

EVENT = "flawline.data.committed"
RESOURCE = "flawline.data."  # and the category's name


def announce_commit(category: str, commit: str, images: int) -> str:
    """Tell the Prefect server of a commit of `images` new good images; the same commit again is the same event.

    Returns a sentence that says which server was told, or why none was. The commit stands in any case.
    """
    resource = {"prefect.resource.id": f"{RESOURCE}{category}", "prefect.resource.name": category}
    payload = {"category": category, "commit": commit, "images": images}
    try:
        told = send_event(EVENT, resource, payload, key=f"{category}/{commit}")
    except UserError as error:
        return f"The version is committed, but was not announced. {error}"
    if told is None:
        return "No Prefect server was told: none is named (docs/retraining.md)."
    return f"The Prefect server at {told} was told."
