"""Versions of the data: one `.dvc` file per category under git, the images in DVC's cache.

`commit_images(category, records)` is the one way by which images become a new version: it copies, adds to DVC and
commits to git. It may be killed anywhere and called again with the same images: the version is then made once, whole.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.data import version as data_version
from components.data.version import Difference, Placement
from components.foundation.dvc_digests import md5_bytes, md5_file, md5_files
from components.foundation.errors import UserError
from components.foundation.files import held_lock
from components.foundation.names import check_category_name
from components.foundation.params import Params, data_params, load_params
from components.foundation.places import DEMO
from components.images.dataset import ImageRecord, category_names, list_records
from components.registry.evidence import check_not_learned
from components.registry.forgotten import check_not_forgotten, record_of
from flows.data import git
from flows.data.dvc_project import hashed_files, open_project, writing
from flows.data.git import BusyError
from flows.data.settings import data_values, edit_params, edited_text
from flows.data.stores import mend_cache, separate_files, whole_object

LOCKS = Path(".flawline/locks")
PARAMS = "params.yaml"


@dataclass(frozen=True)
class Committed:
    """What `commit_images` did.

    Attributes:
        category: the category.
        commit: the git commit that holds its present version, 40 hex digits.
        digest: DVC's digest of the present version (MD5 of its list of files, ending in ".dir").
        is_new: whether a version was made; False where all that was offered is in the present one.
        difference: images added, removed and changed against the version before.
        placements: for each offered image, in order, its name in the category and whether it was new.
        counts: number of images per "split/kind".
        message: that commit's subject: "Data of bottle: +14 good images; 223 good images in all".
        lost: names of files of the version before whose bytes neither DVC's cache nor the remote has any more, as they
            were changed in place where they were hard links into the cache.
    """

    category: str
    commit: str
    digest: str
    is_new: bool
    difference: Difference
    placements: tuple[Placement, ...]
    counts: dict[str, int]
    message: str
    lost: tuple[str, ...] = ()


def commit_images(
    category: str,
    records: Sequence[ImageRecord],
    *,
    root: str | None = None,
    note: str = "",
    validate: bool = True,
    link: bool = False,
) -> Committed:
    """Copy images into `data.root/CATEGORY` and commit what then lies there as one new version.

    records: the images, with the names they ask for (`data_version.good_images(paths)` for good training images).
        Images with the same bytes as one of the version are duplicates: they are not copied, but get the masks that
        they are offered with, and move to the kind that they are offered as in a test folder. Where a name is taken by
        other content, the new one gets a part of its digest. Masks go with their images.
    root: the folder of the categories, if it is to be another than `data.root`: it becomes that.
    note: a second paragraph for the commit's message.
    validate: decode every image first; without, the caller has done so.
    link: the files are the caller's own, last on disk and are not changed any more: DVC's cache may have them as they
        are. What lies in the folder is a copy in any case, which can be edited.

    A new category is entered into `data.categories` of params.yaml, and that is committed too, without other changes
    that the file may hold.
    Nothing is committed, and HEAD's version returned, where everything offered is a duplicate.

    Raises UserError where an image is not in order (nothing is copied then), the folder is not the project's to
    change, images of the present version are missing from it, or git cannot commit; its subclass
    `flows.data.git.BusyError` where a lock of git or DVC is held, or a stage reads the folder: then try again later.
    Safe to repeat after any failure or kill.
    """
    check_not_learned(category, records)
    with opened(category, root) as (repo, folder, params, version):
        check_not_forgotten(record_of(folder.parent, category), records)
        present = data_version.current_manifest(folder, version, params.threads)
        digests = md5_files([record.path for record in records], params.threads)
        placements = _plan(records, digests, folder, version, present, params.threads)
        _check_complete(category, version, present, placements)
        goes = data_version.replaced_files(placements, present)
        _check_unchanged(folder, goes, version)
        if validate:
            new = [place.record for place in placements if place.is_changed]
            data_version.check_images(new, params.limits.image_limits(), params.threads)
        with _staging(folder) as staging:
            data_version.stage_copies(placements, staging)
            if link:
                _link_into_cache(repo, placements, digests)
            with writing(repo, folder):
                data_version.move_in(staging, folder, goes)
                return commit_present(repo, category, params, version, placements, note)


def commit_folder(category: str, *, root: str | None = None, note: str = "") -> Committed:
    """Commit what lies in `data.root/CATEGORY` as a new version, with all that was added, removed or changed by hand.

    Every image that the present version does not hold, or whose mask it does not hold, with these bytes is decoded
    first. Raises as `commit_images`.
    """
    with opened(category, root) as (repo, folder, params, version):
        offered = data_version.list_offered(folder)
        present = hashed_files(repo, folder)
        changed = {folder / name for name, digest in present.items() if version.get(name) != digest}
        records = [record for record in offered if not changed.isdisjoint({record.path, *record.masks})]
        check_not_learned(category, records)
        check_not_forgotten(record_of(folder.parent, category), records)
        data_version.check_images(records, params.limits.image_limits(), params.threads)
        with writing(repo, folder):
            return commit_present(repo, category, params, version, [], note)


def category_folder(category: str, params: Params) -> Path:
    """Where a category's images are, `data.root/CATEGORY`; UserError if that is outside of the project."""
    check_category_name(category)
    folder = Path(params.data.root) / category
    if not folder.resolve().is_relative_to(Path.cwd()):
        raise UserError(
            f"data.root ({params.data.root}) is outside of the project, where no version can be kept: choose a folder "
            "inside it with --data, such as data/line1, and add the images to that."
        )
    return folder


def dvc_file(category: str, params: Params) -> Path:
    """The small file under git that names a category's version; UserError for what cannot be a category's name."""
    check_category_name(category)
    return Path(params.data.root) / f"{category}.dvc"


def digest_at(revision: str, path: Path) -> str | None:
    """DVC's digest of the version that a `.dvc` file names in a git revision; None where it is not there."""
    content = git.read_at(revision, path.as_posix())
    return recorded_digest(content) if content is not None else None


def recorded_digest(content: bytes) -> str | None:
    """The digest of the folder that a `.dvc` file names; None if it is of another kind or damaged."""
    try:
        digest = yaml.safe_load(content)["outs"][0]["md5"]
    except (yaml.YAMLError, LookupError, TypeError):
        return None
    return digest if isinstance(digest, str) and digest.endswith(".dir") else None


def read_manifest(repo: Any, digest: str) -> dict[str, str] | None:
    """The files of a version by its digest, from DVC's cache; None where the cache does not hold it whole."""
    path = Path(repo.cache.local.oid_to_path(digest))
    try:
        data = path.read_bytes()
        return data_version.parse_manifest(data) if md5_bytes(data) == digest[:32] else None
    except (FileNotFoundError, ValueError):
        return None


def whole_manifest(repo: Any, digest: str) -> dict[str, str]:
    """The files of a version by its digest, from DVC's cache or else its remote; UserError where neither has it."""
    return data_version.parse_manifest(whole_object(repo, digest))


@contextmanager
def opened(category: str, root: str | None = None) -> Iterator[tuple[Any, Path, Params, data_version.Manifest]]:
    """The repository, the category's folder, the parameters and the version in HEAD, for one writer at a time."""
    params = _params_with(category, root)
    folder = category_folder(category, params)
    git.check_committable()
    with _one_writer(category), open_project() as repo:
        _check_ours(repo, folder)
        yield repo, folder, params, _head_manifest(repo, category, params)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """An empty folder beside the category's, on the same disk; what a killed run left there is removed."""
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _one_writer(category: str) -> Iterator[None]:
    """At most one process makes versions of a category; BusyError at once where one does."""
    busy = BusyError(f"Another process is adding images to {category}: run this again when it has ended.")
    with held_lock(LOCKS / f"data-{category}.lock", 0, busy):
        yield


def _check_ours(repo: Any, folder: Path) -> None:
    """Raise UserError where the demo or a stage makes the folder, or git itself tracks what is in it."""
    if folder.resolve().is_relative_to(DEMO.resolve()):
        raise UserError(
            f"{folder} belongs to the demo, which `flawline demo` makes anew: add to a folder of your own with --data, "
            "such as data/line1."
        )
    path = os.fspath(folder.resolve())
    own = Path(f"{path}.dvc")
    for out in repo.index.outs:
        if out.stage.path_in_repo != os.path.relpath(own) and repo.fs.overlaps(path, out.fs_path):
            raise UserError(
                f"{folder} is made by the stage {out.stage.addressing}, which would undo what is added to it: add to a "
                "folder of your own with --data, such as data/line1."
            )
    if git.git("ls-files", "--", folder.as_posix()):
        raise UserError(
            f"{folder} is tracked by git itself: hand it over to DVC with `git rm -r --cached {folder}` and a commit."
        )


def _head_manifest(repo: Any, category: str, params: Params) -> dict[str, str]:
    """The files of the version in HEAD; none where the category is new. UserError where DVC lost the list."""
    digest = digest_at("HEAD", dvc_file(category, params))
    if digest is None:
        return {}
    manifest = read_manifest(repo, digest)
    if manifest is None:
        raise UserError(
            f"DVC's cache does not hold the present version of {category}: run `flawline data pull {category}` first."
        )
    return manifest


def _plan(
    records: Sequence[ImageRecord],
    digests: Sequence[str],
    folder: Path,
    version: data_version.Manifest,
    present: data_version.Manifest,
    threads: int,
) -> list[Placement]:
    """What becomes of each offered image and its masks."""
    masks = [mask for record in records for mask in record.masks]
    mask_digests = dict(zip(masks, md5_files(masks, threads), strict=True))
    there = {record.name: record for record in list_records(folder)}
    return data_version.plan_placements(records, digests, version, present, there, mask_digests)


def _check_complete(
    category: str,
    version: data_version.Manifest,
    present: data_version.Manifest,
    placements: Sequence[Placement],
) -> None:
    """Raise UserError where files of the version are not in the folder: a commit would drop them unseen."""
    lacking = version.keys() - present.keys()
    missing = sorted(name for name in lacking if not data_version.may_be_gone(name, placements))
    if missing:
        raise UserError(
            f"{len(missing)} files of the present version of {category} are not in its folder, such as {missing[0]}: "
            f"fetch them with `flawline data pull {category}`, or commit their removal with `flawline data add` of the "
            "folder itself."
        )


def _check_unchanged(folder: Path, names: Sequence[str], version: data_version.Manifest) -> None:
    """Raise UserError where one of these files was changed by hand since its version: that would be lost."""
    for name in names:
        if name in version and md5_file(folder / name) != version[name]:
            raise UserError(
                f"{folder / name} would be replaced, but was changed by hand: commit that first with `flawline data "
                f"add {folder}`, or undo it."
            )


def commit_present(
    repo: Any,
    category: str,
    params: Params,
    version: data_version.Manifest,
    placements: Sequence[Placement],
    note: str,
    also: Sequence[str] = (),
) -> Committed:
    """Let DVC record the folder, and commit that, with the files `also`; the caller holds the locks."""
    path, folder = dvc_file(category, params), category_folder(category, params)
    separate_files(repo, folder)
    repo.add(os.fspath(folder))
    digest = recorded_digest(path.read_bytes())
    manifest = read_manifest(repo, digest) if digest else None
    if digest is None or manifest is None:
        raise UserError(f"DVC's cache lost the version of {category} that was just added: is the disk full?")
    _check_cached(repo, manifest, version)
    lost = mend_cache(repo, {name: old for name, old in version.items() if manifest.get(name) != old})
    difference = data_version.compare(version, manifest)
    is_new = digest != digest_at("HEAD", path)
    whole, edited = _write_params(category, params)
    files = [path.as_posix(), (path.parent / ".gitignore").as_posix(), *also, *whole]
    if is_new:
        message = f"Data of {category}: {data_version.count_words(difference, manifest)}"
        commit = git.commit(files, f"{message}\n\n{note}".strip(), edited)
    else:
        commit, _, message = git.git("log", "-1", "--format=%H%n%s", "--", path.as_posix()).strip().partition("\n")
    counts = data_version.count_images(manifest)
    return Committed(category, commit, digest, is_new, difference, tuple(placements), counts, message, lost)


def _link_into_cache(repo: Any, placements: Sequence[Placement], digests: Sequence[str]) -> None:
    """Give DVC's cache the new images without copying them; what cannot be linked, DVC copies."""
    for placement, digest in zip(placements, digests, strict=True):
        path = Path(repo.cache.local.oid_to_path(digest))
        if placement.is_new and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                path.hardlink_to(placement.record.path)
                repo.cache.local.protect(path)


def _check_cached(repo: Any, manifest: data_version.Manifest, version: data_version.Manifest) -> None:
    """Raise UserError where the cache lacks files that are new in a version: DVC says so in a log alone."""
    new = set(manifest.values()) - set(version.values())
    missing = [digest for digest in new if not Path(repo.cache.local.oid_to_path(digest)).is_file()]
    if missing:
        raise UserError(
            f"DVC's cache could not take {len(missing)} of {len(new)} new files: free some space and run this again; "
            "no version was made."
        )


def _params_with(category: str, root: str | None, params: Params | None = None) -> Params:
    """The parameters, with `root` as data.root and all categories in it, and `category` among them.

    params: as they are; read from params.yaml if None.
    """
    params = params or load_params()
    known = params.data.categories
    if root is not None and Path(root) != Path(params.data.root):
        known = tuple(category_names(Path(root)))
    data = data_params(root or params.data.root, tuple(dict.fromkeys([*known, category])))
    return params.model_copy(update={"data": data})


def _write_params(category: str, params: Params) -> tuple[list[str], dict[str, Callable[[str], str]]]:
    """Enter the category and where its data are into params.yaml, as that is now: another may have been entered since.

    Returns what of it is to be committed: the file, or where it holds other changes, the edit of it.
    """

    def values(now: Params) -> dict[str, Any]:
        return data_values(_params_with(category, params.data.root, now))

    written = data_values(edit_params(values=values))
    committed = git.read_at("HEAD", PARAMS)
    if committed is None:
        return [], {}
    try:
        wanted = edited_text(committed.decode(), written)
    except (UserError, UnicodeDecodeError):  # no one could read that file: it is not for us to commit another like it
        return [], {}
    if Path(PARAMS).read_text(encoding="utf-8") == wanted:
        return [PARAMS], {}
    return [], {PARAMS: lambda text: edited_text(text, written)}
