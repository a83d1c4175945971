"""Poisson blending, solved exactly: a patch takes its gradients to where it is pasted and its brightness from there.

The unknown is the correction v to the target, which is zero on the border of the region, so that border never has
to be moved to the right-hand side and float32 is precise enough: Δv = div(guidance − ∇target).
Source: Pérez, Gangnet, Blake, "Poisson Image Editing", SIGGRAPH 2003, equations 3, 4 (discrete: 7) and 12, 13.

Two domains:

- the bounding rectangle of the mask (`blend_rectangle`): the guidance is the source's gradient inside the mask and the
  target's outside, and the rectangle is solved directly with a discrete sine transform. OpenCV's `seamlessClone`, on
  which the NSA paper builds, does this, with the mask eroded by three pixels.
- the mask itself (`blend_mask`): the target is fixed on every pixel outside the mask. A sparse factorisation: 9 ms for
  2,000 and 130 ms for 20,000 pixels, against 0.2 and 3 ms for their rectangles.
"""

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

Gradients = Literal["source", "mixed", "mixed-opencv"]
Planes = NDArray[np.floating[Any]]

OPENCV_EROSION = 3
_LARGEST_DENSE_TRANSFORM = 256


def solve_rectangle(rhs: Planes) -> Planes:
    """Solve Δv = rhs with v = 0 just outside the rectangle, Δ being the five-point Laplacian.

    rhs: float32 or float64 (…, h, w), channels and patches of one size at once, any h, w ≥ 1; v has its shape and
    dtype. The discrete sine transform of type 1 diagonalises Δ. Up to 256 pixels a matrix product is the faster
    transform, beyond it the FFT is.
    """
    height, width = rhs.shape[-2:]
    # Δ = A ⊗ I + I ⊗ A of second differences A = S diag(λ) S, so that v = S (S rhs S / (λᵢ + λⱼ)) S.
    eigenvalues = _eigenvalues(height, rhs.dtype)[:, None] + _eigenvalues(width, rhs.dtype)  # λᵢ + λⱼ < 0: (h, w)
    if max(height, width) > _LARGEST_DENSE_TRANSFORM:
        from scipy import fft  # who only names a method need not wait for it

        spectrum = fft.dstn(rhs, type=1, axes=(-2, -1)) / eigenvalues
        return np.asarray(fft.idstn(spectrum, type=1, axes=(-2, -1)))
    rows, columns = _sine_matrix(height, rhs.dtype), _sine_matrix(width, rhs.dtype)
    spectrum = _transform(rows, rhs, columns)
    spectrum /= eigenvalues
    return _transform(rows, spectrum, columns)


def laplacian(planes: Planes) -> Planes:
    """Five-point Laplacian of (C, h, w) planes at their inner pixels: (C, h - 2, w - 2)."""
    inner = planes[:, 1:-1, 1:-1]
    return planes[:, 2:, 1:-1] + planes[:, :-2, 1:-1] + planes[:, 1:-1, 2:] + planes[:, 1:-1, :-2] - 4 * inner


def blend_rectangle(
    target: NDArray[np.uint8],
    source: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    gradients: Gradients = "source",
    erosion: int = OPENCV_EROSION,
    dtype: type = np.float32,
) -> Planes:
    """Blend by one direct solve on the whole rectangle; its outermost ring of pixels keeps the target.

    target, source: uint8 (C, h, w). mask: bool (h, w), where the source's gradients count, less `erosion` pixels
    (3 as in OpenCV); beyond the rectangle the mask counts as empty. dtype: float32 or float64.
    gradients: "source" takes the source's; "mixed" on each axis the larger of the source's and the target's by
    magnitude; "mixed-opencv" both components of the one whose components differ more, which is OpenCV's rule.
    Returns dtype (C, h, w), not rounded, not clipped. A rectangle with no inner pixel comes back as the target.
    """
    blended: Planes = target.astype(dtype)
    if min(mask.shape) < 3:
        return blended
    inside = erode(mask, erosion)
    right, down = _guidance_difference(target, source, gradients)
    right *= inside[:, :-1]
    down *= inside[:-1]
    blended[:, 1:-1, 1:-1] += solve_rectangle(_divergence(right, down).astype(dtype))
    return blended


def blend_mask(
    target: NDArray[np.uint8],
    source: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    gradients: Gradients = "source",
) -> Planes:
    """Blend inside the mask alone: the masked Dirichlet problem, pixels outside the mask keep the target exactly.

    Arguments as for `blend_rectangle`; an edge between two pixels takes the guidance if either is in the mask.
    The outermost ring of the rectangle is never changed, whatever the mask says there. The residual of the discrete
    Poisson equation is that of rounding (below 1e-8 grey levels). Returns float64 (C, h, w).
    """
    blended = target.astype(np.float64)
    if min(mask.shape) < 3:
        return blended
    inside = mask.copy()
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    right, down = _guidance_difference(target, source, gradients)
    right *= inside[:, :-1] | inside[:, 1:]
    down *= inside[:-1] | inside[1:]
    rhs = _divergence(right, down).astype(np.float64)
    blended[:, 1:-1, 1:-1] += _solve_masked(rhs, inside[1:-1, 1:-1])
    return blended


def to_uint8(planes: Planes) -> NDArray[np.uint8]:
    """Round to the nearest grey level and clip to 0–255; same shape."""
    rounded = np.rint(planes)
    np.maximum(rounded, 0, out=rounded)
    np.minimum(rounded, 255, out=rounded)
    return rounded.astype(np.uint8)


def erode(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Erode a (h, w) mask by a square of side 2·radius + 1; beyond the rectangle the mask counts as empty."""
    if radius == 0:
        return mask
    eroded = np.zeros_like(mask)
    height, width = (side - 2 * radius for side in mask.shape)
    if height > 0 and width > 0:
        tall = _all_of_next(mask, 2 * radius + 1)  # (height, w)
        eroded[radius:-radius, radius:-radius] = _all_of_next(tall.T, 2 * radius + 1).T
    return eroded


def _all_of_next(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Whether `count` rows, from each row on, are all set: (h - count + 1, w), by doubling."""
    reach = 1
    while reach < count:
        step = min(reach, count - reach)
        mask = mask[:-step] & mask[step:]
        reach += step
    return mask


@lru_cache(maxsize=2 * _LARGEST_DENSE_TRANSFORM)
def _sine_matrix(size: int, dtype: np.dtype[Any]) -> Planes:
    """The orthonormal discrete sine transform of type 1: symmetric, its own inverse."""
    steps = np.arange(1, size + 1)
    matrix = np.sqrt(2 / (size + 1)) * np.sin(np.pi * np.outer(steps, steps) / (size + 1))
    return matrix.astype(dtype)


@cache
def _eigenvalues(size: int, dtype: np.dtype[Any]) -> Planes:
    """Eigenvalues 2 cos(π k / (n + 1)) - 2, k = 1 … n, of the second difference with zero border."""
    return (2 * np.cos(np.pi * np.arange(1, size + 1) / (size + 1)) - 2).astype(dtype)


def _transform(rows: Planes, planes: Planes, columns: Planes) -> Planes:
    """Sine transform along both axes of planes (…, h, w): rows @ planes @ columns."""
    along_rows = (planes.reshape(-1, planes.shape[-1]) @ columns).reshape(planes.shape)
    return np.matmul(rows, along_rows)


def _guidance_difference(
    target: NDArray[np.uint8], source: NDArray[np.uint8], gradients: Gradients
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Guidance minus the target's gradient on the edges to the right (C, h, w - 1) and down (C, h - 1, w)."""
    new, old = source.astype(np.int16), target.astype(np.int16)
    if gradients == "source":
        new -= old
        return new[:, :, 1:] - new[:, :, :-1], new[:, 1:] - new[:, :-1]
    new_right, new_down = new[:, :, 1:] - new[:, :, :-1], new[:, 1:] - new[:, :-1]
    old_right, old_down = old[:, :, 1:] - old[:, :, :-1], old[:, 1:] - old[:, :-1]
    if gradients == "mixed":
        take_right, take_down = np.abs(new_right) > np.abs(old_right), np.abs(new_down) > np.abs(old_down)
    else:
        take = np.zeros(new.shape, bool)
        # OpenCV compares |∂x - ∂y| of the two images.
        new_skew, old_skew = new_right[:, :-1] - new_down[:, :, :-1], old_right[:, :-1] - old_down[:, :, :-1]
        take[:, :-1, :-1] = np.abs(new_skew) > np.abs(old_skew)
        take_right, take_down = take[:, :, :-1], take[:, :-1]
    new_right -= old_right
    new_down -= old_down
    new_right *= take_right
    new_down *= take_down
    return new_right, new_down


def _divergence(right: NDArray[np.int16], down: NDArray[np.int16]) -> NDArray[np.int16]:
    """Divergence of a field on edges, at the inner pixels: (C, h - 2, w - 2)."""
    total = right[:, 1:-1, 1:] - right[:, 1:-1, :-1]
    total += down[:, 1:, 1:-1]
    total -= down[:, :-1, 1:-1]
    return total


def _solve_masked(rhs: Planes, inside: NDArray[np.bool_]) -> Planes:
    """Solve Δv = rhs on the mask, v = 0 elsewhere: one sparse factorisation for all channels."""
    v = np.zeros_like(rhs)
    count = int(np.count_nonzero(inside))
    if count:
        from scipy.sparse.linalg import splu

        factors = splu(_masked_laplacian(inside, count), permc_spec="MMD_AT_PLUS_A")
        v[:, inside] = factors.solve(np.ascontiguousarray(rhs[:, inside].T)).T
    return v


def _masked_laplacian(inside: NDArray[np.bool_], count: int) -> "csc_matrix":
    """The five-point Laplacian (P, P) of the mask's P pixels: -4 on the diagonal, 1 for each neighbour in the mask."""
    from scipy.sparse import csc_matrix

    number = np.full(inside.shape, -1)
    number[inside] = np.arange(count)
    one = np.concatenate((number[:, :-1].ravel(), number[:-1].ravel()))  # each pair of neighbours, right and down
    other = np.concatenate((number[:, 1:].ravel(), number[1:].ravel()))
    joined = (one >= 0) & (other >= 0)
    one, other, diagonal = one[joined], other[joined], np.arange(count)
    values = np.concatenate((np.full(count, -4.0), np.ones(2 * len(one))))
    places = np.concatenate((diagonal, one, other)), np.concatenate((diagonal, other, one))
    return csc_matrix((values, places), shape=(count, count))
