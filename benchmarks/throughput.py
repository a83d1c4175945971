"""Samples per second of the synthetic defects, of training and of scoring, each against what it is measured by.

`python -m benchmarks.throughput --data DIR --out FILE.json`: rows of name, ours_per_s, reference_per_s, ratio. DIR is
a category or a folder of categories, of which images are taken in turns; without it, images are generated. One thread,
images of 256 px; both sides take turns, each rate is the median over the turns of samples per second of CPU time, so
that a busy machine does not blur it.

The synthetic defects are compared with the same written the usual way with PIL and torchvision; a 3-way sample is a
triple; ours makes masks too, the usual way does not. The training loop is compared with its own forward, backward and
step on batches that are ready, and scoring (image scores and anomaly maps) with the bare backbone's pooled features.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import ColorJitter

from benchmarks.common import print_table, write_results
from components.detection.compositions import candidates, for_maps
from components.detection.detector import Detector, Part, arrange
from components.detection.scale import Scale
from components.foundation.draws import SampleKeys
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.foundation.params import BackboneParams, SynthesisParams, TrainingParams
from components.images.decode import read_square
from components.images.layout import image_files
from components.images.tensors import as_tensor
from components.learning.backbone import build_encoder
from components.learning.learner import Learner, Progress
from components.synthesis.cutpaste import cutpaste, scar, three_way
from components.synthesis.tasks import task_of

SCORED, STEPS = 16, 2
SIDE, BATCH = 256, 32  # the paper trains the 3-way task with 96 images, that is 32 triples


class Case(NamedTuple):
    """One row: two pieces of work on the same number of samples."""

    name: str
    samples: int
    ours: Callable[[], object]
    reference: Callable[[], object]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a category in the MVTec AD layout, or a folder of such")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=25, help="turns of which the median is taken")
    arguments = parser.parse_args()
    images = list(islice(read_images(arguments.data) if arguments.data else generated_images(), BATCH))
    torch.set_num_threads(1)
    rows = [compare(case, arguments.repeats) for case in synthesis_cases(images)]
    rows += [compare(case, max(3, arguments.repeats // 5)) for case in (training_case(images), scoring_case(images))]
    print_table(rows)
    write_results(arguments.out, rows)


def compare(case: Case, repeats: int) -> dict[str, Any]:
    """Time both sides in turns, after one turn that is not counted."""
    turns = [(cpu_seconds(case.ours), cpu_seconds(case.reference)) for _ in range(repeats + 1)][1:]
    ours, reference = (case.samples / statistics.median(times) for times in zip(*turns, strict=True))
    rates = {"ours_per_s": round(ours, 1), "reference_per_s": round(reference, 1)}
    return {"name": case.name} | rates | {"ratio": round(ours / reference, 2)}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call, in user and kernel."""
    start = time.process_time()
    work()
    return time.process_time() - start


def read_images(data: Path) -> Iterator[np.ndarray]:
    """Good training images uint8 (256, 256, 3), taken from the categories under `data` in turns, again and again."""
    folders = sorted(data.rglob("train/good"))
    if not folders:
        raise UserError(f"There is no train/good folder under {data}: give a category in the MVTec AD layout.")
    turns = chain.from_iterable(zip_longest(*(image_files(folder)[:BATCH] for folder in folders)))
    paths = [path for path in islice(turns, BATCH * len(folders)) if path is not None]
    images = [read_square(path, SIDE, ImageLimits()) for path in paths[:BATCH]]
    return islice(chain.from_iterable([images] * BATCH), BATCH)


def generated_images() -> Iterator[np.ndarray]:
    """Smooth colour gradients with fine noise, uint8 (256, 256, 3), from fixed seeds."""
    for seed in range(BATCH):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        yield np.clip(np.asarray(smooth) + rng.normal(0, 4, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def synthesis_cases(images: list[np.ndarray]) -> list[Case]:
    """CutPaste, scar and 3-way with the paper's parameters."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
    keys = SampleKeys.of(0, "throughput", 0, np.arange(len(images)))
    pictures = [Image.fromarray(image) for image in images]
    usual = UsualWay()
    return [
        Case("cutpaste", len(images), lambda: cutpaste(batch, keys), lambda: [usual.cutpaste(p) for p in pictures]),
        Case("scar", len(images), lambda: scar(batch, keys), lambda: [usual.scar(p) for p in pictures]),
        Case("3-way", len(images), lambda: three_way(batch, keys), lambda: [usual.three_way(p) for p in pictures]),
    ]


def training_case(images: list[np.ndarray]) -> Case:
    """Steps of fine-tuning on 3-way batches, against the same loop on a batch that is ready."""
    usual, ready = make_learner(images, Learner), make_learner(images, ReadyLearner)

    def train(learner: Learner) -> None:
        learner.progress = Progress()
        learner.run(lambda step, values: None)

    return Case("training loop", STEPS, lambda: train(usual), lambda: train(ready))


class ReadyLearner(Learner):
    """A learner that makes its first batch only, and takes it again and again."""

    made: tuple[torch.Tensor, torch.Tensor] | None = None

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for each step."""
        self.made = self.made or super().batch(0)
        return self.made


def make_learner(images: list[np.ndarray], kind: type[Learner]) -> Learner:
    """A learner of the 3-way task that leaves no checkpoint and sits no exam worth the name."""
    params = TrainingParams(steps=STEPS, optimizer="adam", batch=4, exam_steps=STEPS, checkpoint_steps=10 * STEPS)
    task = task_of("cutpaste-3way", SynthesisParams())
    assert task is not None
    return kind(
        build_encoder(BackboneParams(), 0),
        task,
        np.stack(images),
        np.arange(len(images)),
        np.arange(len(images)),
        params,
        seed=0,
        category="throughput",
        examiner=lambda encoder: 0.0,
        checkpoint=Path(os.devnull) / "none",
    )


def scoring_case(images: list[np.ndarray]) -> Case:
    """Scores and maps of the default family's first composition, against the backbone's pooled features."""
    encoder = build_encoder(BackboneParams(), 0)
    batch = np.stack(images[:SCORED])
    image = candidates("pretrained", encoder, SIDE, len(batch))[0]
    with torch.inference_mode():
        features = arrange(encoder.features(as_tensor(batch), image.levels), image)
    parts = [
        Part(c, c.scorer_of(features), Scale(0, 1), Scale(0, 1), c is image, c is not image)
        for c in (image, for_maps(image))
    ]
    detector = Detector({"pretrained": encoder}, parts, SIDE, 2.0)

    @torch.inference_mode()
    def bare() -> torch.Tensor:
        return encoder(as_tensor(batch))

    return Case("scoring", len(batch), lambda: detector.score(batch), bare)


class UsualWay:
    """CutPaste one picture at a time, with PIL's crop, rotate and paste, and torchvision's ColorJitter."""

    def __init__(self) -> None:
        self.rng = random.Random(0)
        self.jitter = ColorJitter(0.1, 0.1, 0.1, 0.1)

    def cutpaste(self, picture: Image.Image) -> Image.Image:
        """A jittered patch, 2–15 % of the picture."""
        area = self.rng.uniform(0.02, 0.15) * picture.width * picture.height
        aspect = self.rng.uniform(*self.rng.choice([(0.3, 1.0), (1.0, 3.3)]))
        width, height = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        patch = self.jitter(self._crop(picture, width, height))
        result = picture.copy()
        result.paste(patch, self._place(picture, patch))
        return result

    def scar(self, picture: Image.Image) -> Image.Image:
        """A jittered, rotated scar of 2–16 × 10–25 px."""
        patch = self.jitter(self._crop(picture, self.rng.randint(2, 16), self.rng.randint(10, 25)))
        turned = patch.convert("RGBA").rotate(self.rng.uniform(-45, 45), expand=True)
        result = picture.copy()
        result.paste(turned.convert("RGB"), self._place(picture, turned), mask=turned.getchannel("A"))
        return result

    def three_way(self, picture: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image]:
        """The picture as it is, with a patch, and with a scar."""
        return picture.copy(), self.cutpaste(picture), self.scar(picture)

    def _crop(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        left, top = self.rng.randint(0, picture.width - width), self.rng.randint(0, picture.height - height)
        return picture.crop((left, top, left + width, top + height))

    def _place(self, picture: Image.Image, patch: Image.Image) -> tuple[int, int]:
        return self.rng.randint(0, picture.width - patch.width), self.rng.randint(0, picture.height - patch.height)


if __name__ == "__main__":
    main()
