"""Central moments of features up to the fourth order: merged, unmerged, and accumulated in blocks of bounded memory.

Count, mean, scatter and two higher moments are all that a Gaussian with Ledoit–Wolf shrinkage is computed from, and
they can be merged and unmerged exactly, so that no observation need be kept.

Source: pairwise merging of moments, Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979), here carried to the fourth order.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from components.foundation.blas import blas_threads, one_blas_thread

# About so much memory do temporary arrays of one thread take at a time, here and where features are scored.
CHUNK_BYTES = 1 << 24


@dataclass
class Moments:
    """Central moments of `count` observations for each of G groups (locations, or one), all float64.

    With d = x - mean: mean (G, D); scatter (G, D, D), the sum of d dᵀ; third (G, D), the sum of ‖d‖² d;
    fourth (G,), the sum of ‖d‖⁴. Where `scatter_summed`, the scatter is the sum over groups, (1, D, D), and third
    and fourth are empty.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray
    third: np.ndarray
    fourth: np.ndarray
    scatter_summed: bool = False

    @classmethod
    def empty(cls, groups: int, dimensions: int, scatter_summed: bool = False) -> Self:
        """Moments of no observation."""
        spreads = 1 if scatter_summed else groups
        higher = 0 if scatter_summed else groups
        scatter = np.zeros((spreads, dimensions, dimensions))
        third, fourth = np.zeros((higher, dimensions)), np.zeros(higher)
        return cls(0, np.zeros((groups, dimensions)), scatter, third, fourth, scatter_summed)

    def copy(self) -> "Moments":
        """A copy that shares no memory."""
        arrays = (self.mean.copy(), self.scatter.copy(), self.third.copy(), self.fourth.copy())
        return Moments(self.count, *arrays, self.scatter_summed)

    def of_groups(self, groups: slice) -> "Moments":
        """A view of some groups: changing its arrays changes these; a summed scatter is viewed whole."""
        scatter = self.scatter if self.scatter_summed else self.scatter[groups]
        arrays = (self.mean[groups], scatter, self.third[groups], self.fourth[groups])
        return Moments(self.count, *arrays, self.scatter_summed)


def central_moments(x: np.ndarray, scatter_summed: bool = False) -> Moments:
    """Moments of x (N, G, D), N >= 1, in two passes over a float64 copy.

    >>> moments = central_moments(np.array([[[1.0]], [[3.0]], [[8.0]]]))  # one group of one feature, mean 4
    >>> moments.mean.item(), moments.scatter.item(), moments.third.item(), moments.fourth.item()
    (4.0, 26.0, 36.0, 338.0)
    """
    count, groups, dimensions = x.shape
    d = np.empty((groups, count, dimensions))  # (G, N, D)
    d[...] = x.transpose(1, 0, 2)
    mean = d.mean(axis=1)  # (G, D)
    d -= mean[:, None]
    if scatter_summed:
        flat = d.reshape(-1, dimensions)
        return Moments(count, mean, (flat.T @ flat)[None], np.empty((0, dimensions)), np.empty(0), True)
    squares = np.vecdot(d, d)  # ‖d‖²: (G, N)
    scatter = np.stack([g.T @ g for g in d])  # Σ d dᵀ: (G, D, D)
    third = np.matmul(squares[:, None], d)[:, 0]  # Σ ‖d‖² d: (G, D)
    return Moments(count, mean, scatter, third, np.vecdot(squares, squares))


def combine(total: Moments, other: Moments, sign: Literal[1, -1]) -> None:
    """Merge (sign 1) `other` into `total`, or unmerge (sign -1) it from `total`, in place and exactly.

    Unmerging is exact up to rounding at the scale of what was held before: outliers of r standard deviations leave,
    when they go, errors of about r² (scatter) and r⁴ (fourth) times the float64 epsilon.

    >>> first, second = (central_moments(np.array(x)) for x in ([[[1.0]], [[3.0]]], [[[8.0]]]))
    >>> combine(first, second, 1)
    >>> first.count, first.mean.item(), round(first.scatter.item(), 9)  # as of 1, 3 and 8
    (3, 4.0, 26.0)
    >>> combine(first, second, -1)
    >>> first.count, first.mean.item(), round(first.scatter.item(), 9)
    (2, 2.0, 2.0)
    """
    if total.count == 0 and sign > 0:
        _take_over(total, other)
        return
    count = total.count + sign * other.count
    if count <= 1 and sign < 0:
        _reset_spread(total)
    gap = other.mean - total.mean  # δ: (G, D)
    step = gap * (sign * other.count / count) if count else -total.mean  # new mean = mean + δ n₂ / (n₁ + n₂)
    if count > 1 or sign > 0:
        _combine_higher(total, other, sign, gap, step)
        (np.add if sign > 0 else np.subtract)(total.scatter, other.scatter, out=total.scatter)
        weight = sign * total.count * other.count / count  # S = S₁ + S₂ + δ δᵀ n₁ n₂ / (n₁ + n₂)
        total.scatter += weight * _outer(gap, total.scatter_summed)
    total.mean += step
    total.count = count


def _take_over(total: Moments, other: Moments) -> None:
    """`combine` into nothing; a summed scatter may hold other groups already."""
    total.count = other.count
    total.mean[...], total.third[...], total.fourth[...] = other.mean, other.third, other.fourth
    total.scatter += other.scatter


def _reset_spread(total: Moments) -> None:
    """One observation or none has no spread: leave no rounding residue of what was removed."""
    for moment in (total.scatter, total.third, total.fourth):
        moment[...] = 0


def _combine_higher(total: Moments, other: Moments, sign: int, gap: np.ndarray, step: np.ndarray) -> None:
    """Third and fourth moments about the new mean; needs both scatters as they were."""
    if total.scatter_summed:
        return
    third, fourth = _shifted(total, -step)
    other_third, other_fourth = _shifted(other, gap - step)
    total.third[...] = third + sign * other_third
    total.fourth[...] = fourth + sign * other_fourth


def _shifted(m: Moments, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Third and fourth moments about mean - e, for e (G, D).

    From ‖d + e‖² = ‖d‖² + 2 d·e + ‖e‖², summed with the sum of d zero:
    third + tr(S) e + 2 S e + n ‖e‖² e, and fourth + 4 third·e + 4 eᵀS e + 2 ‖e‖² tr(S) + n ‖e‖⁴.
    """
    square = np.vecdot(e, e)  # (G,)
    trace = np.trace(m.scatter, axis1=1, axis2=2)  # (G,)
    scatter_e = np.matmul(m.scatter, e[..., None])[..., 0]  # (G, D)
    third = m.third + (trace + m.count * square)[:, None] * e + 2 * scatter_e
    fourth = m.fourth + 4 * np.vecdot(m.third, e) + 4 * np.vecdot(e, scatter_e)
    return third, fourth + 2 * square * trace + m.count * square**2


def _outer(gap: np.ndarray, summed: bool) -> np.ndarray:
    """gap gapᵀ for each group (G, D, D), or their sum (1, D, D)."""
    return (gap.T @ gap)[None] if summed else gap[:, :, None] * gap[:, None, :]


def combine_blockwise(total: Moments, other: Moments, sign: Literal[1, -1]) -> None:
    """`combine`, with temporaries of a block of groups only.

    >>> first, second = (central_moments(np.array(x)) for x in ([[[1.0]], [[3.0]]], [[[8.0]]]))
    >>> combine_blockwise(first, second, 1)
    >>> first.count, first.mean.item()
    (3, 4.0)
    """
    if total.scatter_summed:
        combine(total, other, sign)
        return
    blocks = [(total.of_groups(g), other.of_groups(g)) for g in group_blocks(*total.mean.shape)]
    for mine, theirs in blocks:
        combine(mine, theirs, sign)
    total.count += sign * other.count


def accumulate(total: Moments, x: np.ndarray, sign: Literal[1, -1]) -> None:
    """Add or remove x (N, G, D) in place, holding about CHUNK_BYTES of float64 for each thread at a time.

    >>> total = Moments.empty(groups=1, dimensions=1)
    >>> accumulate(total, np.array([[[1.0]], [[3.0]], [[8.0]]]), 1)
    >>> accumulate(total, np.array([[[8.0]]]), -1)
    >>> total.count, round(total.mean.item(), 9)
    (2, 2.0)
    """
    start, count = total.count, total.count
    for groups in group_blocks(*total.mean.shape):
        block = total.of_groups(groups)
        block.count = start
        rows = max(1, CHUNK_BYTES // (8 * block.mean.size))
        for moments in _of_chunks([x[i : i + rows, groups] for i in range(0, len(x), rows)], total.scatter_summed):
            combine(block, moments, sign)
        count = block.count
    total.count = count


def _of_chunks(chunks: Sequence[np.ndarray], scatter_summed: bool) -> Iterator[Moments]:
    """Moments of each chunk in order; as many chunks at a time as BLAS has threads, each with one of them.

    Half of a chunk's time is not BLAS's, so that its threads alone would not share the work.
    """

    def compute(chunk: np.ndarray) -> Moments:
        return central_moments(chunk, scatter_summed)

    threads = blas_threads() if len(chunks) > 1 else 1
    if threads == 1:
        yield from map(compute, chunks)
        return
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(chunks), threads):
            yield from pool.map(compute, chunks[start : start + threads])


def group_blocks(groups: int, dimensions: int) -> Iterator[slice]:
    """Slices of groups whose (D, D) matrices take about CHUNK_BYTES.

    >>> list(group_blocks(groups=3, dimensions=1024))  # a (1024, 1024) matrix of float64 takes 8 MiB
    [slice(0, 2, None), slice(2, 3, None)]
    """
    size = max(1, CHUNK_BYTES // (8 * dimensions**2))
    return (slice(i, min(i + size, groups)) for i in range(0, groups, size))
