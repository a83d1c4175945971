"""Arrays that densities take and are stored as: checks of features and of stored arrays, and packed triangles."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from components.foundation.errors import UserError

# Fourth powers of larger values would overflow.
LARGEST_VALUE = 1e60


def checked(X: ArrayLike, ndim: int) -> np.ndarray:
    """X as an array of `ndim` axes of finite real numbers.

    Raises UserError with the place of the first value that is not.

    >>> checked([[1, 2], [3, 4]], ndim=2).shape
    (2, 2)
    >>> checked([[1.0, float("nan")]], ndim=2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    components.foundation.errors.UserError: The features hold nan at sample 0, feature 1: every feature must be ...
    """
    x = np.asarray(X)
    if x.ndim != ndim or x.dtype.kind not in "fiu":
        axes = "(N, D)" if ndim == 2 else "(N, L, D)"
        raise UserError(f"Features must be real numbers of shape {axes}, but these are {x.dtype} of shape {x.shape}.")
    if x.size == 0:
        return x
    low, high = float(x.min()), float(x.max())  # NaN propagates through both
    if not -LARGEST_VALUE < low <= high < LARGEST_VALUE:
        _refuse_first_bad(x)
    return x


def _refuse_first_bad(x: np.ndarray) -> None:
    for i, sample in enumerate(x):
        bad = ~(np.abs(sample.astype(np.float64)) < LARGEST_VALUE)
        if bad.any():
            place = (i, *(int(p) for p in np.argwhere(bad)[0]))
            named = "sample {}, feature {}" if x.ndim == 2 else "image {}, location {}, feature {}"
            raise UserError(
                f"The features hold {x[place]} at {named.format(*place)}: every feature must be a finite number "
                f"below {LARGEST_VALUE:g}, so check the image and the encoder that made it."
            )


def require_shapes(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless every array that `shapes` names is there and has that shape.

    >>> require_shapes({"mean": np.zeros((1, 2))}, {"mean": (1, 2)})
    >>> require_shapes({"mean": np.zeros((1, 2))}, {"mean": (1, 3)})
    Traceback (most recent call last):
    components.foundation.errors.UserError: The stored density is damaged: array 'mean' has shape (1, 2), not (1, 3).
    """
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise UserError(f"The stored density is damaged: array '{name}' has shape {found}, not {shape}.")


def stored_shape(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, int]:
    """The shape of a stored array of two axes; raises UserError where it is not there or has others.

    >>> stored_shape({"mean": np.zeros((4, 2))}, "mean")
    (4, 2)
    """
    if name not in arrays or arrays[name].ndim != 2:
        raise UserError(f"The stored density is damaged: it needs an array '{name}' of two axes.")
    rows, columns = arrays[name].shape
    return rows, columns


def pack(matrices: np.ndarray) -> np.ndarray:
    """Upper triangles (G, D (D + 1) / 2) of (G, D, D), row by row.

    >>> pack(np.array([[[1, 2], [2, 3]]])).tolist()
    [[1, 2, 3]]
    """
    return np.stack([m[np.triu_indices(m.shape[0])] for m in matrices])


def unpack(packed: np.ndarray, dimensions: int, symmetric: bool) -> np.ndarray:
    """(G, D, D) from upper triangles, mirrored or with zeros below the diagonal.

    >>> unpack(np.array([[1, 2, 3]]), 2, symmetric=True).tolist()
    [[[1, 2], [2, 3]]]
    """
    rows, columns = np.triu_indices(dimensions)
    matrices = np.zeros((len(packed), dimensions, dimensions), packed.dtype)
    for matrix, triangle in zip(matrices, packed, strict=True):
        matrix[rows, columns] = triangle
        if symmetric:
            matrix[columns, rows] = triangle
    return matrices
