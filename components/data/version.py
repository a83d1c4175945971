"""Versions of a category's data: what a version holds, what new images add to it, how two versions differ."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from components.foundation.dvc_digests import digest_of_images, md5_files
from components.foundation.errors import UserError, printable
from components.foundation.files import copy_file
from components.foundation.limits import ImageLimits
from components.images.dataset import ImageRecord, list_records
from components.images.decode import EXTENSIONS, read_image, read_mask
from components.images.layout import MASK_FOLDERS, image_files, is_good_name, is_hidden, name_key
from components.images.mask_pairs import pair_masks

Manifest = Mapping[str, str]  # file name inside the category, with forward slashes -> MD5 of its content, 32 hex digits
SPLITS = ("train", "validation", "test")
MASKS = "ground_truth"
DIGEST_SIGNS = 8  # of a content's digest, in a name that would otherwise be taken


@dataclass(frozen=True)
class Placement:
    """What becomes of one image that was offered to a category.

    Attributes:
        record: the image as it was offered; `record.name` is the name it asked for.
        name: its name inside the category: that of its twin where it is a duplicate.
        is_new: False where the version, or an earlier image of the same offer, has the same bytes.
        is_there: whether the image is not to be copied: a duplicate, or left there by a run which was cut short.
        masks: the masks to be copied, each with its name inside the category: of a new image all, else those that
            differ from what is there.
        was: its name until now, where it moves because it was offered as another kind; else empty.
        goes: names of files that its new place or its new masks replace.
    """

    record: ImageRecord
    name: str
    is_new: bool
    is_there: bool
    masks: tuple[tuple[Path, str], ...] = ()
    was: str = ""
    goes: tuple[str, ...] = ()

    @property
    def is_changed(self) -> bool:
        """Whether anything is to be done for it."""
        return self.is_new or bool(self.was or self.masks)

    @property
    def is_left_as_other_kind(self) -> bool:
        """Whether it is there as another kind than it was offered as, and stays that."""
        return not self.was and kind_of(self.name) != self.record.kind


@dataclass(frozen=True)
class Difference:
    """What was added, removed or changed (same name, other content) between two versions: names of images and masks."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    masks_added: tuple[str, ...] = ()
    masks_removed: tuple[str, ...] = ()
    masks_changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.masks_added, self.masks_removed, self.masks_changed))


def list_offered(folder: Path, there: Mapping[str, ImageRecord] | None = None) -> list[ImageRecord]:
    """The images in `folder`: of a category in MVTec layout, or else those directly in it, as good training images.

    there: the images that the category has, by name. Masks that are offered without their images are those of these.
    Raises UserError where there is nothing to add.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder at {folder}: check the path.")
    images = list_records(folder) or good_images(image_files(folder))
    records = [*images, *_masks_alone(folder, there or {})]
    if not records:
        raise UserError(
            f"{folder} holds no image: give a folder of good images (PNG, JPEG, BMP, TIFF), or one in MVTec layout."
        )
    return records


def good_images(paths: Iterable[Path]) -> list[ImageRecord]:
    """The files as good training images that ask for the names they have."""
    return [ImageRecord(path, f"train/good/{path.name}", "train", "good") for path in paths]


def parse_manifest(data: bytes) -> dict[str, str]:
    """A version's files from DVC's directory object, a JSON list of {"md5", "relpath"}; ValueError for what is none."""
    entries = json.loads(data)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("a directory object is a list of mappings")
    return {str(entry.get("relpath")): str(entry.get("md5")) for entry in entries}


def learned_digest(version: Manifest) -> str:
    """The name of what a model learns from in a version, as its capsule has it (`data_digest`): its training images."""
    beside = masks_beside_images(version)
    learned = [name for name in version if _is_good(name) and kind_of(name) == "good" and name not in beside]
    return digest_of_images(version[name] for name in learned)


def current_manifest(folder: Path, version: Manifest, threads: int) -> dict[str, str]:
    """The files that lie in `folder`; those that `version` knows by name are not read, but taken for the same."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    names = [path.relative_to(folder).as_posix() for path in paths]
    unknown = [name for name in names if name not in version]
    digests = dict(zip(unknown, md5_files([folder / name for name in unknown], threads), strict=True))
    return {name: digests.get(name) or version[name] for name in names}


def is_image(name: str) -> bool:
    """Whether a file of a category is an image to learn from or test on: no mask, no licence text."""
    path = PurePosixPath(name)
    is_hidden_file = any(map(is_hidden, path.parts))
    return len(path.parts) == 3 and path.parts[0] in SPLITS and path.suffix.lower() in EXTENSIONS and not is_hidden_file


def is_mask(name: str) -> bool:
    """Whether a file of a category is a ground-truth mask."""
    path = PurePosixPath(name)
    return name_key(path.parts[0]) in MASK_FOLDERS and path.suffix.lower() in EXTENSIONS


def kind_of(name: str) -> str:
    """The kind that an image's name inside the category says: "test/blot/001.png" is a "blot"."""
    kind = PurePosixPath(name).parts[1]
    return "good" if is_good_name(kind) else kind


def compare(old: Manifest, new: Manifest) -> Difference:
    """What images and masks changed from `old` to `new`, each list sorted by name. Other files do not count."""
    beside = masks_beside_images({**old, **new})
    images = _changes(old, new, lambda name: is_image(name) and name not in beside)
    return Difference(*images, *_changes(old, new, lambda name: is_mask(name) or name in beside))


def masks_beside_images(names: Iterable[str]) -> frozenset[str]:
    """Those of a version's files that are masks beside their images, as `mask_pairs.masks_beside` says of a folder."""
    keys = {name: PurePosixPath(name).parent / name_key(PurePosixPath(name).stem) for name in names if is_image(name)}
    masks = {key.with_name(f"{key.name}_mask") for key in keys.values()}
    return frozenset(name for name, key in keys.items() if key in masks)


def plan_placements(
    records: Sequence[ImageRecord],
    digests: Sequence[str],
    version: Manifest,
    present: Manifest,
    there: Mapping[str, ImageRecord] | None = None,
    mask_digests: Mapping[Path, str] | None = None,
) -> list[Placement]:
    """Decide for each offered image, with its MD5 in `digests`, under which name it goes to a category.

    `version` are the files of the present version, `present` those that lie in the folder, `there` its images by name,
    `mask_digests` the MD5 of each offered mask. An image whose bytes the version has is a duplicate; one whose name is
    taken by other content gets the first signs of its MD5 behind its stem (masks go by the stem, so names that differ
    only in the extension count as the same). A duplicate that is offered as a test image of another kind moves there;
    one that is offered with other masks gets these. Raises UserError where one image is offered as two kinds.
    """
    _check_labels(records, digests)
    there, mask_digests = there or {}, mask_digests or {}
    known = {digest: name for name, digest in version.items() if is_image(name)}
    left = {digest: name for name, digest in present.items() if is_image(name) and name not in version}
    taken = {_without_suffix(name) for name in {**version, **present} if is_image(name)}
    placements = []
    for record, digest in zip(records, digests, strict=True):
        twin = known.get(digest) or left.get(digest)
        is_moved = twin is not None and record.split == "test" and kind_of(twin) != record.kind
        if is_moved and left.get(digest) in there and kind_of(left[digest]) == record.kind:
            is_left, name = True, left[digest]
        elif twin is None or is_moved:
            is_left, name = False, _free_name(record.name, digest, taken)
        else:
            is_left, name = True, twin
        placement = Placement(record, name, digest not in known, is_left, was=twin if twin and is_moved else "")
        placements.append(_with_masks(placement, present, there, mask_digests))
        known[digest] = name
        taken.add(_without_suffix(name))
    return placements


def check_images(records: Sequence[ImageRecord], limits: ImageLimits, threads: int) -> None:
    """Decode every image and mask, and compare their sizes; raises UserError for the first that is not in order."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda record: _check_image(record, limits), records):
            pass


def stage_copies(placements: Sequence[Placement], staging: Path) -> None:
    """Copy the new images and masks into the folder `staging`, under their names, so that they last on disk."""
    for placement in placements:
        image = [] if placement.is_there else [(placement.record.path, placement.name)]
        for source, name in [*image, *placement.masks]:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, target)


def move_in(staging: Path, folder: Path, goes: Sequence[str] = ()) -> None:
    """Move every file of `staging` to its place in `folder`, one rename each: none is ever there in part.

    goes: files of `folder` that are removed afterwards, unless they were just replaced, with the folders that this
        leaves empty.
    """
    moved = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    for name in moved:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).rename(folder / name)
    shutil.rmtree(staging)
    remove_files(folder, [name for name in goes if Path(name) not in moved])


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove these files of `folder`, as far as they are there, with the folders that this leaves empty."""
    for path in (folder / name for name in names):
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # an empty folder of masks would count as the masks of its image


def replaced_files(placements: Sequence[Placement], present: Manifest) -> list[str]:
    """The files that go, or are replaced under their name, of those in the folder."""
    return sorted({name for placement in placements for name in placement.goes if name in present})


def may_be_gone(name: str, placements: Sequence[Placement]) -> bool:
    """Whether a file of the version may be missing, as a run of the same offer that was cut short has removed it."""
    images = {image for placement in placements if not placement.is_new for image in (placement.was, placement.name)}
    return name in images or any(image and is_mask_of(name, image) for image in images)


def count_words(difference: Difference, version: Manifest) -> str:
    """A change in words, with what there is after it: "+14 good images, ~2 masks; 223 good and 80 test images"."""
    changes = []
    images = (difference.added, difference.removed, difference.changed)
    masks = (difference.masks_added, difference.masks_removed, difference.masks_changed)
    for title, chosen, lists in (
        ("good images", _is_good, images),
        ("test images", _is_test, images),
        ("masks", bool, masks),
    ):
        signs = [
            f"{sign}{count}" for sign, names in zip("+-~", lists, strict=True) if (count := sum(map(chosen, names)))
        ]
        changes += [f"{' '.join(signs)} {title}"] if signs else []
    learned_and_tested = version.keys() - masks_beside_images(version)
    good, test = sum(map(_is_good, learned_and_tested)), sum(map(_is_test, learned_and_tested))
    whole = f"{good} good and {test} test images" if test else f"{good} good images"
    return f"{', '.join(changes) or 'other files changed'}; {whole} in all"


def count_images(version: Manifest) -> dict[str, int]:
    """Number of images per "split/kind", as in `Category.counts`."""
    beside = masks_beside_images(version)
    images = (name for name in sorted(version) if is_image(name) and name not in beside)
    return dict(Counter(str(PurePosixPath(name).parent) for name in images))


def _is_good(name: str) -> bool:
    return is_image(name) and not name.startswith("test/")


def _is_test(name: str) -> bool:
    return is_image(name) and name.startswith("test/")


def _changes(old: Manifest, new: Manifest, chosen: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """Names that were added, removed and changed, of the files that are chosen."""
    before = {name: digest for name, digest in old.items() if chosen(name)}
    after = {name: digest for name, digest in new.items() if chosen(name)}
    both = before.keys() & after.keys()
    return [
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(name for name in both if before[name] != after[name])),
    ]


def _check_labels(records: Sequence[ImageRecord], digests: Sequence[str]) -> None:
    """Raise UserError where the same bytes are offered as two kinds: whichever is wrong makes a figure wrong."""
    first: dict[str, ImageRecord] = {}
    for record, digest in zip(records, digests, strict=True):
        other = first.setdefault(digest, record)
        if other.kind != record.kind:
            raise UserError(
                f"{printable(other.name)} and {printable(record.name)} are the same image as two kinds: decide which "
                "it is, and remove the other."
            )


def _masks_alone(folder: Path, there: Mapping[str, ImageRecord]) -> list[ImageRecord]:
    """The images of the category whose masks lie in `folder` without them, with these masks."""
    used = {mask for record in list_records(folder) for mask in record.masks}
    owners = {record.path: record for record in there.values() if record.split == "test" and not record.is_good}
    kinds = {record.kind: [path for path in owners if owners[path].kind == record.kind] for record in owners.values()}
    found = pair_masks(folder, kinds).masks
    return [replace(owners[path], masks=masks) for path, masks in found.items() if used.isdisjoint(masks)]


def is_mask_of(name: str, image: str) -> bool:
    """Whether a file's name is one that a mask of the image has: KIND/STEM_mask.EXT, KIND/STEM.EXT, or in KIND/STEM."""
    path, owner = PurePosixPath(name), PurePosixPath(image)
    if not is_mask(name) or len(path.parts) not in (3, 4) or path.parts[1] != owner.parts[1]:
        return False
    return owner.stem in ({path.parts[2]} if len(path.parts) == 4 else {path.stem, path.stem.removesuffix("_mask")})


def _with_masks(
    placement: Placement, present: Manifest, there: Mapping[str, ImageRecord], digests: Mapping[Path, str]
) -> Placement:
    """The placement with the masks that are to be copied, and the files that go for it."""
    record = placement.record
    owner = there.get(placement.was or placement.name)
    old = {} if owner is None else {path.relative_to(_root_of(owner)).as_posix(): path for path in owner.masks}
    goes = [placement.was] if placement.was else []
    if not record.masks and placement.was and not record.is_good:  # the masks go where their image goes
        return replace(placement, masks=_mask_places(placement, list(old.values())), goes=(*goes, *old))
    if placement.was and record.is_good:
        return replace(placement, goes=(*goes, *old))
    is_same = sorted(digests.get(mask, "") for mask in record.masks) == sorted(present.get(name, "") for name in old)
    is_stranger = owner is None and not placement.is_new and not placement.was  # of the same offer, or not offered
    if not record.masks or placement.is_left_as_other_kind or is_stranger or (is_same and not placement.was):
        return replace(placement, goes=tuple(goes))
    return replace(placement, masks=_mask_places(placement, record.masks), goes=(*goes, *old))


def _root_of(record: ImageRecord) -> Path:
    """The folder of the category that holds an image."""
    return record.path.parents[len(PurePosixPath(record.name).parts) - 1]


def _free_name(name: str, digest: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    signs = 0
    while _without_suffix(name) in taken:
        signs += DIGEST_SIGNS
        name = str(path.with_stem(f"{path.stem}-{digest[:signs]}"))
    return name


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _mask_places(placement: Placement, masks: Sequence[Path]) -> tuple[tuple[Path, str], ...]:
    """Where the masks of an image go: STEM_mask.EXT, or a folder STEM where there are several."""
    folder, stem = f"{MASKS}/{placement.record.kind}", PurePosixPath(placement.name).stem
    if len(masks) == 1:
        return ((masks[0], f"{folder}/{stem}_mask{masks[0].suffix}"),)
    return tuple((mask, f"{folder}/{stem}/{mask.name}") for mask in masks)


def _check_image(record: ImageRecord, limits: ImageLimits) -> None:
    if printable(record.name) != record.name:
        raise UserError(f"The name {printable(record.path.name)!r} holds signs that do not print: rename the file.")
    size = read_image(record.path, limits).shape[:2]
    for mask in record.masks:
        if (mask_size := read_mask(mask, limits).shape) != size:
            raise UserError(
                f"The mask {mask} is {mask_size[1]}×{mask_size[0]}, its image {size[1]}×{size[0]}: correct one of them."
            )
