"""The patch-level method as a whole: from scratch on crops, scored densely, kept in a capsule, run by the stages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from components.detection.calibration import Plan
from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.compositions import candidates
from components.detection.detector import Detector, Part, arrange
from components.detection.scale import Scale
from components.evaluation.metrics import auroc, pixel_auroc
from components.foundation.params import DataParams, Params, PatchLevelParams, TrainingParams, parse_params
from components.foundation.places import Places
from components.images.dataset import list_category
from components.images.tensors import as_tensor
from components.learning.backbone import build_patch_encoder
from components.stages import evaluate, fit, synthesize, train, validate
from components.stages.train import schedule_of, starting_encoder
from components.synthesis.prepared import load_prepared
from tests.project import TINY, write_category

SIDE = 64
PATCH = PatchLevelParams(receptive_field=16, stride=4, width=8, steps=3, batch=4, rate=0.05, exam_steps=2)


def good_images(count: int = 12) -> np.ndarray:
    """A grey surface with noise, uint8 (N, S, S, 3)."""
    noise = np.random.default_rng(0).normal(128, 5, (count, SIDE, SIDE, 3))
    return noise.clip(0, 255).astype(np.uint8)


def detector(layout: str) -> Detector:
    encoder = build_patch_encoder(PATCH, seed=0)
    composition = next(c for c in candidates("trained", encoder, SIDE, images=200) if c.layout == layout)
    with torch.inference_mode():
        features = arrange(encoder.features(as_tensor(good_images()), composition.levels), composition)
    scorer = composition.density().fit(features).scorer()
    distances = scorer.score(features)
    part = Part(composition, scorer, Scale(0, 1), Scale.of(distances))
    return Detector({"trained": encoder}, [part], SIDE, 0.5)


@pytest.mark.parametrize("layout", ["location", "shared"])
@pytest.mark.parametrize(("row", "column"), [(20, 40), (40, 13), (30, 30)])
def test_the_map_is_highest_at_the_defect(layout: str, row: int, column: int) -> None:
    """A black square of six pixels; patches see it from up to ten pixels away."""
    image = good_images(1)[0]
    image[row : row + 6, column : column + 6] = 0
    made = detector(layout)
    scores, maps = made.score(np.stack([image, good_images(1)[0]]))
    assert scores[0] > 2 * scores[1]
    highest = np.unravel_index(maps[0].argmax(), maps[0].shape)
    assert np.hypot(highest[0] - row - 2.5, highest[1] - column - 2.5) < 5
    near = maps[0][row - 2 : row + 8, column - 2 : column + 8].mean()
    far = np.concatenate([maps[0][:, :4].ravel(), maps[0][-4:].ravel()]).mean()
    assert near > far + 1


def test_a_capsule_carries_the_patch_network(tmp_path: Path) -> None:
    made = detector("location")
    images = good_images(3)
    capsule = Capsule("bolt", "cutpaste-patch", made, 1.0, made.score(images)[0], {}, {})
    save_capsule(capsule, images[:2], tmp_path / "capsule")
    loaded = load_capsule(tmp_path / "capsule")
    assert loaded.detector.parts[0].composition == made.parts[0].composition
    for found, expected in zip(loaded.score(images), made.score(images), strict=True):
        np.testing.assert_array_equal(found, expected)


def params(method: str = "cutpaste-patch") -> Params:
    frozen = TrainingParams(head_steps=7, steps=9, optimizer="adam", freeze_batch_norm=True, momentum=0.5)
    data = DataParams(root="data", categories=("bolt",))
    return Params.model_validate({"method": method, "data": data, "training": frozen, "patch": PATCH})


def test_it_is_trained_from_scratch_by_its_own_schedule() -> None:
    schedule = schedule_of(params())
    assert (schedule.head_steps, schedule.steps, schedule.batch, schedule.rate) == (0, 3, 4, 0.05)
    assert (schedule.optimizer, schedule.freeze_batch_norm, schedule.exam_steps) == ("sgd", False, 2)
    assert schedule.momentum == 0.5
    assert schedule_of(params("cutpaste-3way")) == params().training


def test_training_begins_with_the_patch_network_of_the_seed() -> None:
    encoder = starting_encoder(params(), 0)
    assert encoder.spec == build_patch_encoder(PATCH, seed=0).spec
    expected = build_patch_encoder(PATCH, seed=0).body.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.body.state_dict().items())


@pytest.mark.slow
def test_the_stages_train_choose_fit_and_measure_it(workspace: Path) -> None:
    write_category(workspace / "data" / "tiny" / "widget", seed=0, defects=4)
    patch = {"receptive_field": 16, "width": 8, "steps": 20, "batch": 8, "exam_steps": 10}
    chosen = parse_params({**TINY, "method": "cutpaste-patch", "patch": patch}, "tiny")
    for stage in (validate, synthesize, train, fit, evaluate):
        stage.main("widget", chosen)

    artifacts = workspace / "artifacts" / "widget"
    training = json.loads((artifacts / "encoder" / "training.json").read_text())
    marks = {mark["step"]: mark["mark"] for mark in training["marks"]}
    ends = 20 if training["kept_step"] else 10  # where half of the steps gain nothing, that is the end
    assert (training["method"], training["steps"], [*marks]) == ("cutpaste-patch", ends, [*range(0, ends + 1, 10)])
    assert marks[training["kept_step"]] == max(marks.values())
    assert json.loads((artifacts / "encoder" / "encoder.json").read_text())["name"] == "patches/16-4-8"

    selection = load_capsule(artifacts / "capsule").selection
    names = {"pretrained", "pretrained + trained", "trained"} if training["kept_step"] else {"pretrained"}
    assert set(selection["held_out_marks"]) == names
    assert selection["encoder"] in names

    metrics = json.loads((workspace / "artifacts" / "widget" / "evaluation" / "figures.json").read_text())
    assert (metrics["method"], metrics["encoder"]) == ("cutpaste-patch", selection["encoder"])
    assert metrics["image_auroc"] > 0.9


@pytest.mark.slow
def test_the_exam_can_choose_the_patch_network(workspace: Path) -> None:
    """It competes alone here: its compositions sit the exam, are fitted, kept in a capsule and find the defects."""
    write_category(workspace / "data" / "tiny" / "widget", seed=0, defects=4)
    chosen = parse_params({**TINY, "method": "cutpaste-patch", "patch": PATCH.model_dump()}, "tiny")
    for stage in (validate, synthesize):
        stage.main("widget", chosen)
    prepared = load_prepared(Places("widget").prepared)
    encoders = {"trained": starting_encoder(chosen, chosen.seed)}
    banks = fit.make_banks(encoders, prepared, chosen)
    choice = fit.choose(banks, chosen)
    plan = Plan.of(prepared, chosen, taught=choice.is_taught, refit=True)
    made = fit.fit_detector(choice, banks, prepared, chosen, {}, plan)
    assert all(c.receptive_field == 16 and c.stride == 4 for c in choice.map)
    folder = Path("capsule")
    save_capsule(fit.make_capsule(made, choice, prepared, chosen), fit.golden_images(prepared), folder)
    records = list_category(workspace / "data" / "tiny" / "widget").test
    scored = evaluate.score_records(load_capsule(folder).detector, records, chosen.limits.image_limits())
    assert (auroc(scored.labels, scored.scores) or 0) > 0.9
    assert (pixel_auroc(scored.masks, scored.maps) or 0) > 0.9
