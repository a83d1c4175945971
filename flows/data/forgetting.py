"""An image leaves a category: from its data, in a new version, and if asked for from all that keeps its bytes.

What is to be done is written down first, and carried out from that: killed anywhere, the next call ends it.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
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
from components.registry.forgotten import Forgotten, add_forgotten, list_forgotten, record_of
from components.registry.person import who_am_i
from flows.data import git
from flows.data.dvc_project import hashed_files, writing
from flows.data.evidence import drop as drop_evidence
from flows.data.evidence import files_of as evidence_files
from flows.data.history import recorded_digests, versioned_files
from flows.data.stores import DvcStore, cache_store, read_object, remote_store
from flows.data.versions import category_folder, commit_present, digest_at, opened, whole_manifest

PLANS = Path(".flawline/forgetting")
FEWEST_SIGNS = 8  # of a digest, by which an image may be named


@dataclass(frozen=True)
class Plan:
    """What is to be forgotten.

    Attributes:
        images: what the record will say of each.
        files: their names in the category and those of their masks, each with its MD5.
        owners: the digest of the image for each of these names.
    """

    images: tuple[Forgotten, ...]
    files: Mapping[str, str]
    owners: Mapping[str, str]

    @property
    def erased(self) -> set[str]:
        """The digests of the images whose bytes go from everywhere."""
        return {one.digest for one in self.images if one.erased}


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
        versions before can then not be fetched whole any more, nor what was learned from them be made again. Images
        that were forgotten before without it may be named too, by their digests.

    What was begun and cut short is ended first; of its images, those that are named again with `erase` are erased too.
    Raises UserError where an image is not there, the folder has changes that are in no version, or the version cannot
    be committed; BusyError as `versions.commit_images`.
    """
    with opened(category) as (repo, folder, params, version):
        done = None
        if (begun := _read_plan(category)) is not None:
            again = {image: _digest_in(begun, image, folder) for image in images}
            if erase and (more := {digest for digest in again.values() if digest} - begun.erased):
                begun = _write_plan(category, _that_erases(repo, category, version, begun, more))
            done = _carry_out(repo, category, params, version, begun)
            images = [image for image, digest in again.items() if not digest]
            version = {name: md5 for name, md5 in version.items() if name not in begun.files}
        if done and not images:
            return done
        _check_unchanged(repo, category, folder, version)
        before = _forgotten_before(category, folder, images) if erase else {}
        plan = _make_plan(folder, version, [image for image in images if image not in before], reason, before.values())
        if erase:
            plan = _that_erases(repo, category, version, plan, {one.digest for one in plan.images})
        _write_plan(category, plan)
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
    erased, kept = _erase(repo, category, params, plan) if plan.erased else (0, ())
    _plan_path(category).unlink(missing_ok=True)
    return Forgot(category, plan.images, tuple(plan.files), commit, message, made.difference, erased, kept)


def _make_plan(
    folder: Path,
    version: data_version.Manifest,
    images: Sequence[str | Path],
    reason: str,
    before: Collection[str] = (),
) -> Plan:
    """version: what lies in the folder, name to MD5. before: digests of images that do not lie there any more."""
    records = list_records(folder)
    chosen = {sha256_file(record.path): record for record in (_found(image, folder, records) for image in images)}
    digest_of = {version[record.name]: digest for digest, record in chosen.items()}
    owners: dict[str, str] = {}
    for record in records:
        if digest := digest_of.get(version.get(record.name, "")):
            names = (path.relative_to(folder).as_posix() for path in (record.path, *record.masks))
            owners |= dict.fromkeys(names, digest)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    entries = tuple(Forgotten(digest, reason, who_am_i(), when) for digest in [*chosen, *before])
    return Plan(entries, {name: version[name] for name in owners}, owners)


def _that_erases(
    repo: Any, category: str, version: data_version.Manifest, plan: Plan, digests: Collection[str]
) -> Plan:
    """The plan, by which the bytes of these of its images go from everywhere, and what is kept of them as evidence."""
    gone = {digest: {plan.files[name] for name, owner in plan.owners.items() if owner == digest} for digest in digests}
    for digest, own in gone.items():
        own |= set() if own else _past_objects(repo, category, version, digest)
    for name, md5 in evidence_files(repo, category, gone).items():
        gone[name.partition(".")[0]].add(md5)
    images = (
        replace(one, erased=tuple(sorted(gone[one.digest]))) if one.digest in gone else one for one in plan.images
    )
    return replace(plan, images=tuple(images))


def _forgotten_before(category: str, folder: Path, images: Sequence[str | Path]) -> dict[str | Path, str]:
    """Of those images that are in the record without being erased, the digests."""
    known = [one for one in list_forgotten(record_of(folder.parent, category)).values() if not one.erased]
    signs = {image: os.fspath(image).lower() for image in images}
    found = {image: [one.digest for one in known if one.digest.startswith(sign)] for image, sign in signs.items()}
    return {image: own[0] for image, own in found.items() if len(signs[image]) >= FEWEST_SIGNS and len(own) == 1}


def _past_objects(repo: Any, category: str, version: data_version.Manifest, digest: str) -> set[str]:
    """The MD5 of an image and its masks in the versions before. version: the present one, which has not its bytes."""
    present, found = set(version.values()), set()

    @cache
    def is_it(md5: str) -> bool:
        data = None if md5 in present else read_object(repo, md5)
        return data is not None and sha256(data).hexdigest() == digest

    for one in recorded_digests(category):
        past = whole_manifest(repo, one)
        for name in filter(data_version.is_image, past):
            if is_it(past[name]):
                found |= {past[name], *(past[mask] for mask in past if data_version.is_mask_of(mask, name))}
    return found


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


def _digest_in(plan: Plan, image: str | Path, folder: Path) -> str:
    """The digest of the image that is meant, where what was begun covers it; else nothing. Its file may be gone."""
    text, path = os.fspath(image), Path(image).resolve()
    name = path.relative_to(folder.resolve()).as_posix() if path.is_relative_to(folder.resolve()) else text
    if owner := plan.owners.get(text) or plan.owners.get(name):
        return owner
    sign = text.lower() if len(text) >= FEWEST_SIGNS else " "
    return next((one.digest for one in plan.images if one.digest.startswith(sign)), "")


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
    digests = plan.erased
    drop_evidence(repo, category, digests)
    gone = {md5 for one in plan.images for md5 in one.erased}
    needed = _present_objects(repo)
    kept = tuple(name for name, md5 in plan.files.items() if md5 in needed & gone)
    stores: list[DvcStore | None] = [cache_store(repo), remote_store(repo)]
    erased = sum(store.remove(md5) for store in stores if store for md5 in sorted(gone - needed))
    facts_cache(category).unlink(missing_ok=True)
    ByteCache(KNOWN, params.cache.max_bytes).forget(digests)
    from components.registry.kept_scores import forget_scores  # which needs torch

    forget_scores(digests)
    return erased, kept


def _present_objects(repo: Any) -> set[str]:
    """The MD5 of every file of the present versions of all categories, wherever in the project, and their evidence.

    UserError where one's list of files is nowhere: what it needs is not known then.
    """
    needed: set[str] = set()
    for path in versioned_files():
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
    return Plan(tuple(Forgotten.from_json(one) for one in content["images"]), content["files"], content["owners"])


def _write_plan(category: str, plan: Plan) -> Plan:
    """The plan, from now on to be carried out."""
    write_json(_plan_path(category), asdict(plan))
    return plan
