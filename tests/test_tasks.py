"""Each method trains on its own labels, made from images that were shifted and jittered as a whole first."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from components import cutpaste
from components.draws import SampleKeys
from components.params import Method, SynthesisParams
from components.tasks import Task, augment_params, patch_params, scar_params, task_of

COUNT, SIDE = 12, 64
PARAMS = SynthesisParams()
KEYS = SampleKeys.of(0, "bolt", 0, range(COUNT))
CLASSES = {
    "cutpaste-binary": 2,
    "cutpaste-scar": 2,
    "cutpaste-union": 2,
    "cutpaste-3way": 3,
    "rotation": 4,
    "cutout": 2,
    "confetti": 2,
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIDE, SIDE), dtype=np.uint8))


@pytest.fixture(scope="module")
def normal(images: Tensor) -> Tensor:
    """What the images become before anything is pasted."""
    return cutpaste.augment(images, KEYS, augment_params(PARAMS))


def task(method: str, params: SynthesisParams = PARAMS) -> Task:
    found = task_of(method, params)
    assert found is not None
    return found


def test_every_method_has_its_task_but_the_one_without_training() -> None:
    assert {*CLASSES, "pretrained"} == set(get_args(Method))
    assert task_of("pretrained", PARAMS) is None
    assert {method: task(method).classes for method in CLASSES} == CLASSES


@pytest.mark.parametrize("method", [method for method in CLASSES if method != "rotation"])
def test_normal_images_come_first_then_as_many_of_each_class(method: str, images: Tensor, normal: Tensor) -> None:
    made, labels = task(method).batch(images, KEYS)
    classes = CLASSES[method]
    assert made.shape == (classes * COUNT, 3, SIDE, SIDE)
    assert made.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(itertools.chain(*([label] * COUNT for label in range(classes))))
    assert torch.equal(made[:COUNT], normal)
    for label in range(1, classes):
        assert (made[labels == label] != normal).flatten(1).any(dim=1).all()


def test_each_method_pastes_its_own_kind_of_defect(images: Tensor, normal: Tensor) -> None:
    patches = cutpaste.cutpaste(normal, KEYS, patch_params(PARAMS)).images
    scars = cutpaste.scar(normal, KEYS, scar_params(PARAMS)).images
    assert torch.equal(task("cutpaste-binary").batch(images, KEYS)[0][COUNT:], patches)
    assert torch.equal(task("cutpaste-scar").batch(images, KEYS)[0][COUNT:], scars)
    assert torch.equal(task("cutpaste-3way").batch(images, KEYS)[0][COUNT:], torch.cat([patches, scars]))
    union = task("cutpaste-union").batch(images, KEYS)[0][COUNT:]
    is_patch = (union == patches).flatten(1).all(dim=1)
    is_scar = (union == scars).flatten(1).all(dim=1)
    assert (is_patch ^ is_scar).all()
    assert is_patch.any()
    assert is_scar.any()


def test_rotation_labels_the_quarter_turns(images: Tensor, normal: Tensor) -> None:
    made, labels = task("rotation").batch(images, KEYS)
    assert made.shape == images.shape
    assert labels.unique().numel() > 1
    for image, label, upright in zip(made, labels.tolist(), normal, strict=True):
        assert torch.equal(image, torch.rot90(upright, label, (1, 2)))


@pytest.mark.parametrize("method", CLASSES)
def test_an_image_is_made_the_same_in_any_batch(method: str, images: Tensor) -> None:
    made, labels = task(method).batch(images, KEYS)
    part, part_labels = task(method).batch(images[5:6], SampleKeys.of(0, "bolt", 0, [5]))
    assert torch.equal(part, made[5::COUNT])
    assert torch.equal(part_labels, labels[5::COUNT])


def test_the_whole_image_is_changed_as_the_parameters_say(images: Tensor) -> None:
    still = task("cutpaste-binary", SynthesisParams(translation=0, image_jitter=0)).batch(images, KEYS)[0][:COUNT]
    assert torch.equal(still, images)
    shifted = task("cutpaste-binary", SynthesisParams(translation=0.1, image_jitter=0)).batch(images, KEYS)[0][:COUNT]
    centre = (slice(None), slice(12, -12), slice(12, -12))
    moves = [(down, right) for down in range(-6, 7) for right in range(-6, 7)]
    found = []
    for before, after in zip(images, shifted, strict=True):
        found += [m for m in moves if torch.equal(torch.roll(before, m, (1, 2))[centre], after[centre])]
    assert len(found) == COUNT  # every image is a shift of itself
    assert len(set(found)) > COUNT // 2


def test_the_patch_is_as_tall_as_wide_in_either_direction() -> None:
    assert patch_params(SynthesisParams(aspect=(0.3, 3.3))).aspect == ((0.3, 1.0), (1.0, 3.3))
    assert patch_params(SynthesisParams(aspect=(1.5, 2.0))).aspect == ((1.5, 2.0),)
    assert patch_params(SynthesisParams(rotation=30)).rotation == (-30, 30)
    assert scar_params(SynthesisParams(scar_rotation=20)).rotation == (-20, 20)
