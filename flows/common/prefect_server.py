"""The person's Prefect server: the one that Prefect itself would use, by the environment or the active profile."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from components.foundation.errors import UserError
from components.foundation.network import why_unreachable
from components.tracking.connection import shown_uri
from flows.common.lifetime import end_signal

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WHAT_TO_CHECK = "check that it runs, and PREFECT_API_URL or Prefect's profile (`prefect config view`)"


def server_url() -> str | None:
    """The address of the server's API; None where none is named, so that flows run with a temporary one."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or None


def check_server() -> str | None:
    """`server_url`, after it has answered; raises UserError where it does not."""
    url = server_url()
    if url and (reason := why_unreachable(f"{url}/health")):
        raise UserError(f"The Prefect server at {shown_uri(url)} does not answer ({reason}): {WHAT_TO_CHECK}.")
    return url


@contextmanager
def answering_server() -> Iterator[None]:
    """Run flows inside: the server that is named, if one is, answered just before; UserError where it stops to."""
    check_server()
    from httpx import HTTPError

    try:
        yield
    except (HTTPError, RuntimeError) as error:
        _raise_if_told_to_end(error)
        if isinstance(error, RuntimeError) and "reach API" not in str(error):
            raise
        where = f"at {shown_uri(url)} " if (url := server_url()) else ""
        raise UserError(
            f"The Prefect server {where}does not answer any more ({type(error).__name__}): {WHAT_TO_CHECK}, then run "
            "again; what is finished is not repeated."
        ) from error


def _raise_if_told_to_end(error: BaseException | None) -> None:
    """Raise what a signal has begun, of which an error is the consequence: a temporary server may end with us."""
    if (number := end_signal()) is not None:
        raise SystemExit(128 + number) from None
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error from None
        error = error.__context__


@contextmanager
def server_client() -> "Iterator[SyncPrefectClient]":
    """A client of the server that is named; whatever it raises about the server becomes one sentence."""
    url = check_server()
    if url is None:
        raise UserError(
            "No Prefect server is named: start one with `prefect server start`, name it with `prefect config set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api`, and run this again."
        )
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    impatient = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 15}
    try:
        with temporary_settings(impatient), get_client(sync_client=True) as client:
            yield client
    except HTTPError as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"The Prefect server at {shown_uri(url)} refused ({said}): {WHAT_TO_CHECK}.") from error


def address_of(client: "SyncPrefectClient") -> str:
    """The address of a client's server, fit for a message."""
    return shown_uri(str(client.api_url).rstrip("/"))


def send_event(name: str, resource: Mapping[str, str], payload: Mapping[str, object], key: str) -> str | None:
    """Send an event, and return the address of the server that has it; None where no server is named.

    key: the same key again is the same event. Raises UserError where the server does not take it.
    """
    if server_url() is None:
        return None
    with server_client() as client:
        from prefect.events import Event

        event = Event(
            event=name,
            resource=dict(resource),
            payload=dict(payload),
            id=uuid.uuid5(uuid.NAMESPACE_URL, f"{name}/{key}"),
        )
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
        return address_of(client)
