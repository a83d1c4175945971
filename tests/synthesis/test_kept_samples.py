"""Samples that are known are those that would be made, and only what is new is made; what must go, goes."""

import json
from pathlib import Path

import numpy as np
import pytest

from components.foundation.byte_cache import ByteCache
from components.foundation.files import digest_tree
from components.foundation.params import Params, parse_params
from components.foundation.places import KNOWN
from components.images.identity import keys_of
from components.stages import synthesize
from components.synthesis.exam_samples import EXAM_KINDS, ExamImages, exam_keys, exam_makers, exam_others, exam_settings
from components.synthesis.kept_samples import KeptSamples, pack, unpack
from components.synthesis.nsa_params import PAPER_SETTINGS
from tests.identified import validated
from tests.project import TINY, surface, write_category

SIDE, COUNT, ROOM = 48, 6, 20_000_000
NSA = PAPER_SETTINGS["carpet"]
Made = tuple[np.ndarray, np.ndarray]


def params(room: int = ROOM) -> Params:
    content = {**TINY, "image": {"side": SIDE}, "cache": {"max_bytes": room}}
    return parse_params(content | {"data": {"root": "data", "categories": ["widget"]}}, "test")


class Exam:
    """An exam of images that are given by number, with its samples as far as they are known."""

    def __init__(self, path: Path, numbers: list[int], other: str = "") -> None:
        generator = np.random.default_rng(0)
        images = np.stack([surface(generator) for _ in range(10)])
        self.digests = [f"{number:x}".rjust(4, "0").ljust(64, "a") for number in numbers]
        self.good, own = images[numbers], keys_of(self.digests)
        keys = exam_keys(own, "widget", params())
        self.others = exam_others(keys, own)
        sitting = ExamImages.of(self.good, own, NSA)
        self.makers = exam_makers(sitting, "widget", params())
        self.store = ByteCache(path, ROOM)
        settings = exam_settings(sitting, params())
        settings |= {kind: [[one, "other"] for one in settings[kind]] for kind in EXAM_KINDS if kind == other}
        self.kept = KeptSamples(self.store, self.good, self.digests, keys, settings)

    def made(self, row: int, numbers: np.ndarray) -> Made:
        return self.makers[EXAM_KINDS[row]](numbers)

    def known(self, row: int) -> tuple[np.ndarray, Made]:
        """Numbers of the samples of a kind that are not known, and all of them with white in the place of these."""
        samples, masks = np.full_like(self.good, 255), np.ones(self.good.shape[:3], bool)
        missing = self.kept.fill(EXAM_KINDS[row], self.others[row], samples, masks)
        return missing, (samples, masks)

    def keep_all(self) -> None:
        for row, kind in enumerate(EXAM_KINDS):
            everything = np.arange(len(self.good))
            self.kept.keep(kind, self.others[row], everything, *self.made(row, everything))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Exam(tmp_path / "known.db", list(range(COUNT))).keep_all()
    return tmp_path / "known.db"


def test_known_samples_are_those_that_are_made_in_whatever_order_their_images_come(path: Path) -> None:
    exam = Exam(path, [4, 0, 2, 5, 1, 3])
    for row in range(len(EXAM_KINDS)):
        missing, (samples, masks) = exam.known(row)
        assert not missing.size
        wanted, masked = exam.made(row, np.arange(COUNT))
        np.testing.assert_array_equal(samples, wanted)
        np.testing.assert_array_equal(masks, masked)


def test_of_more_images_those_samples_are_missing_that_show_a_new_one(path: Path) -> None:
    exam = Exam(path, [*range(COUNT), 7])
    for row in range(len(EXAM_KINDS)):
        missing, (samples, _) = exam.known(row)
        shows_new = np.flatnonzero((exam.others[row] == COUNT) | (np.arange(COUNT + 1) == COUNT))
        np.testing.assert_array_equal(missing, shows_new)
        known = np.setdiff1d(np.arange(COUNT + 1), missing)
        np.testing.assert_array_equal(samples[known], exam.made(row, np.arange(COUNT + 1))[0][known])


def test_under_other_settings_of_a_kind_none_of_it_is_known(path: Path) -> None:
    exam = Exam(path, list(range(COUNT)), "nsa")
    missing = {kind: len(exam.known(row)[0]) for row, kind in enumerate(EXAM_KINDS)}
    assert missing == dict.fromkeys(EXAM_KINDS, 0) | {"nsa": COUNT}


def test_of_a_forgotten_image_no_sample_stays_that_shows_it(path: Path) -> None:
    exam = Exam(path, list(range(COUNT)))
    exam.store.forget([exam.digests[2]])
    found = 0
    for row in range(len(EXAM_KINDS)):
        shows_it = (exam.others[row] == 2) | (np.arange(COUNT) == 2)
        found += int(np.count_nonzero(shows_it)) - 1
        np.testing.assert_array_equal(exam.known(row)[0], np.flatnonzero(shows_it))
    assert found  # in some it is the other image


@pytest.mark.parametrize("place", ["nowhere", "corner", "everywhere", "unmarked", "marked alone"])
def test_what_is_packed_is_unpacked(place: str) -> None:
    generator = np.random.default_rng(1)
    good = generator.integers(0, 255, (9, 9, 3), dtype=np.uint8)
    sample, mask = good.copy(), np.zeros((9, 9), bool)
    if place == "corner":
        sample[8, 8, 1], mask[8, 8] = sample[8, 8, 1] + 1, True
    elif place == "everywhere":
        sample, mask = 255 - good, generator.random((9, 9)) < 0.5
    elif place == "unmarked":
        sample[2:4, 5] += 1
    elif place == "marked alone":
        mask[3, 1:7] = True
    for made, wanted in zip(unpack(good, pack(good, sample, mask)), (sample, mask), strict=True):
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.slow
def test_the_stage_writes_the_same_bytes_with_what_is_known_without_it_and_with_it_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_category(Path("data/widget"), seed=0, defects=0)
    learned = Path("artifacts/widget/validation/learned.json")
    learned.parent.mkdir(parents=True)
    digests: list[str] = []
    for room in (0, ROOM, ROOM, ROOM):
        if len(digests) == 3:
            content = bytearray(KNOWN.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            KNOWN.write_bytes(content)
        learned.write_text(json.dumps(validated(Path("data/widget/train/good"))))
        synthesize.main("widget", params(room))
        digests.append(digest_tree(Path("artifacts/widget/prepared")))
    assert len(set(digests)) == 1
    assert KNOWN.is_file()
