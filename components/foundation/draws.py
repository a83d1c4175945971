"""Random numbers that belong to a sample, not to a moment: a stateless hash of (seed, category, purpose, epoch, index).

A sample's draws are the same in any batch, on any worker and in any order, and a whole batch is one vectorised call.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniform(seed: int, stream: Sequence[str], epoch: ArrayLike, index: ArrayLike, count: int) -> NDArray[np.float64]:
    """Draw `count` uniform numbers for each sample with a counter-based SplitMix64 hash.

    seed: any integer. stream: names that keep independent uses apart, such as ("bottle", "scar").
    epoch, index: integers, one per sample, broadcast against each other to (N,).
    Returns float64 (N, count) in [0, 1). Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014 (the output function is Stafford's variant 13).
    """
    epochs, indices = np.broadcast_arrays(_as_uint64(epoch), _as_uint64(index))
    state = _mix(_mix(_stream_key(seed, stream) + epochs) + indices)  # (N,)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(state[:, None] + steps)  # (N, count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class SampleKeys:
    """Who each sample of a batch is: all that its random draws depend on.

    seed: of the run. category: name of the product. epoch, index: int64 (N,), the pass over the data and the sample
    within it: the key of the image that it is made of (`components.images.identity.keys_of`), so that other images and
    their order do not matter. Raises ValueError unless epoch and index are integers of one length.
    """

    seed: int
    category: str
    epoch: NDArray[np.int64]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.epoch.ndim != 1 or self.epoch.shape != self.index.shape:
            raise ValueError(f"epoch {self.epoch.shape} and index {self.index.shape} must both have shape (N,)")
        if self.epoch.dtype.kind not in "iu" or self.index.dtype.kind not in "iu":
            raise ValueError("epoch and index must be integers")

    @classmethod
    def of(cls, seed: int, category: str, epoch: int, index: ArrayLike) -> "SampleKeys":
        """Keys of the samples `index` (N,) within one epoch."""
        indices = np.asarray(index, dtype=np.int64)
        return cls(seed, category, np.full(indices.shape, epoch, dtype=np.int64), indices)

    @classmethod
    def cycled(cls, seed: int, category: str, epoch: int, index: ArrayLike, count: int) -> "SampleKeys":
        """Keys of `count` samples of the images `index` (N,) in turn, in pass after pass from `epoch` on."""
        numbers, indices = np.arange(count), np.asarray(index, dtype=np.int64)
        return cls(seed, category, epoch + numbers // len(indices), indices[numbers % len(indices)])

    def __len__(self) -> int:
        return len(self.index)

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """Draw float64 (N, count) in [0, 1); different purposes are independent."""
        return uniform(self.seed, (self.category, purpose), self.epoch, self.index, count)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "SampleKeys":
        return SampleKeys(self.seed, self.category, self.epoch[rows], self.index[rows])

    def choose(self, purpose: str, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each sample one of the images with the keys `candidates` (M,), another than its own: positions (N,).

        Uniform over them, and stable: each candidate has a weight of its own for each sample and the highest wins, so
        that one more candidate changes the choice of about one sample in M + 1, and one that goes only of those that
        had chosen it (highest random weight: Thaler and Ravishankar, "Using name-based mappings to increase hit
        rates", IEEE/ACM Transactions on Networking, 1998). The image itself where there is no other.
        """
        passes = _mix(_stream_key(self.seed, (self.category, purpose)) + _as_uint64(self.epoch))
        state = _mix(passes + _as_uint64(self.index))  # (N,)
        salt = _mix(_as_uint64(candidates) + _GOLDEN)  # (M,)
        chosen = np.empty(len(self), np.int64)
        for row, own in enumerate(state):  # not all at once: there may be many candidates
            weights = _mix(own + salt)
            weights[candidates == self.index[row]] = 0
            chosen[row] = weights.argmax()
        return chosen


def random_order(seed: int, stream: Sequence[str], epoch: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """A permutation (N,) of images that are given by their keys (N,): one more goes in between, the others stay."""
    return np.lexsort((keys, uniform(seed, stream, epoch, keys, 1)[:, 0]))


def pick(draws: NDArray[np.float64], low: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
    """Turn uniform draws into uniform integers, both ends included; low and high broadcast against draws."""
    low = np.asarray(low, dtype=np.int64)
    return low + np.floor(draws * (np.asarray(high, dtype=np.int64) - low + 1)).astype(np.int64)


def spread(draws: NDArray[np.float64], low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """Turn uniform draws into uniform real numbers between low and high, which broadcast against draws."""
    low = np.asarray(low, dtype=np.float64)
    return low + draws * (np.asarray(high, dtype=np.float64) - low)


def _as_uint64(values: ArrayLike) -> NDArray[np.uint64]:
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).view(np.uint64)


def _stream_key(seed: int, stream: Sequence[str]) -> np.uint64:
    """Hash the parts, each with its length, so that ("ab", "c") and ("a", "bc") differ."""
    parts = [str(seed), *stream]
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function; arrays wrap around silently, as they must."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))
