"""Champion and challenger score the same images, which neither has learned.

Which images a model has learned is by content: of every file the SHA-256. Scores, maps and masks of both lie side by
side; maps are kept in files, so that memory is bounded by a batch.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from components.detection.capsule import Capsule
from components.detection.detector import BATCH
from components.foundation.errors import UserError
from components.foundation.files import digest_of, sha256_file
from components.foundation.limits import ImageLimits
from components.images.dataset import ImageRecord
from components.images.decode import merged_mask, read_image, read_square, resize_mask
from components.images.identity import keys_of
from components.synthesis.prepared import new_array

Role = Literal["test", "held-out", "delivery", "replay", "exam"]
Pair = tuple[np.ndarray, np.ndarray]  # of the champion, and of the challenger
Maker = Callable[[np.ndarray, np.ndarray], Mapping[str, tuple[np.ndarray, np.ndarray]]]
"""Good images (N, S, S, 3) uint8, and who they are (N,) int64, to samples of each kind of synthetic defect with masks
(N, S, S) bool."""


@dataclass(frozen=True)
class Shown:
    """An image that both models score.

    Attributes:
        record: the file, its kind and its masks; one that is not known to be good or defective has the kind "".
        role: what it is scored for.
    """

    record: ImageRecord
    role: Role


@dataclass(frozen=True)
class Both:
    """What both models say of N images.

    Attributes:
        images: (N) what was scored.
        scores: (N,) float32 each. maps: (N, S, S) float32 each. masks: (N, S, S) bool each, of the same sizes.
        groups: (N,) ints of images that belong together, as those made from one good image; None where none do.
    """

    images: Sequence[Shown]
    scores: Pair
    maps: Pair
    masks: Pair
    groups: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """(N,) bool: True for a defect."""
        return np.array([bool(one.record.kind) and not one.record.is_good for one in self.images], dtype=bool)

    def rows(self, *roles: Role) -> np.ndarray:
        """Indices of the images with one of these roles."""
        return np.array([row for row, one in enumerate(self.images) if one.role in roles], dtype=int)

    def of(self, rows: np.ndarray) -> "Both":
        """These rows alone; maps of rows that follow one another stay in their files."""
        scores, maps, masks = (_pair(taken(v, rows) for v in pair) for pair in (self.scores, self.maps, self.masks))
        groups = None if self.groups is None else self.groups[rows]
        return Both([self.images[row] for row in rows], scores, maps, masks, groups)


def taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`values[rows]`, without a copy where the rows follow one another."""
    follow = len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
    return values[int(rows[0]) : int(rows[0]) + len(rows)] if follow else values[rows]


def unlearned_by_both(
    images: Mapping[str, ImageRecord], champion: Collection[str], challenger: Collection[str]
) -> list[ImageRecord]:
    """Of images by SHA-256 those that neither has learned; champion, challenger: digests that each has learned."""
    learned = {*champion, *challenger}
    return [record for digest, record in images.items() if digest not in learned]


def at_most(records: Sequence[ImageRecord], most: int) -> list[ImageRecord]:
    """All, or as many of each kind as its share of `most`, chosen by their names' digests: the same in every run."""
    if len(records) <= most:
        return list(records)
    by_kind: dict[str, list[ImageRecord]] = {}
    for record in sorted(records, key=lambda one: digest_of(one.name)):
        by_kind.setdefault(record.kind, []).append(record)
    return [one for own in by_kind.values() for one in own[: max(1, most * len(own) // len(records))]]


def score_both(
    champion: Capsule, challenger: Capsule, images: Sequence[Shown], limits: ImageLimits, scratch: Path
) -> Both:
    """Read and score the images batch by batch. scratch: a folder for the maps, which the caller removes."""
    capsules = (champion, challenger)
    scores, maps, masks = _arrays([capsule.detector.size for capsule in capsules], len(images), scratch)
    for start in range(0, len(images), BATCH):
        batch = [one.record for one in images[start : start + BATCH]]
        rows = slice(start, start + len(batch))
        alike = {(capsule.bits, capsule.detector.size) for capsule in capsules}  # mostly one: decoded once then
        pixels = {(bits, size): _pixels(batch, size, limits.at_depth(bits)) for bits, size in alike}
        marked = {size: [merged_mask(record.masks, size, limits) for record in batch] for size in {s for _, s in alike}}
        for model, capsule in enumerate(capsules):
            size = capsule.detector.size
            scores[model][rows], maps[model][rows] = capsule.score(pixels[capsule.bits, size])
            masks[model][rows] = marked[size]
    return Both(images, scores, maps, masks)


def score_exam(
    champion: Capsule, challenger: Capsule, good: Sequence[ImageRecord], make: Maker, limits: ImageLimits, scratch: Path
) -> Both:
    """The same for good images and the synthetic defects made of them, at the challenger's size, for both alike."""
    size = challenger.detector.size
    sources = np.stack(_pixels(good, size, limits.at_depth(challenger.bits)))  # (M, S, S, 3)
    nothing = np.zeros(sources.shape[:3], bool)
    keys = keys_of([sha256_file(record.path) for record in good])
    papers = {"good": (sources, nothing), **make(sources, keys)}
    images, groups = [], []
    parts = [(kind, row) for kind, (_, masks) in papers.items() for row in range(len(good))
             if kind == "good" or masks[row].any()]  # fmt: skip
    scores, maps, masks = _arrays([champion.detector.size, size], len(parts), scratch)
    for start in range(0, len(parts), BATCH):
        batch = parts[start : start + BATCH]
        rows = slice(start, start + len(batch))
        pixels = [papers[kind][0][row] for kind, row in batch]
        for model, capsule in enumerate((champion, challenger)):
            scores[model][rows], maps[model][rows] = capsule.score(pixels)
            masks[model][rows] = [resize_mask(papers[kind][1][row], capsule.detector.size) for kind, row in batch]
        images += [Shown(replace(good[row], kind=kind, masks=()), "exam") for kind, row in batch]
        groups += [row for _, row in batch]
    return Both(images, scores, maps, masks, np.array(groups))


def readable(records: Iterable[ImageRecord], limits: ImageLimits) -> list[ImageRecord]:
    """Those that can be decoded: a production image may be anything."""
    found = []
    for record in records:
        try:
            read_image(record.path, limits)
        except UserError:
            continue
        found.append(record)
    return found


def _arrays(sizes: Sequence[int], count: int, scratch: Path) -> tuple[Pair, Pair, Pair]:
    """Room for scores, maps and masks of champion and challenger."""
    names = ("champion", "challenger")
    maps = [new_array(scratch / f"{n}.maps.npy", (count, s, s), "float32") for n, s in zip(names, sizes, strict=True)]
    masks = [new_array(scratch / f"{n}.masks.npy", (count, s, s), "bool") for n, s in zip(names, sizes, strict=True)]
    return (np.zeros(count, np.float32), np.zeros(count, np.float32)), _pair(maps), _pair(masks)


def _pixels(records: Sequence[ImageRecord], size: int, limits: ImageLimits) -> list[np.ndarray]:
    """Each image as uint8 (size, size, 3), resampled one by one."""
    return [read_square(record.path, size, limits) for record in records]


def _pair(values: Iterable[np.ndarray]) -> Pair:
    champion, challenger = values
    return champion, challenger
