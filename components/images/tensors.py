"""Images as the tensors that networks take."""

import numpy as np
import torch
from torch import Tensor


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) as a tensor (N, 3, H, W) without a copy: channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
