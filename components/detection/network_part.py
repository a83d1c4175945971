"""A network's own map as a part of a detector, on the scale of its scores on held-out good images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.detection.scale import Scale
from components.learning.decoder import MapNetwork

LEAST_ODDS = 1e-12
UNIT = Scale(0.0, 1.0)


@dataclass(frozen=True)
class NetworkPart:
    """A network whose map serves as anomaly map, and the mean of whose map serves as image score.

    Both are kept as log-odds: they rank as probabilities do, and spread over good images evenly enough to be averaged
    with distances. The whole image is scored, as the network is convolutional; with `window` only the middle square, as
    in the paper, and pixels outside get the lowest value inside.

    Attributes:
        network: gives log-odds.
        top: share of the pixels, the highest, whose mean probability is the image score; 1 for the mean of the map.
        window: side in pixels of the middle square that is scored; 0 for the whole image.
        image_scale, map_scale: of image scores and of pixels of held-out good images.
    """

    network: MapNetwork
    top: float
    window: int
    image_scale: Scale = UNIT
    map_scale: Scale = UNIT

    def score(self, images: Tensor) -> tuple[np.ndarray, Tensor]:
        """Image scores (N,) and maps (N, 1, S, S), both float32 and on their scales, of uint8 (N, 3, S, S)."""
        scores, maps = self.log_odds(images)
        return self.image_scale.apply(scores), (maps[:, None] - self.map_scale.centre) / self.map_scale.spread

    @torch.inference_mode()
    def log_odds(self, images: Tensor) -> tuple[np.ndarray, Tensor]:
        """Image scores (N,) and maps (N, S, S), float32, of uint8 images (N, 3, S, S), before any scale."""
        size = images.shape[-1]
        side = self.window or size
        start = (size - side) // 2
        inside = slice(start, start + side)
        logits = self.network(images[..., inside, inside]).cpu()  # (N, side, side)
        maps = logits.amin(dim=(1, 2))[:, None, None].repeat(1, size, size)
        maps[:, inside, inside] = logits
        count = max(1, round(self.top * side * side))
        odds = torch.sigmoid(logits.double()).flatten(1)  # (N, side²)
        highest = odds if count == side * side else odds.topk(count, dim=1).values
        return torch.logit(highest.mean(dim=1), LEAST_ODDS).float().numpy(), maps

    def meta(self) -> dict[str, Any]:
        """All but the network, for JSON."""
        scales = {"image_scale": asdict(self.image_scale), "map_scale": asdict(self.map_scale)}
        return {"top": self.top, "window": self.window, **scales}

    @classmethod
    def of_meta(cls, network: MapNetwork, meta: Mapping[str, Any]) -> "NetworkPart":
        """The inverse of `meta`."""
        scales = Scale(**meta["image_scale"]), Scale(**meta["map_scale"])
        return cls(network, meta["top"], meta["window"], *scales)
