"""Images that arrive, for tests: files in an inbox, runs of the ingest, and others, in processes that may be killed."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from components.arrivals.entries import OUTCOMES
from components.arrivals.inbox import open_source
from components.foundation.files import sha256_file
from components.foundation.params import load_params
from flows.data.versions import commit_folder
from tests.project import Project

INBOX = Path("arriving/inbox")
PATIENCE = 200.0

PRELOADED = [
    "tests.arriving",
    "flows.arrivals.steps",
    "flows.data.versions",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "great_expectations",
    "dvc.repo",
    "boto3",
]

_context: ForkServerContext | None = None


def with_first_version(project: Project) -> None:
    """Give a project a first version of its category "widget", and an inbox that never waits."""
    project.set_params({"ingest": {"settle_seconds": 0}})
    commit_folder("widget")


def whereabouts(root: Path, category: str = "widget") -> dict[str, list[str]]:
    """In which of accepted, held, quarantine and inbox each file content (by SHA-256) is found beside an inbox."""
    found: dict[str, list[str]] = {}
    for outcome in (*OUTCOMES, "inbox"):
        for path in sorted((root / outcome / category).rglob("*")):
            if path.is_file() and not path.name.endswith((".json", ".map.png")):
                found.setdefault(sha256_file(path), []).append(outcome)
    return found


def ingest_here(category: str = "widget", url: str | None = None) -> list[dict[str, Any]]:
    """Run the steps of the ingest in this process and folder, without Prefect."""
    from flows.arrivals.steps import ingest_category

    params = load_params()
    return ingest_category(category, open_source(url or params.ingest.source), params)


def ingest_process(
    project: Project, prepare: Callable[..., None] | None = None, *arguments: Any, url: str | None = None
) -> multiprocessing.process.BaseProcess:
    """Start the steps of the ingest in a process of its own; `prepare(*arguments)` is called in it first."""
    return started(project, partial(ingest_here, url=url), prepare, *arguments)


def started(
    project: Project, act: Callable[[], object], prepare: Callable[..., None] | None = None, *arguments: Any
) -> multiprocessing.process.BaseProcess:
    """Start `act()` in a process of its own, in the project; `prepare(*arguments)` is called in it first."""
    process = _forkserver().Process(
        target=_run_in, args=(project.folder, dict(project.environment), prepare, arguments, act), daemon=True
    )
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess) -> int:
    """Wait for the process; its exit code, negative for a signal."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the process did not end in time")
    return process.exitcode


def die() -> None:
    """Be killed as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run_in(
    folder: Path,
    environment: Mapping[str, str],
    prepare: Callable[..., None] | None,
    arguments: tuple[Any, ...],
    act: Callable[[], object],
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if prepare is not None:
        prepare(*arguments)
    act()


def _forkserver() -> ForkServerContext:
    """A process that has imported the big libraries once, and from which each run is forked."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(PRELOADED)
    return _context
