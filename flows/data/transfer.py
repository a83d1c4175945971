"""Send versions of the data and the stages' results to the remote, and get them from there."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.names import check_category_name
from flows.data.dvc_project import open_project
from flows.data.history import recorded_digests, versioned_files
from flows.data.stores import DvcStore, remote_store, separate_files
from flows.data.versions import read_manifest, recorded_digest


@dataclass(frozen=True)
class Moved:
    """What was sent or fetched.

    Attributes:
        objects: how many, without those that were there already.
        left_out: the stages that `dvc.lock` knows but whose results are not whole where they were to come from.
    """

    objects: int
    left_out: tuple[str, ...] = ()


def push(category: str | None = None) -> Moved:
    """Send what the remote lacks of every version, and of the results that `dvc.lock` names (of one category, or all).

    A version or result that this machine's cache does not hold whole is left to the machine that made it.
    Raises UserError where no remote is set, or not all could be sent.
    """
    with open_project() as repo:
        remote = _remote(repo)
        stages = _computed_stages(repo, category)
        whole = [stage for stage in stages if _is_cached(repo, stage)]
        versions = _held_versions(repo, category) if versioned_files() or not whole else []  # data outside of versions
        results = [out.hash_info for stage in whole for out in _results(stage)]
        return Moved(_send(repo, remote, [*versions, *results]), _names(stages, whole))


def push_versions(category: str | None = None) -> int:
    """Send what the remote lacks of every version of the data alone; how many objects. Raises as `push`."""
    with open_project() as repo:
        return _send(repo, _remote(repo), _held_versions(repo, category))


def push_state(category: str) -> int | None:
    """Send what the remote lacks of the version that the category's .dvc file names now and of its results.

    How many objects; None where no remote is set. Raises UserError where not all could be sent.
    """
    check_category_name(category)
    with open_project() as repo:
        remote = remote_store(repo)
        if remote is None:
            return None
        files = [path for path in versioned_files() if path.is_file() and path.stem == category]
        digests = [digest for path in files if (digest := recorded_digest(path.read_bytes()))]
        versions = [_named(repo, digest) for digest in digests if read_manifest(repo, digest)]
        results = [out.hash_info for stage in _computed_stages(repo, category) for out in _results(stage)]
        return _send(repo, remote, [*versions, *results])


def pull(category: str | None = None) -> Moved:
    """Bring the images to what the .dvc files name, and the results to what `dvc.lock` names (of one category, or all).

    Results that the remote does not have are left out: the stages compute them.
    Raises UserError where no remote is set but needed, or files of the project that are in no version would be lost.
    """
    if category is not None:
        check_category_name(category)
    files = [path for path in versioned_files() if path.is_file() and category in (None, path.stem)]
    with open_project() as repo:
        stages = _computed_stages(repo, category)
        if not files and not stages:
            raise UserError(
                f"There is no version of {category or 'any category'} here: `flawline data versions` lists them."
            )
        targets = [os.fspath(path) for path in files]
        remote = remote_store(repo)
        fetched = _fetch(repo, remote, targets) if remote and targets else 0
        if targets:
            repo.checkout(targets)
            for path in files:
                separate_files(repo, path.with_suffix(""))
        missing = [stage.addressing for stage in stages if not _is_cached(repo, stage)]
        if remote and missing:
            fetched += _fetch_what_is_there(repo, remote, missing)
        whole = [stage for stage in stages if _is_cached(repo, stage)]
        if whole:  # DVC removes what it cannot bring to the version whole
            repo.checkout([stage.addressing for stage in whole])
        return Moved(fetched, _names(stages, whole))


def _remote(repo: Any) -> DvcStore:
    remote = remote_store(repo)
    if remote is None:
        raise UserError("No remote is set: run `flawline data remote s3://BUCKET/PREFIX`, or give it a folder.")
    return remote


def _held_versions(repo: Any, category: str | None) -> list[Any]:
    """DVC's names of the versions whose list of files this machine's cache holds."""
    return [_named(repo, digest) for digest in recorded_digests(category) if read_manifest(repo, digest)]


def _named(repo: Any, digest: str) -> Any:
    from dvc_data.hashfile.hash_info import HashInfo

    return HashInfo(repo.cache.local.hash_name, digest)


def _send(repo: Any, remote: DvcStore, digests: Sequence[Any]) -> int:
    from dvc_data.hashfile.transfer import transfer

    cache = repo.cache.local
    with remote.errors_said():
        done = transfer(cache, remote.database, digests, shallow=False, cache_odb=cache)
    if done.failed:
        raise UserError(
            f"{len(done.failed)} objects could not be sent to the remote: check that it is there and that you may "
            "write to it, and run this again; what was sent is not sent twice."
        )
    return len(done.transferred)


def _fetch(repo: Any, remote: DvcStore, targets: Sequence[str]) -> int:
    with remote.errors_said():
        return int(repo.fetch(targets))


def _fetch_what_is_there(repo: Any, remote: DvcStore, targets: Sequence[str]) -> int:
    """Fetch what the remote has of some stages' results; those of one may be missing, those of another not."""
    from dvc.exceptions import DownloadError

    fetched = 0
    for target in targets:
        try:
            fetched += _fetch(repo, remote, [target])
        except DownloadError:
            continue
    return fetched


def _computed_stages(repo: Any, category: str | None) -> list[Any]:
    """The stages of dvc.yaml (of one category, or of all) of whose results dvc.lock knows the content."""
    stages = [stage for stage in repo.index.stages if "@" in (getattr(stage, "name", None) or "")]
    chosen = [stage for stage in stages if category in (None, stage.name.rpartition("@")[2])]
    return [stage for stage in chosen if _results(stage) and all(out.hash_info for out in _results(stage))]


def _results(stage: Any) -> list[Any]:
    return [out for out in stage.outs if out.use_cache]


def _is_cached(repo: Any, stage: Any) -> bool:
    """Whether DVC's cache has every file of a stage's results."""
    return all(has_whole(repo, out.hash_info.value) for out in _results(stage))


def has_whole(repo: Any, digest: str) -> bool:
    """Whether DVC's cache has a file, or every file of a folder (whose digest ends in ".dir")."""
    digests = [digest]
    if digest.endswith(".dir"):
        manifest = read_manifest(repo, digest)
        if manifest is None:
            return False
        digests = list(manifest.values())
    return all(Path(repo.cache.local.oid_to_path(one)).is_file() for one in digests)


def _names(stages: Sequence[Any], whole: Sequence[Any]) -> tuple[str, ...]:
    return tuple(stage.addressing for stage in stages if stage not in whole)
