"""Rank filters of small neighbourhoods, exact and fast: the median over a disk of radius 5, and of binary squares.

The disk median is a selection network: a fixed list of `minimum` and `maximum` operations on whole planes, one plane
per place in a sorted list. Rows of the disk are sorted once and reused for all rows of the image (a shift), equal
groups of rows are merged once, and every operation that the median does not need is dropped from the list.
Sources: Batcher, "Sorting networks and their applications", AFIPS 1968 (odd-even merge); Adams, "Fast median filters
using separable sorting networks", SIGGRAPH 2021 (sharing of sorted parts).
"""

from functools import cache, lru_cache, reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RADIUS = 5
_HALF_WIDTHS = {0: 5, 1: 4, 2: 4, 3: 4, 4: 3, 5: 0}  # of the disk's rows: the largest x with x² + y² ≤ 25
_ACROSS = np.arange(-RADIUS, RADIUS + 1)
_DISK = _ACROSS**2 + _ACROSS[:, None] ** 2 <= RADIUS**2
_BYTE = 255  # the largest
_FEW = 256  # pixels that are looked at one by one sooner than the network runs
_MOST_IN_BYTES = 4 * _BYTE  # ranks; more are worked on as they are
_STRIP_PIXELS = 1 << 17  # bounds the memory: about sixty planes of a strip exist at a time


def disk_median(values: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Median over a disk of radius 5 (81 pixels); the image goes on beyond its border with its nearest pixel.

    values: integers (H, W) in 0–65535. Returns uint16 (H, W), bit-equal to
    `skimage.filters.median(values, skimage.morphology.disk(5))`. Where at most 40 of the 81 pixels can differ from
    zero the median is zero, so only the bounding box of the pixels that are not zero is worked on.
    """
    median = np.zeros(values.shape, np.uint16)
    box = bounding_box(values)
    if box is not None:
        median[box] = _median_of_box(_padded(values, box))
    return median


def box_median(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Median of a (H, W) mask over a square of odd side `size` (at most 15): the majority of size² pixels.

    The mask goes on beyond its border with its nearest pixel; equal to `cv2.medianBlur` of the mask as 0 and 1.
    """
    rows, columns = (_held_at_ends(side, size // 2) for side in mask.shape)
    counts = mask.view(np.uint8).take(rows, axis=0).take(columns, axis=1)  # (H + size - 1, W + size - 1)
    counts = _sliding_sum(counts, size)
    return np.greater(_sliding_sum(counts.T, size).T, size * size // 2)


def bounding_box(values: NDArray) -> tuple[slice, slice] | None:
    """The smallest rows and columns of a (H, W) array that hold every element that is not zero; None if all are."""
    rows = np.nonzero(values.any(axis=1))[0]
    if len(rows) == 0:
        return None
    columns = np.nonzero(values[rows[0] : rows[-1] + 1].any(axis=0))[0]
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@lru_cache(maxsize=256)
def _held_at_ends(side: int, radius: int) -> NDArray[np.intp]:
    """Indices -radius … side - 1 + radius, held at the first and the last."""
    return np.minimum(np.maximum(np.arange(-radius, side + radius), 0), side - 1)


def _sliding_sum(counts: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Sum of `size` neighbouring rows, by the binary digits of `size`: a few additions instead of `size`."""
    length = len(counts) - size + 1
    total, taken, power, run = None, 0, 1, counts
    while taken < size:
        if size & power:
            part = run[taken : taken + length]
            total = part if total is None else total + part
            taken += power
        run = run[:-power] + run[power:]
        power *= 2
    assert total is not None
    return np.asarray(total)


def _padded(values: NDArray[np.integer], box: tuple[slice, slice]) -> NDArray[np.integer]:
    """The box with a margin of 5: zeros inside the image, copies of the border pixel beyond the image."""
    beyond = tuple(
        (RADIUS if side.start == 0 else 0, RADIUS if side.stop == length else 0)
        for side, length in zip(box, values.shape, strict=True)
    )
    part = values[box]
    height, width = part.shape
    padded = np.zeros((height + 2 * RADIUS, width + 2 * RADIUS), values.dtype)
    padded[RADIUS : RADIUS + height, RADIUS : RADIUS + width] = part
    if any(map(any, beyond)):
        (above, below), (left, right) = beyond
        reach = slice(RADIUS - above, RADIUS + height + below), slice(RADIUS - left, RADIUS + width + right)
        padded[reach] = np.pad(part, beyond, mode="edge")
    return padded


def _median_of_box(padded: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Disk median of a (h + 10, w + 10) array at its inner (h, w) pixels."""
    ranks, levels = _compact(padded)
    return levels[_median_of_ranks(ranks, len(levels))]


def _median_of_ranks(ranks: NDArray[np.uint16], count: int) -> NDArray[np.integer]:
    """Disk median of ranks below `count`, in bytes where possible: these take half the time.

    The median of the ranks cut off at 255 is the median cut off at 255, and that of what is above 255 is what of the
    median is above it: their sum is the median, and the second is zero but in a small box, as high values are rare.
    """
    if count <= _BYTE + 1:
        return _in_strips(ranks.astype(np.uint8))
    if count > _MOST_IN_BYTES:
        return _in_strips(ranks)
    median = _in_strips(np.minimum(ranks, _BYTE).astype(np.uint8)).astype(np.uint16)
    is_high = median == _BYTE
    if np.count_nonzero(is_high) <= _FEW:
        median[is_high] = _medians_at(ranks, is_high)
    elif box := bounding_box(is_high):
        seen = tuple(slice(side.start, side.stop + 2 * RADIUS) for side in box)
        median[box] += _median_of_ranks(np.maximum(ranks[seen], _BYTE) - np.uint16(_BYTE), count - _BYTE)
    return median


def _medians_at(ranks: NDArray[np.uint16], where: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """The disk median at a few pixels: (N,) for N pixels set of (h, w)."""
    neighbours = np.lib.stride_tricks.sliding_window_view(ranks, _DISK.shape)[where][:, _DISK]  # (N, 81)
    middle = neighbours.shape[1] // 2
    return np.asarray(np.partition(neighbours, middle, axis=1)[:, middle])


def _in_strips(ranks: NDArray[np.integer]) -> NDArray[np.integer]:
    height, width = ranks.shape[0] - 2 * RADIUS, ranks.shape[1]
    rows = max(_STRIP_PIXELS // width, 2 * RADIUS)
    return np.concatenate([_run(ranks[top : min(top + rows, height) + 2 * RADIUS]) for top in range(0, height, rows)])


def _compact(padded: NDArray[np.integer]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Ranks among the values that occur, and the value of each rank."""
    occurs = np.bincount(padded.ravel()) > 0
    rank_of = (np.cumsum(occurs) - 1).astype(np.uint16)
    return rank_of[padded], np.flatnonzero(occurs).astype(np.uint16)


# The network. A wire is a plane seen from a shifted window, so that work done for one pixel serves its neighbours.


class _Wire(NamedTuple):
    """Plane number `plane` (0 is the image), `down` rows and `right` pixels on from the window's first pixel."""

    down: int
    right: int
    plane: int


class _Gate(NamedTuple):
    """One plane: the maximum or minimum of two planes, the second of them shifted by `down` and `right`."""

    is_maximum: bool
    one: int
    other: int
    down: int
    right: int


class _Network:
    """A list of gates, each making the plane with its number (from 1 on). Lists of wires ascend in value."""

    def __init__(self) -> None:
        self.gates: dict[_Gate, int] = {}

    def gate(self, is_maximum: bool, one: _Wire, other: _Wire) -> _Wire:
        """Minimum or maximum of two wires; if the same pair exists at another shift, that plane is used."""
        one, other = sorted((one, other))
        gate = _Gate(is_maximum, one.plane, other.plane, other.down - one.down, other.right - one.right)
        return _Wire(one.down, one.right, self.gates.setdefault(gate, len(self.gates) + 1))

    def exchange(self, one: _Wire, other: _Wire) -> list[_Wire]:
        """Two wires in order."""
        return [self.gate(False, one, other), self.gate(True, one, other)]

    def merge(self, one: list[_Wire], other: list[_Wire]) -> list[_Wire]:
        """Merge two sorted lists of any lengths: Batcher's odd-even merge."""
        if not one or not other:
            return one or other
        if len(one) == len(other) == 1:
            return self.exchange(one[0], other[0])
        even, odd = self.merge(one[::2], other[::2]), self.merge(one[1::2], other[1::2])
        pairs = list(zip(odd, even[1:], strict=False))
        rest = odd[len(pairs) :] + even[1 + len(pairs) :]
        return [even[0], *(wire for pair in pairs for wire in self.exchange(*pair)), *rest]

    def sort(self, wires: list[_Wire]) -> list[_Wire]:
        """Sort by merging; parts of 2, 4 and 8 neighbours are the same work at each shift, so they come first."""
        if len(wires) == 1:
            return wires
        half = 1 << (len(wires) - 1).bit_length() - 1
        return self.merge(self.sort(wires[:half]), self.sort(wires[half:]))

    def kth(self, one: list[_Wire], other: list[_Wire], k: int) -> _Wire:
        """The k-th smallest (from 0) of two sorted lists: the least of max(one[i - 1], other[k - i]) over i."""
        firsts = range(max(0, k + 1 - len(other)), min(len(one), k + 1) + 1)
        pairs = [one[max(i - 1, 0) : i] + other[k - i : k - i + 1] * (i <= k) for i in firsts]
        largest = [pair[0] if len(pair) == 1 else self.gate(True, *pair) for pair in pairs]
        return reduce(lambda least, wire: self.gate(False, least, wire), largest)


class _Step(NamedTuple):
    """A gate in terms of slots of the workspace; slot 0 is the image."""

    choose: np.ufunc
    one: int
    other: int
    down: int
    right: int
    out: int


@cache
def _program() -> tuple[list[_Step], _Wire, int]:
    """The steps that the disk's median needs, in order, the wire with the slot of the result, and how many slots."""
    network = _Network()

    def row(y: int) -> list[_Wire]:
        half = _HALF_WIDTHS[abs(y)]
        wires = [_Wire(RADIUS + y, RADIUS + x, 0) for x in range(-half, half + 1)]
        ordered = network.sort(wires[max(half - 3, 0) : half + 4])
        for reach in range(4, half + 1):
            ordered = network.merge(ordered, network.exchange(wires[half - reach], wires[half + reach]))
        return ordered

    above, below = (network.merge(network.merge(row(y), row(y + 1)), row(y + 2)) for y in (-3, 1))
    rim = network.merge(network.merge(row(-4), row(4)), network.merge(row(-5), row(5)))
    median = network.kth(network.merge(above, below), network.merge(rim, row(0)), 40)
    steps, slot = _allotted(list(network.gates), median.plane)
    return steps, median._replace(plane=slot), 1 + max(step.out for step in steps)


def _last_readers(gates: list[_Gate], result: int) -> dict[int, int]:
    """For each plane that leads to the result: the last plane made from it."""
    last = {result: result}
    for plane in range(len(gates), 0, -1):
        if plane in last:
            gate = gates[plane - 1]
            last.setdefault(gate.one, plane)
            last.setdefault(gate.other, plane)
    return last


def _allotted(gates: list[_Gate], result: int) -> tuple[list[_Step], int]:
    """Drop the gates that do not lead to the result and give each plane a slot, anew once it has been read last."""
    last = _last_readers(gates, result)
    slots: dict[int, int] = {0: 0}
    free: list[int] = []
    steps = []
    for plane, gate in enumerate(gates, start=1):
        if plane not in last:
            continue
        slots[plane] = free.pop() if free else len({*slots.values(), *free})
        choose = np.maximum if gate.is_maximum else np.minimum
        steps.append(_Step(choose, slots[gate.one], slots[gate.other], gate.down, gate.right, slots[plane]))
        free += [slots[used] for used in {gate.one, gate.other} if last[used] == plane and used]
    return steps, slots[result]


def _run(ranks: NDArray[np.integer]) -> NDArray[np.integer]:
    """Run the network on a (h + 10, w + 10) strip; returns the medians (h, w)."""
    height, width = ranks.shape[0] - 2 * RADIUS, ranks.shape[1]
    steps, result, slots = _program()
    # Planes are flat, so that a shift is an offset. What wraps around or lies beyond the end never reaches a median.
    size, beyond = ranks.size, 2 * RADIUS * (width + 1)
    workspace = np.empty((slots, size + beyond), ranks.dtype)
    workspace[0, :size] = ranks.ravel()
    planes = list(workspace)
    fronts = [plane[:size] for plane in planes]
    for choose, one, other, down, right, out in steps:
        offset = down * width + right
        second = planes[other][offset : offset + size] if offset else fronts[other]
        choose(fronts[one], second, out=fronts[out])
    flat = planes[result.plane][result.down * width + result.right :][: height * width]
    return flat.reshape(height, width)[:, : width - 2 * RADIUS]
