"""Which MLflow runs this workspace has open: each has a lock that the system frees when its process ends, however."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

FOLDER = Path(".flawline/open-runs")
_held: dict[str, "FileLock"] = {}


def hold(run_id: str) -> None:
    """Say that this process has the run open, until `release` or its end."""
    if run_id in _held:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = _lock(run_id)
    lock.acquire()
    _held[run_id] = lock


def release(run_id: str) -> None:
    """Say that the run is closed; one that is not held is left as it is."""
    if lock := _held.pop(run_id, None):
        _path(run_id).unlink(missing_ok=True)
        lock.release()


def take_abandoned() -> list[str]:
    """Runs that a process had open which has ended; they are this process's own now."""
    from filelock import Timeout

    found = []
    for path in sorted(FOLDER.glob("*.lock")):
        lock = _lock(path.stem)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _held[path.stem] = lock
        found.append(path.stem)
    return found


def _lock(run_id: str) -> "FileLock":
    from filelock import FileLock

    return FileLock(_path(run_id), thread_local=False)


def _path(run_id: str) -> Path:
    return FOLDER.resolve() / f"{run_id}.lock"
