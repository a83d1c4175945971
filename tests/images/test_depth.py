"""Grey images of 9 to 16 bits: one rule for a category, found from its good images, kept, and used by every reader."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.detection.capsule import load_capsule
from components.foundation.errors import UserError
from components.foundation.files import read_json, write_json
from components.foundation.limits import ImageLimits
from components.foundation.params import Params, ValidationParams, parse_params
from components.images.dataset import list_category
from components.images.decode import decode_image, read_image, read_with_header
from components.images.depth import find_bits
from components.images.facts import category_facts
from components.images.known_depth import with_depth
from components.images.table import image_table
from components.stages.validate import validation_report
from components.synthesis.prepared import load_prepared
from tests.conftest import MakeCapsule
from tests.project import Project

LIMITS = ImageLimits()
SIDE = 48


def grey(seed: int) -> np.ndarray:
    """A textured surface, (48, 48) uint16, 0 … 4095, each value one of 256 that 8 bits hold."""
    generator = np.random.default_rng(seed)
    values = np.clip(generator.normal(128, 40, (SIDE, SIDE)), 0, 255).astype(np.uint8)
    values[0, :2] = 0, 255
    return deepened(values)


def deepened(values: np.ndarray) -> np.ndarray:
    """8-bit values as the nearest ones of a 12-bit camera."""
    return np.rint(values * (4095 / 255)).astype(np.uint16)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def category(root: Path, scale: int = 1) -> Path:
    for number in range(12):
        save(root / f"train/good/{number:03}.png", grey(number) * scale)
    for number in range(4):
        save(root / f"test/good/{number:03}.png", grey(100 + number) * scale)
        defective, mask = grey(200 + number), np.zeros((SIDE, SIDE), np.uint8)
        mask[10:20, 10 : 20 + number] = 255
        save(root / f"test/blot/{number:03}.png", np.where(mask > 0, 4095, defective).astype(np.uint16) * scale)
        save(root / f"ground_truth/blot/{number:03}_mask.png", mask)
    return root


def report_of(root: Path, bits: int) -> dict[str, Any]:
    listed = list_category(root)
    return validation_report(listed, image_table(listed, LIMITS.at_depth(bits)), ValidationParams(), bits)


def params_of(root: Path, **limits: Any) -> Params:
    return parse_params({"data": {"root": str(root.parent), "categories": [root.name]}, "limits": limits}, "params")


@pytest.mark.parametrize(("highest", "bits"), [(200, 8), (256, 10), (1023, 10), (4080, 12), (4096, 14), (65520, 16)])
def test_the_bits_in_use_are_found_from_all_images_together(tmp_path: Path, highest: int, bits: int) -> None:
    dark = save(tmp_path / "dark.png", np.full((4, 4), 3, np.uint16))
    bright = save(tmp_path / "bright.tif", np.full((4, 4), highest, np.uint16))
    shallow = save(tmp_path / "shallow.png", np.full((4, 4), 255, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"noise")
    assert find_bits([dark, bright, shallow, tmp_path / "broken.png"], LIMITS, threads=2) == bits


def test_images_of_8_bits_ask_for_no_rule(tmp_path: Path) -> None:
    assert find_bits([save(tmp_path / "a.png", np.full((4, 4), 255, np.uint8))], LIMITS) == 16


def test_deep_values_are_spread_over_8_bits_and_what_is_above_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 8, 9, 2048, 4095, 5000]], np.uint16)
    path, limits = save(tmp_path / "a.png", values), LIMITS.at_depth(12)
    expected = np.rint(np.minimum(values, 4095) / 4095 * 255).astype(np.uint8)
    for found in (read_image(path, limits), decode_image(path.read_bytes(), "a", limits)):
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, 2))
    assert read_with_header(path, limits).highest == 5000


@pytest.mark.slow
def test_validation_says_what_is_lost(tmp_path: Path) -> None:
    root = category(tmp_path / "part")
    assert report_of(root, 12)["warnings"] == []
    assert report_of(root, 12)["bits"] == 12
    lost = report_of(root, 16)["warnings"]
    assert [words for words in lost if "grey levels" in words] == [
        "train/good/000.png has 17 grey levels of 256 (and 15 more)"
    ]
    cut = report_of(root, 10)["warnings"]
    assert "train/good/000.png has grey values up to 4095; all above 1023 are read as white (and 19 more)" in cut


def test_the_rule_is_as_given_or_as_validated_or_as_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = category(tmp_path / "data" / "part")
    assert with_depth(params_of(root), "part").limits.image_limits().bits == 12
    write_json(tmp_path / "artifacts/part/validation/report.json", {"bits": 14})
    assert with_depth(params_of(root), "part").limits.image_limits().bits == 14
    assert with_depth(params_of(root, bits=10), "part").limits.image_limits().bits == 10
    with pytest.raises(UserError, match=r"limits\.bits"):
        params_of(root, bits=17)


def test_facts_are_made_anew_where_the_rule_changed(tmp_path: Path) -> None:
    listed, cache = list_category(category(tmp_path / "part")), tmp_path / "facts.json"
    dark, bright = (category_facts(listed, LIMITS.at_depth(bits), cache)["brightness"].mean() for bits in (16, 12))
    assert dark < 10 < 100 < bright
    assert category_facts(listed, LIMITS.at_depth(12), cache)["brightness"].mean() == bright


def test_a_served_model_reads_images_as_its_capsule_says(tmp_path: Path, make_capsule: MakeCapsule) -> None:
    import mlflow.pyfunc
    import pandas as pd

    from components.registry.packaging import save_model

    folder = make_capsule(tmp_path / "capsule", bits=12)
    save_model(folder, tmp_path / "model")
    path = save(tmp_path / "a.png", grey(0))
    text = base64.b64encode(path.read_bytes()).decode()
    found = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(pd.DataFrame({"image": [text]}))
    capsule = load_capsule(folder)
    assert capsule.bits == 12
    expected, dark = (capsule.score([read_image(path, LIMITS.at_depth(bits))])[0][0] for bits in (12, 16))
    assert found["image_score"][0] == pytest.approx(expected, rel=1e-5)
    assert abs(dark - expected) > 1e-2


@pytest.mark.slow
def test_a_12_bit_category_is_learned_evaluated_and_scored_by_one_rule(project: Project, tmp_path: Path) -> None:
    ran = project.copy(tmp_path / "project")
    ran.set_params({"data": {"root": "data/deep", "categories": ["part"]}, "method": "pretrained"})
    root = category(ran.folder / "data/deep/part")
    done = ran.flawline("run")
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = ran.folder / "artifacts/part"
    assert read_json(outputs / "validation/report.json")["bits"] == load_prepared(outputs / "prepared").bits == 12
    assert load_capsule(outputs / "capsule").bits == 12
    assert load_prepared(outputs / "prepared").images.max() > 200
    rows = json.loads(ran.flawline("score", root / "test/blot/001.png", "--json").stdout)
    with (outputs / "evaluation/scores.csv").open() as file:
        written = {row["name"]: float(row["score"]) for row in csv.DictReader(file)}
    assert rows[0]["score"] == pytest.approx(written["test/blot/001.png"], rel=1e-4)
