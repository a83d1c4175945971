"""A contact sheet of what changed between two versions of a category's data."""

import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from components.data.version import Difference, Manifest, is_mask
from components.foundation.limits import ImageLimits
from components.images.decode import decode_image, read_mask

MAX_SHOWN = 48  # pictures on one sheet


def shown_objects(difference: Difference, old: Manifest, new: Manifest) -> list[tuple[str, str, str]]:
    """(digest, image's name, caption) of the pictures on the sheet, in their order.

    Changed images and masks come first, as they were and as they are; then removed ones, then added ones. Where there
    are more than fit, each kind keeps a fair share.
    """
    changed = [
        (version[name], name, words)
        for name in difference.changed + difference.masks_changed
        for version, words in ((old, "changed: before"), (new, "changed: after"))
    ]
    removed = [(old[name], name, "removed") for name in difference.removed + difference.masks_removed]
    added = [(new[name], name, "added") for name in difference.added + difference.masks_added]
    kinds = [kind for kind in (changed, removed, added) if kind]
    share = MAX_SHOWN // max(1, len(kinds))  # 48, 24 or 16
    spare = MAX_SHOWN - sum(min(share, len(kind)) for kind in kinds)
    pictures = []
    for kind in kinds:
        extra = min(spare, max(0, len(kind) - share))
        if kind is changed:
            extra -= extra % 2  # before and after stay together
        pictures += kind[: share + extra]
        spare -= extra
    return pictures


def draw_sheet(
    pictures: list[tuple[str, str, str]], read: Callable[[str], bytes], limits: ImageLimits, path: Path, title: str
) -> None:
    """Write the pictures of `shown_objects` as one PNG; `read(digest)` gives an image file's content."""
    from components.evaluation.sheets import contact_sheet  # imports matplotlib

    images = [_picture(read(digest), name, limits) for digest, name, _ in pictures]
    captions = [f"{words}\n{_short(name)}" for _, name, words in pictures]
    contact_sheet(images, captions, path, title=title)


def _picture(data: bytes, name: str, limits: ImageLimits) -> np.ndarray:
    """An image, or a mask in black and white: (H, W, 3) uint8."""
    if not is_mask(name):
        return decode_image(data, name, limits)
    with tempfile.NamedTemporaryFile(suffix=PurePosixPath(name).suffix) as file:
        file.write(data)
        file.flush()
        mask = read_mask(Path(file.name), limits)  # (H, W)
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)


def _short(name: str) -> str:
    path = PurePosixPath(name)
    if is_mask(name):
        return "/".join(("mask", *path.parts[1:]))
    return path.name if path.parts[:2] == ("train", "good") else f"{path.parent.name}/{path.name}"
