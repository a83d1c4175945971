"""GradCAM: where in an image the value that a network computes of it comes from.

Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization" (ICCV
2017), eq. 1 and 2; CutPaste (CVPR 2021) locates with it what an image-level detector has found. The value may be any:
a logit of the projection head, or the distance of a pooled feature from its density.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from components.density.gaussian import GaussianScorer, Scorer
from components.density.kernel import KernelScorer
from components.density.levelwise import LevelwiseScorer
from components.learning.backbone import Encoder

Target = Callable[[Mapping[str, Tensor]], Tensor]


@torch.inference_mode(False)
@torch.no_grad()
def gradcam(
    encoder: Encoder, images: Tensor, block: str, levels: Sequence[str], target: Target, *, rectified: bool = True
) -> np.ndarray:
    """Class activation maps (N, h, w) float32 of uint8 images (N, 3, H, W), at the resolution of `block`.

    target: values (N,) from the features of `levels`, each of its own image alone, so that the gradient of their sum
    is every image's own. The map is the sum over the block's channels k of A_k times α_k, the mean over locations of
    the gradient of the value with respect to A_k. rectified: with the ReLU of eq. 2, so that only what raises the
    value is shown.
    """
    depth = encoder.levels.index(block)
    before = encoder.features(images, (block, *(level for level in levels if encoder.levels.index(level) < depth)))
    leaf = before[block].detach().requires_grad_()  # A: (N, C, h, w); what comes before needs no gradient
    with torch.enable_grad():
        onward = encoder.onward(leaf.clone(), block, levels)  # a copy, which the next layer may overwrite
        values = target({**before, **onward})
        (gradient,) = torch.autograd.grad(values.sum(), leaf)  # (N, C, h, w)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # α: (N, C, 1, 1)
    maps = (weights * leaf.detach()).sum(dim=1)  # (N, h, w)
    return (maps.relu() if rectified else maps).float().numpy(force=True)


def distance(scorer: Scorer, x: Tensor) -> Tensor:
    """What `scorer.score` gives of pooled features x (N, D), (N,) in float64 and with a gradient.

    Of a kernel density up to a constant.
    """
    x = x.double()
    match scorer:
        case GaussianScorer():
            return _mahalanobis(scorer, x)
        case KernelScorer():
            return _negative_log_density(scorer, x)
        case LevelwiseScorer():
            pieces = x.split(scorer.widths, dim=1)
            return sum(
                (distance(one, piece) for one, piece in zip(scorer.scorers, pieces, strict=True)),
                torch.zeros(len(x), dtype=torch.float64),
            )
        case _:
            raise TypeError(f"no gradient is known of {type(scorer).__name__}")


def _mahalanobis(scorer: GaussianScorer, x: Tensor) -> Tensor:
    d = x - _double(scorer.mean)  # (N, D)
    directions = _double(scorer.whitening[0])  # (D, D or k)
    z = d @ directions  # Wᵀd, or Uᵀd: (N, D or k)
    if scorer.low_rank is not None:
        # The square is Σ (Uᵀd)² · inside + ‖d - U Uᵀd‖² · outside: the norm of these two side by side.
        rest = (d - z @ directions.T) * float(scorer.low_rank.outside) ** 0.5
        z = torch.cat([z * _double(scorer.low_rank.inside[0]).sqrt(), rest], dim=1)
    return torch.linalg.vector_norm(z, dim=1)


def _negative_log_density(scorer: KernelScorer, x: Tensor) -> Tensor:
    """Without the constants, which have no gradient."""
    z = (x - _double(scorer.mean)) / _double(scorer.scale)
    squares = (z[:, None] - _double(scorer.training)).square().sum(dim=2)  # (N, M)
    return -torch.logsumexp(-squares / (2 * float(scorer.bandwidth[0]) ** 2), dim=1)


def _double(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))
