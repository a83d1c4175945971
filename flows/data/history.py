"""The history of the data: which versions git knows, what changed between two, whether all their files are intact."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data import integrity
from components.data import version as data_version
from components.data.difference_sheet import draw_sheet, shown_objects
from components.data.integrity import Finding
from components.data.version import Difference
from components.foundation.errors import UserError
from components.foundation.names import check_category_name, is_category_name
from components.foundation.params import Params, load_params
from components.images.known_depth import with_depth
from components.registry.forgotten import list_forgotten, record_of
from flows.data import git
from flows.data.dvc_project import open_project
from flows.data.stores import CACHE, cache_store, remote_store, whole_object
from flows.data.versions import digest_at, dvc_file, read_manifest, recorded_digest, whole_manifest

ALL = ("--exclude=refs/stash", "--exclude=refs/notes/*", "--all")  # what a person put by is no version
THREADS = 8  # waiting for disk and network, not computing


@dataclass(frozen=True)
class Version:
    """A version of a category's data.

    Attributes:
        category, message: the category, and the subject of the commit.
        commit: 40 hex digits. date: the commit's, ISO 8601 with its zone.
        images, good: number of all images, and of the good ones to learn from; None where DVC's cache does not hold
            the version's list of files.
        digest: DVC's, which names the content. learned: names the training images in it, as a capsule that learned from
            them does (`data_digest`); None where the list of files is not there.
        is_current: whether the project's folder is at this version (its .dvc file says so).
    """

    category: str
    commit: str
    date: str
    message: str
    images: int | None
    good: int | None
    digest: str
    learned: str | None
    is_current: bool


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes:
        checked: number of objects that were looked for, per store ("cache", "remote").
        findings: what was not whole, and whether it is now.
        names: for each object of a finding, where it belongs: "bottle/train/good/001.png", or "bottle (list of files)".
    """

    checked: dict[str, int]
    findings: tuple[Finding, ...]
    names: dict[str, str]

    @property
    def unrepaired(self) -> list[Finding]:
        """What is still not whole."""
        return [finding for finding in self.findings if not finding.is_repaired]


def list_versions(category: str | None = None) -> list[Version]:
    """All versions that git knows, on any branch, newest first; of one category, or of all in `data.root`."""
    params = load_params()
    with open_project() as repo:
        names = [category] if category else versioned_categories(params)
        versions = [version for name in names for version in _versions(repo, name, params)]
    if category and not versions:
        raise UserError(f"{category} has no version yet: `flawline data add` makes the first.")
    return versions


def versioned_categories(params: Params) -> list[str]:
    """The categories in `data.root` of which git knows a version, sorted."""
    root = Path(params.data.root)
    return sorted(path.stem for path in versioned_files() if path.parent == root and is_category_name(path.stem))


def diff_versions(
    old: str, new: str, category: str | None, sheet: Path | None = None
) -> list[tuple[str, Difference, Path | None]]:
    """What changed in each category (or the one) between two git revisions, with a contact sheet for each that did.

    old, new: commits, tags or branches. sheet: where to write the picture; with several categories the category's
    name is put behind the stem. What the cache lacks is fetched from the remote; nothing is checked out.
    Raises UserError for an unknown revision or category, and where images can be had nowhere.
    """
    params = load_params()
    revisions = git.resolve(old), git.resolve(new)
    names = [category] if category else versioned_categories(params)
    found = []
    with open_project() as repo:
        for name in names:
            digests = [digest_at(revision, dvc_file(name, params)) for revision in revisions]
            if category and digests == [None, None]:
                raise UserError(f"Neither {old} nor {new} holds a version of {category}: check the name.")
            if digests[0] == digests[1]:
                continue
            before, after = (whole_manifest(repo, digest) if digest else {} for digest in digests)
            difference = data_version.compare(before, after)
            path = _sheet_path(sheet, name, one_only=category is not None) if sheet and difference else None
            if path:
                pictures = shown_objects(difference, before, after)
                title = f"{name}: {old} to {new}"
                limits = with_depth(params, name).limits.image_limits()
                draw_sheet(pictures, lambda oid: whole_object(repo, oid), limits, path, title)
            found.append((name, difference, path))
    return found


def verify(
    category: str | None = None,
    *,
    current_only: bool = False,
    repair: bool = False,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Verified:
    """Re-hash every file of the data's versions in DVC's cache and in the remote against what git records.

    Of one category, or of all that ever were; of all versions, or only of those that the .dvc files name now.
    repair: replace what is missing or corrupt on one side by the other side's bytes, where those are right; files of
    the project that were hard links to corrupt ones are replaced too.
    """
    digests = recorded_digests(category, current_only=current_only)
    with open_project() as repo:
        remote = remote_store(repo)
        stores: dict[str, Any] = {store.name: store for store in (cache_store(repo), remote) if store}
        lists = {name: integrity.check_objects(store, digests, THREADS, report) for name, store in stores.items()}
        names = _names_of_lists(digests)
        for digest, owner in digests.items():
            names |= _names_of_files(stores, lists, digest, owner)
        erased = erased_objects() - digests.keys()
        names = {oid: name for oid, name in names.items() if oid not in erased}
        files = {
            name: integrity.check_objects(store, names.keys() - digests.keys(), THREADS, report)
            for name, store in stores.items()
        }
        states = {name: {**lists[name], **files[name]} for name in stores}
        findings = integrity.compare_stores(states)
        if repair:
            findings = _repair(repo, findings, stores)
    checked = {name: len(objects) for name, objects in states.items()}
    return Verified(checked, tuple(findings), {finding.oid: names[finding.oid] for finding in findings})


def erased_objects() -> set[str]:
    """The MD5 of what was erased on purpose, and is missing in the versions before: `flows.data.forgetting`."""
    records = {record_of(path.parent, path.stem) for path in versioned_files()}
    return {md5 for record in records for one in list_forgotten(record).values() for md5 in one.erased}


def recorded_digests(category: str | None = None, *, current_only: bool = False) -> dict[str, str]:
    """The digest of each version that git records (or that the .dvc files name now), with its category."""
    if category is not None:
        check_category_name(category)
    files = [path for path in versioned_files() if category in (None, path.stem)]
    if not files:
        raise UserError(
            f"There is no version of {category or 'any category'} yet: `flawline data add` makes the first."
        )
    if current_only:
        present = [path for path in files if path.is_file()]
        return {digest: path.stem for path in present if (digest := recorded_digest(path.read_bytes()))}
    return {digest: path.stem for path in files for _, _, _, digest in version_log(path)}


def versioned_files() -> list[Path]:
    """Every .dvc file of a category that any commit holds, as a path in the project."""
    if not git.has_commit():
        return []
    names = ("--format=", "--name-only", "--no-renames", "--relative", "-z")
    listed = git.git("log", *ALL, *names, "--", "*.dvc", patterns=True)
    return sorted({Path(name) for name in listed.replace("\n", "").split("\0") if name})


def version_log(path: Path) -> list[tuple[str, str, str, str]]:
    """(commit, date, subject, digest) of each commit that changed a .dvc file, newest first."""
    lines = git.git("log", *ALL, "--date-order", "--format=%H%x1f%cI%x1f%s", "--", path.as_posix())
    entries = [line.split("\x1f", 2) for line in lines.split("\n") if line]
    with_digests = [(commit, date, subject, digest_at(commit, path)) for commit, date, subject in entries]
    return [(commit, date, subject, digest) for commit, date, subject, digest in with_digests if digest]


def _versions(repo: Any, category: str, params: Params) -> Iterable[Version]:
    path = dvc_file(category, params)
    current = recorded_digest(path.read_bytes()) if path.is_file() else None
    last = git.git("log", "-1", "--format=%H", "--", path.as_posix()).strip()
    entries = version_log(path)
    at_head = {commit for commit, _, _, digest in entries if digest == current and commit == last}
    at_all = [commit for commit, _, _, digest in entries if digest == current]
    chosen = at_head or set(at_all[:1])
    for commit, date, subject, digest in entries:
        manifest = read_manifest(repo, digest)
        counts = data_version.count_images(manifest) if manifest is not None else None
        good = sum(count for name, count in counts.items() if not name.startswith("test/")) if counts else None
        images = sum(counts.values()) if counts is not None else None
        learned = data_version.learned_digest(manifest) if manifest is not None else None
        yield Version(category, commit, date, subject, images, good, digest, learned, commit in chosen)


def _sheet_path(sheet: Path, category: str, *, one_only: bool) -> Path:
    return sheet if one_only else sheet.with_stem(f"{sheet.stem}-{category}")


def _names_of_lists(digests: dict[str, str]) -> dict[str, str]:
    return {digest: f"{category} (list of files)" for digest, category in digests.items()}


def _names_of_files(stores: dict[str, Any], lists: dict[str, Any], digest: str, category: str) -> dict[str, str]:
    """The objects of one version by a whole list of its files; none where no store has one."""
    for name, store in stores.items():
        if lists[name][digest] == "whole":
            with store.open(digest) as stream:
                manifest = data_version.parse_manifest(stream.read())
            return {oid: f"{category}/{file}" for file, oid in manifest.items()}
    return {}


def _repair(repo: Any, findings: Sequence[Finding], stores: dict[str, Any]) -> list[Finding]:
    """Mend what can be, and let the project's files follow where they were hard links to what was corrupt."""
    links = _corrupt_links(repo, findings)
    mended = integrity.repair(findings, stores, THREADS)
    whole = {finding.oid for finding in mended if finding.is_repaired and finding.store == CACHE}
    for oid, path in links:
        if oid in whole:
            path.unlink()
    targets = sorted({os.fspath(path) for path in versioned_files() if path.is_file()})
    if any(oid in whole for oid, _ in links):
        repo.checkout(targets, allow_missing=True)
    return mended


def _corrupt_links(repo: Any, findings: Sequence[Finding]) -> list[tuple[str, Path]]:
    """Files of the project that are the same file on disk as a corrupt object of the cache."""
    nodes = {}
    for finding in findings:
        if finding.store == CACHE and finding.state == "corrupt":
            status = os.stat(repo.cache.local.oid_to_path(finding.oid))
            nodes[status.st_dev, status.st_ino] = finding.oid
    folders = [path.with_suffix("") for path in versioned_files()] if nodes else []
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    keyed = [((path.lstat().st_dev, path.lstat().st_ino), path) for path in files]
    return [(nodes[key], path) for key, path in keyed if key in nodes]
