"""Real worker processes make the same bytes as none, in batches of any size."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from components.foundation.draws import SampleKeys
from components.foundation.files import sha256_file
from components.foundation.params import ViewParams, parse_params
from components.images.tensors import as_tensor
from components.learning.map_learner import MapTask
from components.synthesis.exam_samples import EXAM_KINDS, ExamImages, exam_makers
from components.synthesis.nsa import nsa_batch, prepare
from components.synthesis.nsa_params import PAPER_SETTINGS, Method, NsaParams
from components.synthesis.pool import fill_pool, in_order
from components.synthesis.prepared import new_array
from components.synthesis.tasks import task_of
from tests.synthesis.test_nsa import disc, texture

COUNT, SIZE = 21, 64
WAYS = [(16, 0), (1, 1), (5, 2), (7, 4), (COUNT, 2)]
OBJECT = replace(PAPER_SETTINGS["bottle"], k=1 / 6, x0=10)
KINDS: dict[str, NsaParams] = {
    "nsa of a texture": PAPER_SETTINGS["carpet"],
    "nsa of an object": OBJECT,
    "nsa with exact masks": replace(OBJECT, exact_mask=True),
    "fpi": replace(OBJECT, method="fpi", label="factor"),
    "pii": replace(OBJECT, method="pii", label="factor"),
}

Make = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def nsa_maker(params: NsaParams) -> Make:
    picture = texture if params.background is None else disc
    pictures = [prepare(picture(seed, SIZE, SIZE), params) for seed in range(5)]

    def make(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        samples = nsa_batch(pictures, np.arange(5), SampleKeys(3, "made", numbers // 5, numbers % 5), params)
        return np.stack([s.image for s in samples]), np.stack([s.label for s in samples])

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_has_the_same_bytes_with_any_number_of_workers_and_batch_size(kind: str, tmp_path: Path) -> None:
    make, digests, images = nsa_maker(KINDS[kind]), set(), np.empty(0)
    for batch, workers in WAYS:
        images = new_array(tmp_path / "images.npy", (COUNT, SIZE, SIZE, 3), "uint8")
        labels = new_array(tmp_path / "labels.npy", (COUNT, SIZE, SIZE), "float32")
        fill_pool((images, labels), make, np.arange(COUNT), batch, workers)
        images.flush()  # type: ignore[attr-defined]
        labels.flush()  # type: ignore[attr-defined]
        digests.add((sha256_file(tmp_path / "images.npy"), sha256_file(tmp_path / "labels.npy")))
    assert len(digests) == 1
    assert len(np.unique(images, axis=0)) > COUNT / 2  # and the samples differ from each other


@pytest.mark.slow
def test_the_exam_has_the_same_bytes_with_any_number_of_workers_and_batch_size() -> None:
    good = np.stack([texture(seed, SIZE, SIZE) for seed in range(COUNT)])
    params = parse_params({"data": {"root": "data", "categories": ["made"]}}, "test")
    makers = exam_makers(ExamImages.of(good, np.arange(COUNT), PAPER_SETTINGS["carpet"]), "made", params)
    for kind in EXAM_KINDS:
        digests = set()
        for batch, workers in WAYS:
            samples, masks = np.zeros_like(good), np.zeros(good.shape[:3], bool)
            fill_pool((samples, masks), makers[kind], np.arange(COUNT), batch, workers)
            digests.add(hashlib.sha256(samples.tobytes() + masks.tobytes()).hexdigest())
        assert len(digests) == 1, kind


@pytest.mark.parametrize("method", ["cutpaste-3way", "cutpaste-union"])
def test_training_batches_have_the_same_bytes_from_any_number_of_workers(method: str) -> None:
    images = torch.from_numpy(np.stack([texture(seed, SIZE, SIZE) for seed in range(4)])).permute(0, 3, 1, 2)
    params = parse_params({"data": {"root": "data", "categories": ["made"]}}, "test")
    task = task_of(method, params.synthesis)
    assert task is not None

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return task.batch(images, SampleKeys.of(0, "made", step, np.arange(4)))

    made = [
        [(x.numpy().tobytes(), y.tolist()) for x, y in in_order(batch, range(3, 9), workers)]
        for workers in (0, 1, 2, 4)
    ]
    assert all(each == made[0] for each in made[1:])


@pytest.mark.parametrize("method", ["nsa", "fpi", "pii"])
def test_batches_of_the_networks_training_have_the_same_bytes_however_they_are_made(method: Method) -> None:
    """In batches of any size, and from any number of workers; views are turned, cut and mirrored."""
    images = np.stack([texture(seed, SIZE, SIZE) for seed in range(6)])
    settings = replace(PAPER_SETTINGS["carpet"], method=method, label="logistic" if method == "nsa" else "factor")
    task = MapTask(
        images, np.arange(6), np.arange(6), settings, ViewParams(centre=250, crop=240, rotation=10, flip="left-right")
    )
    numbers, made = np.arange(12), set()
    for size, workers in [(12, 0), (1, 1), (5, 2), (4, 4)]:
        pieces = [numbers[start : start + size] for start in range(0, 12, size)]

        def batch(i: int, pieces: list[np.ndarray] = pieces) -> tuple[torch.Tensor, torch.Tensor]:
            keys = SampleKeys(0, "made", pieces[i] // 6, pieces[i] % 6)
            return task.batch(as_tensor(images[keys.index]), keys)

        batches = list(in_order(batch, range(len(pieces)), workers))
        bytes_of = [torch.cat(parts).numpy().tobytes() for parts in zip(*batches, strict=True)]
        made.add(hashlib.sha256(b"".join(bytes_of)).hexdigest())
    assert len(made) == 1


def test_results_come_in_order_from_other_processes() -> None:
    made = list(in_order(lambda number: (number, os.getpid()), range(10, 20), 2))
    assert [number for number, _ in made] == list(range(10, 20))
    assert len({process for _, process in made}) == 2
    assert os.getpid() not in {process for _, process in made}


def test_the_global_generator_stays_where_it_is() -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(in_order(abs, range(2), workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_of_a_worker_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // number, range(3), 1))
