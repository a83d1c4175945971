"""The patch-level network: what it says of a crop, it says of every place of an image in one convolutional pass.

No layer pads, so that the feature at a cell depends on exactly the pixels of its receptive field, and is that of the
crop with those pixels, wherever the crop lies.

Source: Li et al., "CutPaste" (CVPR 2021), sections 3.3 and 4.2 and the appendix (crops of 64 × 64; 32 × 32 with stride
4, a map of 57 × 57 for 256 pixels), where every crop is passed by itself.
"""

import itertools
import re

from torch import Tensor, nn

from components.foundation.errors import UserError
from components.foundation.params import check_patch_geometry

PREFIX = "patches/"


class PatchNet(nn.Module):
    """A residual network without padding: crops of `receptive_field` pixels become one cell, images a map.

    The first convolution is 4 × 4 and halves, further ones of 3 × 3 halve until one cell is `stride` pixels from the
    next. Residual blocks, each of which widens the field by two strides, bring it to about a third; the mean over
    neighbouring cells does the rest, so that a defect is learned at one place of the crop for all of them, as in a
    network that ends in a global average.

    Attributes:
        receptive_field: side of the square of pixels that a cell depends on.
        stride: pixels from one cell to the next; a power of two.
        width: features of a cell.
        blocks: the network in order of depth; `strides`: pixels from cell to cell after each of them.
    """

    def __init__(self, receptive_field: int, stride: int, width: int) -> None:
        super().__init__()
        check_patch_geometry(receptive_field, stride)
        self.receptive_field, self.stride, self.width = receptive_field, stride, width
        trunk = 2 * width
        halvings = stride.bit_length() - 1
        widths = [3, *(max(16, trunk >> (halvings - 1 - depth)) for depth in range(halvings))]
        stem: list[nn.Module] = [
            _convolution(before, after, 3 if depth else 4, 2)
            for depth, (before, after) in enumerate(itertools.pairwise(widths))
        ]
        steps = receptive_field // (2 * stride) - 1  # by two strides each, from the stem's field to the whole
        blocks = max(1, steps // 3)
        body: list[nn.Module] = [ResidualBlock(widths[-1]) for _ in range(blocks)]
        body += [nn.AvgPool2d(1 + 2 * (steps - blocks), stride=1)] if steps > blocks else []
        last = nn.Sequential(nn.Conv2d(widths[-1], width, 1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*stem, *body, last)
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.strides = (*(2 ** (depth + 1) for depth in range(halvings)), *(stride,) * (len(body) + 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """The mean over all places (N, width) of normalised images (N, 3, H, W)."""
        return self.pooling(self.blocks(images))

    def grid(self, size: int) -> int:
        """Cells per side of an image of `size` pixels; UserError where not even one fits."""
        if size < self.receptive_field:
            raise UserError(
                f"Patches of {self.receptive_field} pixels do not fit into images of {size}: make "
                "patch.receptive_field smaller or image.side larger in params.yaml."
            )
        return (size - self.receptive_field) // self.stride + 1


class ResidualBlock(nn.Module):
    """A 3 × 3 convolution without padding, one over the channels, and the middle of the input added to both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = _convolution(width, width, 3, 1)
        self.mixing = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h − 2, w − 2)."""
        return nn.functional.relu(self.mixing(self.convolution(x)) + x[:, :, 1:-1, 1:-1])


def patch_net_name(receptive_field: int, stride: int, width: int) -> str:
    """The name by which `patch_net` builds the network again, such as "patches/32-4-64"."""
    return f"{PREFIX}{receptive_field}-{stride}-{width}"


def patch_net(name: str) -> PatchNet:
    """The network with this name and random weights; UserError for a malformed or an impossible one."""
    found = re.fullmatch(PREFIX + r"(\d{1,4})-(\d{1,4})-(\d{1,4})", name)
    if not found:
        raise UserError(f"{name!r} names no patch network: a name is such as '{patch_net_name(32, 4, 64)}'.")
    receptive_field, stride, width = map(int, found.groups())
    return PatchNet(receptive_field, stride, width)


def _convolution(before: int, after: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )
