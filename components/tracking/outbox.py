"""The outbox: runs that MLflow could not take, kept in a small store of their own until it can.

While the server is away, runs are recorded by MLflow itself, in a SQLite file with its artifacts under
`.flawline/outbox`; so whatever can be told to a server can be kept. The next connection copies each run to the server
and then drops it. A run's copy has a tag which names the kept run, so that a copy that was cut short is completed and
never made twice. A run that a process is still writing to has a lock, which ends with the process, and waits.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.foundation.files import held_lock
from components.foundation.mlflow_store import follow_move

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as MlflowRun

FOLDER = Path(".flawline/outbox")
MOST_BYTES = 1 << 30
KEPT = "flawline.kept"  # on the server: which kept run this one was copied from
FOR_RUN, AT_SERVER = "flawline.kept_for", "flawline.kept_for_server"  # on a kept run: what of whose it is the rest of
ENDED = ("FINISHED", "FAILED", "KILLED")
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # MLflow's own limits per request
_LOCK_SECONDS = 600.0


def is_empty() -> bool:
    """Whether nothing is kept: the usual case, told without opening anything."""
    return _stores() == []


@contextmanager
def writing() -> Iterator[Path]:
    """Yield the folder of the store in which a run may be begun and held; nothing is sent meanwhile.

    Raises OSError where the outbox is full: more than `MOST_BYTES`.
    """
    with _locked():
        used = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
        if used > MOST_BYTES:
            raise OSError(f"{FOLDER} holds {used >> 20} MiB that no server has taken yet")
        folder = (_stores() or [FOLDER / f"{time.time_ns()}"])[-1]
        folder.mkdir(parents=True, exist_ok=True)
        yield _in_place(folder)


def hold(run_id: str) -> IO[bytes]:
    """A file whose shared lock says that a process is writing to a kept run, until the file is closed."""
    file = _lock_file(run_id)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


@contextmanager
def sending() -> Iterator[list[Path]]:
    """Yield the folders of all stores, oldest first; nobody else sends or begins a run meanwhile."""
    with _locked():
        yield [_in_place(folder) for folder in _stores()]


def waiting(client: "MlflowClient") -> "list[MlflowRun]":
    """The runs of a store that nobody is writing to, oldest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(experiments, max_results=1000, order_by=["attributes.start_time ASC"]))
    return [run for run in runs if not _is_held(run.info.run_id)]


def copy_run(
    kept: "MlflowClient", run: "MlflowRun", client: "MlflowClient", target: str, tags: Mapping[str, str]
) -> None:
    """Copy what a kept run has, with these tags, to the run `target` of a server; the same again changes nothing."""
    from mlflow.entities import Param, RunTag

    there = client.get_run(target)
    new = [Param(name, value) for name, value in run.data.params.items() if name not in there.data.params]
    for start in range(0, len(new), _BATCH_PARAMS):
        client.log_batch(target, params=new[start : start + _BATCH_PARAMS])
    for name in run.data.metrics:
        known = client.get_metric_history(target, name) if name in there.data.metrics else []
        points = _missing(kept.get_metric_history(run.info.run_id, name), known)
        for start in range(0, len(points), _BATCH_METRICS):
            client.log_batch(target, metrics=points[start : start + _BATCH_METRICS])
    if run.inputs and run.inputs.dataset_inputs:
        client.log_inputs(target, run.inputs.dataset_inputs)
    artifacts = _artifacts_of(run)
    if artifacts.is_dir() and any(artifacts.iterdir()):
        client.log_artifacts(target, str(artifacts))
    client.log_batch(target, tags=[RunTag(name, value) for name, value in tags.items()])


def drop(kept: "MlflowClient", run: "MlflowRun") -> None:
    """Forget a run that a server has."""
    kept.delete_run(run.info.run_id)
    shutil.rmtree(_artifacts_of(run).parent, ignore_errors=True)
    _lock_path(run.info.run_id).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove a store in which no run is left."""
    shutil.rmtree(folder, ignore_errors=True)


def in_each_store(folders: list[Path], open_store: "Callable[[Path], MlflowClient]") -> "Iterator[MlflowClient]":
    """A client of each store; a store is removed when all of its runs are gone."""
    for folder in folders:
        kept = open_store(folder)
        yield kept
        experiments = [experiment.experiment_id for experiment in kept.search_experiments()]
        if not kept.search_runs(experiments, max_results=1):
            clear(folder)


def _missing(points: "Sequence[Metric]", known: "Sequence[Metric]") -> "list[Metric]":
    """The points of a metric at steps that are not known, as they are to be sent."""
    from mlflow.entities import Metric

    steps = {point.step for point in known}
    return [Metric(point.key, point.value, point.timestamp, point.step) for point in points if point.step not in steps]


def _stores() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*") if path.name.isdigit()) if FOLDER.is_dir() else []


def _in_place(folder: Path) -> Path:
    follow_move(Path(), folder)
    return folder.absolute()


def _artifacts_of(run: "MlflowRun") -> Path:
    return Path(unquote(urlsplit(run.info.artifact_uri).path))


@contextmanager
def _locked() -> Iterator[None]:
    busy = OSError(f"another process has held {FOLDER}/lock for {_LOCK_SECONDS:.0f} s")
    with held_lock(FOLDER / "lock", _LOCK_SECONDS, busy):
        yield


def _lock_path(run_id: str) -> Path:
    return FOLDER / "open" / f"{run_id}.lock"


def _lock_file(run_id: str) -> IO[bytes]:
    path = _lock_path(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _is_held(run_id: str) -> bool:
    with _lock_file(run_id) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
