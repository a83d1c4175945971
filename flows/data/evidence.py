"""Evidence under DVC: what a person has judged is kept in `evidence/CATEGORY`, and its `.dvc` file committed."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.files import held_lock, sha256_file
from components.foundation.params import load_params
from components.images.dataset import list_category
from components.registry.evidence import (
    GOOD,
    Evidence,
    dvc_file_of,
    folder_of,
    keep_evidence,
    list_evidence,
    make_evidence,
)
from components.registry.person import who_am_i
from flows.data import git
from flows.data.dvc_project import open_project, writing
from flows.data.git import BusyError
from flows.data.versions import LOCKS, digest_at, read_manifest, recorded_digest, whole_manifest

WAIT = 60.0  # seconds, for another who keeps something at the same time


def keep(
    category: str, image: Path, mask: Path | None, *, kind: str, note: str, verdict: dict[str, Any]
) -> tuple[Evidence, str]:
    """Keep an image as evidence, and commit that; the evidence, and the commit (40 hex digits).

    kind: "good", or a kind of defect. verdict: the champion's, empty without one. The same image again replaces what
    was said of it; where nothing changes, nothing is committed. Safe to repeat after a kill.

    Raises UserError where image or mask are not in order, git cannot commit, or files of the evidence are missing.
    """
    limits, when = load_params().limits.image_limits(), datetime.now(UTC).isoformat(timespec="seconds")
    made = make_evidence(
        category, image, mask, limits, kind=kind, note=note, who=who_am_i(), when=when, verdict=verdict
    )
    git.check_committable()
    with _one_writer(category, WAIT), open_project() as repo:
        _check_complete(repo, category)
        before = {one.digest: one for one in list_evidence(category)}.get(made.digest)
        if before is None or _says_other(before, made, mask):
            keep_evidence(made, image, mask)
        return made, _commit(repo, category, made, before is not None)


def files_of(repo: Any, category: str, digests: Collection[str]) -> dict[str, str]:
    """The files that the evidence holds of these images: name to MD5. UserError where their list is nowhere."""
    known = digest_at("HEAD", dvc_file_of(category))
    manifest = whole_manifest(repo, known) if known else {}
    return {name: md5 for name, md5 in manifest.items() if name.partition(".")[0] in digests}


def drop(repo: Any, category: str, digests: Collection[str]) -> None:
    """Take images out of the evidence, and commit that; where none is left, there is no evidence. Safe to repeat."""
    folder, path = folder_of(category), dvc_file_of(category)
    gone = files_of(repo, category, digests)
    if not gone:
        return
    with _one_writer(category, 0), writing(repo, folder):
        _check_complete(repo, category, without=gone)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        if any(folder.glob("*.json")):
            repo.add(os.fspath(folder))
        else:  # DVC sends no list of an empty folder
            path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
            git.git("reset", "--quiet", "--", path.as_posix())  # git adds no removal twice, as after a kill
    git.commit([path.as_posix()], f"Evidence of {category}: without what was forgotten")


def learned_as(category: str, image: Path) -> str:
    """The name of the training image with the same bytes; empty where there is none."""
    root, digest = Path(load_params().data.root) / category, sha256_file(image)
    size = image.stat().st_size
    records = list_category(root).train if root.is_dir() else ()
    same = [
        record.name for record in records if record.path.stat().st_size == size and sha256_file(record.path) == digest
    ]
    return same[0] if same else ""


def _says_other(before: Evidence, made: Evidence, mask: Path | None) -> bool:
    """Whether anything but the time is new."""
    if mask is not None and before.mask and sha256_file(mask) != sha256_file(before.record.masks[0]):
        return True
    return (before.kind, before.note, before.mask) != (made.kind, made.note, made.mask)


@contextmanager
def _one_writer(category: str, seconds: float) -> Iterator[None]:
    """One process at a time changes the evidence of a category; BusyError where another does for so long."""
    busy = BusyError(f"Another process is keeping evidence of {category}: run this again when it has ended.")
    with held_lock(LOCKS / f"evidence-{category}.lock", seconds, busy):
        yield


def _check_complete(repo: Any, category: str, without: Collection[str] = ()) -> None:
    """Raise UserError where files of the last version are missing here: a commit would drop them unseen.

    without: names of files that are to go.
    """
    folder = folder_of(category)
    digest = digest_at("HEAD", dvc_file_of(category))
    if digest is None:
        return
    manifest = read_manifest(repo, digest)
    if manifest is None or not all((folder / name).is_file() for name in manifest.keys() - set(without)):
        raise UserError(f"Not all evidence of {category} is here: fetch it with `flawline data pull {category}`.")


def _commit(repo: Any, category: str, made: Evidence, is_known: bool) -> str:
    folder = folder_of(category)
    path = dvc_file_of(category)
    with writing(repo, folder):
        repo.add(os.fspath(folder))
    if recorded_digest(path.read_bytes()) == digest_at("HEAD", path):
        return git.git("log", "-1", "--format=%H", "--", path.as_posix()).strip()
    what = "a false alarm" if made.kind == GOOD else f"a missed defect ({made.kind})"
    message = f"Evidence of {category}: {what}{', judged anew' if is_known else ''}"
    return git.commit([path.as_posix(), (folder.parent / ".gitignore").as_posix()], message)
