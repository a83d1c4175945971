"""Copies of good images that densities learn from as well.

Turned, mirrored and shifted ones, for small sets whose parts lie at any angle; and photometrically jittered ones, for
parts that are not always lit alike.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.foundation.draws import SampleKeys, spread
from components.synthesis.jitter import JITTER_DRAWS, draw_jitter, jitter_patches

SHIFT = 0.03  # of the side, each way
JITTER = 0.1  # of brightness, contrast, saturation and hue: as much as CutPaste's


def copies_of(images: Tensor, keys: SampleKeys, count: int, kind: str) -> Tensor:
    """`count` copies of uint8 images (N, 3, S, S), "geometric" or "photometric".

    keys: one per image; a copy depends on its image's key and its own number alone. Returns uint8 (count · N, 3, S, S),
    the first copies of all images first.
    """
    match kind:
        case "geometric":
            return geometric_copies(images, keys, count)
        case "photometric":
            return photometric_copies(images, keys, count)
        case _:
            raise ValueError(f"there is no kind {kind!r} of copies")


def photometric_copies(images: Tensor, keys: SampleKeys, count: int) -> Tensor:
    """`count` copies of uint8 images (N, 3, S, S), each with a colour jitter of its own; otherwise as `copies_of`."""
    draws = keys.uniform("photometric copies", JITTER_DRAWS * count)
    draws = draws.reshape(len(keys), count, JITTER_DRAWS).swapaxes(0, 1).reshape(-1, JITTER_DRAWS)  # (count·N, 8)
    jitter = draw_jitter(draws, JITTER)
    copies = images.contiguous(memory_format=torch.contiguous_format).repeat(count, 1, 1, 1)
    pixels = copies.numpy()
    for row in range(len(pixels)):
        pixels[row] = jitter_patches([pixels[row]], jitter[np.array([row])])[0]
    return copies


def geometric_copies(images: Tensor, keys: SampleKeys, count: int) -> Tensor:
    """`count` copies of uint8 images (N, 3, S, S), each mirrored or not, turned by any angle and shifted a little.

    keys: one per image; a copy depends on its image's key and its own number alone. Returns uint8 (count · N, 3, S, S),
    the first copies of all images first; pixels from outside of the image repeat its border.
    """
    draws = keys.uniform("copies", 4 * count).reshape(len(keys), count, 4).swapaxes(0, 1).reshape(-1, 4)  # (count·N, 4)
    transforms = torch.from_numpy(_transforms(draws)).float()
    sources = images.contiguous().float().repeat(count, 1, 1, 1)
    grid = functional.affine_grid(transforms, list(sources.shape), align_corners=False)
    turned = functional.grid_sample(sources, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return turned.round_().clamp_(0, 255).to(torch.uint8)


def _transforms(draws: np.ndarray) -> np.ndarray:
    """Affine maps (n, 2, 3) from a copy's place to its source's, in units of half a side, from draws (n, 4)."""
    angle = spread(draws[:, 0], -np.pi, np.pi)
    mirror = np.where(draws[:, 1] < 0.5, -1.0, 1.0)
    shift = spread(draws[:, 2:], -2 * SHIFT, 2 * SHIFT)  # (n, 2)
    rows = [mirror * np.cos(angle), -mirror * np.sin(angle), shift[:, 0], np.sin(angle), np.cos(angle), shift[:, 1]]
    return np.stack(rows, axis=1).reshape(-1, 2, 3)
