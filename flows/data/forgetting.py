"""An image leaves a category: from its data, in a new version, and if asked for from all that keeps its bytes.

What is to be done is written down first, and carried out from that: killed anywhere, the next call ends it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.arrivals.delivery import facts_cache
from components.data import version as data_version
from components.data.version import Difference
from components.foundation.byte_cache import ByteCache
from components.foundation.errors import UserError
from components.foundation.files import is_digest, read_json, sha256_file, write_json
from components.foundation.params import Params
from components.foundation.places import KNOWN
from components.images.dataset import ImageRecord, list_records
from components.registry.evidence import FOLDER
from components.registry.forgotten import Forgotten, add_forgotten, record_of
from components.registry.person import who_am_i
from flows.data import git
from flows.data.dvc_project import hashed_files, writing
from flows.data.evidence import drop as drop_evidence
from flows.data.evidence import files_of as evidence_files
from flows.data.stores import DvcStore, cache_store, remote_store
from flows.data.versions import category_folder, commit_present, digest_at, opened, whole_manifest

PLANS = Path(".flawline/forgetting")
FEWEST_SIGNS = 8  # of a digest, by which an image may be named


@dataclass(frozen=True)
class Plan:
    """What is to be forgotten: the images, and the names (MD5 each) of their files and masks in the category."""

    images: tuple[Forgotten, ...]
    files: Mapping[str, str]

    @property
    def erases(self) -> bool:
        """Whether the bytes go from everywhere."""
        return any(one.erased for one in self.images)


@dataclass(frozen=True)
class Forgot:
    """What was done.

    Attributes:
        category: whose images they were.
        images: what the record says of each.
        files: their names in the category, and those of their masks.
        commit, message: of the version that is the first without them.
        difference: what left the data.
        erased: number of objects that were removed from DVC's cache and remote.
        kept: names of those that were not, as another file that stays has the same bytes.
    """

    category: str
    images: tuple[Forgotten, ...]
    files: tuple[str, ...]
    commit: str
    message: str
    difference: Difference
    erased: int = 0
    kept: tuple[str, ...] = ()


def forget(category: str, images: Sequence[str | Path], reason: str, *, erase: bool = False) -> Forgot:
    """Make a version of a category's data without these images and their masks, and record that without the images.

    images: paths, names in the category ("train/good/001.png") or SHA-256 digests (8 hex digits at least). Files with
        the same bytes go together.
    erase: remove their bytes too from DVC's cache and remote, the evidence and the caches of facts and scores. The
        versions before can then not be fetched whole any more, nor what was learned from them be made again.

    What was begun and cut short is ended first. Raises UserError where an image is not there, the folder has changes
    that are in no version, or the version cannot be committed; BusyError as `versions.commit_images`.
    """
    with opened(category) as (repo, folder, params, version):
        done = None
        if (begun := _read_plan(category)) is not None:
            done = _carry_out(repo, category, params, version, begun)
            images = [image for image in images if not _is_in(begun, image, folder)]
            version = {name: md5 for name, md5 in version.items() if name not in begun.files}
        if done and not images:
            return done
        _check_unchanged(repo, category, folder, version)
        plan = _make_plan(repo, folder, version, images, reason, erase)
        write_json(_plan_path(category), {"images": [asdict(one) for one in plan.images], "files": dict(plan.files)})
        return _carry_out(repo, category, params, version, plan)


def _carry_out(repo: Any, category: str, params: Params, version: data_version.Manifest, plan: Plan) -> Forgot:
    folder = category_folder(category, params)
    record = record_of(folder.parent, category)
    add_forgotten(record, plan.images)
    with writing(repo, folder):
        data_version.remove_files(folder, plan.files)
        note = "\n".join(f"Forgotten: {one.digest} ({one.reason})" for one in plan.images)
        made = commit_present(repo, category, params, version, [], note, also=[record.as_posix()])
    commit, message = made.commit, made.message
    if not made.is_new and git.git("status", "--porcelain", "--", record.as_posix()):
        message = f"Data of {category}: what was forgotten"
        commit = git.commit([record.as_posix()], f"{message}\n\n{note}")
    erased, kept = _erase(repo, category, params, plan) if plan.erases else (0, ())
    _plan_path(category).unlink(missing_ok=True)
    return Forgot(category, plan.images, tuple(plan.files), commit, message, made.difference, erased, kept)


def _make_plan(
    repo: Any,
    folder: Path,
    version: data_version.Manifest,
    images: Sequence[str | Path],
    reason: str,
    erase: bool,
) -> Plan:
    """version: what lies in the folder, name to MD5."""
    records = list_records(folder)
    chosen = {sha256_file(record.path): record for record in (_found(image, folder, records) for image in images)}
    digest_of = {version[record.name]: digest for digest, record in chosen.items()}
    files: dict[str, dict[str, str]] = {digest: {} for digest in chosen}
    for record in records:
        if digest := digest_of.get(version.get(record.name, "")):
            names = [path.relative_to(folder).as_posix() for path in (record.path, *record.masks)]
            files[digest] |= {name: version[name] for name in names}
    gone = {digest: set(own.values()) for digest, own in files.items()}
    for name, md5 in evidence_files(repo, folder.name, gone).items() if erase else ():
        gone[name.partition(".")[0]].add(md5)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    entries = tuple(
        Forgotten(digest, reason, who_am_i(), when, tuple(sorted(gone[digest])) if erase else ()) for digest in chosen
    )
    return Plan(entries, {name: md5 for own in files.values() for name, md5 in own.items()})


def _found(image: str | Path, folder: Path, records: Sequence[ImageRecord]) -> ImageRecord:
    """The image of the category that is meant."""
    text = os.fspath(image)
    for record in records:
        if text == record.name or Path(text).resolve() == record.path.resolve():
            return record
    sign = text.lower()
    if len(sign) >= FEWEST_SIGNS and is_digest(sign.ljust(64, "0")):
        same = [record for record in records if sha256_file(record.path).startswith(sign)]
        if len({sha256_file(record.path) for record in same}) == 1:
            return same[0]
    raise UserError(
        f"{text} is no image of {folder.name}: give its path, its name in the category (such as train/good/001.png), "
        f"or the first {FEWEST_SIGNS} or more digits of its SHA-256."
    )


def _is_in(plan: Plan, image: str | Path, folder: Path) -> bool:
    """Whether what was begun covers an image that is named now."""
    text = os.fspath(image)
    names = {*plan.files, *(os.fspath((folder / name).resolve()) for name in plan.files)}
    return text in names or any(one.digest.startswith(text.lower()) for one in plan.images)


def _check_unchanged(repo: Any, category: str, folder: Path, version: data_version.Manifest) -> None:
    if not version:
        raise UserError(f"{category} has no version yet: `flawline data add {folder} --category {category}` makes one.")
    if hashed_files(repo, folder) != dict(version):
        raise UserError(
            f"{folder} has changes that are in no version: commit them with `flawline data add {folder} --category "
            f"{category}`, or undo them with `flawline data pull {category}`."
        )


def _erase(repo: Any, category: str, params: Params, plan: Plan) -> tuple[int, tuple[str, ...]]:
    """Remove the bytes from DVC's stores, the evidence and the caches of what was seen in them."""
    digests = {one.digest for one in plan.images}
    drop_evidence(repo, category, digests)
    gone = {md5 for one in plan.images for md5 in one.erased}
    needed = _present_objects(repo, params)
    kept = tuple(name for name, md5 in plan.files.items() if md5 in needed)
    stores: list[DvcStore | None] = [cache_store(repo), remote_store(repo)]
    erased = sum(store.remove(md5) for store in stores if store for md5 in sorted(gone - needed))
    facts_cache(category).unlink(missing_ok=True)
    ByteCache(KNOWN, params.cache.max_bytes).forget(digests)
    from components.registry.kept_scores import forget_scores  # which needs torch

    forget_scores(digests)
    return erased, kept


def _present_objects(repo: Any, params: Params) -> set[str]:
    """The MD5 of every file of the present versions of all categories and their evidence.

    UserError where one's list of files is nowhere: what it needs is not known then.
    """
    needed: set[str] = set()
    for root in (Path(params.data.root), FOLDER):
        for path in root.glob("*.dvc"):
            digest = digest_at("HEAD", path)
            needed.update(whole_manifest(repo, digest).values() if digest else ())
    return needed


def _plan_path(category: str) -> Path:
    return PLANS / f"{category}.json"


def _read_plan(category: str) -> Plan | None:
    path = _plan_path(category)
    if not path.is_file():
        return None
    content = read_json(path)
    return Plan(tuple(Forgotten.from_json(one) for one in content["images"]), content["files"])
