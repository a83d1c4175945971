"""An ensemble is the mean of networks, each what a training from its own seed alone gives."""

from pathlib import Path

import numpy as np
import pytest

from components.detection.calibration import Plan
from components.detection.choice import choose, make_banks
from components.detection.detector import Detector
from components.foundation.files import read_json
from components.foundation.making import write_making
from components.foundation.params import Params, parse_params
from components.foundation.places import Places
from components.learning.backbone import Encoder, build_encoder
from components.stages import synthesize, train, validate
from components.stages.fit import fit_detector, load_encoders, trained_folders
from components.synthesis.prepared import Prepared, load_prepared
from tests.project import TINY, write_category

CATEGORY = "widget"


def params_of(method: str, seed: int = 0) -> Params:
    training = TINY["training"] | {"head_steps": 1, "steps": 2, "exam_steps": 1, "members": 2}
    data = {"root": "data", "categories": [CATEGORY]}
    return parse_params(TINY | {"method": method, "seed": seed, "data": data, "training": training}, "test")


def prepare(params: Params) -> Prepared:
    write_category(Path("data") / CATEGORY, seed=0, defects=1)
    validate.main(CATEGORY, params)
    synthesize.main(CATEGORY, params)
    return load_prepared(Places(CATEGORY).prepared)


@pytest.mark.slow
def test_each_member_is_what_its_seed_alone_gives(workspace: Path) -> None:
    prepared = prepare(params_of("cutpaste-ensemble"))
    train.main(CATEGORY, params_of("cutpaste-ensemble"))
    folder = Places(CATEGORY).encoder
    members = [(own / "encoder.safetensors").read_bytes() for own in (folder, folder / "1")]
    summaries = [read_json(own / "training.json")["marks"] for own in (folder, folder / "1")]
    for seed in (0, 1):
        params = params_of("cutpaste-3way", seed)
        write_making(Places(CATEGORY).prepared, params, synthesize.MAKING, prepared.data_digest)  # as if of that seed
        train.main(CATEGORY, params)
        assert (folder / "encoder.safetensors").read_bytes() == members[seed]
        assert read_json(folder / "training.json")["marks"] == summaries[seed]


@pytest.mark.slow
def test_the_capsules_scores_are_the_members_means(workspace: Path) -> None:
    params = params_of("cutpaste-ensemble")
    prepared = prepare(params)
    one, other = (build_encoder(params.backbone, seed) for seed in (1, 2))
    images = np.asarray(prepared.images[:3])
    together = fitted({"trained": one, "trained-1": other}, prepared, params)
    assert {part.composition.encoder for part in together.parts} == {"trained", "trained-1"}
    alone = []
    for name in ("trained", "trained-1"):
        parts = [part for part in together.parts if part.composition.encoder == name]
        alone.append(Detector({name: together.encoders[name]}, parts, together.size, together.sigma).score(images))
    scores, maps = together.score(images)
    np.testing.assert_allclose(scores, np.mean([score for score, _ in alone], axis=0), rtol=1e-4)
    np.testing.assert_allclose(maps, np.mean([own for _, own in alone], axis=0), rtol=1e-3, atol=1e-4)


def fitted(encoders: dict[str, Encoder], prepared: Prepared, params: Params) -> Detector:
    banks = make_banks(encoders, prepared, params)
    plan = Plan.of(prepared, params, taught=True, refit=True)
    return fit_detector(choose(banks, params), banks, prepared, params, {}, plan).detector


@pytest.mark.slow
def test_a_member_whose_training_did_not_help_is_left_out(workspace: Path) -> None:
    params = params_of("cutpaste-ensemble")
    prepare(params)
    train.main(CATEGORY, params)
    folder = Places(CATEGORY).encoder
    helped = {own: read_json(own / "training.json")["kept_step"] > 0 for own in (folder, folder / "1")}
    assert list(trained_folders(folder, params).values()) == [own for own, better in helped.items() if better]
    assert len(load_encoders(folder, params)) == 1 + sum(helped.values())
