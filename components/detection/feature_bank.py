"""Features of a category's good images, each made once: the exam, every candidate and the last fit share them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from components.detection.copies import copies_of
from components.detection.detector import BATCH, Composition, CopyKind, levels_of
from components.detection.extraction import Extractor, Features, Piece
from components.foundation.byte_cache import ByteCache
from components.foundation.draws import SampleKeys
from components.images.tensors import as_tensor
from components.learning.backbone import HEAD, Encoder
from components.synthesis.prepared import Prepared, batches

HELD_MOST = 1000  # good images whose features are kept in memory: half a GiB at 256 px


class FeatureBank:
    """The features that the compositions of one family need of one encoder.

    Of at most HELD_MOST good images they are kept once they were made; of more they are made whenever they are asked
    for, so that memory stays bounded. A level finer than the family's grid is averaged to it, as `arrange` would.

    Attributes:
        name: of the encoder, as compositions call it.
        encoder, prepared: whose features of which images.
        levels: those that are made.
        keeps: whether features are kept in memory.

    store: where they are kept from run to run, if they are. used: the compositions of the family that are asked for,
    where that is known; levels that none of them needs are not made, all else is the same.
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        prepared: Prepared,
        family: Sequence[Composition],
        store: ByteCache | None = None,
        used: Sequence[Composition] = (),
    ) -> None:
        self.name = name
        self.encoder = encoder
        self.prepared = prepared
        self.levels = levels_of(name, used or family)
        self.keeps = few_images(prepared)
        self._extractor = Extractor(encoder, self.levels, grid_of(family), store)
        self._kept: dict[tuple[CopyKind | None, int], _Kept] = {}

    def of(self, rows: np.ndarray) -> Features:
        """Of good images `rows`: level to (n, C, h, w), or (n, C) for "head"."""
        made = self._take(None, 1, rows)
        return {level: value[:, 0] for level, value in made.items()}

    def of_copies(self, rows: np.ndarray, count: int, kind: CopyKind) -> Features:
        """The same of `count` copies of each of these images, all first copies first."""
        made = self._take(kind, count, rows)
        return {level: value.transpose(0, 1).flatten(0, 1) for level, value in made.items()}

    def of_samples(self, kind: int, rows: np.ndarray) -> Features:
        """Of the exam's samples of kind number `kind` from its sources `rows`; they are never kept in memory."""
        return self._extracted(self.prepared.exam_images[kind], rows, self.prepared.shown_by(kind, rows))

    def of_all_samples(self, rows: np.ndarray) -> Features:
        """The same of all kinds of samples, those of one kind together: level to (K · n, C, …)."""
        kinds, images = len(self.prepared.exam_kinds), self.prepared.exam_images
        pieces = (
            (np.ascontiguousarray(images[kind][rows]), self.prepared.shown_by(kind, rows)) for kind in range(kinds)
        )
        return self._extractor.features(pieces, kinds * len(rows))

    def _take(self, kind: CopyKind | None, count: int, rows: np.ndarray) -> Features:
        """Level to (n, count, C, …): images themselves where `kind` is None, else copies of them."""

        def make(missing: np.ndarray) -> Features:
            if kind is None:
                made = self._extracted(self.prepared.images, missing, self._digests(missing))
                return {level: value[:, None] for level, value in made.items()}
            return self._copies(missing, count, kind)

        if not self.keeps:
            return make(rows)
        kept = self._kept.setdefault((kind, count), _Kept(np.zeros(len(self.prepared.images), bool)))
        return kept.take(rows, make)

    def _extracted(self, images: np.ndarray, rows: np.ndarray, owners: Sequence[str]) -> Features:
        """Features of `images[rows]` (uint8 (N, S, S, 3), may be mapped from disk); owners: (n,) whose they are."""
        places = batches(np.arange(len(rows)), BATCH)
        pieces = ((np.ascontiguousarray(images[rows[own]]), [owners[place] for place in own]) for own in places)
        return self._extractor.features(pieces, len(rows))

    def _copies(self, rows: np.ndarray, count: int, kind: CopyKind) -> Features:
        """Level to (n, count, C, …) of the copies of good images `rows`."""
        made = self._extractor.features(self._copied(rows, count, kind), len(rows) * count)
        return {level: value.unflatten(0, (-1, count)) for level, value in made.items()}

    def _copied(self, rows: np.ndarray, count: int, kind: CopyKind) -> Iterator[Piece]:
        """The copies of each image together, a few images at a time."""
        for own in batches(rows, max(1, BATCH // count)):
            images = as_tensor(np.ascontiguousarray(self.prepared.images[own]))
            keys = SampleKeys.of(self.prepared.seed, self.prepared.category, 0, self.prepared.keys[own])
            copies = copies_of(images, keys, count, kind).unflatten(0, (count, -1))  # (count, b, 3, S, S)
            pixels = copies.transpose(0, 1).flatten(0, 1).permute(0, 2, 3, 1).contiguous()  # (b · count, S, S, 3)
            yield pixels.numpy(), np.repeat(self._digests(own), count).tolist()

    def _digests(self, rows: np.ndarray) -> list[str]:
        """Of good images `rows`."""
        return [self.prepared.roles.digests[row] for row in rows]


def grid_of(family: Sequence[Composition]) -> int:
    """The finest grid that the family's compositions look at features on; 0 where one looks at them as they are."""
    as_they_are = [c for c in family if c.smooth > 1 or (not c.is_dense and set(c.levels) != {HEAD})]
    return 0 if as_they_are else max((c.grid for c in family), default=0)


def few_images(prepared: Prepared) -> bool:
    """Whether the features of all good images may be held in memory."""
    return len(prepared.held_out) <= HELD_MOST


@dataclass
class _Kept:
    """Features by row; of rows that were never asked for, the memory is never touched."""

    present: np.ndarray  # (N,) bool
    values: Features = field(default_factory=dict)

    def take(self, rows: np.ndarray, make: Callable[[np.ndarray], Features]) -> Features:
        """Features of `rows`; `make` is called for those that are not there."""
        missing = rows[~self.present[rows]]
        if len(missing):
            for level, made in make(missing).items():
                if level not in self.values:
                    self.values[level] = torch.empty(len(self.present), *made.shape[1:], dtype=made.dtype)
                self.values[level][missing] = made
            self.present[missing] = True
        return {level: value[rows] for level, value in self.values.items()}
