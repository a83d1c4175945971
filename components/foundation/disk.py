"""Whether a disk has room: asked before work begins, and when something failed that a full disk would explain."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.foundation.errors import UserError

STATE = Path(".flawline")
ROOM_BYTES = 32 << 20  # what Prefect's and MLflow's own files may take of a run, without its results
FULL_BYTES = 1 << 20


def check_room(folder: Path = STATE, needed: int = ROOM_BYTES) -> None:
    """Raise UserError where the disk of `folder` has less than `needed` bytes free."""
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"The disk is full at {folder.absolute()} ({free >> 20} MiB are free, {needed >> 20} MiB are needed): free "
            "some space and run again."
        )


@contextmanager
def full_disk_said(folder: Path = STATE) -> Iterator[None]:
    """Turn whatever is raised inside into a UserError about the disk, where that is full: libraries call it else."""
    try:
        yield
    except Exception as error:
        if is_full(folder):
            raise UserError(
                f"The disk is full at {folder.absolute()}: free some space and run again; what is finished is not "
                "repeated."
            ) from error
        raise


def is_full(folder: Path) -> bool:
    """Whether next to nothing can be written to the disk of `folder`."""
    return free_bytes(folder) < FULL_BYTES


def free_bytes(folder: Path) -> int:
    """How much a user who is not root may write where the folder is, or would be; 0 where no file can be made."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free if os.statvfs(folder).f_files == 0 or os.statvfs(folder).f_favail else 0
