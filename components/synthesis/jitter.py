"""Colour jitter with the meaning of torchvision's ColorJitter, for many small patches at once.

Brightness, contrast and saturation blend a patch with black, with its mean grey and with the grey of each pixel; hue
turns the colour hexagon. The patches of a batch are laid side by side as the columns of one float32 matrix (C, P),
with C = 3, or 1 where a patch is grey. What a patch becomes never depends on its neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from components.foundation.draws import spread

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Reals = NDArray[np.float64]
Integers = NDArray[np.int64]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_DRAWS = 8
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's, ITU-R 601-2
_BLOCK_PIXELS = 49_152  # spreads the calls over several patches while a block stays in the cache


@dataclass(frozen=True)
class Jitter:
    """Jitters of N patches.

    factors: float64 (N, 4), factors of brightness, contrast and saturation, then the hue's shift in turns.
    order: int64 (N, 4), each row the order of the four changes, a permutation of 0..3.
    """

    factors: Reals
    order: Integers

    def __getitem__(self, rows: Integers) -> "Jitter":
        return Jitter(self.factors[rows], self.order[rows])


def draw_jitter(draws: Reals, amount: float) -> Jitter:
    """Turn uniform draws (N, 8) into jitters: factors U(1 - amount, 1 + amount), hue U(-amount, amount), random order.

    amount is in [0, 0.5], as for ColorJitter(amount, amount, amount, amount).
    """
    factors = spread(draws[:, :4], -amount, amount) + np.array([1.0, 1.0, 1.0, 0.0])
    return Jitter(factors, np.argsort(draws[:, 4:JITTER_DRAWS], axis=1, kind="stable"))


def jitter_patches(patches: Sequence[Bytes], jitter: Jitter) -> list[Bytes]:
    """Jitter patches uint8 (3, h, w), each with its own size; rounds once, at the end.

    Returns uint8 (3, h, w) for each, or (1, h, w) where its three channels are equal.
    """
    results: list[Bytes] = [patch[:0] for patch in patches]
    grey = np.array([_is_grey(patch) for patch in patches], dtype=bool)
    for channels, members in ((1, np.flatnonzero(grey)), (3, np.flatnonzero(~grey))):
        for rows in _blocks(members, patches, jitter):
            block = [patches[row][:channels] for row in rows]
            for row, result in zip(rows, _jitter_block(block, jitter[rows]), strict=True):
                results[row] = result
    return results


def _is_grey(patch: Bytes) -> bool:
    return not (patch[0] != patch[1]).any() and not (patch[1] != patch[2]).any()


def _blocks(members: Integers, patches: Sequence[Bytes], jitter: Jitter) -> Iterator[Integers]:
    """Split members into blocks of few pixels, sorted so that neighbours have the same changes at the same time."""
    order, turns_back = jitter.order[members], jitter.factors[members, HUE] < 0
    hue_slot = np.argmax(order == HUE, axis=1)
    members = members[np.lexsort((*order.T, turns_back, hue_slot))]
    if len(members):
        ends = np.cumsum([patches[row][0].size for row in members])
        cuts = np.flatnonzero(np.diff(ends // _BLOCK_PIXELS)) + 1
        yield from np.split(members, cuts)


def _jitter_block(patches: list[Bytes], jitter: Jitter) -> list[Bytes]:
    """Jitter patches (C, h, w) of one C, sorted as `_blocks` does."""
    sizes = np.array([patch[0].size for patch in patches])
    ends = np.cumsum(sizes).tolist()
    starts = [0, *ends[:-1]]
    pixels = np.empty((len(patches[0]), ends[-1]), dtype=np.float32)  # (C, P)
    for patch, start, end in zip(patches, starts, ends, strict=True):
        pixels[:, start:end].reshape(patch.shape)[...] = patch
    _change_pixels(pixels, sizes, jitter)
    pixels += np.float32(0.5)
    rounded = pixels.astype(np.uint8)
    return [rounded[:, start:end].reshape(patch.shape) for patch, start, end in zip(patches, starts, ends, strict=True)]


def _change_pixels(pixels: Floats, sizes: Integers, jitter: Jitter) -> None:
    """Apply the four changes of each patch in its order to pixels (C, P) in 0..255, in place."""
    offsets = [0, *np.cumsum(sizes).tolist()]
    factors = np.take_along_axis(jitter.factors, jitter.order, axis=1)  # (K, 4), in the order of the changes
    # Blends of every kind can be done together, and turns of hue in one sense.
    kinds = np.where(jitter.order == HUE, np.where(factors < 0, 2, 1), 0)
    for slot in range(4):
        for first, last in _runs(kinds[:, slot].tolist()):
            columns = pixels[:, offsets[first] : offsets[last]]
            run = slice(first, last)
            if kinds[first, slot] == 0:
                _blend(columns, sizes[run], jitter.order[run, slot], factors[run, slot])
            elif len(pixels) == 3:
                _turn_hue(columns, sizes[run], factors[run, slot])


def _runs(kinds: list[int]) -> list[tuple[int, int]]:
    """Bounds of the runs of equal values."""
    cuts = [place for place in range(1, len(kinds)) if kinds[place] != kinds[place - 1]]
    return list(pairwise([0, *cuts, len(kinds)]))


def _blend(pixels: Floats, sizes: Integers, changes: Integers, factors: Reals) -> None:
    """Blend patches: factor * pixel + (1 - factor) * (black, mean grey or own grey), clipped to 0..255, in place."""
    is_contrast, is_saturation = changes == CONTRAST, changes == SATURATION
    if len(pixels) == 1:
        factors = np.where(is_saturation, 1.0, factors)  # saturation does nothing to grey
        is_saturation = np.zeros_like(is_saturation)
    addend: Floats | None = None  # (P,) or (1,)
    if is_saturation.any():
        addend = _grey(pixels)
        addend *= _per_pixel(np.where(is_saturation, 1.0 - factors, 0.0), sizes)
    if is_contrast.any():
        offset = _per_pixel(np.where(is_contrast, (1.0 - factors) * _mean_grey(pixels, sizes), 0.0), sizes)
        addend = offset if addend is None else np.add(addend, offset, out=addend)
    pixels *= _per_pixel(factors, sizes)
    if addend is not None:
        pixels += addend
    if (factors > 1.0).any():  # a factor up to 1 only mixes values that are inside already
        torch.from_numpy(pixels).clamp_(0, 255)  # several times faster than numpy against a scalar


def _per_pixel(values: Reals, sizes: Integers) -> Floats:
    """Repeat one value per patch over its pixels: (K,) to (P,), or to (1,) when there is one patch."""
    narrow = values.astype(np.float32)
    return narrow if len(narrow) == 1 else np.repeat(narrow, sizes)


def _grey(pixels: Floats) -> Floats:
    red, green, blue = (np.float32(weight) for weight in _GREY_WEIGHTS)
    grey = pixels[0] * red
    grey += pixels[1] * green
    grey += pixels[2] * blue
    return grey


def _mean_grey(pixels: Floats, sizes: Integers) -> Reals:
    """Mean grey value of each patch, (K,)."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    means = np.add.reduceat(pixels, starts, axis=1) / sizes  # (C, K)
    red, green, blue = np.broadcast_to(means, (3, len(sizes)))
    return red * _GREY_WEIGHTS[0] + green * _GREY_WEIGHTS[1] + blue * _GREY_WEIGHTS[2]


def _turn_hue(pixels: Floats, sizes: Integers, shifts: Reals) -> None:
    """Turn the hue by shifts in turns (-0.5..0.5), all of one sign, in place: the same as adding to H in HSV."""
    # Reversing the channels mirrors the colour hexagon, so a negative turn becomes a positive one.
    rgb = pixels[::-1] if shifts[0] < 0 else pixels
    sextants = 6.0 * np.abs(shifts)
    while (sextants > 0).any():
        _turn_hexagon(rgb, _per_pixel(np.clip(sextants, 0.0, 1.0), sizes))
        sextants = sextants - 1.0


def _turn_hexagon(rgb: Floats, sextants: Floats) -> None:
    """Turn the hue by at most one sextant (sextants in 0..1, (P,) or (1,)) without computing it, in place.

    Over the hexagon each channel is a trapezoid between the pixel's minimum and maximum. Turned by d sextants, red is
    min + clamp(R - G + e, 0, C) with chroma C, where e = d C on the rising half (B >= G) and (1 - d) C on the falling
    half; green and blue follow by rotation of the names.
    """
    low = np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])  # (P,)
    chroma = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
    chroma -= low
    rising = chroma * sextants  # d C
    falling_extra = chroma - rising
    falling_extra -= rising  # (1 - 2 d) C: what (1 - d) C is more than d C
    change = np.empty(rgb.shape, dtype=np.float32)  # (3, P): R - G, G - B, B - R
    np.subtract(rgb[:2], rgb[1:], out=change[:2])
    np.subtract(rgb[2], rgb[0], out=change[2])
    slack = change.copy()
    torch.from_numpy(slack).gt_(0)  # 1 on the falling half, 0 on the rising one
    slack *= falling_extra
    slack += rising
    change[:2] += slack[1:]  # the half on which red is tells G - B, green's B - R, and blue's R - G
    change[2] += slack[0]
    torch.from_numpy(change).clamp_(min=0)
    np.minimum(change, chroma, out=change)
    np.add(change, low, out=rgb)
