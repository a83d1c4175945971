"""The prepared category: what `synthesize` writes and `train` and `fit` read; arrays are mapped, not loaded.

`images.npy` holds the good images in the order of their digests, `exam_images.npy` and `exam_masks.npy` the synthetic
samples of the exam; `roles.json` says who each image is and what it is for (`components.images.identity`),
`prepared.json` the rest. No name of a file is in it, so that renamed files give the same bytes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from components.foundation.files import read_json, write_json
from components.images.identity import Roles, fold_numbers

ROLES = "roles.json"


@dataclass(frozen=True)
class Prepared:
    """Good images of one category at the network's size, with the synthetic exam.

    Attributes:
        category: name.
        seed: of the run, from which everything random in this preparation came.
        data_digest: identity of the raw good images, from validation.
        roles: of the N images, in the order of their digests; held-out ones serve the exam and the threshold.
        images: (N, S, S, 3) uint8.
        exam_source: (M,) indices into `images`: the good images which sit the exam.
        exam_kinds: names of the kinds of synthetic samples, K of them.
        exam_images: (K, M, S, S, 3) uint8: one sample of each kind from each source.
        exam_masks: (K, M, S, S) bool: what was changed.
        exam_others: (K, M) with which of the exam's images each sample was made; its own where with none.
        exam_strengths: (M,) strength of the samples from each source, for the kinds that have one
            (`components.synthesis.exam_kinds`); empty where there are none.
        bits: how deep grey images became 8 bits (`components.images.depth`).
    """

    category: str
    seed: int
    data_digest: str
    roles: Roles
    images: np.ndarray
    exam_source: np.ndarray
    exam_kinds: tuple[str, ...]
    exam_images: np.ndarray
    exam_masks: np.ndarray
    bits: int = 16
    exam_others: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    exam_strengths: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def held_out(self) -> np.ndarray:
        """(N,) bool: images which are never learned from."""
        return self.roles.is_held_out

    @property
    def keys(self) -> np.ndarray:
        """(N,) int64: as what each image takes part in random draws."""
        return self.roles.keys

    @cached_property
    def groups(self) -> np.ndarray:
        """(N,) str: equal for near-duplicates."""
        return np.array(self.roles.groups)

    def folds_of(self, rows: np.ndarray, folds: int, seed: int) -> np.ndarray:
        """The fold (n,) of each of the images `rows` (n,), see `identity.fold_numbers`."""
        return fold_numbers([self.roles.digests[row] for row in rows], self.groups[rows].tolist(), folds, seed)

    def shown_by(self, kind: int, places: np.ndarray) -> list[str]:
        """Digests, with spaces in between, of the images that the samples of a kind at `places` (n,) show."""
        digests = [self.roles.digests[row] for row in self.exam_source]
        others = self.exam_others[kind] if len(self.exam_others) else np.arange(len(digests))
        return [" ".join(dict.fromkeys([digests[place], digests[others[place]]])) for place in places]

    @property
    def fit_rows(self) -> np.ndarray:
        """Indices of the images to learn from."""
        return np.flatnonzero(~self.held_out)

    @property
    def held_out_rows(self) -> np.ndarray:
        """Indices of the images to choose and to set thresholds by."""
        return np.flatnonzero(self.held_out)


def new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A .npy file mapped for writing, so that a category of any size is written in constant memory."""
    array = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("r+b") as file:  # a full disk is an OSError here, but would kill the process at a mapped page
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def write_index(
    folder: Path,
    *,
    category: str,
    seed: int,
    data_digest: str,
    roles: Roles,
    exam_source: np.ndarray,
    exam_kinds: Sequence[str],
    exam_others: Sequence[Sequence[int]] = (),
    exam_strengths: Sequence[float] = (),
    bits: int = 16,
) -> None:
    """Write `prepared.json` and `roles.json` beside the arrays."""
    index = {
        "category": category,
        "seed": seed,
        "data_digest": data_digest,
        "exam_source": exam_source.tolist(),
        "exam_kinds": list(exam_kinds),
        "exam_others": list(exam_others),
        "exam_strengths": list(exam_strengths),
        "bits": bits,
    }
    write_json(folder / "prepared.json", index)
    write_json(folder / ROLES, roles.to_json())


def load_prepared(folder: Path) -> Prepared:
    """Open what `synthesize` wrote; the arrays stay on disk until rows are asked for."""
    index = read_json(folder / "prepared.json")
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("images", "exam_images", "exam_masks")
    }
    return Prepared(
        category=index["category"],
        seed=index["seed"],
        data_digest=index["data_digest"],
        roles=Roles.from_json(read_json(folder / ROLES)),
        exam_source=np.array(index["exam_source"], dtype=np.int64),
        exam_kinds=tuple(index["exam_kinds"]),
        exam_others=np.array(index.get("exam_others", []), dtype=np.int64),
        exam_strengths=np.array(index["exam_strengths"], dtype=np.float64),
        bits=index["bits"],
        **arrays,
    )


def batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `rows` with at most `size` elements."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
