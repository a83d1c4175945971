"""Features of images by one encoder, each the same whatever is asked for with it, and kept from run to run.

The same image gets the same bytes in any company, since the network always sees batches of one shape, the last filled
up with blank images: sums of another shape of batch differ in their last digits. So features can be kept by what they
depend on: the pixels, the weights, the level and grid, and what computes (libraries, processor, threads, this code).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

import components.images.tensors as tensors_module
import components.learning.backbone as backbone_module
import components.learning.patches as patches_module
from components.detection.detector import BATCH
from components.foundation.byte_cache import ByteCache
from components.foundation.files import digest_of, sha256_file
from components.foundation.libraries import library_versions
from components.foundation.places import KNOWN
from components.foundation.processor import processor
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder

Features = dict[str, Tensor]
Piece = tuple[np.ndarray, Sequence[str]]  # uint8 (b, S, S, 3), and of each the digests of the images that it shows


def feature_store(max_bytes: int) -> ByteCache:
    """Where the project keeps features."""
    return ByteCache(KNOWN, max_bytes)


class Extractor:
    """Makes the features of some levels; a map finer than `grid` is averaged to it (0: left as it is).

    store: where they are kept, if they are.
    """

    def __init__(self, encoder: Encoder, levels: Sequence[str], grid: int, store: ByteCache | None = None) -> None:
        self.encoder = encoder
        self.levels = tuple(levels)
        self.grid = grid
        self.store = store
        self._origin = digest_of([grid, encoder_digest(encoder), computing(encoder)]) if store else ""

    @torch.inference_mode()
    def features(self, pieces: Iterable[Piece], count: int) -> Features:
        """Level to (N, C, h, w) float32, or (N, C) for "head", of the images of all pieces; on the CPU.

        count: N. Memory is bounded by a piece and a batch, besides what is returned.
        """
        filled = _Filled(count)
        pixels: list[np.ndarray] = []  # of images that must be computed, with their places and keys
        waiting: list[tuple[int, str, str]] = []
        place = 0
        for images, owners in pieces:
            names = [self._name(image) for image in images]
            known = self._read(names)
            for image, owner, name in zip(images, owners, names, strict=True):
                if name in known:
                    filled.put(place, known[name])
                else:
                    pixels.append(np.array(image))
                    waiting.append((place, owner, name))
                place += 1
            while len(waiting) >= BATCH:
                self._compute(pixels[:BATCH], waiting[:BATCH], filled)
                del pixels[:BATCH], waiting[:BATCH]
        if waiting:
            self._compute(pixels, waiting, filled)
        return {level: filled.values[level] for level in self.levels}

    def _compute(self, pixels: list[np.ndarray], waiting: Sequence[tuple[int, str, str]], filled: "_Filled") -> None:
        """Compute the features of at most BATCH images, put them in their places, and store them."""
        blank = np.zeros_like(pixels[0])
        batch = as_tensor(np.stack([*pixels, *[blank] * (BATCH - len(pixels))]))
        made = {k: self._on_grid(v.float()).cpu() for k, v in self.encoder.features(batch, self.levels).items()}
        stored: dict[str, tuple[str, bytes]] = {}
        for row, (place, owner, name) in enumerate(waiting):
            own = {level: value[row] for level, value in made.items()}
            filled.put(place, own)
            if self.store:
                stored |= {_key(name, level): (owner, save({"": value.contiguous()})) for level, value in own.items()}
        if self.store:
            self.store.write(stored)

    def _on_grid(self, feature: Tensor) -> Tensor:
        if not self.grid or feature.ndim != 4 or feature.shape[-1] <= self.grid:
            return feature
        return functional.adaptive_avg_pool2d(feature, (self.grid, self.grid))

    def _name(self, image: np.ndarray) -> str:
        """What all features of an image (S, S, 3) uint8 by this encoder are kept under; nothing without a store."""
        if self.store is None:
            return ""
        content = hashlib.sha256(f"{self._origin} {image.shape} ".encode())
        content.update(np.ascontiguousarray(image).data)
        return content.hexdigest()

    def _read(self, names: Sequence[str]) -> dict[str, Features]:
        """The features of those images of which all levels are stored."""
        if self.store is None:
            return {}
        found = self.store.read([_key(name, level) for name in dict.fromkeys(names) for level in self.levels])
        whole = (name for name in names if all(_key(name, level) in found for level in self.levels))
        return {name: {level: load(found[_key(name, level)])[""] for level in self.levels} for name in whole}


class _Filled:
    """Features that are filled in image by image."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.values: Features = {}

    def put(self, place: int, own: Mapping[str, Tensor]) -> None:
        for level, value in own.items():
            if level not in self.values:
                self.values[level] = torch.empty(self.count, *value.shape, dtype=value.dtype)
            self.values[level][place] = value


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 of what an encoder computes with: its kind, its normalisation, its weights."""
    content = hashlib.sha256(repr((encoder.spec.name, encoder.spec.mean, encoder.spec.std)).encode())
    for name, value in sorted(encoder.state_dict().items()):
        content.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        content.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def computing(encoder: Encoder) -> dict[str, object]:
    """What features depend on besides pixels and weights: who computes, and by which code."""
    modules = (__file__, backbone_module.__file__, patches_module.__file__, tensors_module.__file__)
    return {
        "libraries": library_versions(),
        "processor": processor(),
        "device": str(encoder.mean.device),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "training": encoder.training,
        "code": [sha256_file(Path(file)) for file in modules if file],
    }


def _key(name: str, level: str) -> str:
    return f"{name} {level}"
