"""Near-duplicates by perceptual hash: the same photograph, encoded anew, brightened or moved by a pixel.

The classical hash (the signs of 8 × 8 low frequencies of the discrete cosine transform; Zauner, "Implementation and
benchmarking of perceptual image hash functions", 2010) cannot tell two parts of one product from each other, because
an aligned product looks the same at low frequencies. This one keeps 48 × 48 frequencies of 256 × 256 pixels, and undoes
movements by comparing the nine hashes of the image moved by -1, 0, 1 pixels in both directions.

Measured on 256 px images, as the share of differing bits (python -m benchmarks.near_duplicates):

                                     bottle         screw          magnetic tile
    the same image as JPEG 70        at most .016   at most .036   at most .079
    the same, moved by 1 px          .000           .005           .058
    the same, JPEG 70, 1 px, +5 %    .026           .037           .087
    nearest different images         .056, .086     .018, .101     .025, .027

The pairs at .056 and .018 are two shots of one bottle and of one screw; magnetic tile holds many near-duplicates. Two
different screws can have the same 8 × 8 bits. Images that differ by at most .05 are called near-duplicates
(ingest.near_distance in params.yaml).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SIDE = 256
FREQUENCIES = 48
BITS = FREQUENCIES * FREQUENCIES  # the first, of the mean, is always zero
BYTES = BITS // 8
MOVES = (0, -1, 1)  # pixels of 256
COARSE = 0.25  # without undoing movements, the same image moved by one pixel differs by at most 0.23


def image_hashes(image: np.ndarray) -> np.ndarray:
    """The hashes of (H, W, 3) uint8 as it is, and moved: (9, 288) uint8, packed bits; the first is the image's own."""
    return moved_hashes(small_grey(image))


def small_grey(image: np.ndarray) -> np.ndarray:
    """What the hashes are made of: the luma of (H, W, 3) uint8 at 256 × 256 pixels, (256, 256) uint8."""
    luma = Image.fromarray(image).convert("L")
    resampling = Image.Resampling.BOX if min(luma.size) >= SIDE else Image.Resampling.LANCZOS
    return np.asarray(luma if luma.size == (SIDE, SIDE) else luma.resize((SIDE, SIDE), resampling))


def own_hash(grey: np.ndarray) -> np.ndarray:
    """The hash of (256, 256) uint8 as it is: (288,) uint8, packed bits. A ninth of the work of `moved_hashes`."""
    own = _BASES[:FREQUENCIES]
    return _packed((own @ _centred(grey) @ own.T).reshape(1, BITS))[0]


def moved_hashes(grey: np.ndarray) -> np.ndarray:
    """The hashes of (256, 256) uint8 as it is, and moved: (9, 288) uint8; the first is `own_hash`."""
    coefficients = _BASES @ _centred(grey) @ _BASES.T  # (3 · 48, 3 · 48): each row move with each column move
    moves = len(MOVES)
    blocks = coefficients.reshape(moves, FREQUENCIES, moves, FREQUENCIES).transpose(0, 2, 1, 3)  # (3, 3, 48, 48)
    return _packed(blocks.reshape(moves * moves, BITS))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Share of differing bits, in [0, 1], between the nine hashes of one image and the own hash of another, at best."""
    return float(_shares(one ^ other).min())


@dataclass
class HashIndex:
    """The hashes of known images, by name."""

    names: list[str] = field(default_factory=list)
    _words: np.ndarray = field(default_factory=lambda: np.empty((BYTES // 8, 64), np.uint64))  # one hash a column

    def add(self, name: str, own: np.ndarray) -> None:
        """Add an image's own hash, (288,) uint8."""
        if len(self.names) == self._words.shape[1]:
            self._words = np.concatenate([self._words, np.empty_like(self._words)], axis=1)
        self._words[:, len(self.names)] = own.view(np.uint64)
        self.names.append(name)

    def nearest(self, own: np.ndarray, grey: Callable[[], np.ndarray]) -> tuple[str, float] | None:
        """The known image nearest to one with this hash, and its distance; None where none is near.

        grey: gives the image's `small_grey`; called where its own hash alone leaves some that may be near.
        """
        close = self._close(own)
        if not close.size:
            return None
        distances = self._distances(close, grey())
        best = int(distances.argmin())
        return self.names[close[best]], float(distances[best])

    def within(self, most: float, own: np.ndarray, grey: Callable[[], np.ndarray], among: np.ndarray) -> np.ndarray:
        """Places (M,) of the known images whose distance is at most `most`.

        own, grey: as of `nearest`. among: (N,) bool, in the order of adding: which of them are asked for.
        """
        close = self._close(own)
        close = close[among[close]]
        return close[self._distances(close, grey()) <= most] if close.size else close

    def _distances(self, places: np.ndarray, grey: np.ndarray) -> np.ndarray:
        """Distances (C,) of known images from one, by its `small_grey`."""
        known = np.ascontiguousarray(self._words[:, places].T).view(np.uint8)  # (C, 288)
        return _shares(known[:, None] ^ moved_hashes(grey)[None]).min(axis=1)  # (C, 9, 288) -> (C,)

    def _close(self, own: np.ndarray) -> np.ndarray:
        """Places of the known images that may show the same as one with this hash: (C,) int64."""
        differing = np.bitwise_count(self._words[:, : len(self.names)] ^ own.view(np.uint64)[:, None])  # (36, N)
        return np.flatnonzero(differing.sum(axis=0, dtype=np.uint16) <= COARSE * BITS)


def _centred(grey: np.ndarray) -> np.ndarray:
    values = grey.astype(np.float32)
    return values - values.mean()


def _packed(coefficients: np.ndarray) -> np.ndarray:
    """Signs of (N, 2304) coefficients as packed bits, (N, 288) uint8; that of the mean is left out."""
    bits = coefficients > 0
    bits[:, 0] = False
    return np.packbits(bits, axis=1)


def _shares(differing: np.ndarray) -> np.ndarray:
    """Share of bits set: (..., 288) uint8 -> (...)."""
    return np.bitwise_count(np.ascontiguousarray(differing).view(np.uint64)).sum(axis=-1) / BITS


def _moved_bases() -> np.ndarray:
    """Cosine bases (DCT-II), each moved with its edge pixels repeated: (3 · 48, 256) float32."""
    frequency, place = np.arange(FREQUENCIES)[:, None], np.arange(SIDE)[None]
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))  # (48, 256)
    moved = []
    for move in MOVES:
        source = np.clip(np.arange(SIDE) - move, 0, SIDE - 1)  # the pixel that each place shows after the move
        moved.append(cosines @ (source[:, None] == np.arange(SIDE)))
    return np.concatenate(moved).astype(np.float32)


_BASES = _moved_bases()
