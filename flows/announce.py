"""The event that says: there is a new version of a category's data. Prefect's automations listen to it."""

import os
import uuid

EVENT = "flawline.data.committed"
RESOURCE = "flawline.data."  # and the category's name


def announce_commit(category: str, commit: str, images: int) -> None:
    """Emit the event for a commit of `images` new good images; the same commit again is the same event.

    Without a Prefect server (PREFECT_API_URL) no one could hear it, and nothing is emitted.
    """
    if not os.environ.get("PREFECT_API_URL"):
        return
    from prefect.events import emit_event

    emit_event(
        event=EVENT,
        resource={"prefect.resource.id": f"{RESOURCE}{category}", "prefect.resource.name": category},
        payload={"category": category, "commit": commit, "images": images},
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{EVENT}/{category}/{commit}"),
    )
