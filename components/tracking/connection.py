"""The MLflow server: which one, its experiment, its pages, and what is said when it fails."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from components.foundation.errors import ServerError
from components.foundation.mlflow_store import artifact_location, database_of, database_uri, follow_move
from components.foundation.network import reach_loopback_directly, why_unreachable
from components.tracking.views import MODELS, view_page, view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = Path(".flawline")
CATEGORY = "flawline.category"
NOTE = "mlflow.note.content"  # what the UI shows as description
# Groups of metrics become sections of a page, sorted by name: the summary comes first.
FIGURES, KINDS, PICTURES = "figures", "kinds", "pictures"
COLUMNS = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "threshold")
SUMMARY = (*COLUMNS, "f1", "exam_mark")
# Without its kind the UI takes an experiment for one of language models, and shows traces instead of runs.
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    NOTE: "A retraining is a run; the runs inside it, one for each category, have figures, curves and pictures. "
    "The menu *Views* shows figures, method, data version and verdict as columns.",
    **view_tags([f"{FIGURES}/{name}" for name in COLUMNS], f"tags.`{CATEGORY}` != ''"),
}


def tracking_uri() -> str:
    """Where MLflow keeps its records: `MLFLOW_TRACKING_URI`, or SQLite in `.flawline/mlflow` of the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(STATE.parent)


def registry_uri() -> str:
    """Where the registered models are: `MLFLOW_REGISTRY_URI`, or else the tracking server."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri()


def experiment_name() -> str:
    """The experiment of all runs: `MLFLOW_EXPERIMENT_NAME`, or "flawline"."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "flawline"


def prepare_environment() -> None:
    """Set, before MLflow is imported, what keeps it quiet and impatient; what the user has set stays."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    reach_loopback_directly()


def connect() -> tuple["MlflowClient", str]:
    """A client and the id of the experiment, which is made where it does not exist.

    Raises requests' ConnectionError within 15 s where no server answers, and else what MLflow raises.
    """
    prepare_environment()
    if reason := why_unreachable(tracking_uri()):
        from requests.exceptions import ConnectionError

        raise ConnectionError(reason)
    from mlflow import MlflowClient

    # Its tracebacks come on top of the exceptions, which are said in one sentence here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _database_lock():  # two processes must not both create the tables of a new SQLite file
        if _is_own_database():
            follow_move(STATE.parent)
        client = MlflowClient(tracking_uri=tracking_uri(), registry_uri=registry_uri())
        return client, experiment_id(client, experiment_name())


def experiment_page() -> str:
    """The page of the runs, to be put after the address of an MLflow server."""
    with server_errors_explained():
        client, experiment = connect()
        offer_views(client, experiment)
        return view_page(experiment, MODELS)


def run_page(experiment: str, run_id: str) -> str:
    """The page of a run, to be put after the address of an MLflow server."""
    return f"/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


@contextmanager
def server_errors_explained() -> Iterator[None]:
    """Turn whatever MLflow raises inside into one sentence for the user."""
    try:
        yield
    except Exception as error:
        if not _is_server_failure(error):
            raise
        raise ServerError(
            f"MLflow at {shown_uri(tracking_uri())} could not do this ({reason(error)}): "
            "check MLFLOW_TRACKING_URI and that the server is up, then run again."
        ) from error


def shown_uri(uri: str) -> str:
    """A URI fit for a message: without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextmanager
def _database_lock() -> Iterator[None]:
    """For SQLite, one process at a time; a server needs no lock."""
    if not tracking_uri().startswith("sqlite:///"):
        yield
        return
    from filelock import FileLock

    database = Path(tracking_uri().removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_suffix(".lock")):
        yield


def experiment_id(client: "MlflowClient", name: str, location: str | None = None) -> str:
    """The experiment of this name, made where it is not there; its artifacts at `location`, or as usual."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, location or _artifact_location(), _EXPERIMENT_TAGS))
    except MlflowException as error:
        found = client.get_experiment_by_name(name)  # another process may have been quicker
        if found is None:
            raise error
        return str(found.experiment_id)


def _artifact_location() -> str | None:
    """A folder beside the project's own database; a server has its own place."""
    return artifact_location(STATE.parent) if _is_own_database() else None


def _is_own_database() -> bool:
    """Whether MLflow's records are in the project's own state, as they are unless the user says otherwise."""
    path = tracking_uri().removeprefix("sqlite:///")
    return path != tracking_uri() and Path(path).absolute() == database_of(STATE.parent)


def offer_views(client: "MlflowClient", experiment: str) -> None:
    """Give an experiment the views that it lacks, if we may."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment(experiment).tags
    with suppress(MlflowException):
        for name, value in _EXPERIMENT_TAGS.items():
            if name not in known:
                client.set_experiment_tag(experiment, name, value)


def _is_server_failure(error: Exception) -> bool:
    """Whether an exception comes from MLflow or from what it talks through (HTTP, the database)."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, (MlflowException, RequestException, SQLAlchemyError))


def is_tracking_failure(error: Exception) -> bool:
    """The same, or one of files, such as a full disk under the artifacts: no reason either to end a training."""
    return isinstance(error, OSError) or _is_server_failure(error)


def reason(error: Exception) -> str:
    """The first line of an exception's text, short enough for one line, without user name and password."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"//[^/@\s]+@", "//", lines[0])[:200].rstrip(".")


def say(sentence: str) -> None:
    print(f"flawline: {sentence}.", file=sys.stderr, flush=True)
