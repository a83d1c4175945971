"""What must be set before the big libraries are imported: no telemetry, and all state inside the project's folder."""

import os
import sys
from pathlib import Path

from components.foundation.errors import UserError
from components.foundation.mlflow_store import check_place
from components.foundation.network import reach_loopback_directly

HEARTBEAT_SECONDS = 30  # Prefect takes no less
QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # of the temporary server, whose tracebacks tell a user nothing
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",  # where a profile names no server
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
}


def enter_project() -> Path:
    """Go to the project's folder (the nearest with dvc.yaml and params.yaml, from here upwards) and set the defaults.

    What the user has set stays. Raises UserError outside of a project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            check_place(folder)
            os.chdir(folder)
            _set_defaults(folder)
            return folder
    raise UserError(f"{here} is in no Flawline project: go to the folder with dvc.yaml and params.yaml.")


def _set_defaults(project: Path) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    reach_loopback_directly()
    if "PREFECT_HOME" not in os.environ:  # Prefect's state is the project's; which server it talks to is the person's
        os.environ.setdefault("PREFECT_PROFILES_PATH", os.path.expanduser("~/.prefect/profiles.toml"))
        os.environ["PREFECT_HOME"] = str(project / ".flawline" / "prefect")
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect itself makes no parents
    os.environ.setdefault("FLAWLINE_PYTHON", sys.executable)
