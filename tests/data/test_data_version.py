"""What a version of the data holds, what new images add to it, how two versions differ."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data import version as data_version
from components.data.difference_sheet import MAX_SHOWN, shown_objects
from components.data.version import Difference, compare, count_images, count_words, plan_placements
from components.foundation.dvc_digests import md5_file
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.images.dataset import ImageRecord
from tests.project import surface, write_category, write_image


def offered(name: str) -> ImageRecord:
    return ImageRecord(Path("/in") / Path(name).name, name, "train", "good")


def planned(names: list[str], digests: list[str], version: dict[str, str], present: dict[str, str]) -> list[tuple]:
    placements = plan_placements([offered(name) for name in names], digests, version, present)
    return [(place.name, place.is_new, place.is_there) for place in placements]


def test_bytes_that_the_version_has_are_a_duplicate_wherever_they_are() -> None:
    version = {"train/good/a.png": "1" * 32, "test/good/b.png": "2" * 32, "ground_truth/blob/c_mask.png": "3" * 32}
    names = ["train/good/x.png", "train/good/y.png", "train/good/z.png"]
    digests = ["2" * 32, "4" * 32, "3" * 32]
    assert planned(names, digests, version, version) == [
        ("test/good/b.png", False, True),
        ("train/good/y.png", True, False),
        ("train/good/z.png", True, False),  # a mask is no image
    ]


def test_the_same_bytes_twice_in_one_offer_are_added_once() -> None:
    plan = planned(["train/good/x.png", "train/good/y.png"], ["4" * 32, "4" * 32], {}, {})
    assert plan == [("train/good/x.png", True, False), ("train/good/x.png", False, True)]


def test_a_taken_name_gets_a_part_of_the_digest_whatever_the_extension() -> None:
    version = {"train/good/a.png": "1" * 32}
    plan = planned(["train/good/a.jpg", "train/good/a.png"], ["abcdef0123456789" * 2, "5" * 32], version, version)
    assert [name for name, *_ in plan] == ["train/good/a-abcdef01.jpg", "train/good/a-55555555.png"]


def test_what_a_killed_run_left_in_the_folder_is_new_but_not_copied_again() -> None:
    left = {"train/good/x.png": "6" * 32}
    plan = planned(["train/good/x.png", "train/good/again.png"], ["6" * 32, "6" * 32], {}, left)
    assert plan == [("train/good/x.png", True, True), ("train/good/x.png", False, True)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("0123456789abcdef")), max_size=30))
def test_every_content_gets_one_name_and_no_name_two_contents(offer: list[tuple[str, str]]) -> None:
    records = [offered(f"train/good/{name}.png") for name, _ in offer]
    placements = plan_placements(records, [digit * 32 for _, digit in offer], {}, {})
    names = {digit: place.name for (_, digit), place in zip(offer, placements, strict=True)}
    assert len(set(names.values())) == len(names)
    assert sum(place.is_new for place in placements) == len(names)


def test_added_removed_and_changed_images_and_masks_are_told_apart() -> None:
    old = {
        "train/good/a.png": "1",
        "train/good/b.png": "2",
        "test/blob/c.png": "3",
        "ground_truth/blob/c_mask.png": "4",
    }
    new = {
        "train/good/a.png": "1",
        "train/good/b.png": "9",
        "test/good/d.png": "5",
        "ground_truth/blob/c_mask.png": "8",
    }
    images = (("test/good/d.png",), ("test/blob/c.png",), ("train/good/b.png",))
    assert compare(old, new) == Difference(*images, masks_changed=("ground_truth/blob/c_mask.png",))
    assert compare({"ground_truth/blob/c_mask.png": "4"}, {"licence.txt": "5"}).masks_removed
    assert not compare(new, new)


def test_the_message_counts() -> None:
    new = {f"train/good/{number}.png": str(number) for number in range(223)}
    old = {name: digest for name, digest in new.items() if int(digest) < 209}
    assert count_words(compare(old, new), new) == "+14 good images; 223 good images in all"
    mixed = {**{name: new[name] for name in list(new)[2:]}, "train/good/2.png": "other", "test/blob/0.png": "x"}
    words = "-2 ~1 good images, +1 test images; 221 good and 1 test images in all"
    assert count_words(compare(new, mixed), mixed) == words


def test_a_category_or_a_flat_folder_is_offered(tmp_path: Path) -> None:
    write_category(tmp_path / "bolt", seed=0, defects=2, train=3)
    (tmp_path / "bolt" / "licence.txt").write_text("free")
    names = {record.name: len(record.masks) for record in data_version.list_offered(tmp_path / "bolt")}
    assert len(names) == 3 + 4 + 2
    assert names["test/blob/001.png"] == 1
    flat = data_version.list_offered(tmp_path / "bolt" / "train" / "good")
    assert [record.name for record in flat] == [f"train/good/00{number}.png" for number in range(3)]
    with pytest.raises(UserError, match="no image"):
        data_version.list_offered(tmp_path)


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "whole.png", surface(np.random.default_rng(0)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.png"):
        data_version.check_images(data_version.list_offered(tmp_path), ImageLimits(), threads=2)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    write_category(tmp_path / "bolt", seed=0, defects=1, train=1)
    write_image(tmp_path / "bolt" / "ground_truth" / "blob" / "000_mask.png", np.zeros((8, 9), np.uint8))
    with pytest.raises(UserError, match=r"000_mask\.png is 9×8, its image 48×48"):
        data_version.check_images(data_version.list_offered(tmp_path / "bolt"), ImageLimits(), threads=1)


def test_masks_follow_a_renamed_image(tmp_path: Path) -> None:
    write_category(tmp_path / "bolt", seed=0, defects=1, train=1)
    record = next(one for one in data_version.list_offered(tmp_path / "bolt") if one.masks)
    digest = md5_file(record.path)
    placements = plan_placements([record], [digest], {}, {"test/blob/000.png": "0" * 32})
    data_version.stage_copies(placements, tmp_path / "staging")
    data_version.move_in(tmp_path / "staging", tmp_path / "folder")
    written = sorted(path.relative_to(tmp_path / "folder").as_posix() for path in (tmp_path / "folder").rglob("*.png"))
    assert written == [f"ground_truth/blob/000-{digest[:8]}_mask.png", f"test/blob/000-{digest[:8]}.png"]
    assert (tmp_path / "folder" / written[0]).read_bytes() == record.masks[0].read_bytes()


@given(st.integers(0, 70), st.integers(0, 70), st.integers(0, 40))
def test_a_sheet_shows_each_kind_and_pairs_stay_together(added: int, removed: int, changed: int) -> None:
    counts = {"a": added, "r": removed, "c": changed}
    names = {kind: tuple(f"train/good/{kind}{number}.png" for number in range(count)) for kind, count in counts.items()}
    old = dict.fromkeys(names["r"] + names["c"], "old")
    new = dict.fromkeys(names["a"] + names["c"], "new")
    pictures = shown_objects(Difference(names["a"], names["r"], names["c"]), old, new)
    captions = [words for *_, words in pictures]
    whole = min(MAX_SHOWN, added + removed + 2 * changed)
    assert len(pictures) in (whole, whole - 1 if whole == MAX_SHOWN else whole)
    assert captions.count("changed: before") == captions.count("changed: after")
    assert [bool(count) for count in (added, removed, changed)] == [
        word in captions for word in ("added", "removed", "changed: after")
    ]


def test_masks_beside_their_images_count_as_masks() -> None:
    old = {"train/good/0.png": "a", "test/blot/000.png": "b", "test/blot/old_mask.png": "c"}
    new = {**old, "test/blot/000_mask.png": "d"}
    difference = compare(old, new)
    assert (difference.added, difference.masks_added) == ((), ("test/blot/000_mask.png",))
    assert count_words(difference, new) == "+1 masks; 1 good and 2 test images in all"
    assert count_images(new) == {"train/good": 1, "test/blot": 2}
