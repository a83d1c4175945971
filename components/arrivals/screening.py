"""The present champion looks at images that are said to be good, before they are learned from.

A defect that is learned as good is not found again; images sent on purpose to that end (poisoning) look the same. Held
are images whose conformal p-value is at most a level. With n calibration images no p-value is below 1 / (n + 1); for
lower levels an image is held whose score lies as far beyond the largest of theirs as `conformal.tail_limit` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.detection import conformal
from components.detection.capsule import Capsule
from components.detection.detector import BATCH
from components.evaluation.sheets import map_gallery
from components.foundation.limits import ImageLimits
from components.images.decode import read_square


@dataclass(frozen=True)
class Screened:
    """What the champion says of one image.

    score, p_value: its own. largest, count: the highest score of so many held-out good images. suspicious: to be held.
    """

    score: float
    p_value: float
    largest: float
    count: int
    suspicious: bool

    @property
    def words(self) -> str:
        """The score beside those of good images."""
        return (
            f"score {self.score:.3g}; the highest of {self.count} held-out good images is {self.largest:.3g}, "
            f"p = {self.p_value:.2g}"
        )


def hold_limit(calibration: np.ndarray, level: float) -> float:
    """The score above which an image is held: p-values decide where they reach `level`, else the tail's limit."""
    if level * (len(calibration) + 1) >= 1:
        return conformal.split_conformal_threshold(calibration, level).value
    return conformal.tail_limit(calibration, level)


def screen(
    capsule: Capsule, paths: Sequence[Path], pictures: Sequence[Path], limits: ImageLimits, level: float,
    held: Sequence[bool],
) -> list[Screened]:  # fmt: skip
    """Score image files.

    pictures: where image and anomaly map of each suspicious one are drawn (PNG), and of those `held` for other reasons.
    level: the share of good images that may be held, see `hold_limit`.
    """
    limits = limits.at_depth(capsule.bits)
    found: list[Screened] = []
    limit, largest, count = hold_limit(capsule.calibration, level), max(capsule.calibration), len(capsule.calibration)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        # Resampled one by one, so that a batch of large images never lies decoded in memory.
        images = [read_square(path, capsule.detector.size, limits) for path in batch]
        scores, maps = capsule.score(images)
        p_values = capsule.p_values(scores)
        for row, (score, p_value) in enumerate(zip(scores.tolist(), p_values.tolist(), strict=True)):
            found.append(Screened(score, p_value, float(largest), count, score > limit))
            if found[-1].suspicious or held[start + row]:
                _draw(capsule, images[row], maps[row], found[-1], pictures[start + row])
    return found


def _draw(capsule: Capsule, image: np.ndarray, anomaly_map: np.ndarray, screened: Screened, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    caption, title = f"p = {screened.p_value:.3g}", f"{capsule.category}: held"
    map_gallery(
        [image], [anomaly_map], None, [screened.score], [caption], path, capsule.map_range, capsule.threshold,
        title=title,
    )  # fmt: skip
