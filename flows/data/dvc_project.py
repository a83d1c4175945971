"""The project's DVC, opened in this process: its errors become one sentence, its chatter is left out."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.files import write_text
from components.foundation.yaml_text import read_yaml
from flows.data.git import BusyError
from flows.data.quick_lock import let_dvc_be_quick

OWN = ("dvc.lock", "rwlock")  # files of DVC's that it changes in place: a process that is killed meanwhile leaves none


@cache
def whole_files() -> type[Any]:
    """DVC's local file system, but for what it writes to files of its own: they are there as before, or as after."""
    from dvc.fs import LocalFileSystem

    class WholeFiles(LocalFileSystem):
        def open(self, path: Any, mode: str = "r", **kwargs: Any) -> Any:
            if mode.startswith("w") and os.path.basename(path) in OWN:
                return _written_at_once(Path(path))
            return super().open(path, mode, **kwargs)

    return WholeFiles


def repo_at(folder: Path, files: Any) -> Any:
    """The `dvc.repo.Repo` of a project's folder, whose own files are read and written by this file system."""
    from dvc.repo import Repo

    let_dvc_be_quick()
    return Repo(os.fspath(folder), files)


@contextlib.contextmanager
def open_project(folder: Path | None = None) -> Iterator[Any]:
    """Yield the `dvc.repo.Repo` of the project in the current folder, or in another.

    A lock that another DVC command holds becomes a BusyError, every other error of DVC a UserError.
    """
    from dvc.exceptions import DvcException

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with repo_at(folder or Path.cwd(), whole_files()()) as repo, silent_stdout():
            yield repo
    except DvcException as error:
        if is_held_lock(error):
            raise BusyError(
                f"Another DVC command is at work here ({innermost(error)}): run this again later."
            ) from error
        raise UserError(f"DVC: {innermost(error).rstrip('.')}.") from error


@contextlib.contextmanager
def _written_at_once(path: Path) -> Iterator[io.StringIO]:
    text = io.StringIO()
    yield text
    write_text(path, text.getvalue())


@contextlib.contextmanager
def silent_stdout() -> Iterator[None]:
    """Leave out what DVC prints."""
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        yield


@contextlib.contextmanager
def writing(repo: Any, folder: Path) -> Iterator[None]:
    """Hold DVC's lock, and its write lock of `folder`: no stage reads the folder meanwhile, and none writes it.

    Raises dvc.lock.LockError at once where a stage that depends on the folder is running.
    """
    from dvc.repo import lock_repo
    from dvc.rwlock import rwlock

    command = " ".join(sys.argv)  # as DVC itself names the holder, so that its own calls in here find the lock theirs
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with lock_repo(repo), rwlock(repo.tmp_dir, repo.fs, command, [], [os.fspath(folder.resolve())], hardlink):
        yield


def hashed_files(repo: Any, folder: Path) -> dict[str, str]:
    """The files of a folder with their MD5, as DVC sees them: one that did not change since is not read again."""
    from dvc.fs import localfs
    from dvc_data.hashfile.build import build

    cache, path = repo.cache.local, os.fspath(folder.resolve())
    tree: Any = build(cache, path, localfs, cache.hash_name, ignore=repo.dvcignore, dry_run=True)[2]
    return {"/".join(key): oid.value for key, _, oid in tree}


def is_held_lock(error: BaseException) -> bool:
    """Whether an error of DVC comes from a lock: that of the project, or of a file which is read or written."""
    from dvc.lock import LockError

    return isinstance(error, LockError) or (error.__cause__ is not None and is_held_lock(error.__cause__))


def innermost(error: BaseException) -> str:
    """What the first cause of an error says, in one line; of a file that DVC cannot read, its name and the line too."""
    from dvc.utils.serialize import ParseError

    place = ""
    while True:
        if isinstance(error, ParseError):
            place = _damage(Path(error.path)) or place
        if error.__cause__ is None:
            return place or " ".join(str(error).split())
        error = error.__cause__


def _damage(path: Path) -> str:
    """Why a file of DVC's (dvc.lock, dvc.yaml, a .dvc file) cannot be read; empty where it can."""
    try:
        read_yaml(path)
    except UserError as error:
        return str(error).rstrip(".")
    return ""
