"""Names in a category's folder: which are good, hidden or those of masks, and when two names mean the same."""

import unicodedata
from pathlib import Path

from components.images.decode import EXTENSIONS

GOOD_NAMES = ("good", "ok")
LOGICAL = "logical_anomalies"
MASK_FOLDERS = ("ground_truth", "groundtruth", "masks", "mask", "gt")
_SYSTEM = frozenset(
    {"@eadir", "__macosx", "#recycle", "$recycle.bin", "thumbs.db", "desktop.ini", "system volume information"}
)


def name_key(name: str) -> str:
    """What is the same in two names that differ only in case, in outer spaces or in how accents are encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).strip().casefold())


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or one that a system leaves (macOS, Windows, a NAS, Jupyter)."""
    return name.startswith((".", "~$")) or name_key(name) in _SYSTEM


def is_good_name(name: str) -> bool:
    """Whether a folder of that name holds good images: good, ok, Good, OK …"""
    return name_key(name) in GOOD_NAMES


def is_mask_folder(path: Path) -> bool:
    """Whether a folder beside the images holds their masks, by its name."""
    return name_key(path.name) in MASK_FOLDERS and path.is_dir()


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in `folder` that are not hidden, sorted by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name) and path.is_dir())


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, by their extension, sorted by name; none where there is no folder.

    Hidden files are no images, such as the ._NAME.png that macOS leaves beside each file on a USB stick.
    """
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if not is_hidden(path.name))
    return sorted(path for path in files if path.suffix.lower() in EXTENSIONS and path.is_file())
