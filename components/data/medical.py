"""Chest X-rays as the paper of NSA lists them (section 4, data of Tang et al. 2020), brought to MVTec AD layout.

The images lie in any folders below one; text files name, a line each, those to learn from and those to test on:
`norm_GROUP_train_curated_list.txt`, `norm_GROUP_test_curated_list.txt` and `anomaly_GROUP_test_curated_list.txt`.
GROUP, such as MaleAdultPA, becomes a category. Images exported from DICOM may have up to 16 bits, of which 10 or 12
are used, and may be stored with bright air (MONOCHROME1).
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from components.foundation.errors import UserError
from components.foundation.files import new_directory
from components.foundation.limits import ImageLimits
from components.foundation.names import check_category_names
from components.images.decode import EXTENSIONS, read_grey, to_8_bit
from components.images.depth import find_bits
from components.images.layout import is_hidden

PLACES = {("norm", "train"): "train/good", ("norm", "test"): "test/good", ("anomaly", "test"): "test/abnormal"}
PHOTOMETRIC = "PhotometricInterpretation"
_LIST = re.compile(r"(norm|anomaly)_(.+)_(train|test)(?:_curated)?_list\.txt")


@dataclass(frozen=True)
class Entry:
    """An image of a category: its file, and the folder of the category that it goes to, such as "test/abnormal"."""

    path: Path
    place: str


def import_lists(
    images: Path,
    lists: Path,
    destination: Path,
    limits: ImageLimits,
    inverted: Path | None = None,
    bits: int | None = None,
) -> dict[str, dict[str, int]]:
    """Write a category in MVTec AD layout to `destination` for each group of lists; returns its counts by folder.

    What is 8-bit and needs no inversion is copied as it is, all else becomes an 8-bit grey PNG. inverted: a list of
    the images to invert; those whose PNG text says PhotometricInterpretation = MONOCHROME1 are inverted as well.
    bits: how many bits deep images use; by default the fewest of 8, 10, 12, 14 and 16 that hold all of a category.
    Raises UserError for a list or an image that is missing, an image listed for training and for testing, a category
    that exists already, and a pixel that exceeds `bits`. A category is written whole or not at all.
    """
    known = index_images(images)
    flipped = frozenset(find(name, known, inverted) for name in read_list(inverted)) if inverted else frozenset()
    groups = {group: entries_of(files, known) for group, files in find_lists(lists).items()}
    for group in groups:
        if (destination / group).exists():
            raise UserError(f"There is already a {destination / group}: remove it, or choose another destination.")
    for group, entries in groups.items():
        depth = bits or find_bits((entry.path for entry in entries), limits)
        with new_directory(destination / group) as folder:
            for entry in entries:
                write_entry(folder / entry.place, entry.path, limits, depth, entry.path in flipped)
    return {group: _counts(entries) for group, entries in groups.items()}


def find_lists(folder: Path) -> dict[str, dict[str, Path]]:
    """The lists in a folder, by group and by where their images go; UserError where a group is not complete."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _LIST.fullmatch(path.name)
        if match and (match[1], match[3]) in PLACES:
            found.setdefault(match[2], {})[PLACES[match[1], match[3]]] = path
    if not found:
        raise UserError(f"{folder} has no list such as norm_GROUP_train_curated_list.txt: check the folder.")
    check_category_names(found)
    for group, files in found.items():
        if "train/good" not in files:
            raise UserError(
                f"{folder} has no norm_{group}_train_curated_list.txt: add the list of images to learn from."
            )
    return found


def index_images(folder: Path) -> dict[str, list[Path]]:
    """All images below a folder, by their names with and without ending."""
    known: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        is_shown = not any(map(is_hidden, path.relative_to(folder).parts))
        if is_shown and path.suffix.lower() in EXTENSIONS and path.is_file():
            known.setdefault(path.name, []).append(path)
            known.setdefault(path.stem, []).append(path)
    if not known:
        raise UserError(f"{folder} holds no image: check the path.")
    return known


def read_list(path: Path) -> list[str]:
    """The names in a list, one a line, each once, in order; empty lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file in UTF-8: it must name one image a line.") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise UserError(f"{path} names no image: it must name one a line.")
    return names


def find(name: str, known: Mapping[str, list[Path]], origin: Path) -> Path:
    """The one file of that name; UserError, with the list it is from, where there is none or several."""
    found = known.get(name, [])
    if len(found) != 1:
        what = "is not among the images" if not found else f"is there {len(found)} times ({found[0]}, {found[1]})"
        raise UserError(f"{name!r} of {origin} {what}: correct the list or the folder.")
    return found[0]


def entries_of(files: Mapping[str, Path], known: Mapping[str, list[Path]]) -> list[Entry]:
    """The images that a group's lists name; UserError for one that is in two lists."""
    places: dict[Path, str] = {}
    for place, path in sorted(files.items(), reverse=True):  # those to learn from first
        for name in read_list(path):
            image = find(name, known, path)
            if image in places:
                raise UserError(
                    f"{name!r} is listed for {places[image]} and for {place} ({path}): leave it in one list."
                )
            places[image] = place
    return [Entry(path, place) for path, place in places.items()]


def write_entry(folder: Path, path: Path, limits: ImageLimits, bits: int, flipped: bool) -> None:
    """Copy an image into `folder`, or write it there as an 8-bit PNG."""
    target = folder / path.name
    folder.mkdir(parents=True, exist_ok=True)
    values, texts = read_grey(path, limits)
    flipped = flipped or texts.get(PHOTOMETRIC) == "MONOCHROME1"
    as_it_is = values.dtype == np.uint8 and not flipped
    if not as_it_is:
        target = target.with_suffix(".png")
    if target.exists():
        raise UserError(f"{path} and another image would both become {target.name}: rename one.")
    if as_it_is:
        shutil.copyfile(path, target)  # no link: DVC makes what it stores read-only
        return
    depth = 8 if values.dtype == np.uint8 else bits
    if values.max() >= 1 << depth:
        raise UserError(f"{path} has a pixel of {values.max()}, more than {depth} bits hold: give more bits.")
    grey = to_8_bit(values, depth)
    Image.fromarray(255 - grey if flipped else grey).save(target)


def _counts(entries: list[Entry]) -> dict[str, int]:
    return {place: sum(entry.place == place for entry in entries) for place in PLACES.values()}
