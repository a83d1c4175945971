"""The first training set of a category, which no champion has screened, is screened by itself.

Each image is scored by a density that has learned all the others: it is removed, exactly, from one that has learned
all. An image that differs as no good one does, such as a defect named good, is then far from the rest. What is small,
or differs little from how good images differ among themselves, is not found so.
"""

from dataclasses import dataclass

import numpy as np
import torch

from components.density.gaussian import GaussianDensity
from components.detection.compositions import levels_at
from components.detection.detector import BATCH, Composition, arrange, image_scores
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder

STRIDES = (16,)
GRID = 16
MOST = 2000  # images; of more, evenly spread ones
NORMAL = 1.4826  # by which a median absolute deviation is a standard deviation, of normal values


@dataclass(frozen=True)
class SelfScreened:
    """What the images say of one another.

    Attributes:
        rows: (n,) which were looked at.
        scores: (n,) leave-one-out distances, the mean of an image's highest hundredth of locations.
        maps: (n, g, g) the distances of all locations.
        limit: above it an image stands out.
    """

    rows: np.ndarray
    scores: np.ndarray
    maps: np.ndarray
    limit: float

    @property
    def outliers(self) -> np.ndarray:
        """Positions in `rows` of the images that stand out, the farthest first."""
        order = np.argsort(-self.scores, kind="stable")
        return order[self.scores[order] > self.limit]


def screen_itself(encoder: Encoder, images: np.ndarray, max_deviations: float) -> SelfScreened:
    """Score each of the good images (N, S, S, 3) uint8 by all others.

    encoder: before any training, which may have grown used to what is wrong. max_deviations: how far above the median
    an image may lie, in robust standard deviations of the logarithms of the distances.
    """
    rows = np.unique(np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(int))
    levels = levels_at(encoder, STRIDES)[0][-1:]  # of stride 16 the last, which has seen most
    grid = max(2, min(GRID, images.shape[1] // 16))
    composition = Composition("itself", levels, "shared", grid, "ledoit-wolf")
    features = _features(encoder, images, rows, composition)  # (n, L, D)
    distances = leave_one_out(features)
    scores = image_scores(distances, composition)
    return SelfScreened(rows, scores, distances.reshape(len(rows), grid, grid), outlier_limit(scores, max_deviations))


def leave_one_out(features: np.ndarray) -> np.ndarray:
    """Distances (n, L) of the locations of each image (n, L, D) by the Gaussian of all other images' locations."""
    density = GaussianDensity("shared", "ledoit-wolf").fit(features)
    distances = np.empty(features.shape[:2], np.float32)
    for row in range(len(features)):
        own = features[row : row + 1]
        distances[row] = density.remove(own).scorer().score(own)[0]
        density.add(own)
    return distances


def outlier_limit(scores: np.ndarray, max_deviations: float) -> float:
    """So far above the median of scores (n,) on a scale of logarithms; a spread of at least two hundredths."""
    logs = np.log(np.maximum(scores, 1e-12))
    centre = float(np.median(logs))
    spread = max(NORMAL * float(np.median(np.abs(logs - centre))), 0.02)
    return float(np.exp(centre + max_deviations * spread))


@torch.inference_mode()
def _features(encoder: Encoder, images: np.ndarray, rows: np.ndarray, composition: Composition) -> np.ndarray:
    pieces = []
    for start in range(0, len(rows), BATCH):
        batch = np.ascontiguousarray(images[rows[start : start + BATCH]])
        pieces.append(arrange(encoder.features(as_tensor(batch), composition.levels), composition))
    return np.concatenate(pieces)
