"""What the network of NSA sees of an image: turned, cropped and mirrored while it learns, the whole when it scores.

Source: Schlüter et al., section 4.1 and the official settings: objects are resized to 256, cut to the middle 230 and
to 224 at any place, some turned by up to 5°; textures are resized to 264, cut to 256 at any
place, and turned upside down or not.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from components.foundation.draws import SampleKeys
from components.foundation.params import NetworkParams, ViewParams
from components.images.tensors import as_tensor

BASE = 256  # the size at which views are given
_FLIPPED_AXIS = {"left-right": 2, "upside-down": 1}


def view_side(view: ViewParams, size: int) -> int:
    """Side in pixels of what is seen of an image of `size` pixels."""
    return round(view.crop * size / BASE)


def draw_views(
    images: NDArray[np.uint8], keys: SampleKeys, view: ViewParams, purpose: str = "view"
) -> NDArray[np.uint8]:
    """One view (N, c, c, 3) of each of the images (N, S, S, 3) uint8, c = view_side(view, S).

    The image is resized, turned about its middle by up to `view.rotation` degrees, mirrored or not, and a square of
    side `crop` is cut at a uniform place within the middle square of side `centre`. A view depends on its key and
    `purpose` alone. All is one linear interpolation between pixels; without rotation and resizing it moves whole pixels
    only. What a turn brings in from outside repeats the border.
    """
    draws = keys.uniform(purpose, 4)  # (N, 4)
    size, side = images.shape[1], view_side(view, images.shape[1])
    scale = view.resize / BASE  # of the image's own pixels
    room = round(view.centre * size / BASE) - side
    starts = (round(view.resize * size / BASE) - room - side) // 2 + np.floor(draws[:, :2] * (room + 1)).astype(int)
    if not view.rotation and scale == 1:
        seen = np.stack([image[y : y + side, x : x + side] for image, (y, x) in zip(images, starts, strict=True)])
    else:
        angles = np.deg2rad(view.rotation * (2 * draws[:, 3] - 1))
        seen = _sampled(images, starts, angles, scale, side)
    if view.flip:
        mirrored = draws[:, 2] < 0.5
        seen[mirrored] = np.flip(seen[mirrored], axis=_FLIPPED_AXIS[view.flip])
    return seen


def scored_window(view: ViewParams, size: int) -> int:
    """Side in pixels of the middle square that is scored of an image of `size` pixels; 0 for the whole image."""
    side = round(view.test * size / BASE)
    return side if side < size else 0


def view_of(params: NetworkParams, kind: str, category: str) -> ViewParams:
    """The view of a category, whose kind is "object" or "texture"."""
    view = params.object_view if kind == "object" else params.texture_view
    turned = not params.rotated or category in params.rotated
    return view if turned else view.model_copy(update={"rotation": 0.0})


def _sampled(
    images: NDArray[np.uint8],
    starts: NDArray[np.int64],
    angles: NDArray[np.float64],
    scale: float,
    side: int,
) -> NDArray[np.uint8]:
    """Views by linear interpolation; starts: (N, 2) of the resized image, angles in radians."""
    size = images.shape[1]
    offsets = np.arange(side) + 0.5 - size * scale / 2  # of pixel centres from the resized image's middle
    y, x = offsets[None, :] + starts[:, :1], offsets[None, :] + starts[:, 1:]  # (N, side)
    cosine, sine = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    across = cosine * x[:, None, :] - sine * y[:, :, None]  # (N, side, side)
    down = sine * x[:, None, :] + cosine * y[:, :, None]
    grid = torch.from_numpy(np.stack([across, down], axis=-1) / (scale * size / 2)).float()
    pixels = as_tensor(np.ascontiguousarray(images)).contiguous().float()
    seen = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return seen.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
