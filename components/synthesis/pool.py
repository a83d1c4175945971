"""Samples made ahead by several processes: the same bytes in the same order, whatever the number of processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from components.synthesis.prepared import batches

Made = TypeVar("Made")


def in_order(make: Callable[[int], Made], numbers: Sequence[int], workers: int) -> Iterator[Made]:
    """make(number) for each number, in order; made by `workers` processes, at most two ahead each, or here for 0.

    The processes are forked, so `make` may be any function, and they see what it refers to as it is at the first call.
    """
    loader: DataLoader[Made] = DataLoader(
        _Numbered(make, numbers),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # else torch's global one would move on
    )
    return iter(loader)


def fill_pool(
    outputs: Sequence[np.ndarray],
    make: Callable[[np.ndarray], Sequence[np.ndarray]],
    numbers: np.ndarray,
    batch: int = 16,
    workers: int = 0,
) -> None:
    """Fill the places `numbers`, int64 (n,), of arrays (K, …), of files or in memory, with the samples so numbered.

    make(numbers), numbers: int64 (B,), returns an array (B, …) for each output. As a sample depends on its number
    alone, neither `batch` nor `workers` changes a byte.
    """
    pieces = list(batches(numbers, batch))
    made = in_order(lambda i: make(pieces[i]), range(len(pieces)), workers)
    for piece, arrays in zip(pieces, made, strict=True):
        for output, values in zip(outputs, arrays, strict=True):
            output[piece] = values


class _Numbered(Dataset[Made], Generic[Made]):
    """make(numbers[i]) as torch's loader asks for it."""

    def __init__(self, make: Callable[[int], Made], numbers: Sequence[int]) -> None:
        self.make, self.numbers = make, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Made:
        return self.make(self.numbers[position])


def _as_it_is(made: Made) -> Made:
    return made
