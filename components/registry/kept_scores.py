"""Scores of images by registered capsules, kept by content: what was scored once is not scored again.

A score follows from the capsule and the file's bytes, so `.flawline/scores/CAPSULE_DIGEST.json` is never stale; it is
no part of what is computed, and may be removed at any time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from components.detection.capsule import Capsule, load_capsule
from components.detection.detector import BATCH
from components.foundation.files import read_json, sha256_file, write_json
from components.foundation.limits import ImageLimits
from components.images.decode import read_square
from components.tracking.connection import STATE

FOLDER = STATE / "scores"


def scores_of(capsule: Path, digest: str, paths: Sequence[Path], limits: ImageLimits) -> list[float]:
    """Image scores (N,) of image files by the capsule in a folder, which is loaded only if some are not known.

    digest: of the capsule. Raises UserError for an image that cannot be read.
    """
    images = [sha256_file(path) for path in paths]
    known = _known(digest)
    missing = {image: path for image, path in zip(images, paths, strict=True) if image not in known}
    if missing:
        known |= dict(_scored(load_capsule(capsule), missing, limits))
        write_json(FOLDER / f"{digest}.json", known)
    return [known[image] for image in images]


def forget_scores(images: Collection[str]) -> None:
    """Drop the scores of images by the digests of their files, whatever the capsule."""
    for path in FOLDER.glob("*.json"):
        known = _known(path.stem)
        if not known.keys().isdisjoint(images):
            write_json(path, {image: score for image, score in known.items() if image not in images})


def _known(digest: str) -> dict[str, float]:
    with suppress(FileNotFoundError, ValueError):  # a damaged one is made anew
        content = read_json(FOLDER / f"{digest}.json")
        if isinstance(content, dict) and all(isinstance(score, float) for score in content.values()):
            return content
    return {}


def _scored(capsule: Capsule, images: Mapping[str, Path], limits: ImageLimits) -> Iterator[tuple[str, float]]:
    limits = limits.at_depth(capsule.bits)
    items = list(images.items())
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        # Resampled one by one, so that a batch of large images never lies decoded in memory.
        pixels = [read_square(path, capsule.detector.size, limits) for _, path in batch]
        yield from zip((image for image, _ in batch), capsule.score(pixels)[0].tolist(), strict=True)
