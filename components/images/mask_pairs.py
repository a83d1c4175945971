"""Which ground-truth mask belongs to which image, in the layouts and under the names that are in use.

Masks lie in ground_truth/KIND as NAME_mask.png (MVTec AD), as NAME.png (VisA, BTAD), or several in a folder NAME
(LOCO); or all in ground_truth itself, or beside their images as NAME_mask.png. The folder may have another usual name,
and names may differ in case. A mask is for exactly one image, and an image has one mask or one folder of masks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from components.images.layout import MASK_FOLDERS, folders_in, image_files, is_mask_folder, name_key

_MASK_SUFFIX = "_mask"
_USUAL_SUFFIX = re.compile(r"(.+?)[ ._-]+(masks?|gt|ground_?truth|labels?|seg|segmentation|annotation)")
_IMAGE_SUFFIX = re.compile(r"(.+)\.(png|jpe?g|bmp|tiff?)")


@dataclass
class MaskPairs:
    """The masks of each image, and what is wrong with those masks that were not taken or not for sure.

    Attributes:
        masks: by image; several where a defect has several regions.
        unclear: by mask, a clause that says why it is not clear which image or which of two masks is meant.
        spare: by mask, a clause that says what is taken instead of it.
    """

    masks: dict[Path, tuple[Path, ...]] = field(default_factory=dict)
    unclear: dict[Path, str] = field(default_factory=dict)
    spare: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """A mask file, or a folder of an image's masks, and how far its name is from the image's: 0 is nearest."""

    path: Path
    masks: tuple[Path, ...]
    distance: int


def pair_masks(root: Path, images: Mapping[str, Sequence[Path]]) -> MaskPairs:
    """Pair the masks of a category with its defective images, which are given by the name of their folder in test."""
    pairs = MaskPairs()
    for folder in mask_roots(root):
        for kind, subfolder in _kind_folders(folder, images).items():
            entries = [*folders_in(subfolder), *image_files(subfolder)]
            _pair(_by_key(images[kind]), entries, root, pairs, one_folder=True)
        everything = [path for kind in images for path in images[kind]]
        names = _by_key(everything)
        for path in everything:
            names.setdefault(name_key(f"{path.parent.name}_{path.stem}"), []).append(path)
        _pair(names, image_files(folder), root, pairs, one_folder=False)
    for kind in images:
        _pair(_by_key(images[kind]), masks_beside(root / "test" / kind), root, pairs, one_folder=True)
    return pairs


def mask_roots(root: Path) -> list[Path]:
    """The folders of a category with masks, ground_truth first; test/ground_truth is one too, and no kind."""
    found = [path for path in folders_in(root) if is_mask_folder(path)]
    return sorted(found, key=_rank) + [path for path in folders_in(root / "test") if is_test_mask_root(path)]


def is_test_mask_root(path: Path) -> bool:
    """Whether a folder in test holds masks; "mask" and "gt" may name a kind of defect."""
    return is_mask_folder(path) and name_key(path.name) not in ("mask", "gt")


def masks_beside(folder: Path) -> list[Path]:
    """The files in a folder of images that are masks of others there: NAME_mask.png beside NAME.png."""
    files = image_files(folder)
    keys = {name_key(path.stem) for path in files}
    return [path for path in files if _is_mask_of(name_key(path.stem), keys)]


def _is_mask_of(key: str, keys: set[str]) -> bool:
    return key.endswith(_MASK_SUFFIX) and key.removesuffix(_MASK_SUFFIX) in keys


def _rank(folder: Path) -> int:
    return MASK_FOLDERS.index(name_key(folder.name))


def _kind_folders(folder: Path, kinds: Iterable[str]) -> dict[str, Path]:
    """The folder of masks of each kind: of that very name, else the only one whose name differs in case."""
    known = {path.name: path for path in folders_in(folder)}
    found = {}
    for kind in kinds:
        alike = [path for name, path in known.items() if name_key(name) == name_key(kind)]
        if kind in known:
            found[kind] = known[kind]
        elif len(alike) == 1:
            found[kind] = alike[0]
    return found


def _by_key(images: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in images:
        found.setdefault(name_key(path.stem), []).append(path)
    return found


def _pair(
    images: Mapping[str, list[Path]], found: Sequence[Path], root: Path, pairs: MaskPairs, one_folder: bool
) -> None:
    """Give masks to images by their names; `one_folder`: the images are of one kind, and share a mask if they must."""
    claims: dict[str, list[_Entry]] = {}
    for path in found:
        names = _meant(path)
        distance = next((place for place, name in enumerate(names) if name in images), None)
        masks = tuple(image_files(path)) if path.is_dir() else (path,)
        if distance is not None and masks:
            claims.setdefault(names[distance], []).append(_Entry(path, masks, distance))
    for key, entries in claims.items():
        entries.sort(key=lambda entry: entry.distance)
        if len(images[key]) > 1:
            words = " or ".join(path.relative_to(root).as_posix() for path in images[key])
            pairs.unclear |= {mask: f"may be for {words}" for entry in entries for mask in entry.masks}
        for image in images[key] if one_folder or len(images[key]) == 1 else ():
            _give(image, entries, root, pairs)


def _give(image: Path, entries: Sequence[_Entry], root: Path, pairs: MaskPairs) -> None:
    """Give an image the mask whose name is nearest; where two are as near, it is not clear which is meant."""
    if image not in pairs.masks:
        pairs.masks[image] = entries[0].masks
    taken = pairs.masks[image]
    for entry in entries:
        if entry.masks != taken:
            is_unclear = entry.distance == entries[0].distance and taken == entries[0].masks
            words = f"of {image.relative_to(root).as_posix()}, beside {taken[0].relative_to(root).as_posix()}"
            if is_unclear:
                pairs.unclear |= {mask: f"is a second mask {words}" for mask in entry.masks}
            else:
                pairs.spare |= {mask: f"is a second mask {words}, which is taken" for mask in entry.masks}


def _meant(path: Path) -> list[str]:
    """Keys of the names that the image of a mask may have, the likeliest first; a folder of masks bears its name."""
    if path.is_dir():
        return [name_key(path.name)]
    stem = name_key(path.stem)
    usual = _USUAL_SUFFIX.fullmatch(stem)
    bare = usual[1] if usual else stem.removeprefix("mask_")
    image = _IMAGE_SUFFIX.fullmatch(bare)
    own = stem.removesuffix(_MASK_SUFFIX) if stem.endswith(_MASK_SUFFIX) else ""
    return [own, stem, bare, image[1] if image else bare]
