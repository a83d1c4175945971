"""Versions of a category's data: what a version holds, what new images add to it, how two versions differ."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.dataset import ImageRecord, list_records
from components.errors import UserError, printable
from components.files import sync_file
from components.images import EXTENSIONS, ImageLimits, read_image, read_mask
from components.layout import image_files, is_hidden

Manifest = Mapping[str, str]  # file name inside the category, with forward slashes -> MD5 of its content, 32 hex digits
SPLITS = ("train", "validation", "test")
DIGEST_SIGNS = 8  # of a content's digest, in a name that would otherwise be taken


@dataclass(frozen=True)
class Placement:
    """What becomes of one image that was offered to a category.

    Attributes:
        record: the image as it was offered; `record.name` is the name it asked for.
        name: its name inside the category: that of its twin where it is a duplicate.
        is_new: False where the version, or an earlier image of the same offer, has the same bytes.
        is_there: whether nothing is to be copied: a duplicate, or a file that a run which was cut short left there.
    """

    record: ImageRecord
    name: str
    is_new: bool
    is_there: bool


@dataclass(frozen=True)
class Difference:
    """Names of the images that were added, removed or changed (same name, other content) between two versions."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def list_offered(folder: Path) -> list[ImageRecord]:
    """The images in `folder`: of a category in MVTec layout, or else those directly in it, as good training images.

    Raises UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder at {folder}: check the path.")
    records = list(list_records(folder)) or good_images(image_files(folder))
    if not records:
        raise UserError(
            f"{folder} holds no image: give a folder of good images (PNG, JPEG, BMP, TIFF), or one in MVTec layout."
        )
    return records


def good_images(paths: Iterable[Path]) -> list[ImageRecord]:
    """The files as good training images that ask for the names they have."""
    return [ImageRecord(path, f"train/good/{path.name}", "train", "good") for path in paths]


def md5_file(path: Path) -> str:
    """MD5 of a file's content, as 32 hex digits: the name under which DVC keeps it. Memory is bounded by a chunk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_bytes(data: bytes) -> str:
    """MD5 of bytes, as 32 hex digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_files(paths: Sequence[Path], threads: int) -> list[str]:
    """`md5_file` of each."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(md5_file, paths))


def parse_manifest(data: bytes) -> dict[str, str]:
    """A version's files from DVC's directory object, a JSON list of {"md5", "relpath"}; ValueError for what is none."""
    entries = json.loads(data)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("a directory object is a list of mappings")
    return {str(entry.get("relpath")): str(entry.get("md5")) for entry in entries}


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


def compare(old: Manifest, new: Manifest) -> Difference:
    """What images changed from `old` to `new`, each list sorted by name. Masks and other files do not count."""
    before = {name: digest for name, digest in old.items() if is_image(name)}
    after = {name: digest for name, digest in new.items() if is_image(name)}
    both = before.keys() & after.keys()
    return Difference(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(name for name in both if before[name] != after[name])),
    )


def plan_placements(
    records: Sequence[ImageRecord], digests: Sequence[str], version: Manifest, present: Manifest
) -> list[Placement]:
    """Decide for each offered image, with its MD5 in `digests`, under which name it goes to a category.

    `version` are the files of the present version, `present` those that lie in the folder. An image whose bytes the
    version has is a duplicate; one whose name is taken by other content gets the first signs of its MD5 behind its
    stem (masks go by the stem, so names that differ only in the extension count as the same).
    """
    known = {digest: name for name, digest in version.items() if is_image(name)}
    left = {digest: name for name, digest in present.items() if is_image(name) and name not in version}
    taken = {_without_suffix(name) for name in {**version, **present} if is_image(name)}
    placements = []
    for record, digest in zip(records, digests, strict=True):
        twin = known.get(digest) or left.get(digest)
        name = twin or _free_name(record.name, digest, taken)
        placements.append(Placement(record, name, digest not in known, twin is not None))
        known[digest] = name
        taken.add(_without_suffix(name))
    return placements


def check_images(records: Sequence[ImageRecord], limits: ImageLimits, threads: int) -> None:
    """Decode every image and mask, and compare their sizes; raises UserError for the first that is not in order."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda record: _check_image(record, limits), records):
            pass


def stage_copies(placements: Sequence[Placement], staging: Path, link: bool = False) -> None:
    """Copy the new images and their masks into the folder `staging`, under their names, so that they last on disk.

    link: the files last on disk already and belong to the caller, who will not change them: link them where possible.
    """
    for placement in placements:
        if placement.is_there:
            continue
        for source, name in [(placement.record.path, placement.name), *_mask_places(placement)]:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if link and _linked(source, target):
                continue
            shutil.copyfile(source, target)
            sync_file(target)


def move_in(staging: Path, folder: Path) -> None:
    """Move every file of `staging` to its place in `folder`, one rename each: none is ever there in part."""
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        target = folder / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(staging)


def count_words(difference: Difference, version: Manifest) -> str:
    """A change in words, with what there is after it: "+14 good images, 223 in all"."""
    parts = []
    for title, folders in (("good images", ("train", "validation")), ("test images", ("test",))):
        signs = [
            f"{sign}{count}"
            for sign, names in (("+", difference.added), ("-", difference.removed), ("~", difference.changed))
            if (count := sum(name.split("/")[0] in folders for name in names))
        ]
        if signs:
            whole = sum(is_image(name) and name.split("/")[0] in folders for name in version)
            parts.append(f"{' '.join(signs)} {title}, {whole} in all")
    return "; ".join(parts) or f"other files changed, {sum(map(is_image, version))} images in all"


def count_images(version: Manifest) -> dict[str, int]:
    """Number of images per "split/kind", as in `Category.counts`."""
    return dict(Counter(str(PurePosixPath(name).parent) for name in sorted(version) if is_image(name)))


def _linked(source: Path, target: Path) -> bool:
    """Hard-link a file; False where the file system, or another one in between, does not have it."""
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _free_name(name: str, digest: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    signs = 0
    while _without_suffix(name) in taken:
        signs += DIGEST_SIGNS
        name = str(path.with_stem(f"{path.stem}-{digest[:signs]}"))
    return name


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _mask_places(placement: Placement) -> list[tuple[Path, str]]:
    """Where the masks of an image go: STEM_mask.EXT, or a folder STEM where there are several."""
    masks, stem = placement.record.masks, PurePosixPath(placement.name).stem
    folder = f"ground_truth/{placement.record.kind}"
    if len(masks) == 1:
        return [(masks[0], f"{folder}/{stem}_mask{masks[0].suffix}")]
    return [(mask, f"{folder}/{stem}/{mask.name}") for mask in masks]


def _check_image(record: ImageRecord, limits: ImageLimits) -> None:
    if printable(record.name) != record.name:
        raise UserError(f"The name {printable(record.path.name)!r} holds signs that do not print: rename the file.")
    size = read_image(record.path, limits).shape[:2]
    for mask in record.masks:
        if (mask_size := read_mask(mask, limits).shape) != size:
            raise UserError(
                f"The mask {mask} is {mask_size[1]}×{mask_size[0]}, its image {size[1]}×{size[0]}: correct one of them."
            )
