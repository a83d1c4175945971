"""One run at a time in a project, with parameters that are frozen when it begins.

`params.yaml` may be edited while a run goes on, by a person or by `flawline data add`: the run's stages, and what DVC
records of them, are by the copy that was made at its beginning, and the edit is for the next run.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.foundation.errors import printable
from components.foundation.files import held_lock, read_json, write_bytes, write_json
from components.foundation.params import PARAMS, SETTLED, Params, load_params
from flows.data.dvc_project import whole_files
from flows.data.git import BusyError

FOLDER = Path(".flawline/run")
HOLDER = FOLDER / "holder.json"
RUNNING = "FLAWLINE_RUNNING"  # set in the process that has the right to run, and in what it starts

Say = Callable[[str], object]


def to_stderr(sentence: str) -> None:
    """Say it where a person who typed a command reads it."""
    print(sentence, file=sys.stderr, flush=True)


@contextmanager
def running(what: str, wait: float = 0, say: Say = to_stderr) -> Iterator[None]:
    """Hold the right to run in the project of the current folder; what holds it already may ask again.

    what: for the others to read. wait: seconds to wait for another run to end, which is said. The right ends with the
    block, or with the process. Raises BusyError, which says who runs.
    """
    if RUNNING in os.environ:
        yield
        return
    with _run_lock(wait, say):
        write_json(HOLDER, {"what": what, "pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"})
        os.environ[RUNNING] = str(os.getpid())
        try:
            yield
        finally:
            del os.environ[RUNNING]


@contextmanager
def frozen_params(say: Say = to_stderr) -> Iterator[Params]:
    """The parameters as they are now, which all readers of `load_params()` get until the end of the block.

    So do the processes that are started in it. For one who has the right to run. Says so in the end where params.yaml
    was changed meanwhile.
    """
    if SETTLED in os.environ:
        yield load_params()
        return
    load_params(PARAMS)  # an error is to name the file that a person edits
    content, copy = PARAMS.read_bytes(), (FOLDER / PARAMS).resolve()
    write_bytes(copy, content)
    os.environ[SETTLED] = os.fspath(copy)
    try:
        yield load_params()
    finally:
        del os.environ[SETTLED]
        if not PARAMS.is_file() or PARAMS.read_bytes() != content:
            say(
                "params.yaml was changed during this run, which has computed with what it said at the beginning: the "
                "change is for the next run."
            )


def frozen_files() -> Any:
    """DVC's local file system, in which params.yaml is the frozen one, where one is frozen."""
    frozen, original = os.environ.get(SETTLED), os.fspath(PARAMS.resolve())
    base: Any = whole_files()

    class FrozenFiles(base):
        def open(self, path: Any, mode: str = "r", **kwargs: Any) -> Any:
            read = frozen is not None and mode in ("r", "rb") and os.path.realpath(path) == original
            return super().open(frozen if read else path, mode, **kwargs)

    return FrozenFiles()


@contextmanager
def _run_lock(wait: float, say: Say) -> Iterator[None]:
    def busy() -> BusyError:
        return BusyError(_busy_sentence())

    with ExitStack() as stack:
        try:
            stack.enter_context(held_lock(FOLDER / "lock", 0, busy))
        except BusyError as error:
            if not wait:
                raise
            say(f"{error} This one waits for at most {wait / 60:.0f} minutes.")
            stack.enter_context(held_lock(FOLDER / "lock", wait, busy))
        yield


def _busy_sentence() -> str:
    """Who runs, by what the holder wrote; without it where it is just about to."""
    try:
        holder = read_json(HOLDER)
        who = f": {printable(holder['what'])} (process {holder['pid']}, since {holder['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        who = ""
    return (
        f"Another run is at work in {Path.cwd()}{who}; nothing was changed: wait until it has ended, stop it, or work "
        "in a clone of the project."
    )
