"""A scratch clone of the project at one commit, with the data of one category, in which a version is made again.

It has the project's git objects and DVC cache, but nothing in it is written to either: what is computed stays in the
clone, and goes with it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.data.demo import main as make_demo
from components.foundation.errors import UserError
from components.foundation.files import copy_file, held_lock
from components.foundation.params import PARAMS, Params, load_params
from components.foundation.places import DEMO
from flows.common.keeper import MARK
from flows.data import git
from flows.data.dvc_project import open_project
from flows.data.git import BusyError
from flows.data.transfer import has_whole
from flows.data.versions import dvc_file, recorded_digest
from flows.retraining.warm_stages import ADDRESS, warm_stages

FOLDER = Path(".flawline/scratch")
CLIENT = Path("infra/warm_stage.py")
# Of this process and its flow, and what would lead a stage to the project's own records.
FOREIGN = ("FLAWLINE_", "MLFLOW_", "DVC_", "GIT_", "PYTHONPATH")


@dataclass(frozen=True)
class Scratch:
    """The clone's folder, in which the project lies in `project` (the clone itself, or a folder in it)."""

    folder: Path
    project: Path


@contextmanager
def scratch_clone(name: str, commit: str, keep: bool) -> Iterator[Scratch]:
    """A clone with `commit` checked out, removed in the end unless it is to be kept; a former one of the name goes."""
    folder = (FOLDER / name).resolve()
    busy = BusyError(f"Another process is at work in {folder}: run this again when it has ended.")
    with held_lock(FOLDER / f"{name}.lock", 0, busy):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            git.clone_at(commit, folder)
            yield Scratch(folder, folder / git.git("rev-parse", "--show-prefix").strip())
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def bring_data(scratch: Scratch, category: str, inputs: Iterable[str]) -> None:
    """Bring what the stages read and git does not hold into the clone, as its commit names it: from cache or remote.

    inputs: the files and folders that they read. The demo's images are made anew. Images that are in no version are
    read where they are, or copied from the project's folder: whether they are those of the commit shows when they are
    compared. UserError where something is nowhere.
    """
    params = load_params(scratch.project / PARAMS)
    root, record = Path(params.data.root), dvc_file(category, params)
    records = {one for path in inputs if (one := _record_of(scratch, path))}
    if records:
        _link_stores(scratch)
    for one in sorted(records):
        _check_out(scratch, one)
    if record in records or root.is_absolute():
        return
    if root == DEMO:
        _make_demo(scratch, params)
    else:
        _copy(root / category, scratch.project / root / category)


def _record_of(scratch: Scratch, path: str) -> Path | None:
    """The .dvc file of a file or folder, or of the nearest folder above it that has one; None where none has."""
    above = [Path(path), *Path(path).parents]
    records = (one.with_name(f"{one.name}.dvc") for one in above if one.name)
    return next((one for one in records if (scratch.project / one).is_file()), None)


def make_again(scratch: Scratch, target: str) -> str:
    """Run all stages up to `target` in the clone, by its own code and without any cache; why it failed, or nothing."""
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--no-commit", target]
    with _warm(scratch) as warm:
        environment = _environment(scratch) | warm
        done = subprocess.run(command, cwd=scratch.project, env=environment, capture_output=True, check=False)
    words = done.stderr.decode(errors="replace")
    said = [line.removeprefix("flawline: ") for line in words.splitlines() if line.startswith("flawline: ")]
    return "" if done.returncode == 0 else (said[-1] if said else " ".join(words.split())[-500:] or "no reason given")


@contextmanager
def _warm(scratch: Scratch) -> Iterator[dict[str, str]]:
    """The address of a process with the libraries imported, where the clone's stages know how to ask this one."""
    if (scratch.project / CLIENT).is_file() and (scratch.project / CLIENT).read_bytes() == CLIENT.read_bytes():
        with warm_stages(load_params(scratch.project / PARAMS).thread_variables):
            yield {name: os.environ[name] for name in (ADDRESS,) if name in os.environ}
    else:
        yield {}


def _link_stores(scratch: Scratch) -> None:
    """Let DVC in the clone read the project's cache and remote; what it writes goes to copies of its own."""
    with open_project() as repo:
        name = repo.config["core"].get("remote")
        remote = dict(repo.config["remote"].get(name, {})) if name else {}
        cache = repo.cache.local_cache_dir
    with open_project(scratch.project) as there, there.config.edit("local") as config:
        config["cache"] = {"dir": cache, "type": ["reflink", "copy"]}
        if name:
            config["core"]["remote"] = name
            config["remote"][name] = remote
    os.chmod(scratch.project / ".dvc" / "config.local", 0o600)


def _check_out(scratch: Scratch, record: Path) -> None:
    from dvc.exceptions import DvcException

    target = os.fspath(scratch.project / record)
    with open_project(scratch.project) as repo:
        digest = recorded_digest((scratch.project / record).read_bytes())
        try:
            if repo.config["core"].get("remote") and not has_whole(repo, digest or ""):
                repo.fetch([target])
            repo.checkout([target])
        except DvcException as error:
            raise UserError(
                f"{record.with_suffix('')} (version {digest}) is neither in DVC's cache nor in the remote: `flawline "
                "data verify` says what is lacking."
            ) from error


def _make_demo(scratch: Scratch, params: Params) -> None:
    here = Path.cwd()
    os.chdir(scratch.project)
    try:
        make_demo(params)
    finally:
        os.chdir(here)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder of the project into the clone; UserError where it is outside of the project, or is not there."""
    if not source.resolve().is_relative_to(Path.cwd()):
        raise UserError(f"The images of {source} are outside of the project, and in no version: add them to one.")
    if not source.is_dir():
        raise UserError(f"The images of {source} are in no version and not there any more: bring them back.")
    target.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            copy_file(path, target / path.relative_to(source))


def _environment(scratch: Scratch) -> dict[str, str]:
    """Ours without what leads to the project's own state; with the mark by which the stages end with this process."""
    kept = {name: value for name, value in os.environ.items() if name == MARK or not name.startswith(FOREIGN)}
    site = os.fspath(scratch.project / ".dvc" / "tmp" / "site")
    own = {"FLAWLINE_PYTHON": sys.executable, "DVC_SITE_CACHE_DIR": site, "DVC_NO_ANALYTICS": "1"}
    return kept | own | {"MLFLOW_DISABLE_TELEMETRY": "true"}
