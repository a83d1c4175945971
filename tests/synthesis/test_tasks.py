"""Each method trains on its own labels, made from images that were shifted and jittered as a whole first."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from components.foundation.draws import SampleKeys
from components.foundation.params import Method, PatchLevelParams, SynthesisParams
from components.synthesis import cutpaste
from components.synthesis.methods import encoder_method, serves_network
from components.synthesis.tasks import Task, augment_params, patch_params, random_crops, scar_params, task_of

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


def test_every_method_has_its_task_but_those_without_training_of_an_encoder() -> None:
    without = {method for method in get_args(Method) if encoder_method(method) == "pretrained"}
    assert without == {"pretrained", "nsa-gde", *filter(serves_network, get_args(Method))} - {"nsa-cutpaste"}
    assert {encoder_method(method) for method in get_args(Method)} == {*CLASSES, "pretrained", "cutpaste-patch"}
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


# Crops, for the patch-level method ---------------------------------------------------------------------------------

CROP = 32
STILL = SynthesisParams(image_jitter=0, jitter=0)


def crop_task(kind: str, params: SynthesisParams = STILL) -> Task:
    found = task_of("cutpaste-patch", params, PatchLevelParams.model_validate({"receptive_field": CROP, "task": kind}))
    assert found is not None
    return found


def place_of(crop: Tensor, image: Tensor) -> tuple[int, int]:
    """Row and column at which a crop lies in its image of noise, where it lies at one place only."""
    windows = image[:, : SIDE - CROP + 8, : SIDE - CROP + 8].unfold(1, 8, 1).unfold(2, 8, 1)  # (3, h, w, 8, 8)
    same = (windows == crop[:, None, None, :8, :8]).all(dim=(0, 3, 4)).nonzero().tolist()
    assert len(same) == 1
    return same[0][0], same[0][1]


def test_a_normal_sample_is_a_crop_of_its_image_at_any_place(images: Tensor) -> None:
    places = []
    for epoch in range(20):
        keys = SampleKeys.of(0, "bolt", epoch, range(COUNT))
        made, _ = crop_task("cutpaste-binary").batch(images, keys)
        assert made.shape == (2 * COUNT, 3, CROP, CROP)
        for crop, image in zip(made[:COUNT], images, strict=True):
            row, column = place_of(crop, image)
            assert torch.equal(crop, image[:, row : row + CROP, column : column + CROP])
            places.append((row, column))
    for axis in zip(*places, strict=True):
        assert (min(axis), max(axis)) == (0, SIDE - CROP)  # 240 draws of 33 places reach both ends
        assert np.mean(axis) == pytest.approx((SIDE - CROP) / 2, abs=2)


def test_a_crop_of_the_whole_image_is_the_image(images: Tensor) -> None:
    assert torch.equal(random_crops(images, KEYS, SIDE), images)


def changed_pixels(kind: str, images: Tensor, label: int) -> Tensor:
    """Which pixels (COUNT, S, S) of the crops the samples with this label differ in from the normal ones."""
    made, labels = crop_task(kind).batch(images, SampleKeys.of(0, "bolt", 0, range(len(images))))
    return (made[labels == label] != made[labels == 0]).any(dim=1)


def test_a_patch_has_its_share_of_the_crop(images: Tensor) -> None:
    shares = changed_pixels("cutpaste-binary", images, 1).float().mean(dim=(1, 2))
    assert 0.015 < float(shares.min()) < 0.05
    assert 0.08 < float(shares.max()) < 0.16


@pytest.mark.parametrize(("side", "longest"), [(256, 16), (128, 12), (64, 6)])
def test_a_scar_is_as_long_as_in_the_image_or_half_a_crop(side: int, longest: int) -> None:
    """25 of 256 pixels are 25, 12 and 6 pixels; half a crop is 16. Upright scars show their length."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, side, side), dtype=np.uint8))
    task_ = crop_task("cutpaste-scar", STILL.model_copy(update={"scar_rotation": 0.0}))
    made, labels = task_.batch(images, SampleKeys.of(0, "bolt", 0, range(40)))
    changed = (made[labels == 1] != made[labels == 0]).any(dim=1)
    lengths = changed.any(dim=2).sum(dim=1)
    assert int(lengths.max()) == longest
    assert int(lengths.min()) >= 0.4 * longest - 1


@pytest.mark.parametrize(("kind", "label"), [("cutpaste-scar", 1), ("cutpaste-union", 1), ("cutpaste-3way", 2)])
def test_every_defect_of_a_crop_can_be_seen(kind: str, label: int, images: Tensor) -> None:
    assert changed_pixels(kind, images, label).flatten(1).any(dim=1).all()


def test_a_crop_is_made_the_same_in_any_batch(images: Tensor) -> None:
    task_3way = crop_task("cutpaste-3way", PARAMS)
    made, _ = task_3way.batch(images, KEYS)
    part, _ = task_3way.batch(images[7:8], SampleKeys.of(0, "bolt", 0, [7]))
    assert torch.equal(part, made[7::COUNT])


def test_without_a_section_the_patch_level_task_has_its_defaults() -> None:
    found, default = task_of("cutpaste-patch", PARAMS), PatchLevelParams()
    assert found is not None
    assert (found.crop, found.name) == (default.receptive_field, default.task)
