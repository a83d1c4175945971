"""Versions at the gate, with real capsules of a tiny network, real images and a real registry."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from components.arrivals.outcome import MANIFEST
from components.foundation.errors import UserError
from components.foundation.files import read_json, sha256_file, write_json
from components.foundation.params import Params, load_params
from components.foundation.places import Places
from components.images.identity import Roles
from components.registry import promotion
from components.registry import versions as registry
from components.registry.gate import records
from components.synthesis.prepared import write_index
from components.tracking.connection import connect
from flows.retraining.gating import pass_gate
from flows.retraining.judging import production_images
from tests.conftest import MakeCapsule
from tests.project import write_image

SIDE = 32
FAINT = 116  # grey levels of a defect that is learned unseen
SELECTION = {"encoder": "pretrained", "held_out_marks": {"pretrained": 0.8}}


def noise(count: int, seed: int, blobs: int = 0, bright: int = FAINT) -> np.ndarray:
    """Good images of noise (N, 32, 32, 3) uint8, or with bright squares at random places."""
    generator = np.random.default_rng(seed)
    images = generator.integers(90, 110, (count, SIDE, SIDE, 3), dtype=np.uint8)
    for image in images:
        for row, column in generator.integers(0, SIDE - 8, (blobs, 2)):
            image[row : row + 8, column : column + 8] = bright
    return images


def write_data(good: int = 60, defects: int = 60) -> None:
    """A category with test images, and what its validation and preparation wrote."""
    root = Path("data/bottle")
    for number, image in enumerate(noise(12, 1)):
        write_image(root / "train" / "good" / f"{number:03}.png", image)
    for number, image in enumerate(noise(good, 2)):
        write_image(root / "test" / "good" / f"{number:03}.png", image)
    for number, image in enumerate(noise(defects, 3, blobs=1)):
        write_image(root / "test" / "blob" / f"{number:03}.png", image)
    write_validation()
    write_params()


def write_validation(errors: tuple[str, ...] = ()) -> None:
    root, places = Path("data/bottle"), Places("bottle")
    paths = sorted((root / "train" / "good").iterdir())
    write_json(places.validation / "learned.json", {"images": {f"train/good/{p.name}": sha256_file(p) for p in paths}})
    write_json(places.validation / "report.json", {"errors": list(errors)})


def write_prepared(odd: int | None = None) -> None:
    """The good images as they were prepared, one of them with a defect."""
    folder = Places("bottle").prepared
    folder.mkdir(parents=True)
    paths = {sha256_file(path): path for path in Path("data/bottle/train/good").iterdir()}
    images = noise(len(paths), 1)
    if odd is not None:
        images[odd, 4:20, 4:20] = 255
    np.save(folder / "images.npy", images)
    np.save(folder / "exam_images.npy", images[None, :1])
    np.save(folder / "exam_masks.npy", np.zeros((1, 1, SIDE, SIDE), bool))
    roles = Roles.of(list(paths), [], seed=0, held_out=0.2)
    write_index(folder, category="bottle", seed=0, data_digest="d" * 64, roles=roles, exam_source=np.array([0]),
                exam_kinds=["blob"])  # fmt: skip


def write_params(**gate: Any) -> Params:
    content = {
        "threads": 1,
        "data": {"root": "data", "categories": ["bottle"]},
        "backbone": {"name": "lcnet_035", "weights": "none"},
        "threshold": {"false_alarm_rate": 0.3},
        "gate": {"resamples": 200, "first": {"held_out": 8}, **gate},
    }
    Path("params.yaml").write_text(yaml.safe_dump(content))
    return load_params()


def add_version(make_capsule: MakeCapsule, place: Path, **how: Any) -> int:
    capsule = make_capsule(place, selection=SELECTION, **how)
    return registry.register("bottle", capsule, "", {}, "pretrained").number


def judged(number: int) -> Mapping[str, Any]:
    return dict(read_json(records.folder_of("bottle", number) / "gate.json"))


def first_line(number: int) -> str:
    description = connect()[0].get_model_version("flawline-bottle", str(number)).description or ""
    return description.splitlines()[0]


@pytest.fixture
def champion(workspace: Path, make_capsule: MakeCapsule) -> None:
    """Version 1, which has learned good images, serves."""
    write_data()
    threshold = {"threshold": 1e3}
    assert add_version(make_capsule, Path("one"), learned=noise(30, 4), **threshold) == 1
    promotion.promote("bottle", 1, "first version")


def test_below_the_floor_the_first_version_waits_until_it_is_lowered(
    workspace: Path, make_capsule: MakeCapsule
) -> None:
    write_data()
    write_prepared()
    number = add_version(make_capsule, Places("bottle").capsule)
    words = pass_gate("bottle", number, write_params(first={"held_out": 9}))
    assert "waits for a person: 8 held-out good images, 9 are needed (gate.first.held_out)" in words
    assert registry.champion("bottle") is None
    assert pass_gate("bottle", number, write_params()) == "is the champion: first version"
    champion = registry.champion("bottle")
    assert champion is not None
    assert champion.number == number
    assert first_line(number) == "Gate: promoted: first version"


def test_what_stands_out_of_the_first_training_set_is_named_before_anything_is_promoted(
    workspace: Path, make_capsule: MakeCapsule
) -> None:
    write_data()
    write_prepared(odd=5)
    number = add_version(make_capsule, Places("bottle").capsule)
    words = pass_gate("bottle", number, write_params())
    (name,) = judged(number)["outliers"]
    assert f"1 image of its own training set stand out from the others ({name})" in words
    assert registry.champion("bottle") is None
    assert name in (records.folder_of("bottle", number) / "gate.html").read_text()


@pytest.mark.slow
def test_a_model_of_poisoned_data_is_rejected_and_the_champion_stays(champion: None, make_capsule: MakeCapsule) -> None:
    poisoned = np.concatenate([noise(30, 4), noise(30, 5, blobs=3)])
    number = add_version(make_capsule, Places("bottle").capsule, learned=poisoned, threshold=1e3)
    words = pass_gate("bottle", number, write_params())
    assert "is rejected by the gate, and version 1 stays the champion" in words
    assert "image AUROC" in words
    assert [row.version for row in registry.list_status(["bottle"])] == [1]
    assert first_line(number).startswith("Gate: rejected: ")
    report = judged(number)
    assert (report["verdict"], report["images"]["test"]) == ("reject", 120)
    page = (records.folder_of("bottle", number) / "gate.html").read_text()
    assert report["summary"][1:] in page.replace("&#39;", "'")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert pass_gate("bottle", number, write_params()).startswith("stays as it was decided (rejected: ")


@pytest.mark.slow
def test_without_defects_the_exam_is_sat_by_both(
    champion: None, make_capsule: MakeCapsule, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.rmtree("data/bottle/test/blob")
    write_prepared()
    write_json(Places("bottle").prepared / "nsa.json", {"params": None, "warnings": ["none"]})
    number = add_version(make_capsule, Places("bottle").capsule, learned=noise(30, 6), threshold=1e3)
    pass_gate("bottle", number, write_params())
    report = judged(number)
    assert report["measured_on"] == "exam"
    kinds = [one["name"] for one in report["figures"] if one["is_kind"]]
    assert {"foreign", "stroke", "stain", "blur", "hole", "warp", "specks"} <= set(kinds), kinds
    assert not {"cutpaste", "scar", "cutout", "nsa"} & set(kinds)  # what a method here is taught


@pytest.mark.slow
def test_with_the_policy_person_a_version_waits_whatever_happens_until_it_is_answered(
    champion: None, make_capsule: MakeCapsule
) -> None:
    number = add_version(make_capsule, Places("bottle").capsule, learned=noise(30, 6), threshold=1e3)
    params = write_params(policy="person")
    words = pass_gate("bottle", number, params)
    assert "waits for a person" in words
    waits = records.waiting("bottle")
    assert waits is not None
    assert judged(number)["verdict"] == "promote"
    assert (waits.number, waits.champion) == (number, 1)
    made = waits.page.stat().st_mtime_ns
    assert pass_gate("bottle", number, params) == words  # another run: it still waits, and is not judged again
    assert waits.page.stat().st_mtime_ns == made
    stored = connect()[0].list_artifacts(registry.find_version("bottle", number).run_id, "gate")
    assert sorted(file.path for file in stored) == ["gate/gate.html", "gate/gate.json"]
    records.answer("bottle", number, "promote", "looked at it")
    assert records.waiting("bottle") is None
    assert registry.champion("bottle") == registry.find_version("bottle", number)
    assert first_line(number) == "Gate: promoted by a person: looked at it"
    with pytest.raises(UserError, match="waits for no answer"):
        records.answer("bottle", number, "reject", "too late")


@pytest.mark.slow
def test_an_answer_is_for_the_champion_that_the_version_was_compared_with(
    champion: None, make_capsule: MakeCapsule
) -> None:
    other = add_version(make_capsule, Path("other"), learned=noise(30, 8), threshold=1e3)
    number = add_version(make_capsule, Places("bottle").capsule, learned=noise(30, 6), threshold=1e3)
    pass_gate("bottle", number, write_params(policy="person"))
    promotion.promote("bottle", other, "by hand")
    with pytest.raises(UserError, match="compared with version 1, but the champion is version 2"):
        records.answer("bottle", number, "promote", "")
    records.answer("bottle", number, "reject", "")
    assert registry.find_version("bottle", number).verdict.startswith("rejected: ")


def test_production_images_are_the_latest_accepted_ones_and_nothing_outside_of_the_category(workspace: Path) -> None:
    write_data(good=1, defects=1)
    accepted = Path("arriving/accepted/bottle")
    for delivery, names in {"20260101T000000-a": ["000"], "20260102T000000-b": ["001", "../../../../secret"]}.items():
        write_json(accepted / delivery / MANIFEST, [{"image": f"train/good/{name}.png"} for name in names])
    found = production_images("bottle", Path("data/bottle"), write_params())
    assert [record.name for record in found] == ["train/good/001.png", "train/good/000.png"]
