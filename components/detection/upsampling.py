"""From scores of overlapping patches to a map of pixels: each score spread around its own patch's centre."""

import torch
from torch import Tensor

SIGMA_SHARE = 1 / 8  # of the receptive field: the standard deviation of its Gaussian


def spread_patches(scores: Tensor, receptive_field: int, stride: int, size: int, raster: int) -> Tensor:
    """Gaussian receptive-field upsampling: maps (N, 1, raster, raster) float32 of scores (N, 1, g, g).

    The map at a pixel is the mean of all scores, weighted by a Gaussian of the distance from the pixel to the centre
    of each score's patch; pixels beyond the outermost centres take after the patches nearest to them. Cell i's patch
    covers pixels i · stride … i · stride + receptive_field − 1 of an image of `size` pixels a side, which is sampled
    at `raster` × `raster` evenly spaced places (at every pixel where raster is size).

    Source: Li et al., "CutPaste" (CVPR 2021), section 4.2, after Liznerski et al., "Explainable deep one-class
    classification" (ICLR 2021), algorithm 1; here divided by the sum of the weights.
    """
    cells = torch.arange(scores.shape[-1], dtype=torch.float32)
    centres = (receptive_field - 1) / 2 + stride * cells  # (g,)
    pixels = (torch.arange(raster, dtype=torch.float32) + 0.5) * (size / raster) - 0.5  # (raster,)
    distances = (pixels[:, None] - centres) / (SIGMA_SHARE * receptive_field)  # (raster, g)
    weights = torch.softmax(-0.5 * distances**2, dim=1)  # the Gaussian of two axes is a product, and so is its sum
    return weights @ scores.float() @ weights.T
