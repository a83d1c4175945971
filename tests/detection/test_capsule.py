"""A capsule gives the scores it was made with, or is refused; and it is written whole or not at all."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from components.detection import conformal
from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.card import read_card
from components.detection.detector import Composition, Detector, Part, arrange
from components.detection.scale import Scale
from components.foundation.errors import UserError
from components.foundation.files import digest_of, digest_tree, sha256_file
from components.foundation.params import BackboneParams
from components.images.tensors import as_tensor
from components.learning.backbone import build_encoder
from components.stages.command import run_guarded

SIZE = 32
COMPOSITIONS = (
    Composition("pretrained", ("b1", "b2"), "location", grid=4, covariance="low-rank", rank=3, factors=(2.0, 1.0)),
    Composition("pretrained", ("b2",), "shared", grid=2, covariance="ridge"),
    Composition("trained", ("b1",), "pooled", grid=2),
    Composition("trained", ("head",), "image"),
)


@pytest.fixture(scope="module")
def good() -> np.ndarray:
    return np.random.default_rng(0).integers(90, 110, (10, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def capsule(good: np.ndarray) -> Capsule:
    """A capsule of two tiny networks with a Gaussian of every layout."""
    encoders = {
        name: build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed)
        for seed, name in enumerate(("pretrained", "trained"))
    }
    parts = []
    with torch.inference_mode():
        for number, composition in enumerate(COMPOSITIONS):
            features = encoders[composition.encoder].features(as_tensor(good), composition.levels)
            scorer = composition.density().fit(arrange(features, composition)).scorer()
            parts.append(Part(composition, scorer, Scale(1, 2), Scale(3, 4), number != 1, composition.is_dense))
    detector = Detector(encoders, parts, SIZE, 1.5)
    calibration = np.sort(detector.score(good)[0])
    return Capsule("bolt", "pretrained", detector, 1.25, calibration, {"encoder": "é"}, {"data_digest": "d"})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, capsule: Capsule, good: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("capsule") / "capsule"
    save_capsule(capsule, good[:2], folder)
    return folder


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_capsule(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def sign_again(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _card: None) -> None:
    """Make the digests fit what is in the folder, as a forger would."""
    card = json.loads((folder / "capsule.json").read_text())
    card["files"] = {name: sha256_file(folder / name) for name in card["files"]}
    change(card)
    card["digest"] = digest_of({name: value for name, value in card.items() if name != "digest"})
    (folder / "capsule.json").write_text(json.dumps(card))


def test_a_loaded_capsule_is_the_saved_one(capsule: Capsule, original: Path) -> None:
    loaded = load_capsule(original)
    images = np.random.default_rng(1).integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    for found, expected in zip(loaded.score(images), capsule.score(images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (loaded.category, loaded.method, loaded.threshold) == ("bolt", "pretrained", 1.25)
    assert (loaded.selection, loaded.provenance) == ({"encoder": "é"}, {"data_digest": "d"})
    np.testing.assert_array_equal(loaded.calibration, capsule.calibration)
    assert [part.meta() for part in loaded.detector.parts] == [part.meta() for part in capsule.detector.parts]
    scores = capsule.calibration[[0, 5]] + 0.01
    np.testing.assert_array_equal(loaded.p_values(scores), conformal.p_values(capsule.calibration, scores))


def test_the_same_capsule_is_written_with_the_same_bytes(
    capsule: Capsule, good: np.ndarray, original: Path, tmp_path: Path
) -> None:
    digest = save_capsule(capsule, good[:2], tmp_path / "again")
    assert digest == load_capsule(original).digest
    assert digest_tree(tmp_path / "again") == digest_tree(original)


def test_the_digest_stands_for_what_is_inside(
    capsule: Capsule, good: np.ndarray, original: Path, tmp_path: Path
) -> None:
    changed = save_capsule(replace(capsule, threshold=1.26), good[:2], tmp_path / "other")
    assert changed != read_card(original)["digest"]


def test_every_file_is_guarded(original: Path, copy: Path) -> None:
    """One changed bit in the middle, one lost byte at the end, or a lost file: refused, with the file's name."""
    names = sorted(path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file())
    assert len(names) == 7
    for name in names:
        content = (original / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for bad in (bytes(flipped), content[:-2], None):
            (copy / name).unlink() if bad is None else (copy / name).write_bytes(bad)
            assert name in refusal(copy) or name == "capsule.json"
        (copy / name).write_bytes(content)
    assert load_capsule(copy).digest


def test_a_changed_threshold_is_refused(copy: Path) -> None:
    card = copy / "capsule.json"
    card.write_text(card.read_text().replace('"threshold": 1.25', '"threshold": 9.25'))
    assert "changed after it was made" in refusal(copy)


@pytest.mark.parametrize("content", ["", "[]", "3", "null", '"text"', "{"])
def test_a_card_that_is_none_is_refused(copy: Path, content: str) -> None:
    (copy / "capsule.json").write_text(content)
    refusal(copy)


def test_a_card_without_a_digest_is_refused(copy: Path) -> None:
    card = json.loads((copy / "capsule.json").read_text())
    del card["digest"]
    (copy / "capsule.json").write_text(json.dumps(card))
    assert "changed" in refusal(copy)


def test_no_capsule_and_another_format_are_said(tmp_path: Path, copy: Path) -> None:
    assert "no readable capsule" in refusal(tmp_path / "nothing")
    sign_again(copy, lambda card: card.update(format=99))
    assert "format 99" in refusal(copy)


@pytest.mark.parametrize("factor", [1.01, float("nan"), float("inf")])
def test_weights_that_score_otherwise_are_refused_even_when_signed(copy: Path, factor: float) -> None:
    path = copy / "encoders" / "trained" / "encoder.safetensors"
    weights = load_file(path)
    save_file({**weights, "conv_stem.weight": weights["conv_stem.weight"] * np.float32(factor)}, path)
    sign_again(copy)
    with pytest.raises(UserError):
        load_capsule(copy)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
@pytest.mark.parametrize("name", ["scores", "maps"])
def test_golden_figures_that_are_not_met_are_refused(copy: Path, name: str, factor: float) -> None:
    path = copy / "golden" / "golden.safetensors"
    golden = load_file(path)
    values = golden[name].copy()
    values.flat[np.argmax(np.abs(values))] *= factor
    save_file({**golden, name: values}, path)
    sign_again(copy)
    assert "golden inputs differently" in refusal(copy)


def test_drift_within_the_tolerance_is_served(copy: Path) -> None:
    path = copy / "golden" / "golden.safetensors"
    golden = load_file(path)
    save_file({**golden, "scores": golden["scores"] * np.float32(1 + 1e-5)}, path)
    sign_again(copy)
    assert load_capsule(copy).category == "bolt"


def test_a_new_capsule_replaces_the_old_one_whole(capsule: Capsule, good: np.ndarray, copy: Path) -> None:
    (copy / "stray.txt").write_text("of the old one")
    save_capsule(replace(capsule, category="nut"), good[:2], copy)
    assert load_capsule(copy).category == "nut"
    assert not (copy / "stray.txt").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to one file fails, as it does on a full disk: the same error of the same call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_full_disk_leaves_the_old_capsule_and_says_one_sentence(
    capsule: Capsule, good: np.ndarray, copy: Path, share: float
) -> None:
    """Whether the first file does not fit, or only the last but one, the golden inputs."""
    golden = np.tile(good, (35, 1, 1, 1))
    weights = max(path.stat().st_size for path in copy.rglob("encoder.safetensors"))
    assert golden.nbytes < weights < 0.9 * (golden.nbytes + len(golden) * SIZE * SIZE * 4)
    room = int(share * weights) if share < 0.5 else weights + 1000
    before = digest_tree(copy)

    def save() -> None:
        save_capsule(capsule, golden, copy)

    with files_of_at_most(room), pytest.raises(SystemExit, match=r"^flawline: [^\n]+\.$"):
        run_guarded(save)
    assert digest_tree(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
