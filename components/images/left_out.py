"""What lies in a category's folder and is not used, each file with the reason: nothing is left out in silence."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.foundation.errors import printable
from components.images.dataset import ImageRecord, find_masks, good_folders
from components.images.decode import EXTENSIONS
from components.images.layout import LOGICAL, is_good_name, is_hidden, name_key
from components.images.mask_pairs import mask_roots, masks_beside

Concern = Literal["mask", "image"]
_NEEDLESS = "is a mask for a good image, which needs none"
# formats of pictures that are not read; any other file, such as a licence, is no picture at all
PICTURES = frozenset(
    {
        *(".apng", ".avif", ".dds", ".dib", ".exr", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl"),
        *(".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".tga", ".webp"),  # pictures
        *(".cr2", ".dcm", ".dng", ".mat", ".nef", ".npy", ".npz", ".raw"),  # raw values
    }
)


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used.

    Attributes:
        name: its path inside the category, through `printable`.
        reason: a clause that follows the name: "is hidden".
        severity: "error" where a figure would be wrong for it, "warning" where it would be weaker, else "note".
        concern: whether it looks like a mask or like an image.
    """

    name: str
    reason: str
    severity: Literal["error", "warning", "note"]
    concern: Concern = "image"


def left_out(root: Path, records: Iterable[ImageRecord]) -> list[LeftOut]:
    """All files below `root` that are no image or mask of `records`, and masks that are in doubt; sorted by name."""
    pairs = find_masks(root)
    used = {path for record in records for path in (record.path, *record.masks)}
    roots = mask_roots(root)
    good = [folder for split in ("train", "validation", "test") for folder in good_folders(root / split)]
    needless = {mask for folder in good for mask in masks_beside(folder)}
    found = []
    for path in files_below(root):
        if path in pairs.unclear:
            found.append(_left_out(path, root, pairs.unclear[path], "error", "mask"))
        elif path not in used and path in pairs.spare:
            found.append(_left_out(path, root, pairs.spare[path], "warning", "mask"))
        elif path in needless:
            found.append(_left_out(path, root, _NEEDLESS, "note", "mask"))
        elif path not in used:
            found.append(_reason(path, root, roots))
    return sorted(found, key=lambda one: one.name)


def files_below(folder: Path, known: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files below a folder, behind links to folders too, and links that lead nowhere."""
    real = folder.resolve()
    if real in known:  # a link to a folder that it lies in
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files_below(path, known | {real})
        else:
            yield path


def reasons(found: Iterable[LeftOut]) -> dict[str, list[str]]:
    """The names of files by the reason why they are not used."""
    grouped: dict[str, list[str]] = {}
    for one in found:
        grouped.setdefault(one.reason, []).append(one.name)
    return grouped


def _reason(path: Path, root: Path, roots: list[Path]) -> LeftOut:
    parts, suffix = path.relative_to(root).parts, path.suffix.lower()
    if any(map(is_hidden, parts)):
        return _left_out(path, root, "is hidden, or a system's own", "note")
    if not path.exists():
        return _left_out(path, root, "is a link that leads nowhere", "warning")
    if suffix in PICTURES:
        return _left_out(path, root, f"has the format {suffix}, which is not read", "warning")
    if suffix not in EXTENSIONS:
        return _left_out(path, root, "is no image", "note")
    folder = next((one for one in roots if path.is_relative_to(one)), None)
    if folder is not None:
        return _reason_of_mask(path, root, path.relative_to(folder).parts)
    if parts[0] == "test" and len(parts) > 2 and name_key(parts[1]) == LOGICAL:
        return _left_out(path, root, "shows a logical anomaly, which no local method sees", "note")
    if len(parts) > 3 and parts[0] in ("train", "validation", "test"):
        return _left_out(path, root, f"lies deeper than {'/'.join(parts[:2])}", "warning")
    return _left_out(path, root, "lies in no folder that is read (train/good, test/KIND, ground_truth/KIND)", "warning")


def _reason_of_mask(path: Path, root: Path, parts: tuple[str, ...]) -> LeftOut:
    if len(parts) > 1 and name_key(parts[0]) == LOGICAL:
        return _left_out(path, root, "shows a logical anomaly, which no local method sees", "note", "mask")
    if len(parts) > 1 and is_good_name(parts[0]):
        return _left_out(path, root, _NEEDLESS, "note", "mask")
    return _left_out(path, root, "is a mask for no image of test", "warning", "mask")


def _left_out(
    path: Path, root: Path, reason: str, severity: Literal["error", "warning", "note"], concern: Concern = "image"
) -> LeftOut:
    return LeftOut(printable(path.relative_to(root).as_posix()), printable(reason), severity, concern)
