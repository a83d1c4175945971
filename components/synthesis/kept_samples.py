"""Samples of the exam that were made before: by all that they depend on, so that only those of new images are made.

Of a sample is kept what differs from its good image, as a rectangle: a twentieth of the whole on average.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import components.foundation.draws as draws_module
import components.images.tensors as tensors_module
from components.foundation.byte_cache import ByteCache
from components.foundation.draws import SampleKeys
from components.foundation.files import digest_of, sha256_file
from components.foundation.libraries import library_versions
from components.foundation.processor import processor

_BOX = np.dtype("<u4")


class KeptSamples:
    """The samples of one exam, kept from run to run; those of an image are forgotten by the digest of its file.

    good: uint8 (M, S, S, 3), the images that sit the exam. digests: of their files. keys: (M,) of the samples.
    settings: by kind a list (M,) of what they depend on besides, as JSON has it.
    """

    def __init__(
        self,
        store: ByteCache,
        good: np.ndarray,
        digests: Sequence[str],
        keys: SampleKeys,
        settings: Mapping[str, Sequence[Any]],
    ) -> None:
        self.store, self.good, self.digests, self.settings = store, good, digests, settings
        self._pixels = [hashlib.sha256(image.data).hexdigest() for image in good]
        self._origin = digest_of([_code(), library_versions(), processor(), keys.seed, keys.category])
        self._numbers = list(zip(keys.epoch.tolist(), keys.index.tolist(), strict=True))

    def fill(self, kind: str, others: np.ndarray, samples: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Fill in the samples (M, S, S, 3) uint8 and masks (M, S, S) bool that are there; the numbers of the others.

        others: int64 (M,) with which of the images each sample is made.
        """
        names = self._names(kind, others)
        found = self.store.read(names)
        missing = []
        for number, name in enumerate(names):
            if name in found:
                samples[number], masks[number] = unpack(self.good[number], found[name])
            else:
                missing.append(number)
        return np.array(missing, np.int64)

    def keep(self, kind: str, others: np.ndarray, numbers: np.ndarray, samples: np.ndarray, masks: np.ndarray) -> None:
        """Keep the samples of these numbers, each with the images that it shows."""
        names, values = self._names(kind, others), {}
        for number in numbers.tolist():
            owners = dict.fromkeys([self.digests[number], self.digests[others[number]]])
            values[names[number]] = (" ".join(owners), pack(self.good[number], samples[number], masks[number]))
        self.store.write(values)

    def _names(self, kind: str, others: np.ndarray) -> list[str]:
        return [
            digest_of([self._origin, kind, *self._numbers[number], pixels, self._pixels[other], asked])
            for number, (pixels, other, asked) in enumerate(
                zip(self._pixels, others.tolist(), self.settings[kind], strict=True)
            )
        ]


def pack(good: np.ndarray, sample: np.ndarray, mask: np.ndarray) -> bytes:
    """What turns a good image uint8 (S, S, 3) into its sample uint8 (S, S, 3) with its mask bool (S, S)."""
    changed = mask | (sample != good).any(axis=-1)  # (S, S)
    sides = [np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0)]
    box = [end for side in sides for end in ((side[0], side[-1] + 1) if side.size else (0, 0))]
    window = np.s_[box[0] : box[1], box[2] : box[3]]
    return np.array(box, _BOX).tobytes() + sample[window].tobytes() + np.packbits(mask[window]).tobytes()


def unpack(good: np.ndarray, packed: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The sample uint8 (S, S, 3) and mask bool (S, S) that `pack` took.

    >>> good, sample, mask = (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), bool))
    >>> sample[1, 2], mask[1, 2] = 9, True
    >>> packed = pack(good, sample, mask)
    >>> [bool((one == other).all()) for one, other in zip(unpack(good, packed), (sample, mask), strict=True)]
    [True, True]
    """
    top, bottom, left, right = np.frombuffer(packed, _BOX, 4).tolist()
    shape, start = (bottom - top, right - left), 4 * _BOX.itemsize
    count = shape[0] * shape[1]
    sample, mask = good.copy(), np.zeros(good.shape[:2], bool)
    pixels = np.frombuffer(packed, np.uint8, 3 * count, start)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8, offset=start + 3 * count), count=count)
    sample[top:bottom, left:right] = pixels.reshape(*shape, 3)
    mask[top:bottom, left:right] = bits.reshape(shape)
    return sample, mask


@cache
def _code() -> str:
    """One digest of the code by which samples are made."""
    modules = [*sorted(Path(__file__).parent.glob("*.py")), draws_module.__file__, tensors_module.__file__]
    return digest_of([sha256_file(Path(str(module))) for module in modules])
