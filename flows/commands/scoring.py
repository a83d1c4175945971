"""Score image files with a registered model, for the command line."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components.detection.capsule import Capsule, load_capsule
from components.detection.detector import BATCH
from components.foundation.errors import UserError, printable
from components.foundation.limits import ImageLimits
from components.foundation.params import load_params
from components.foundation.runtime import use_threads
from components.images.decode import read_with_header, resize_image
from components.registry import versions as registry


@dataclass
class Scored:
    """One row for each image that could be read, one sentence for each that could not, or not as it is (`clipped`)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise UserError, one sentence, where an image could not be scored."""
        if len(self.refused) == 1:
            raise UserError(self.refused[0])
        if self.refused:
            count = f"{len(self.refused)} of {len(self.refused) + len(self.rows)} images could not be scored"
            raise UserError(f"{count}: {' '.join(self.refused)}")


def category_of(paths: Sequence[Path]) -> str:
    """The one registered category whose name is a folder on every path, or the only one there is.

    Raises UserError where that is not clear.
    """
    known = registry.modelled_categories()
    fitting = [name for name in known if all(name in path.parts for path in paths)]
    if len(fitting) == 1:
        return fitting[0]
    if len(known) == 1:
        return known[0]
    if not known:
        raise UserError("No category has a model yet: run `flawline demo` or `flawline run` first.")
    raise UserError(f"Which product do these images show? Give --category, one of {', '.join(known)}.")


def score_images(paths: Sequence[Path], category: str, which: str, maps: Path | None) -> Scored:
    """Score each image; a row has image, category, version, capsule_digest, score, threshold, verdict, p_value and map.

    which: alias or number of the version. maps: folder for one picture (image and anomaly map side by side) of each
    image. Images are decoded one by one and kept at the model's size only, so memory does not grow with their number.
    """
    params = load_params()
    use_threads(params.threads)
    number, digest = registry.locate_capsule(category, int(which) if which.isdecimal() else which)
    capsule = load_capsule(registry.download_capsule(category, number))
    limits = params.limits.image_limits().at_depth(capsule.bits)
    source = {"category": category, "version": number, "capsule_digest": digest}
    scored = Scored()
    for start in range(0, len(paths), BATCH):
        read = list(_readable(paths[start : start + BATCH], capsule.detector.size, limits, scored))
        if read:
            scored.rows += _rows(capsule, read, source, maps)
    return scored


def _readable(
    paths: Sequence[Path], size: int, limits: ImageLimits, scored: Scored
) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be decoded, (size, size, 3) uint8; `scored` gets why others cannot, and what is cut off."""
    most = (1 << limits.bits) - 1
    for path in paths:
        try:
            decoded = read_with_header(path, limits)
            yield path, resize_image(decoded.pixels, size)
        except UserError as error:
            scored.refused.append(printable(str(error)))
            continue
        if decoded.highest is not None and decoded.highest > most:
            scored.clipped.append(
                f"{printable(str(path))} has grey values up to {decoded.highest}, and its model has learned at "
                f"{limits.bits} bits: all above {most} are read as white."
            )


def _rows(
    capsule: Capsule, read: Sequence[tuple[Path, np.ndarray]], source: dict[str, Any], maps: Path | None
) -> list[dict[str, Any]]:
    scores, anomaly_maps = capsule.score([image for _, image in read])
    p_values = capsule.p_values(scores)
    rows = []
    for (path, image), score, p_value, anomaly_map in zip(
        read, scores.tolist(), p_values.tolist(), anomaly_maps, strict=True
    ):
        verdict = "defect" if score > capsule.threshold else "good"
        picture = _draw(capsule, image, anomaly_map, score, path, maps) if maps else None
        rows.append(
            {
                "image": str(path),
                **source,
                "score": score,
                "threshold": capsule.threshold,
                "verdict": verdict,
                "p_value": p_value,
                "map": str(picture) if picture else None,
            }
        )
    return rows


def _draw(capsule: Capsule, image: np.ndarray, anomaly_map: np.ndarray, score: float, path: Path, folder: Path) -> Path:
    from components.evaluation.sheets import map_gallery  # imports matplotlib

    picture = folder / picture_name(path)
    title = printable(f"{capsule.category}: {path.name}")
    verdict = "defect" if score > capsule.threshold else "good"
    map_gallery(
        [image], [anomaly_map], None, [score], [verdict], picture, capsule.map_range, capsule.threshold, title=title
    )
    return picture


def picture_name(path: Path) -> str:
    """What the picture of an image is called: folder and stem, and a digest by which paths that share these differ."""
    words = re.sub(r"[^\w.-]+", "_", f"{path.parent.name}-{path.stem}")[:50]
    return f"{words}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}.png"
