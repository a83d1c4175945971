"""Chest X-rays named by lists become categories in MVTec AD layout, deep and inverted images among them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from components.data.medical import import_lists
from components.foundation.errors import UserError
from components.foundation.files import digest_tree, write_json
from components.foundation.limits import ImageLimits
from components.foundation.params import parse_params, read_preset
from components.foundation.places import Places
from components.images.dataset import list_category
from components.images.decode import read_image, to_8_bit
from components.stages import synthesize
from components.synthesis.nsa_settings import load_nsa_params
from tests.identified import validated
from tests.project import REPOSITORY
from tests.synthesis.test_nsa import disc

LIMITS = ImageLimits()
RAMP = np.linspace(0, 4095, 24 * 20).round().astype(np.uint16).reshape(24, 20)  # 12 bits in 16


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """images/part1, images/part2: 8-bit, 12-bit and inverted images; lists/: who is normal, of two groups."""
    for part in ("part1", "part2"):
        (tmp_path / "images" / part).mkdir(parents=True)
    one, two = tmp_path / "images" / "part1", tmp_path / "images" / "part2"
    for number in range(3):
        Image.fromarray(np.full((24, 20), 50 + number, np.uint8)).save(one / f"m{number}.png")
    Image.fromarray(RAMP).save(one / "deep.png")
    Image.fromarray(4095 - RAMP).save(two / "bright-air.png")
    text = PngInfo()
    text.add_text("PhotometricInterpretation", "MONOCHROME1")
    Image.fromarray(4095 - RAMP).save(two / "said.png", pnginfo=text)
    Image.fromarray(np.full((24, 20), 200, np.uint8)).save(two / "ill.png")
    Image.fromarray(np.full((24, 20), 90, np.uint8)).save(two / "f0.png")
    lists = {
        "norm_MaleAdultPA_train_curated_list.txt": "m0.png\nm1.png\r\n\ndeep.png\nbright-air.png\n",
        "norm_MaleAdultPA_test_curated_list.txt": "m2\n",
        "anomaly_MaleAdultPA_test_curated_list.txt": "ill.png\nsaid.png",
        "anomaly_MaleAdultPA_train_curated_list.txt": "f0.png\n",  # the method learns from normal ones only
        "norm_FemaleAdultPA_train_curated_list.txt": "f0.png\n",
        "inverted.txt": "bright-air.png\n",
    }
    (tmp_path / "lists").mkdir()
    for name, content in lists.items():
        (tmp_path / "lists" / name).write_bytes(content.encode())
    return tmp_path


def run(root: Path, bits: int | None = None) -> dict[str, dict[str, int]]:
    return import_lists(
        root / "images", root / "lists", root / "out", LIMITS, root / "lists" / "inverted.txt", bits=bits
    )


def test_each_group_becomes_a_category(hospital: Path) -> None:
    counts = run(hospital)
    assert counts["MaleAdultPA"] == {"train/good": 4, "test/good": 1, "test/abnormal": 2}
    assert counts["FemaleAdultPA"] == {"train/good": 1, "test/good": 0, "test/abnormal": 0}
    category = list_category(hospital / "out" / "MaleAdultPA")
    assert category.counts() == counts["MaleAdultPA"]
    assert [record.name for record in category.test] == [
        "test/good/m2.png", "test/abnormal/ill.png", "test/abnormal/said.png",
    ]  # fmt: skip


def test_a_plain_image_is_copied_as_it_is(hospital: Path) -> None:
    run(hospital)
    copy, original = hospital / "out/MaleAdultPA/train/good/m1.png", hospital / "images/part1/m1.png"
    assert copy.read_bytes() == original.read_bytes()
    assert copy.stat().st_ino != original.stat().st_ino


def test_a_deep_image_keeps_its_range_and_an_inverted_one_is_turned_round(hospital: Path) -> None:
    run(hospital)
    out = hospital / "out" / "MaleAdultPA"
    wanted = np.floor(RAMP * (255 / 4095) + 0.5)
    for name in ("train/good/deep.png", "train/good/bright-air.png", "test/abnormal/said.png"):
        found = read_image(out / name, LIMITS)
        assert (found.min(), found.max()) == (0, 255)
        assert np.abs(found[..., 0] - wanted).max() <= (0 if "deep" in name else 1)  # of rounding, the other way


def test_the_depth_can_be_given(hospital: Path) -> None:
    run(hospital, bits=16)
    assert read_image(hospital / "out/MaleAdultPA/train/good/deep.png", LIMITS).max() == 16
    shutil.rmtree(hospital / "out")
    with pytest.raises(UserError, match=r"\.png has a pixel of 4095, more than 10 bits hold"):
        run(hospital, bits=10)
    assert not (hospital / "out" / "MaleAdultPA").exists()


def test_an_inverted_8_bit_image_is_turned_round_in_8_bits(hospital: Path) -> None:
    (hospital / "lists" / "inverted.txt").write_text("m0.png\n")
    run(hospital)
    assert (read_image(hospital / "out/MaleAdultPA/train/good/m0.png", LIMITS) == 205).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_depth_maps_its_ends_to_black_and_white(bits: int) -> None:
    values = np.array([[0, (1 << bits) - 1]], np.uint16)
    assert to_8_bit(values, bits).tolist() == [[0, 255]]


def add(hospital: Path, name: str, content: str) -> None:
    with (hospital / "lists" / name).open("a") as file:
        file.write(content)


def test_what_is_wrong_with_lists_and_images_is_said(hospital: Path) -> None:
    test = "norm_MaleAdultPA_test_curated_list.txt"
    add(hospital, test, "m0.png\n")
    with pytest.raises(UserError, match=r"'m0\.png' is listed for train/good and for test/good"):
        run(hospital)
    (hospital / "lists" / test).write_text("gone.png\n")
    with pytest.raises(UserError, match=r"'gone\.png' of .* is not among the images"):
        run(hospital)
    (hospital / "lists" / test).write_text("\n")
    with pytest.raises(UserError, match="names no image"):
        run(hospital)
    (hospital / "lists" / test).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text file"):
        run(hospital)
    (hospital / "lists" / test).write_text("m2.png\n")
    shutil.copy(hospital / "images/part1/m2.png", hospital / "images/part2/m2.png")
    with pytest.raises(UserError, match="is there 2 times"):
        run(hospital)
    (hospital / "images/part2/m2.png").unlink()
    (hospital / "lists" / "norm_FemaleAdultPA_train_curated_list.txt").rename(
        hospital / "lists" / "norm_FemaleAdultPA_test_curated_list.txt"
    )
    with pytest.raises(UserError, match="no norm_FemaleAdultPA_train_curated_list"):
        run(hospital)
    assert not (hospital / "out").exists()


def test_folders_without_lists_or_images_are_said(hospital: Path) -> None:
    with pytest.raises(UserError, match="has no list"):
        import_lists(hospital / "images", hospital / "images", hospital / "out", LIMITS)
    with pytest.raises(UserError, match="holds no image"):
        import_lists(hospital / "lists", hospital / "lists", hospital / "out", LIMITS)


def test_what_is_there_is_left_alone(hospital: Path) -> None:
    run(hospital)
    before = digest_tree(hospital / "out")
    with pytest.raises(UserError, match="There is already"):
        run(hospital)
    assert digest_tree(hospital / "out") == before


def test_the_command_writes_the_categories_and_says_how_many_images(hospital: Path) -> None:
    paths = [str(hospital / name) for name in ("images", "lists", "out")]
    command = [sys.executable, "-m", "flows.commands.cli", "data", "import-xray", *paths]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "MaleAdultPA" in done.stdout
    assert "test/abnormal" in done.stdout
    assert list_category(hospital / "out" / "FemaleAdultPA").counts() == {"train/good": 1}
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 1
    assert again.stderr.startswith("flawline: There is already")


def test_a_listed_category_goes_through_the_line_with_the_papers_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six 12-bit images, bright on a dark ground, to the synthetic samples that training would learn from."""
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    Path("lists").mkdir()
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        Image.fromarray((255 - disc(number, 96, 96)[..., 0]).astype(np.uint16) * 16).save(Path("scans") / name)
    Path("lists/norm_MaleAdultPA_train_curated_list.txt").write_text("\n".join(names))
    import_lists(Path("scans"), Path("lists"), Path("data"), LIMITS)
    data = {"root": "data", "categories": ["MaleAdultPA"]}
    content = read_preset("paper-nsa-medical") | {"data": data, "image": {"side": 96}}
    params = parse_params(content, "paper-nsa-medical")
    write_json(Places("MaleAdultPA").validation / "learned.json", validated(Path("data/MaleAdultPA/train/good")))
    synthesize.main("MaleAdultPA", params)
    settings, report = load_nsa_params(Places("MaleAdultPA").prepared)
    assert (settings.background, settings.min_overlap, settings.gradients) == (0, 0.7, "mixed")
    assert report["samples"]["unchanged_samples"] < 0.5
    assert 0.005 < report["samples"]["changed_pixels"] < 0.5
