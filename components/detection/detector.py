"""A detector: compositions `representation × density × map` whose standardised scores are averaged.

`Detector.score` is the one function that scores: training, evaluation, serving and the benchmarks all call it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.density.gaussian import (
    Covariance,
    Density,
    GaussianDensity,
    GaussianScorer,
    Layout,
    Scorer,
    low_rank_scorer,
)
from components.density.kernel import KernelDensity, KernelScorer
from components.density.levelwise import LevelwiseDensity, LevelwiseScorer, split_levels
from components.detection.gradcam import distance, gradcam
from components.detection.scale import Scale
from components.detection.upsampling import spread_patches
from components.images.decode import resize_image
from components.images.tensors import as_tensor
from components.learning.backbone import HEAD, Encoder
from components.learning.head import defect_logit

if TYPE_CHECKING:
    from components.detection.network_part import NetworkPart

BATCH = 16
ARRANGED = 32  # images whose features are arranged at a time
Estimator = Literal["gaussian", "kernel"]
CopyKind = Literal["geometric", "photometric"]
MapKind = Literal["dense", "gradcam", "gradcam-logit"]


@dataclass(frozen=True)
class Composition:
    """Which features of which encoder one density describes, and how its distances become a score and a map.

    Attributes:
        encoder: name of the representation, such as "pretrained" or "trained".
        levels: the encoder's levels; several are resampled to one grid and concatenated.
        layout: "image" (global average, one vector an image), "shared", "location" or "pooled" (a vector a location).
        grid: locations per side; 0 for the layout "image".
        covariance, ridge, rank: as `GaussianDensity` takes them.
        factors: by which each level is multiplied first; all 1 where empty.
        top: share of the locations, the highest, whose mean distance is the image score.
        copies: copies of every image that the density learns from as well.
        receptive_field, stride: of a location, in pixels, where locations are overlapping patches wholly inside the
            image; 0 where they tile it.
        smooth: side of the square of neighbouring cells over which features are averaged; 1 for none.
        copy_kind: what kind of copies, see `components.detection.copies`.
        estimator: a Gaussian, or a kernel density, which takes no covariance and the layout "image" only.
        widths: where given, each level has a density of its own, of so many features, and the distances are summed;
            where empty, one density describes all levels together.
        map: "dense" (the distances of the locations themselves, where there are any), or for the layout "image"
            GradCAM: "gradcam" of the distance, "gradcam-logit" of the trained head's log-odds of a defect.
        cam_level: the block whose activations GradCAM weights.
    """

    encoder: str
    levels: tuple[str, ...]
    layout: Layout
    grid: int = 0
    covariance: Covariance = "ledoit-wolf"
    ridge: float = 0.01
    rank: int = 32
    factors: tuple[float, ...] = ()
    top: float = 0.01
    smooth: int = 1
    copies: int = 0
    copy_kind: CopyKind = "geometric"
    estimator: Estimator = "gaussian"
    widths: tuple[int, ...] = ()
    map: MapKind = "dense"
    cam_level: str = ""
    receptive_field: int = 0
    stride: int = 0

    @property
    def name(self) -> str:
        """A short name that tells compositions apart, such as "pretrained b3+b4 location 16 low-rank"."""
        levels = ("&" if self.widths else "+").join(self.levels)
        density = "kernel" if self.estimator == "kernel" else self.covariance
        words = [self.encoder, levels, self.layout, str(self.grid or ""), density]
        if self.copies:
            words += [str(self.copies), "photometric" if self.copy_kind == "photometric" else "", "copies"]
        return " ".join(filter(None, [*words, f"{self.map} {self.cam_level}" if self.cam_level else ""]))

    @property
    def is_dense(self) -> bool:
        """Whether its distances are a map themselves."""
        return self.layout != "image"

    @property
    def merges_quickly(self) -> bool:
        """Whether densities of parts of the images are merged sooner than one is fitted to all of them."""
        return self.estimator == "gaussian" and not self.widths and self.layout == "shared"

    @property
    def is_low_rank(self) -> bool:
        """Whether it has one Gaussian of low rank, whose leading directions are those of a lower rank too."""
        return self.estimator == "gaussian" and not self.widths and self.covariance == "low-rank"

    def narrowed(self, scorer: Scorer) -> Scorer:
        """This composition's scorer, from that of one which differs in having a higher rank."""
        return scorer.narrowed(self.rank) if self.is_low_rank and isinstance(scorer, GaussianScorer) else scorer

    def density(self) -> Density:
        """An empty density of this composition's kind."""
        if self.widths:
            return LevelwiseDensity(self.widths, [level.density() for level in self.by_level()])
        if self.estimator == "kernel":
            return KernelDensity()
        return GaussianDensity(self.layout, self.covariance, self.ridge, self.rank)

    def by_level(self) -> list["Composition"]:
        """The same with one level only, for each of its levels."""
        return [replace(self, levels=(level,), factors=(), widths=()) for level in self.levels]

    def scorer_of(self, features: np.ndarray) -> Scorer:
        """The scorer of this composition fitted to `features`, as `arrange` gives them, by the cheapest way."""
        if self.widths:
            pieces = zip(self.by_level(), split_levels(features, self.widths), strict=True)
            return LevelwiseScorer(self.widths, [level.scorer_of(piece) for level, piece in pieces])
        few = self.estimator == "gaussian" and len(features) < features.shape[-1]
        if few and self.covariance == "low-rank" and self.layout in ("image", "location"):
            return low_rank_scorer(features, self.layout, self.ridge, self.rank)
        return self.density().fit(features).scorer()

    def stored_scorer(self, arrays: Mapping[str, np.ndarray]) -> Scorer:
        """The scorer whose `arrays()` these are; raises UserError where they do not fit this composition."""
        if self.widths:
            return LevelwiseScorer.from_arrays(arrays, self.widths, replace(self, widths=()).stored_scorer)
        if self.estimator == "kernel":
            return KernelScorer.from_arrays(arrays)
        return GaussianScorer.from_arrays(arrays, {"layout": self.layout})

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Composition":
        """The inverse of `dataclasses.asdict` through JSON."""
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists})


def arrange(features: Mapping[str, Tensor], composition: Composition) -> np.ndarray:
    """Features as the composition's density takes them: (N, D), or (N, grid², D), float32.

    features: block outputs (N, C, h, w) and (N, C) for "head", as `Encoder.features` gives them.
    """
    if not composition.is_dense:
        return pooled_features(features, composition).numpy(force=True)
    count = len(features[composition.levels[0]])
    arranged = _arranged({level: features[level][:ARRANGED] for level in composition.levels}, composition)
    if count <= ARRANGED:
        return arranged
    whole = np.empty((count, *arranged.shape[1:]), np.float32)  # written piece by piece, so that it is there once
    for start in range(0, count, ARRANGED):
        rows = slice(start, start + ARRANGED)
        whole[rows] = _arranged({level: features[level][rows] for level in composition.levels}, composition)
    return whole


def _arranged(features: Mapping[str, Tensor], composition: Composition) -> np.ndarray:
    """(N, grid², D) float32 of a dense composition."""
    grids = torch.cat([_on_grid(f, composition) for f in _weighted(features, composition)], dim=1)  # (N, D, g, g)
    return grids.flatten(2).transpose(1, 2).contiguous().numpy(force=True)  # (N, g², D)


def pooled_features(features: Mapping[str, Tensor], composition: Composition) -> Tensor:
    """Global averages (N, D) of the composition's levels, concatenated."""
    chosen = _weighted(features, composition)
    return torch.cat([f.mean(dim=(2, 3)) if f.ndim == 4 else f for f in chosen], dim=1)


def _weighted(features: Mapping[str, Tensor], composition: Composition) -> list[Tensor]:
    factors = composition.factors or (1.0,) * len(composition.levels)
    return [features[level].float() * factor for level, factor in zip(composition.levels, factors, strict=True)]


def _on_grid(feature: Tensor, composition: Composition) -> Tensor:
    """(N, C, h, w) averaged over neighbours and resampled to (N, C, grid, grid)."""
    if composition.smooth > 1:
        feature = functional.avg_pool2d(
            feature, composition.smooth, 1, composition.smooth // 2, count_include_pad=False
        )
    grid = (composition.grid, composition.grid)
    if feature.shape[-1] >= composition.grid:
        return functional.adaptive_avg_pool2d(feature, grid)
    return functional.interpolate(feature, grid, mode="bilinear", align_corners=False)


def image_scores(distances: np.ndarray, composition: Composition) -> np.ndarray:
    """Image scores (N,) from distances (N,) or (N, L): the mean of the highest `top` share of the locations."""
    if distances.ndim == 1:
        return distances
    count = max(1, round(composition.top * distances.shape[1]))
    return np.partition(distances, -count, axis=1)[:, -count:].mean(axis=1)


@dataclass(frozen=True)
class Part:
    """One fitted composition, what it serves for, and the scales of its image scores and of its map.

    A composition may be best for the image score and another for the map, so each serves for one or both.
    """

    composition: Composition
    scorer: Scorer
    image_scale: Scale
    map_scale: Scale
    for_image: bool = True
    for_map: bool = True

    def meta(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        return {
            "composition": asdict(self.composition),
            "image_scale": asdict(self.image_scale),
            "map_scale": asdict(self.map_scale),
            "for_image": self.for_image,
            "for_map": self.for_map,
        }


class Detector:
    """The fitted compositions of one category, with the encoders they need, and networks with maps of their own.

    size: side of the square that images are resampled to, in pixels.
    sigma: standard deviation, in pixels of that square, of the Gaussian receptive field by which maps are upsampled.
    heads: the trained projection heads of encoders, where a part's map is that of their logit.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        parts: Sequence[Part],
        size: int,
        sigma: float,
        heads: Mapping[str, nn.Sequential] | None = None,
        networks: "Sequence[NetworkPart]" = (),
    ) -> None:
        self.encoders = dict(encoders)
        self.heads = dict(heads or {})
        self.parts = list(parts)
        self.networks = list(networks)
        self.size = size
        self.sigma = sigma

    def score(self, images: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Score uint8 RGB images, (N, H, W, 3) or a list of (H, W, 3) of any sizes.

        Returns image scores (N,) float32 and anomaly maps (N, size, size) float32; higher is more anomalous. Both are
        means over compositions and networks of scores in units of the held-out good images' standard deviation.
        """
        scores = np.empty(len(images), np.float32)
        maps = np.empty((len(images), self.size, self.size), np.float32)
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            batch = np.stack([resize_image(image, self.size) for image in images[rows]])
            scores[rows], maps[rows] = self._score_batch(as_tensor(batch))
        return scores, maps

    @torch.inference_mode()
    def _score_batch(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        features = {
            name: encoder.features(images, levels_of(name, [part.composition for part in self.parts]))
            for name, encoder in self.encoders.items()
        }
        scores, grids = [], []
        for part in self.parts:
            distances = part.scorer.score(arrange(features[part.composition.encoder], part.composition))
            if part.for_image:
                scores.append(part.image_scale.apply(image_scores(distances, part.composition)))
            if part.for_map:
                cells = distances if part.composition.is_dense else self._activation(part, images)
                grids.append((part.composition, part.map_scale.apply(cells)))
        own = [network.score(images) for network in self.networks]
        scores += [score for score, _ in own]
        return np.mean(scores, axis=0), self.merged_maps(grids, [maps for _, maps in own], len(images))

    def _activation(self, part: Part, images: Tensor) -> np.ndarray:
        """GradCAM (N, h·w) of one part."""
        name = part.composition.encoder
        return activation(part.composition, part.scorer, self.encoders[name], self.heads.get(name), images)

    def merged_maps(self, grids: list[tuple[Composition, np.ndarray]], own: list[Tensor], count: int) -> np.ndarray:
        """Mean (N, size, size) of the compositions' standardised distances (N, grid²) and of networks' own maps."""
        if not grids and not own:
            return np.zeros((count, self.size, self.size), np.float32)
        total = torch.zeros(count, 1, self.size, self.size)
        for composition, distances in grids:
            total += grown(distances, composition, self.size, self.size)
        total += sum(own)
        return gaussian_blur(total / (len(grids) + len(own)), self.sigma)[:, 0].numpy()


def activation(
    composition: Composition,
    scorer: Scorer,
    encoder: Encoder,
    head: nn.Sequential | None,
    images: Tensor,
    *,
    rectified: bool = True,
) -> np.ndarray:
    """GradCAM (N, h·w) float32 of uint8 images (N, 3, H, W), of what `composition.map` says; see `gradcam`.

    Raises ValueError where that is the logit of a head and there is none.
    """
    if composition.map == "gradcam-logit":
        if head is None:
            raise ValueError(f"{composition.name} needs the head of {composition.encoder}")
        levels: tuple[str, ...] = (HEAD,)

        def target(features: Mapping[str, Tensor]) -> Tensor:
            return defect_logit(head(features[HEAD]))
    else:
        levels = composition.levels

        def target(features: Mapping[str, Tensor]) -> Tensor:
            return distance(scorer, pooled_features(features, composition))

    maps = gradcam(encoder, images, composition.cam_level, levels, target, rectified=rectified)
    return maps.reshape(len(maps), -1)


def grown(values: np.ndarray, composition: Composition, size: int, raster: int) -> Tensor:
    """Maps (N, 1, raster, raster) float32 of an image of `size` pixels a side, from values of its cells (N, g²)."""
    grid = math.isqrt(values.shape[1])
    cells = torch.from_numpy(np.ascontiguousarray(values, np.float32)).view(-1, 1, grid, grid)
    if composition.receptive_field:
        return spread_patches(cells, composition.receptive_field, composition.stride, size, raster)
    return functional.interpolate(cells, (raster, raster), mode="bilinear", align_corners=False)


def levels_of(encoder: str, compositions: Sequence[Composition]) -> tuple[str, ...]:
    """The levels of one encoder that these compositions need, each once, in order of name."""
    return tuple(sorted({level for c in compositions if c.encoder == encoder for level in c.levels}))


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps (N, 1, H, W) with a separable Gaussian, reflecting at the border; sigma in pixels, 0 for none."""
    radius = min(int(4 * sigma + 0.5), maps.shape[-1] - 1)
    if radius < 1:
        return maps
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)  # cut off at 4 σ, as SciPy's filter is
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    padded = functional.pad(maps, (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(rows, kernel.view(1, 1, -1, 1))
