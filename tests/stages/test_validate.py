import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from components.evaluation.report_page import render_page
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.foundation.params import ValidationParams, parse_params
from components.images.dataset import list_category
from components.images.measures import image_measures
from components.images.table import data_digest, image_table, learned_images
from components.stages import validate
from components.stages.validate import Measure, failure_sentence, robust_range, validation_report

LIMITS = ImageLimits()
PROJECT = Path(__file__).parents[2]


def texture(seed: int) -> Image.Image:
    """A 64 × 64 RGB picture of blotches, its own for every seed and alike in every measure."""
    noise = np.random.default_rng(seed).normal(size=(64, 64, 3))
    smooth = ndimage.gaussian_filter(noise, (1, 1, 0))
    return Image.fromarray(np.clip(120 + 90 * smooth, 0, 255).astype(np.uint8))


def draw_mask(size: int = 64) -> Image.Image:
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[10:20, 12:30] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category without fault: 12 good training images, 6 good and 6 defective test images with masks."""
    root = tmp_path_factory.mktemp("sound") / "nut"
    for folder in ("train/good", "test/good", "test/hole", "ground_truth/hole"):
        (root / folder).mkdir(parents=True)
    for i in range(12):
        texture(i).save(root / f"train/good/{i:03}.png")
    for i in range(6):
        texture(100 + i).save(root / f"test/good/{i:03}.png")
    for i in range(6):
        texture(200 + i).save(root / f"test/hole/{i:03}.png")
        draw_mask().save(root / f"ground_truth/hole/{i:03}_mask.png")
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound category, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "data" / "nut"))


def report_of(root: Path, limits: ValidationParams | None = None, threads: int = 1) -> dict[str, Any]:
    category = list_category(root)
    return validation_report(category, image_table(category, LIMITS, threads), limits or ValidationParams())


def page_of(root: Path) -> str:
    category = list_category(root)
    table = image_table(category, LIMITS)
    return render_page(validation_report(category, table, ValidationParams()), table, category, LIMITS)


def broken_rules(report: dict[str, Any], severity: str) -> list[str]:
    return [c["rule"] for c in report["checks"] if not c["success"] and c["severity"] == severity]


def edit(path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    change(Image.open(path).copy()).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def darken(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value // 2)


@pytest.mark.slow
def test_sound_category_passes_and_is_counted(sound: Path) -> None:
    report = report_of(sound)
    assert report["passed"]
    assert report["errors"] == []
    assert report["warnings"] == []
    assert report["images"] == 24
    assert report["counts"] == {"train/good": 12, "test/good": 6, "test/hole": 6}
    assert {check["rule"]: check["checked"] for check in report["checks"]}["mask_binary"] == 6


@pytest.mark.slow
def test_report_has_the_promised_keys_and_types(root: Path) -> None:
    truncate(root / "train/good/003.png")
    report = json.loads(json.dumps(report_of(root), allow_nan=False))
    types = {"category": str, "passed": bool, "errors": list, "warnings": list, "images": int, "counts": dict}
    types |= {"bits": int, "left_out": dict, "data_digest": str, "data_version": str}
    types |= {"ranges": dict, "checks": list}
    assert {key: type(value) for key, value in report.items()} == types
    for check in report["checks"]:
        keys = {"rule", "suite", "severity", "demand", "remedy", "success", "checked", "failing", "images"}
        assert keys <= set(check) <= keys | {"problem"}
        assert check["severity"] in ("error", "warning")
    for ends in report["ranges"].values():
        assert ends["low"] < ends["median"] < ends["high"]
    assert report["checks"][0]["images"] == [
        {"name": "train/good/003.png", "problem": report["errors"][0], "other": None}
    ]


def damage_every_way(root: Path) -> dict[str, list[str]]:
    """Damage files so that every rule on single files is broken; the sentences to expect, by rule."""
    train, test, masks = root / "train/good", root / "test/good", root / "ground_truth/hole"
    truncate(train / "003.png")
    Image.new("1", (20_000, 20_000)).save(train / "bomb.png")
    (test / "001.png").write_bytes(b"")
    (test / "002.png").write_text("not a picture")
    edit(test / "003.png", lambda image: image.resize((64, 20)))
    Image.open(train / "004.png").save(test / "new.bmp")
    shutil.copy(train / "005.png", train / "099.png")
    edit(train / "006.png", lambda image: image.convert("RGBA"))
    draw_mask(32).save(masks / "000_mask.png")
    edit(masks / "001_mask.png", lambda mask: mask.rotate(30, Image.Resampling.BILINEAR))
    Image.new("L", (64, 64)).save(masks / "002_mask.png")
    truncate(masks / "003_mask.png")
    levels = len(np.unique(np.array(Image.open(masks / "001_mask.png"))))
    (masks / "004_mask.png").unlink()
    (masks / "005_mask.png").rename(masks / "5_mask.png")
    return {
        "decodes": [
            "train/good/003.png cannot be decoded (image file is truncated)",
            "train/good/bomb.png holds more pixels than the limit of 100,000,000 (limits.max_pixels in params.yaml)",
            "test/good/001.png is not a PNG, JPEG, BMP or TIFF image",
            "test/good/002.png is not a PNG, JPEG, BMP or TIFF image",
        ],
        "large_enough": ["test/good/003.png is 64×20, with a side shorter than 32 pixels"],
        "no_leak": ["test/good/new.bmp shows the same pixels as train/good/004.png"],
        "no_duplicate": ["train/good/099.png shows the same pixels as train/good/005.png"],
        "one_size": ["test/good/003.png is 64×20, most images are 64×64"],
        "one_mode": ["train/good/006.png has mode RGBA, most images have RGB"],
        "mask_size": ["ground_truth/hole/000_mask.png is 32×32, but its image is 64×64"],
        "mask_binary": [f"ground_truth/hole/001_mask.png has {levels} distinct values"],
        "mask_not_empty": ["ground_truth/hole/002_mask.png marks no pixel"],
        "mask_decodes": ["ground_truth/hole/003_mask.png cannot be decoded (image file is truncated)"],
        "mask_present": [f"test/hole/00{i}.png has no mask in ground_truth/hole" for i in (4, 5)],
        "masks_used": ["ground_truth/hole/5_mask.png is a mask for no image of test"],
    }


@pytest.mark.slow
def test_each_damage_breaks_its_rule_and_no_other_and_names_the_file(root: Path) -> None:
    expected = damage_every_way(root)
    report = report_of(root)
    found = {c["rule"]: [image["problem"] for image in c["images"]] for c in report["checks"] if c["images"]}
    files_only = {rule: problems for rule, problems in found.items() if not rule.endswith("_range")}
    assert files_only == expected
    warnings = {"no_duplicate", "one_size", "one_mode", "masks_used"}
    assert set(broken_rules(report, "error")) == set(expected) - warnings
    assert warnings <= set(broken_rules(report, "warning"))
    assert not report["passed"]


def test_rules_belong_to_the_suite_of_the_category_or_of_the_test_images(sound: Path) -> None:
    suites = {check["rule"]: check["suite"] for check in report_of(sound)["checks"]}
    evaluation = {name for name, suite in suites.items() if suite == "evaluation"}
    masks = {"mask_present", "mask_decodes", "mask_size", "mask_binary", "mask_not_empty", "mask_one_frame"}
    masks |= {"masks_not_inverted", "mask_small", "mask_orientation", "masks_clear", "masks_used", "kinds_distinct"}
    shifts = {f"{name}_shift" for name in ("brightness", "contrast", "sharpness", "red_share", "blue_share")}
    assert evaluation == {"no_leak", "no_near_leak", "one_label", "no_test_duplicate", *masks, *shifts}
    assert set(suites.values()) == {"category", "evaluation"}


@pytest.mark.slow
def test_a_test_image_that_looks_like_a_training_image_is_a_warning(root: Path) -> None:
    shutil.copy(root / "train/good/007.png", root / "test/good/shot.png")
    edit(root / "test/good/shot.png", lambda image: image.point(lambda value: min(value + 3, 255)))
    report = report_of(root)
    assert report["passed"]
    assert broken_rules(report, "warning") == ["no_near_leak"]
    assert report["warnings"] == ["test/good/shot.png looks like train/good/007.png"]
    (check,) = [check for check in report["checks"] if check["rule"] == "no_near_leak"]
    assert check["images"][0]["other"] == "train/good/007.png"


@pytest.mark.slow
def test_a_test_image_is_there_once_and_as_one_kind(root: Path) -> None:
    shutil.copy(root / "test/good/002.png", root / "test/good/twin.png")
    assert broken_rules(report_of(root), "warning") == ["no_test_duplicate"]
    (root / "test/good/twin.png").rename(root / "test/hole/twin.png")
    draw_mask().save(root / "ground_truth/hole/twin_mask.png")
    report = report_of(root)
    assert broken_rules(report, "error") == ["one_label"]
    assert report["errors"] == ["test/hole/twin.png shows the same pixels as an image of the kind good"]


@pytest.mark.slow
def test_two_good_images_are_too_few(root: Path) -> None:
    for path in sorted((root / "train/good").iterdir())[2:]:
        path.unlink()
    report = report_of(root)
    assert report["errors"] == ["2 good training images can be decoded, 10 are needed"]
    assert failure_sentence(report, Path("report.html")) == (
        "Validation of nut failed: 2 good training images can be decoded, 10 are needed: "
        "add good images to train/good. Details: report.html."
    )


def redden(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.array(image) * [1.13, 0.945, 0.945]).astype(np.uint8))


@pytest.mark.slow
def test_oddities_are_warnings_that_let_the_category_pass(root: Path) -> None:
    edit(root / "train/good/002.png", darken)
    edit(root / "test/good/002.png", lambda image: image.filter(ImageFilter.GaussianBlur(3)))
    for path in (root / "test/good").iterdir():
        edit(path, redden)
    report = report_of(root)
    assert report["passed"]
    assert report["errors"] == []
    rules = broken_rules(report, "warning")
    assert {"brightness_range", "sharpness_range", "red_share_shift"} <= set(rules)
    assert "sharpness_shift" not in rules
    said = dict(zip(rules, report["warnings"], strict=True))
    assert said["brightness_range"].startswith("train/good/002.png has a brightness of 59")
    assert said["red_share_shift"].startswith("the median share of red of good test images is 0.37")
    sharpness = next(check for check in report["checks"] if check["rule"] == "sharpness_range")
    assert "test/good/002.png" in [image["name"] for image in sharpness["images"]]


@pytest.mark.slow
def test_outliers_within_the_allowed_share_are_listed_without_a_warning(root: Path) -> None:
    edit(root / "train/good/002.png", darken)
    report = report_of(root, ValidationParams(max_outlier_share=0.1))
    check = next(check for check in report["checks"] if check["rule"] == "brightness_range")
    assert (check["success"], check["failing"], check["checked"]) == (True, 1, 18)
    assert check["images"][0]["name"] == "train/good/002.png"


@pytest.mark.slow
def test_defective_images_may_look_as_they_like(root: Path) -> None:
    for path in (root / "test/hole").iterdir():
        edit(path, darken)
    assert report_of(root)["warnings"] == []


@pytest.mark.slow
def test_category_without_masks_or_test_images_passes(root: Path) -> None:
    shutil.rmtree(root / "ground_truth")
    assert report_of(root)["passed"]
    shutil.rmtree(root / "test")
    assert report_of(root)["passed"]


@pytest.mark.slow
def test_category_in_which_nothing_decodes_still_gets_its_report_and_page(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"noise")
    report = report_of(root)
    assert broken_rules(report, "error") == ["decodes", "enough_good", "mask_decodes"]
    assert report["errors"][0].endswith("(and 23 more)")
    assert report["ranges"] == {}
    assert "Not fit to learn from: 3 rules are broken" in page_of(root)


def test_data_digest_covers_names_and_bytes_of_images_and_masks(root: Path) -> None:
    def digest() -> str:
        category = list_category(root)
        return data_digest(category, image_table(category, LIMITS))

    files = sorted(
        [p.relative_to(root).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()] for p in root.rglob("*.png")
    )
    first = digest()
    assert first == hashlib.sha256(json.dumps(files, separators=(",", ":")).encode()).hexdigest()
    (root / "train/good/011.png").rename(root / "train/good/012.png")
    second = digest()
    draw_mask(32).save(root / "ground_truth/hole/000_mask.png")
    assert len({first, second, digest()}) == 3


def test_what_is_learned_from_is_the_training_images_alone(root: Path) -> None:
    def learned() -> dict[str, Any]:
        return learned_images(image_table(list_category(root), LIMITS))

    first = learned()
    assert set(first["images"]) == {path.relative_to(root).as_posix() for path in root.glob("train/good/*")}
    draw_mask(32).save(root / "ground_truth/hole/000_mask.png")
    (root / "test/good/000.png").rename(root / "test/hole/moved.png")
    assert learned() == first
    (root / "validation/good").mkdir(parents=True)
    shutil.copy(root / "train/good/000.png", root / "validation/good/v.png")  # as in LOCO
    assert learned()["data_digest"] == first["data_digest"]  # an image is its bytes, and they are there already
    shutil.copy(root / "test/good/001.png", root / "validation/good/w.png")
    assert learned()["data_digest"] != first["data_digest"]


@pytest.mark.slow
def test_near_duplicates_to_learn_from_are_named_shown_and_grouped(root: Path) -> None:
    brighter = np.clip(np.asarray(texture(0)) * 1.04, 0, 255).astype(np.uint8)
    Image.fromarray(brighter).save(root / "train/good/900.png")
    report = report_of(root)
    (check,) = [check for check in report["checks"] if check["rule"] == "no_near_duplicate"]
    assert (check["success"], check["severity"], check["failing"]) == (False, "warning", 1)
    assert report["warnings"] == ["train/good/900.png looks like train/good/000.png"]
    page = page_of(root)
    assert 'alt="train/good/900.png"' in page
    assert 'alt="train/good/000.png"' in page
    learned = learned_images(image_table(list_category(root), LIMITS))
    assert learned["near_duplicates"] == [
        sorted(learned["images"][f"train/good/{number}.png"] for number in ("000", "900"))
    ]
    os.rename(root / "train/good/900.png", root / "train/good/0.png")
    assert learned_images(image_table(list_category(root), LIMITS))["near_duplicates"] == learned["near_duplicates"]


@pytest.mark.slow
def test_same_data_gives_the_same_bytes_wherever_and_with_however_many_threads(sound: Path, root: Path) -> None:
    for folder in (sound.parent / "again" / "nut", root):
        shutil.copytree(sound, folder, dirs_exist_ok=True)
        os.utime(folder / "train/good/001.png", (1, 1))
        truncate(folder / "train/good/003.png")
    elsewhere = sound.parent / "again" / "nut"
    assert json.dumps(report_of(elsewhere)) == json.dumps(report_of(root, threads=3))
    assert page_of(elsewhere) == page_of(root)
    shutil.rmtree(elsewhere.parent)


class Links(HTMLParser):
    """Collects the tags of a page and all that its attributes could load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.mark.slow
def test_names_on_the_page_are_text_and_never_markup(root: Path) -> None:
    hostile = ['<img src=x onerror="alert(1)">.png', "<script>alert(2)<-script>.png", "'\"><b>{{7*7}}.png"]
    for name in hostile:
        (root / "train/good" / name).write_text("<script>alert(3)</script>")
    kind = root / "test" / "<i onclick=alert(4)>"
    kind.mkdir()
    texture(7).save(kind / "a.png")
    page = page_of(root)
    links = Links()
    links.feed(page)
    assert links.handlers == []
    assert not links.tags & {"script", "i", "iframe", "link", "object"}
    assert all(load.startswith("data:image/jpeg;base64,") for load in links.loads)
    assert "&lt;img src=x onerror=" in page
    assert "{{7*7}}.png" in page


@pytest.mark.slow
def test_page_loads_nothing_and_shows_the_failing_image(root: Path) -> None:
    shutil.copy(root / "train/good/004.png", root / "test/good/leak.png")
    page = page_of(root)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert "url(" not in page
    links = Links()
    links.feed(page)
    assert len(links.loads) == 8 + 2  # the samples, and the leaked image beside its twin
    assert len(page) < 100_000


@pytest.mark.slow
def test_names_that_do_not_print_come_out_escaped_on_one_line(root: Path) -> None:
    names = [b"line\nbreak.png", b"\xff\xfe.png", "\u202egnp.exe.png".encode(), b"\x1b[31mred.png"]
    for name in names:
        (root / "train/good" / os.fsdecode(name)).write_text("no picture")
    report = report_of(root)
    listed = [image["name"] for image in report["checks"][0]["images"]]
    escaped = {r"line\nbreak.png", r"\udcff\udcfe.png", r"\u202egnp.exe.png", r"\x1b[31mred.png"}
    assert set(listed) == {f"train/good/{name}" for name in escaped}
    assert failure_sentence(report, Path("report.html")).isprintable()
    page_of(root).encode()


@pytest.mark.slow
def test_long_lists_are_cut_in_the_sentence_and_in_the_report(root: Path) -> None:
    for i in range(60):
        (root / f"train/good/bad{i}.png").write_text("no picture")
    (root / "ground_truth/hole/000_mask.png").unlink()
    shutil.copy(root / "train/good/004.png", root / "test/good/leak.png")
    edit(root / "test/good/001.png", lambda image: image.resize((64, 20)))
    report = report_of(root)
    assert (report["checks"][0]["failing"], len(report["checks"][0]["images"])) == (60, 50)
    sentence = failure_sentence(report, Path("artifacts/nut/validation/report.html"))
    assert sentence.startswith("Validation of nut failed: train/good/bad0.png is not a PNG, JPEG, BMP or TIFF image")
    assert "(and 59 more); test/good/001.png is 64×20" in sentence
    assert sentence.endswith("; and 1 more: mend or remove these files. Details: artifacts/nut/validation/report.html.")


def test_measures_of_pictures_with_known_answers() -> None:
    half = np.zeros((64, 64, 3), dtype=np.uint8)
    half[:32] = 200
    known = image_measures(half)
    assert known["brightness"] == pytest.approx(100)
    assert known["contrast"] == pytest.approx(100)
    assert known["red_share"] == pytest.approx(1 / 3)
    red = np.zeros((40, 50, 3), dtype=np.uint8)
    red[..., 0], red[..., 2] = 150, 50
    assert image_measures(red)["red_share"] == pytest.approx(0.75)
    assert image_measures(red)["blue_share"] == pytest.approx(0.25)
    assert image_measures(red)["brightness"] == pytest.approx(0.299 * 150 + 0.114 * 50, abs=0.5)
    assert image_measures(red)["sharpness"] == 0
    assert image_measures(np.zeros_like(red))["blue_share"] == pytest.approx(1 / 3)


def test_sharpness_is_the_variance_of_the_laplacian_at_256_pixels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    image = np.repeat(grey[..., None], 3, axis=2)
    reference = ndimage.laplace(grey.astype(float))[1:-1, 1:-1].var()
    assert image_measures(image)["sharpness"] == pytest.approx(reference)
    twice = image.repeat(2, axis=0).repeat(2, axis=1)
    assert image_measures(twice)["sharpness"] == pytest.approx(reference)


def test_robust_range_is_the_median_and_its_deviations() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert robust_range(values, 3, Measure("m", "m", 0.1)) == pytest.approx((0, 3, 6))
    assert robust_range(np.full(5, 7.0), 2, Measure("m", "m", 0.5)) == pytest.approx((6, 7, 8))
    ratio = robust_range(np.array([9.0, 19.0, 39.0]), 2, Measure("m", "m", 0.1, log=True))
    assert ratio == pytest.approx((4, 19, 79))


def test_table_sees_an_image_as_the_eye_does(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    texture(5).crop((0, 0, 64, 48)).save(root / "train/good/turned.jpg", exif=exif)
    table = image_table(list_category(root), LIMITS).set_index("name")
    turned = table.loc["train/good/turned.jpg"]
    assert (turned["width"], turned["height"], turned["format"], turned["mode"]) == (48, 64, "JPEG", "RGB")
    assert table.loc["test/hole/000.png", "mask_area"] == 10 * 18


def test_the_table_does_not_depend_on_how_many_images_are_read_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate(root / "train/good/003.png")
    (root / "ground_truth/hole/001_mask.png").write_text("no picture")
    shutil.copy(root / "train/good/000.png", root / "test/good/000.png")
    whole = image_table(list_category(root), LIMITS)
    monkeypatch.setattr("components.images.table._AT_ONCE", 1)
    pd.testing.assert_frame_equal(image_table(list_category(root), LIMITS), whole)
    assert whole["error"].notna().sum() == whole["mask_error"].notna().sum() == whole["leaked_from"].notna().sum() == 1


def params_of(root: Path) -> dict[str, Any]:
    return {"data": {"root": str(root.parent), "categories": ["nut"]}, "threads": 1}


@pytest.mark.slow
def test_stage_writes_both_reports_also_when_it_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "artifacts/nut/validation"
    validate.main("nut", parse_params(params_of(root), "params"))
    assert json.loads((folder / "report.json").read_text())["passed"]
    assert "Fit to learn from: all 37 rules are kept" in (folder / "report.html").read_text()

    truncate(root / "train/good/003.png")
    with pytest.raises(UserError, match="cannot be decoded"):
        validate.main("nut", parse_params(params_of(root), "params"))
    assert not json.loads((folder / "report.json").read_text())["passed"]
    assert "train/good/003.png cannot be decoded" in (folder / "report.html").read_text()
    written = ["learned.json", "report.html", "report.json", "validation"]
    assert sorted(path.name for path in folder.parent.rglob("*")) == written


@pytest.mark.slow
def test_command_fails_with_one_sentence(root: Path, tmp_path: Path) -> None:
    truncate(root / "train/good/003.png")
    (tmp_path / "params.yaml").write_text(json.dumps(params_of(root)))
    (tmp_path / "infra").symlink_to(PROJECT / "infra")
    command = [sys.executable, "-m", "components.stages.validate", "nut"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "flawline: Validation of nut failed: train/good/003.png cannot be decoded (image file is truncated): "
        "mend or remove the file. Details: artifacts/nut/validation/report.html.\n"
    )


def found_by(report: dict[str, Any], rule: str) -> list[str]:
    (check,) = [check for check in report["checks"] if check["rule"] == rule]
    return [image["problem"] for image in check["images"]] or [check.get("problem", "")]


@pytest.mark.slow
def test_kinds_that_differ_in_capital_letters_alone_are_said(root: Path) -> None:
    (root / "test/Hole").mkdir()
    (root / "test/hole/005.png").rename(root / "test/Hole/005.png")
    report = report_of(root)
    (said,) = found_by(report, "kinds_distinct")
    assert said.startswith("test/hole differs from the kind Hole in capital letters")
    assert "kinds_distinct" in broken_rules(report, "warning")


@pytest.mark.slow
def test_masks_are_looked_at_with_care(root: Path) -> None:
    masks = root / "ground_truth/hole"
    edit(masks / "000_mask.png", lambda mask: mask.point(lambda value: 255 - value))
    exif = Image.Exif()
    exif[0x0112] = 3
    draw_mask().save(masks / "001_mask.png", exif=exif)
    draw_mask().save(masks / "002_mask.png", format="TIFF", save_all=True, append_images=[draw_mask()])
    report = report_of(root)
    assert report["errors"] == ["ground_truth/hole/002_mask.png holds 2 images"]
    assert found_by(report, "mask_small") == ["ground_truth/hole/000_mask.png marks 96 % of its image"]
    assert found_by(report, "mask_orientation") == ["test/hole/001.png has the EXIF orientation 1, its mask 3"]
    assert set(broken_rules(report, "warning")) == {"mask_small", "mask_orientation"}


@pytest.mark.slow
def test_inverted_masks_stop_the_category(root: Path) -> None:
    for path in sorted((root / "ground_truth/hole").iterdir())[:4]:
        edit(path, lambda mask: mask.point(lambda value: 255 - value))
    report = report_of(root)
    assert report["errors"] == ["67% of the masks mark more than half of their image and all around its border"]


@pytest.mark.slow
def test_what_is_not_used_is_in_the_report_and_on_the_page(root: Path) -> None:
    (root / "ground_truth/hole").rename(root / "ground_truth/hole2")
    (root / "train/bad").mkdir()
    texture(50).save(root / "train/bad/000.png")
    (root / "train/good/._000.png").write_bytes(b"Mac OS X")
    report = report_of(root)
    assert report["passed"]
    assert report["images"] == 24
    assert report["left_out"] == {
        "is a mask for no image of test": {
            "count": 6,
            "names": [f"ground_truth/hole2/{i:03}_mask.png" for i in range(6)],
        },
        "lies in no folder that is read (train/good, test/KIND, ground_truth/KIND)": {
            "count": 1,
            "names": ["train/bad/000.png"],
        },
        "is hidden, or a system's own": {"count": 1, "names": ["train/good/._000.png"]},
    }
    assert report["warnings"] == [
        "ground_truth/hole2/000_mask.png is a mask for no image of test (and 5 more)",
        "train/bad/000.png lies in no folder that is read (train/good, test/KIND, ground_truth/KIND)",
    ]
    page = page_of(root)
    assert all(word in page for word in ("train/good/._000.png", "Files that are not used", "hole2/005_mask.png"))


@pytest.mark.slow
def test_few_grey_levels_and_pages_that_are_not_used_are_warnings(root: Path) -> None:
    edit(root / "train/good/003.png", lambda image: image.convert("L").point(lambda value: value // 16).convert("RGB"))
    pages = [Image.open(root / f"train/good/{i:03}.png").copy() for i in (1, 2)]
    pages[0].save(root / "train/good/001.png", format="TIFF", save_all=True, append_images=pages[1:])
    report = report_of(root)
    assert found_by(report, "one_frame") == ["train/good/001.png holds 2 images, of which the first alone is used"]
    (few,) = found_by(report, "enough_levels")
    assert re.fullmatch(r"train/good/003.png has (8|9|1\d) grey levels of 256", few)
