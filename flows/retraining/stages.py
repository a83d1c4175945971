"""Run one DVC stage of one category, in this process's DVC: what it depends on is said in dvc.yaml alone."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.foundation.disk import is_full
from components.foundation.names import check_category_name
from components.stages.command import REASON
from flows.data.dvc_project import innermost, is_held_lock, repo_at, silent_stdout
from flows.data.git import BusyError
from flows.retraining.running import FOLDER, frozen_files

STAGES = ("validate", "synthesize", "train", "fit", "evaluate")
INTERRUPTED = ("exited with 130", "exited with -2")  # a shell's word for SIGINT, and Python's


class StageFailedError(Exception):
    """A stage failed, and why: in its own sentence, which it has said on stderr too, where it had one."""


def reproduce(target: str, *, force: bool = False) -> bool:
    """Run the stage `target` of the project in the current folder if its inputs changed, or always with `force`.

    Returns whether it ran (False: its outputs were up to date, or came from the cache). Raises StageFailedError
    where the stage failed, BusyError where another DVC command holds the lock, KeyboardInterrupt where the stage was
    interrupted.
    """
    from dvc.exceptions import DvcException

    logging.getLogger("dvc").setLevel(logging.WARNING)  # the flow itself says what runs
    logging.getLogger("dvc_data").setLevel(logging.CRITICAL)  # a traceback for each file that could not be stored
    with _reason_file() as reason:
        try:
            with repo_at(Path.cwd(), frozen_files()) as repo, silent_stdout():
                ran = bool(repo.reproduce([target], single_item=True, force=force))
                _check_stored(repo, target)
                return ran
        except DvcException as error:
            if is_held_lock(error):
                raise BusyError(
                    f"another DVC command holds the lock of {Path.cwd()}: let it end, or end it, and run this again."
                ) from error
            words = innermost(error)
            if words.endswith(INTERRUPTED):
                raise KeyboardInterrupt from error
            raise StageFailedError(f"{target}: {reason.read_text(encoding='utf-8') or words}") from error


@contextlib.contextmanager
def _reason_file() -> Iterator[Path]:
    """An empty file into which the stage writes why it failed, see `components.stages.command`; one run at a time."""
    file = (FOLDER / "reason").resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("", encoding="utf-8")
    os.environ[REASON] = os.fspath(file)
    try:
        yield file
    finally:
        del os.environ[REASON]


def _check_stored(repo: Any, target: str) -> None:
    """Raise StageFailedError where DVC's cache lacks an output of the stage: DVC only logs what it could not store."""
    for stage in repo.stage.collect(target):
        lacking = [out.def_path for out in stage.outs if out.use_cache and out.changed_cache()]
        if lacking:
            cache = Path(repo.cache.local.path)
            why = f"the disk is full at {cache}" if is_full(cache) else f"it could not be written to {cache}"
            raise StageFailedError(
                f"{target}: {', '.join(lacking)} is not in DVC's cache, as {why}: make room there, or check its mode, "
                "and run again"
            )


def target_of(stage: str, category: str) -> str:
    """DVC's name of one stage of one category; UserError for what cannot be a category's name."""
    check_category_name(category)
    return f"{stage}@{category}"
