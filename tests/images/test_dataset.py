"""Listing categories in the layouts that are in use."""

import unicodedata
from pathlib import Path

import pytest

from components.foundation.errors import UserError
from components.images.dataset import category_names, find_categories, list_category
from components.images.left_out import left_out


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


def test_good_is_good_in_any_case(tmp_path: Path) -> None:
    root = make(tmp_path / "c", "train/OK/0.png", "validation/Good/1.png", "test/Good/0.png", "test/GOOD /1.png")
    category = list_category(root)
    assert category.counts() == {"train/good": 2, "test/good": 2}
    assert find_categories(tmp_path) == ["c"]
    assert category_names(tmp_path / "none") == []


HIDDEN = (
    "train/good/._000.png",
    "train/good/.ipynb_checkpoints/000-checkpoint.png",
    "train/good/Thumbs.db",
    "train/.DS_Store",
    "test/.ipynb_checkpoints/000-checkpoint.png",
    "test/@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg",
    "test/bad/.000.png",
    "test/__MACOSX/._000.png",
    "ground_truth/bad/._000_mask.png",
)


def test_hidden_files_and_folders_are_no_images_masks_or_kinds(tmp_path: Path) -> None:
    seen = ("train/good/000.png", "test/bad/000.png", "ground_truth/bad/000_mask.png")
    root = make(tmp_path / "c", *seen, *HIDDEN)
    make(tmp_path / ".cache", "train/good/0.png")
    category = list_category(root)
    assert category.counts() == {"train/good": 1, "test/bad": 1}
    assert category.test[0].masks == (root / "ground_truth/bad/000_mask.png",)
    unused = left_out(root, category.records)
    assert {one.name for one in unused} == set(HIDDEN)
    assert {(one.severity, one.reason) for one in unused} == {("note", "is hidden, or a system's own")}
    assert find_categories(tmp_path) == ["c"]


@pytest.mark.parametrize(
    "mask",
    [
        "ground_truth/bad/a_mask.png",
        "ground_truth/bad/a.png",
        "ground_truth/bad/A_Mask.PNG",
        "ground_truth/Bad/a_mask.bmp",
        "Ground_Truth/bad /a-gt.png",
        "ground_truth/bad/a.jpg.png",
        "ground_truth/bad/mask_a.png",
        "ground_truth/a_mask.png",
        "ground_truth/bad_a.png",
        "masks/bad/a_label.tif",
        "GT/a.png",
        "test/ground_truth/bad/a_mask.png",
        "test/bad/a_mask.png",
    ],
)
def test_masks_are_found_in_the_usual_places_and_under_the_usual_names(tmp_path: Path, mask: str) -> None:
    root = make(tmp_path / "c", "train/good/0.png", "test/bad/a.jpg", "test/bad/b.jpg", "test/good/a.jpg", mask)
    category = list_category(root)
    assert [(record.name, record.masks) for record in category.test] == [
        ("test/good/a.jpg", ()),
        ("test/bad/a.jpg", (root / mask,)),
        ("test/bad/b.jpg", ()),
    ]
    assert left_out(root, category.records) == []


def test_names_pair_whichever_way_their_accents_are_encoded(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "größe_é") for form in ("NFC", "NFD"))
    mask = f"ground_truth/{decomposed}/{decomposed}_mask.png"
    root = make(tmp_path / "c", "train/good/0.png", f"test/{composed}/{composed}.png", mask)
    assert list_category(root).test[0].masks == (root / mask,)


def test_what_a_mask_is_for_must_be_clear(tmp_path: Path) -> None:
    root = make(
        tmp_path / "c",
        "train/good/0.png",
        *("test/bad/1.png", "test/bad/1.jpg", "ground_truth/bad/1_mask.png"),  # two images of one name
        *("test/bad/2.png", "ground_truth/bad/2_mask.png", "ground_truth/bad/2_mask.bmp"),  # two masks
        *("test/bad/3.png", "test/worse/3.png", "ground_truth/3_mask.png"),  # images of one name in two kinds
        *("test/bad/4.png", "ground_truth/bad/4_mask.png", "ground_truth/bad/4.png"),  # the image's copy, perhaps
    )
    category = list_category(root)
    unused = {one.name: (one.severity, one.reason) for one in left_out(root, category.records)}
    assert unused == {
        "ground_truth/bad/1_mask.png": ("error", "may be for test/bad/1.jpg or test/bad/1.png"),
        "ground_truth/bad/2_mask.png": (
            "error",
            "is a second mask of test/bad/2.png, beside ground_truth/bad/2_mask.bmp",
        ),
        "ground_truth/3_mask.png": ("error", "may be for test/bad/3.png or test/worse/3.png"),
        "ground_truth/bad/4.png": (
            "warning",
            "is a second mask of test/bad/4.png, beside ground_truth/bad/4_mask.png, which is taken",
        ),
    }
    assert {record.name: record.masks for record in category.test}["test/bad/3.png"] == ()


def test_every_file_that_is_not_used_is_named_with_its_reason(tmp_path: Path) -> None:
    expected = {
        "license.txt": ("note", "is no image"),
        "train/good/a.webp": ("warning", "has the format .webp, which is not read"),
        "train/good/deep/b.png": ("warning", "lies deeper than train/good"),
        "train/good/gone.png": ("warning", "is a link that leads nowhere"),
        "test/logical_anomalies/0.png": ("note", "shows a logical anomaly, which no local method sees"),
        "ground_truth/logical_anomalies/0/0.png": ("note", "shows a logical anomaly, which no local method sees"),
        "ground_truth/good/0_mask.png": ("note", "is a mask for a good image, which needs none"),
        "ground_truth/bad/9_mask.png": ("warning", "is a mask for no image of test"),
    }
    expected |= {
        f"{split}/good/0_mask.png": ("note", "is a mask for a good image, which needs none")
        for split in ("train", "test")
    }
    elsewhere = "lies in no folder that is read (train/good, test/KIND, ground_truth/KIND)"
    expected |= {name: ("warning", elsewhere) for name in ("a.png", "train/bad/0.png", "Test/bad/0.png", "train/0.png")}
    images = ("train/good/0.png", "test/good/0.png", "test/bad/0.png")
    root = make(tmp_path / "c", *images, *set(expected) - {"train/good/gone.png"})
    (root / "train/good/gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "train/good/round").symlink_to(root / "train")
    category = list_category(root)
    assert sorted(record.name for record in category.records) == sorted(images)
    assert {one.name: (one.severity, one.reason) for one in left_out(root, category.records)} == expected


def test_links_to_images_and_to_folders_are_followed(tmp_path: Path) -> None:
    store = make(tmp_path / "store", "images/0.png", "images/1.png", "masks/0_mask.png")
    root = make(tmp_path / "c", "train/good/0.png", "ground_truth/x.txt")
    (root / "test").mkdir()
    (root / "test/bad").symlink_to(store / "images")
    (root / "ground_truth/bad").symlink_to(store / "masks")
    (root / "train/good/1.png").symlink_to(store / "images/1.png")
    category = list_category(root)
    assert category.counts() == {"train/good": 2, "test/bad": 2}
    assert [len(record.masks) for record in category.test] == [1, 0]
    assert [one.name for one in left_out(root, category.records)] == ["ground_truth/x.txt"]
