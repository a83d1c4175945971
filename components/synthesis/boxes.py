"""Rectangles of pixels, and few disjoint windows that hold them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_WINDOW_COST = 16384  # pixels: what a window of its own costs in time


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def area(self) -> int:
        """Pixels in it."""
        return self.height * self.width

    @property
    def window(self) -> tuple[slice, slice]:
        """As an index of (H, W) arrays."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def window_of_planes(self) -> tuple[slice, slice, slice]:
        """As an index of (C, H, W) arrays."""
        return slice(None), *self.window

    def grown(self, margin: int, shape: tuple[int, ...]) -> Box:
        """With a margin on all sides, as far as an image of `shape` (H, W) reaches."""
        top, left = max(self.top - margin, 0), max(self.left - margin, 0)
        bottom = min(self.top + self.height + margin, shape[0])
        right = min(self.left + self.width + margin, shape[1])
        return Box(top, left, bottom - top, right - left)

    def hull(self, other: Box) -> Box:
        """The smallest rectangle that holds both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        bottom = max(self.top + self.height, other.top + other.height)
        right = max(self.left + self.width, other.left + other.width)
        return Box(top, left, bottom - top, right - left)


def disjoint_windows(boxes: Iterable[Box]) -> list[Box]:
    """Disjoint windows that hold all boxes: as many as spare more pixels than they cost."""
    windows: list[Box] = []
    for box in boxes:
        window = box
        while (near := next((other for other in windows if _belong_together(window, other)), None)) is not None:
            windows.remove(near)
            window = window.hull(near)
        windows.append(window)
    return windows


def _belong_together(one: Box, other: Box) -> bool:
    """Whether two windows overlap, or their hull costs less than a window of its own."""
    hull = one.hull(other)
    overlap = hull.height < one.height + other.height and hull.width < one.width + other.width
    return overlap or hull.area < one.area + other.area + _WINDOW_COST
