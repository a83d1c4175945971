"""Listing categories in the layouts that are in use."""

from pathlib import Path

import pytest

from components.dataset import find_categories, list_category
from components.errors import UserError


def make(root: Path, *names: str) -> Path:
    """Empty files under these names: listing looks at names only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_mvtec_ad(tmp_path: Path) -> None:
    root = make(
        tmp_path / "bottle",
        "train/good/001.png",
        "train/good/000.png",
        "test/good/000.png",
        "test/broken_large/000.png",
        "test/broken_large/001.png",
        "ground_truth/broken_large/000_mask.png",
        "ground_truth/broken_large/001_mask.png",
    )
    category = list_category(root)
    assert category.name == "bottle"
    assert [record.name for record in category.train] == ["train/good/000.png", "train/good/001.png"]
    assert [(record.kind, record.is_good) for record in category.test] == [
        ("good", True),
        ("broken_large", False),
        ("broken_large", False),
    ]
    assert [record.masks for record in category.test] == [
        (),
        (root / "ground_truth/broken_large/000_mask.png",),
        (root / "ground_truth/broken_large/001_mask.png",),
    ]
    assert category.counts() == {"train/good": 2, "test/good": 1, "test/broken_large": 2}


def test_mvtec_loco_has_folders_of_masks_and_loses_its_logical_part(tmp_path: Path) -> None:
    root = make(
        tmp_path / "juice_bottle",
        "train/good/000.png",
        "validation/good/000.png",
        "test/good/000.png",
        "test/structural_anomalies/000.png",
        "test/logical_anomalies/000.png",
        "ground_truth/structural_anomalies/000/001.png",
        "ground_truth/structural_anomalies/000/000.png",
        "ground_truth/logical_anomalies/000/000.png",
    )
    category = list_category(root)
    assert [record.name for record in category.train] == ["train/good/000.png", "validation/good/000.png"]
    assert [record.kind for record in category.test] == ["good", "structural_anomalies"]
    masks = root / "ground_truth/structural_anomalies/000"
    assert category.test[1].masks == (masks / "000.png", masks / "001.png")


def test_visa_1cls_masks_bear_the_images_name(tmp_path: Path) -> None:
    root = make(
        tmp_path / "candle",
        "train/good/0000.JPG",
        "test/good/0001.JPG",
        "test/bad/000.JPG",
        "ground_truth/bad/000.png",
    )
    category = list_category(root)
    assert len(category.train) == 1
    assert category.test[1].masks == (root / "ground_truth/bad/000.png",)


def test_btad_calls_good_ok(tmp_path: Path) -> None:
    root = make(
        tmp_path / "01",
        "train/ok/0000.bmp",
        "test/ok/0000.bmp",
        "test/ko/0000.bmp",
        "test/ko/0001.bmp",
        "ground_truth/ko/0000.png",
    )
    category = list_category(root)
    assert category.counts() == {"train/good": 1, "test/good": 1, "test/ko": 2}
    assert [record.masks for record in category.test] == [(), (root / "ground_truth/ko/0000.png",), ()]


def test_good_images_alone_are_enough(tmp_path: Path) -> None:
    category = list_category(make(tmp_path / "mine", "train/good/a.tiff"))
    assert (len(category.train), category.test) == (1, [])


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    root = make(
        tmp_path / "c",
        "train/good/a.png",
        "train/good/Thumbs.db",
        "train/good/.DS_Store",
        "train/good/sub.png/b.png",
        "test/readme.txt",
        "license.txt",
    )
    assert [record.name for record in list_category(root).records] == ["train/good/a.png"]


def test_the_order_is_by_name_whatever_the_order_on_disk(tmp_path: Path) -> None:
    first = make(tmp_path / "x" / "c", *(f"train/good/{i:02}.png" for i in range(20)))
    second = make(tmp_path / "y" / "c", *(f"train/good/{i:02}.png" for i in reversed(range(20))))
    assert [r.name for r in list_category(first).records] == [r.name for r in list_category(second).records]


def test_a_missing_or_empty_category_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no category folder"):
        list_category(tmp_path / "none")
    with pytest.raises(UserError, match="no image in train/good"):
        list_category(make(tmp_path / "empty", "train/good/readme.txt", "test/good/0.png"))


@pytest.mark.parametrize("name", ["-rf", "a b", "ä", "a\nb", ".hidden", "a;b"])
def test_an_unfit_name_is_refused(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / name, "train/good/a.png")
    with pytest.raises(UserError, match="cannot name a category") as caught:
        list_category(root)
    assert "\n" not in str(caught.value)


def test_categories_are_found_by_their_train_folder(tmp_path: Path) -> None:
    make(tmp_path, "b/train/good/0.png", "a/train/ok/0.png", "readme/x.txt", "license.txt")
    assert find_categories(tmp_path) == ["a", "b"]
    with pytest.raises(UserError, match="no data folder"):
        find_categories(tmp_path / "none")
    with pytest.raises(UserError, match="holds no category"):
        find_categories(tmp_path / "readme")
