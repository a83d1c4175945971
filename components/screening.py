"""The present champion looks at images that are said to be good, before they are learned from.

A defect that is learned as good is not found again; images sent on purpose to that end (poisoning) look the same. Held
are images whose conformal p-value is at most a level, that is, whose score is above a high quantile of good images'
scores. With n calibration images no p-value is below 1 / (n + 1): a score above all of theirs is always held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.capsule import Capsule
from components.detector import BATCH
from components.figures import map_gallery
from components.images import ImageLimits, read_image, resize_image


@dataclass(frozen=True)
class Screened:
    """What the champion says of one image. `suspicious`: it is to be held."""

    score: float
    p_value: float
    suspicious: bool


def screen(
    capsule: Capsule, paths: Sequence[Path], pictures: Sequence[Path], limits: ImageLimits, level: float,
    held: Sequence[bool],
) -> list[Screened]:  # fmt: skip
    """Score image files.

    pictures: where image and anomaly map of each suspicious one are drawn (PNG), and of those `held` for other reasons.
    level: the p-value up to which an image is suspicious.
    """
    found: list[Screened] = []
    for start in range(0, len(paths), BATCH):
        images = [read_image(path, limits) for path in paths[start : start + BATCH]]
        scores, maps = capsule.score(images)
        p_values = capsule.p_values(scores)
        limit = max(level, 1 / (len(capsule.calibration) + 1))
        for row, (score, p_value) in enumerate(zip(scores.tolist(), p_values.tolist(), strict=True)):
            found.append(Screened(score, p_value, p_value <= limit))
            if found[-1].suspicious or held[start + row]:
                _draw(capsule, images[row], maps[row], found[-1], pictures[start + row])
    return found


def _draw(capsule: Capsule, image: np.ndarray, anomaly_map: np.ndarray, screened: Screened, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = resize_image(image, capsule.detector.size)
    caption = f"p = {screened.p_value:.3g}"
    map_gallery([shown], [anomaly_map], None, [screened.score], [caption], path, title=f"{capsule.category}: held")
