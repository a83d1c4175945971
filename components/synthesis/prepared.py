"""The prepared category: what `synthesize` writes and `train` and `fit` read; arrays are mapped, not loaded.

`images.npy` holds the good images, `exam_images.npy` and `exam_masks.npy` the synthetic samples of the exam,
`prepared.json` says what each row is.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from components.foundation.files import read_json, write_json

FIT, HELD_OUT = "fit", "held-out"


@dataclass(frozen=True)
class Prepared:
    """Good images of one category at the network's size, with the synthetic exam.

    Attributes:
        category: name.
        seed: of the run, from which everything random in this preparation came.
        data_digest: identity of the raw good images, from validation.
        names: (N,) paths inside the category.
        held_out: (N,) bool; held-out images serve the exam and the threshold and are never learned from.
        images: (N, S, S, 3) uint8.
        exam_source: (M,) indices into `images`: the good images which sit the exam.
        exam_kinds: names of the kinds of synthetic samples, K of them.
        exam_images: (K, M, S, S, 3) uint8: one sample of each kind from each source.
        exam_masks: (K, M, S, S) bool: what was changed.
        exam_strengths: (M,) strength of the samples from each source, for the kinds that have one
            (`components.synthesis.exam_kinds`); empty where there are none.
        bits: how deep grey images became 8 bits (`components.images.depth`).
    """

    category: str
    seed: int
    data_digest: str
    names: tuple[str, ...]
    held_out: np.ndarray
    images: np.ndarray
    exam_source: np.ndarray
    exam_kinds: tuple[str, ...]
    exam_images: np.ndarray
    exam_masks: np.ndarray
    bits: int = 16
    exam_strengths: np.ndarray = field(default_factory=lambda: np.zeros(0))

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
    names: Sequence[str],
    held_out: np.ndarray,
    exam_source: np.ndarray,
    exam_kinds: Sequence[str],
    exam_strengths: Sequence[float] = (),
    bits: int = 16,
) -> None:
    """Write `prepared.json` beside the arrays."""
    index = {
        "category": category,
        "seed": seed,
        "data_digest": data_digest,
        "images": [
            {"name": name, "role": HELD_OUT if held else FIT} for name, held in zip(names, held_out, strict=True)
        ],
        "exam_source": exam_source.tolist(),
        "exam_kinds": list(exam_kinds),
        "exam_strengths": list(exam_strengths),
        "bits": bits,
    }
    write_json(folder / "prepared.json", index)


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
        names=tuple(row["name"] for row in index["images"]),
        held_out=np.array([row["role"] == HELD_OUT for row in index["images"]]),
        exam_source=np.array(index["exam_source"], dtype=np.int64),
        exam_kinds=tuple(index["exam_kinds"]),
        exam_strengths=np.array(index["exam_strengths"], dtype=np.float64),
        bits=index["bits"],
        **arrays,
    )


def batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of `rows` with at most `size` elements."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
