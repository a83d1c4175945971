"""Training of the network of NSA, FPI and PII: to find in an image what was blended into it (section 3.3 and 4.1).

Samples are made as training goes on; each is a function of (seed, category, epoch, image), so a run that was killed
and resumed ends with the bytes of one that was not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.foundation.draws import SampleKeys
from components.foundation.params import NetworkParams, TrainingParams, ViewParams
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder
from components.learning.decoder import Decoder, MapNetwork, build_decoder
from components.learning.learner import Learner, Listener
from components.synthesis.nsa import nsa_sample, prepare, sources_of
from components.synthesis.nsa_params import NsaParams
from components.synthesis.views import draw_views

FULL_SCALE = 4.0


@dataclass(frozen=True)
class MapTask:
    """Images with natural synthetic anomalies, and the label of every pixel.

    Attributes:
        images: uint8 (N, S, S, 3), may be mapped from disk.
        rows: of the images to learn from; the patches of each come from another of them.
        keys: int64 (N,) who each of the images is (`components.images.identity.keys_of`).
        params: of the generator. view: what is seen of target and source, before anything is blended, as in the paper.
    """

    images: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    params: NsaParams
    view: ViewParams
    classes: int = 1

    def batch(self, images: Tensor, keys: SampleKeys) -> tuple[Tensor, Tensor]:
        """Samples uint8 (B, 3, c, c) made from good images (B, 3, S, S) that `keys` name; labels (B, c, c).

        Labels are float32 in 0…1; continuous ones are differences in units of FULL_SCALE · x0, at most 1, so that the
        sigmoid's range is used whatever the category's contrast.
        """
        targets = draw_views(images.permute(0, 2, 3, 1).numpy(), keys, self.view)
        sources = draw_views(self.images[self.source_rows(keys)], keys, self.view, "source view")
        made = [
            nsa_sample(prepare(target, self.params), prepare(source, self.params), key, self.params)
            for target, source, key in zip(targets, sources, (keys[i : i + 1] for i in range(len(keys))), strict=True)
        ]
        labels = torch.from_numpy(np.stack([sample.label for sample in made]))
        if self.params.label == "continuous":
            labels = (labels / (FULL_SCALE * self.params.x0)).clamp_(max=1.0)
        return as_tensor(np.stack([sample.image for sample in made])), labels

    def source_rows(self, keys: SampleKeys) -> np.ndarray:
        """Another row to learn from for each key, as `SampleKeys.choose` does; the same where there is only one."""
        return self.rows[sources_of(keys, self.keys[self.rows])]


class MapLearner(Learner):
    """Trains an encoder and a decoder to give the labels of `task`, with a Learner's phases, marks and checkpoints.

    The loss is binary cross-entropy, and mean squared error of the sigmoid for continuous labels (section 3.3).
    examiner: marks the network; the weights with the best mark are kept, those before training among them if
    `marks_start`.
    """

    task: MapTask
    head: Decoder

    def __init__(
        self,
        encoder: Encoder,
        task: MapTask,
        network: NetworkParams,
        schedule: TrainingParams,
        *,
        seed: int,
        category: str,
        examiner: Callable[[MapNetwork], float],
        marks_start: bool,
        checkpoint: Path,
    ) -> None:
        self.shape, self.marks_start = network, marks_start
        encoder.freeze_first(network.frozen)
        super().__init__(
            encoder,
            task,
            task.images,
            task.rows,
            task.keys,
            schedule,
            seed=seed,
            category=category,
            examiner=lambda _: examiner(self.network),
            checkpoint=checkpoint,
        )

    @property
    def network(self) -> MapNetwork:
        """The encoder and the decoder as they are."""
        return MapNetwork(self.encoder, self.head)

    def make_head(self) -> Decoder:
        """The decoder."""
        return build_decoder(self.encoder, self.shape.strides, self.shape.reduction, self.shape.widths, self.seed)

    def outputs(self, images: Tensor, learns: bool) -> Tensor:
        """Log-odds (B, c, c)."""
        with torch.set_grad_enabled(learns):
            features = self.encoder.features(images, self.head.spec.levels)
        return self.head([features[level] for level in self.head.spec.levels], (images.shape[2], images.shape[3]))

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """The loss of log-odds (B, c, c), and the share of pixels on the right side of 1/2."""
        right = ((outputs > 0) == (labels > 0.5)).float().mean().item()
        return map_loss(outputs, labels, self.task.params.label), right

    def mark(self) -> float:
        """The exam mark of the network."""
        self.head.eval()
        try:
            return super().mark()
        finally:
            self.head.train()

    def _sit_exam(self, listen: Listener) -> None:
        if self.progress.step or self.marks_start:
            super()._sit_exam(listen)


def map_loss(logits: Tensor, labels: Tensor, label: str) -> Tensor:
    """Mean over pixels: binary cross-entropy, or for "continuous" labels the squared error of the sigmoid."""
    if label == "continuous":
        return functional.mse_loss(torch.sigmoid(logits), labels)
    return functional.binary_cross_entropy_with_logits(logits, labels)
