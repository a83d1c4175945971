"""What becomes of arriving images: duplicates, images unlike their category, drift, suspicious ones."""

import re
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from components.arrivals.delivery import Delivery, Item, new_delivery, open_deliveries
from components.arrivals.drift import find_drift, holm
from components.arrivals.entries import Entry
from components.arrivals.inspection import inspect_file
from components.arrivals.outcome import summarise
from components.arrivals.page import SHOWN, render_arrivals
from components.arrivals.review import choose
from components.arrivals.screening import hold_limit
from components.arrivals.triage import Triage, Verdict, arrival_limits, check_entry, triage
from components.detection.capsule import load_capsule
from components.foundation.limits import ImageLimits
from components.foundation.params import DataParams, IngestParams, Params
from components.images.dataset import list_category
from components.images.facts import category_facts, remember
from components.images.measures import MEASURES
from components.registry.forgotten import Forgotten
from tests.conftest import MakeCapsule
from tests.project import surface, write_category, write_image

LIMITS = ImageLimits()


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """A category "widget" of 30 training and 8 test images in data/, and its facts; this process is beside it."""
    monkeypatch.chdir(tmp_path)
    write_category(Path("data/widget"), seed=0, defects=4, train=30)
    return facts()


def facts() -> pd.DataFrame:
    return category_facts(list_category(Path("data/widget")), LIMITS, Path("facts.json"))


def good(seed: int) -> np.ndarray:
    return surface(np.random.default_rng(1000 + seed))


def as_png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def triaged(
    files: dict[str, bytes], history: pd.DataFrame, held: Sequence[Any] = (), capsule: Any = None,
    forgotten: dict[str, Forgotten] | None = None, **ingest: Any,
) -> Triage:  # fmt: skip
    """The verdicts on a delivery of these files."""
    entries = [Entry(name, "file", len(data), "m", 0.0) for name, data in files.items()]
    delivery = new_delivery("widget", "inbox", entries, "2026-11-22T10:00:00+00:00")
    for item in delivery.items():
        delivery.raw(item).parent.mkdir(parents=True, exist_ok=True)
        delivery.raw(item).write_bytes(files[item.entry.key])
    params = Params(data=DataParams(root="data", categories=("widget",)), ingest=IngestParams(**ingest), threads=2)
    looks = {
        item.number: inspect_file(delivery.raw(item), item.shown, arrival_limits(params)) for item in delivery.items()
    }
    return triage(delivery, delivery.items(), looks, history, held, capsule, params, forgotten)


def codes(triage: Triage) -> list[tuple[str, str]]:
    return [(verdict.outcome, verdict.code) for verdict in triage.verdicts]


@pytest.mark.slow
def test_new_good_images_are_accepted(history: pd.DataFrame) -> None:
    found = triaged({f"{number}.png": as_png(good(number)) for number in range(6)}, history)
    assert codes(found) == [("accepted", "")] * 6
    assert [verdict.number for verdict in found.verdicts] == list(range(6))


def test_exact_duplicates_are_found_wherever_the_first_one_is(history: pd.DataFrame) -> None:
    train, test = Path("data/widget/train/good/003.png"), Path("data/widget/test/blob/001.png")
    with Image.open(train) as image:
        train_pixels = np.array(image)
    waiting = triaged({"w.png": as_png(good(50))}, history).verdicts[0]
    held = [{"name": "w.png", "sha256": waiting.sha256, "facts": waiting.facts}]
    files = {
        "bytes of train.png": train.read_bytes(),
        "pixels of train.bmp": as_bmp(train_pixels),
        "test.png": test.read_bytes(),
        "new.png": as_png(good(1)),
        "duplicate.png": as_png(good(1)),
        "held.png": as_png(good(50)),
    }
    found = triaged(files, history, held)
    assert codes(found) == [
        ("quarantine", "duplicate"),
        ("quarantine", "duplicate"),
        ("quarantine", "test-image"),
        ("accepted", ""),
        ("quarantine", "duplicate"),
        ("quarantine", "duplicate"),
    ]
    assert [verdict.words for verdict in found.verdicts] == [
        "is the same file as train/good/003.png",
        "shows the same pixels as train/good/003.png",
        "is the same file as test/blob/001.png",
        "",
        "is the same file as new.png",
        "is the same file as w.png",
    ]


def test_what_was_forgotten_does_not_come_back(history: pd.DataFrame) -> None:
    waiting = triaged({"w.png": as_png(good(50))}, history).verdicts[0]
    gone = {waiting.sha256: Forgotten(waiting.sha256, "a scratch", "Tester", "2026-11-22T10:00:00+00:00")}
    found = triaged({"again.png": as_png(good(50)), "new.png": as_png(good(1))}, history, forgotten=gone)
    assert codes(found) == [("quarantine", "forgotten"), ("accepted", "")]
    assert found.verdicts[0].words == "was forgotten (a scratch)"


def as_bmp(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def test_near_duplicates_are_held_and_those_of_test_images_named(history: pd.DataFrame) -> None:
    def brighter(path: str) -> bytes:
        with Image.open(path) as image:
            return as_png(np.clip(np.array(image) + 2.0, 0, 255).astype(np.uint8))

    files = {"a.png": brighter("data/widget/train/good/003.png"), "b.png": brighter("data/widget/test/good/001.png")}
    found = triaged(files, history)
    assert codes(found) == [("held", "near-duplicate"), ("held", "near-test-image")]
    assert "looks like test/good/001.png" in found.verdicts[1].words


def test_images_unlike_their_category_are_held(history: pd.DataFrame) -> None:
    grey = np.asarray(Image.fromarray(good(4)).convert("L"))
    files = {
        "dark.png": as_png((good(1) * 0.3).astype(np.uint8)),
        "red.png": as_png((good(2) * [1.0, 0.6, 0.6]).astype(np.uint8)),
        "soft.png": as_png(np.array(Image.fromarray(good(3)).resize((6, 6)).resize((48, 48)))),
        "grey.png": as_png(grey),
        "large.png": as_png(np.array(Image.fromarray(good(5)).resize((96, 96)))),
        "small.png": as_png(good(6)[:20, :20]),
        "good.png": as_png(good(7)),
    }
    found = triaged(files, history)
    assert codes(found) == [("held", "unlike-category")] * 6 + [("accepted", "")]
    words = [verdict.words for verdict in found.verdicts]
    for word, said in zip(
        ("brightness", "share of red", "sharpness", "mode L", "96×96", "20 pixels"), words, strict=False
    ):
        assert word in said or word == "20 pixels"
    assert "has a side shorter than 32 pixels (20×20)" in words[5]
    assert not any("{" in said for said in words)


def test_a_category_without_history_knows_no_limits_but_the_doors(history: pd.DataFrame) -> None:
    del history
    empty = category_facts(None, LIMITS, Path("none.json"))
    files = {"a.png": as_png(good(1)), "b.png": as_png((good(2) * 0.2).astype(np.uint8)), "c.png": b"no image"}
    assert codes(triaged(files, empty)) == [("accepted", ""), ("accepted", ""), ("quarantine", "not-an-image")]


@pytest.mark.parametrize(("drift", "outcome"), [("warn", ("accepted", "")), ("stop", ("held", "drift"))])
def test_a_batch_that_moved_away_is_seen(history: pd.DataFrame, drift: str, outcome: tuple[str, str]) -> None:
    def shifted(number: int) -> bytes:
        return as_png(np.clip(good(number) + 1.0, 0, 255).astype(np.uint8))  # each within limits, all of them brighter

    found = triaged({f"{number}.png": shifted(number) for number in range(20)}, history, drift=drift)
    assert set(codes(found)) == {outcome}
    assert {one.measure for one in found.drift if one.drifted} >= {"brightness"}


def test_a_batch_like_the_training_images_has_not_drifted(history: pd.DataFrame) -> None:
    found = triaged({f"{number}.png": as_png(good(number)) for number in range(20)}, history, drift="stop")
    assert set(codes(found)) == {("accepted", "")}
    assert not any(one.drifted for one in found.drift)


def test_drift_is_judged_by_ks_with_holms_correction() -> None:
    generator = np.random.default_rng(0)
    before = {name: generator.normal(0, 1, 80) for name in MEASURES}
    now = {name: generator.normal(shift, 1, 40) for name, shift in zip(MEASURES, (0.9, 0, 0, 0.55, 0), strict=True)}
    raw = [stats.ks_2samp(before[name], now[name]).pvalue for name in MEASURES]
    found = find_drift(before, now, level=0.01)
    expected = dict(zip(MEASURES, false_discovery_free(raw), strict=True))
    assert {one.measure: one.p_value for one in found} == pytest.approx(expected)
    assert [one.drifted for one in found] == [expected[name] <= 0.01 for name in MEASURES]
    assert found[0].drifted


def false_discovery_free(p_values: list[float]) -> list[float]:
    """Holm by its definition: the smallest times m, the next times m - 1, …, never falling, at most 1."""
    adjusted, highest = dict[int, float](), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return [adjusted[index] for index in range(len(p_values))]


def test_holms_adjusted_values_of_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_champion_holds_what_looks_defective(history: pd.DataFrame, make_capsule: MakeCapsule) -> None:
    capsule = load_capsule(make_capsule(Path("capsule"), category="widget"))
    generator = np.random.default_rng(0)
    usual = [generator.integers(90, 110, (32, 32, 3), dtype=np.uint8) for _ in range(30)]
    scores, _ = capsule.score(usual)
    limit = hold_limit(capsule.calibration, 0.01)
    assert limit > capsule.calibration.max()  # eight scores give no p-value of 0.01
    bright = usual[0].copy()
    bright[8:24, 8:24] = 255
    files = {f"{number}.png": as_png(image) for number, image in enumerate(usual)} | {"bright.png": as_png(bright)}
    found = triaged(files, history.iloc[:0], capsule=capsule)
    assert [verdict.outcome for verdict in found.verdicts] == [
        *("held" if score > limit else "accepted" for score in scores),
        "held",
    ]
    suspicious = found.verdicts[-1]
    assert (suspicious.code, suspicious.p_value) == ("suspicious", pytest.approx(1 / (len(capsule.calibration) + 1)))
    assert f"the highest of 8 held-out good images is {capsule.calibration.max():.3g}" in suspicious.words
    delivery = open_deliveries("widget")[0]
    with Image.open(delivery.picture(delivery.items()[-1])) as picture:
        assert picture.size[0] > 100
    for item, verdict in zip(delivery.items(), found.verdicts, strict=True):
        assert delivery.picture(item).exists() == (verdict.outcome == "held")
    check_page(delivery, found)


def check_page(delivery: Delivery, triage: Triage) -> None:
    """The page shows what is held with its map and its score, and names it as `flawline review accept` takes it."""
    summary: dict[str, Any] = {
        "category": "widget",
        "batch": delivery.name,
        "source": "inbox",
        "time": "now",
        "screened": True,
    }
    summary |= {"drift": [], "commit": None, **summarise(triage.verdicts)}
    page = render_arrivals(delivery, triage.verdicts, summary, LIMITS)
    assert page.count('class="map"') == min(summary["held"], SHOWN)
    held = [
        {"place": delivery.place("held", item), "name": item.shown}
        for item, verdict in zip(delivery.items(), triage.verdicts, strict=True)
        if verdict.outcome == "held"
    ]
    names = re.findall(r"flawline review accept (\S+\.png)<", page)
    assert choose(held, names) == held[:SHOWN]
    assert f"score {triage.verdicts[-1].score:.3g},\np = " in page


def test_what_the_listing_condemns_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = Params(data=DataParams(root="data", categories=("widget",)), ingest=IngestParams(max_bytes=100))
    entries = [
        Entry("a.png", "file", 101, "m", 0),
        Entry("../b.png", "file", 5, "m", 0),
        Entry("c.png", "file", 5, "m", 0),
    ]
    verdicts = [check_entry(Item(number, entry), params) for number, entry in enumerate(entries)]
    assert [verdict and verdict.code for verdict in verdicts] == ["too-many-bytes", "name-path", None]


def test_facts_are_computed_once_for_each_content(history: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "components.images.facts.read_with_header", lambda *_: pytest.fail("an image was decoded again")
    )
    pd.testing.assert_frame_equal(facts(), history, check_like=True)
    Path("data/widget/train/good/000.png").touch()
    shutil.copy("data/widget/train/good/001.png", "data/widget/train/good/copy.png")
    again = facts()
    assert len(again) == len(history) + 1
    remember(Path("facts.json"), {"0" * 64: {"pixels": None}})
    assert len(facts()) == len(again)


def test_a_changed_image_gets_new_facts(history: pd.DataFrame) -> None:
    write_image(Path("data/widget/train/good/000.png"), good(9))
    again = facts()
    changed = again["sha256"] != history["sha256"]
    assert list(again["name"][changed]) == ["train/good/000.png"]
    assert (again["pixels"] != history["pixels"]).equals(changed)


def test_a_verdict_survives_json(history: pd.DataFrame) -> None:
    verdict = triaged({"a.png": as_png(good(1))}, history).verdicts[0]
    assert Verdict(**verdict.to_json()) == verdict


def test_a_batch_remembers_strange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a\udcff\n.png", "<b>.png", "部品.png", "../../x"]
    delivery = new_delivery(
        "widget", "inbox", [Entry(name, "file", 1, "m", 0.0) for name in names], "2026-11-22T10:00:00+00:00"
    )
    again = Delivery("widget", delivery.name)
    assert [item.entry.key for item in again.items()] == names
    assert len({item.file_name for item in again.items()}) == len(names)
    for item in again.items():
        assert again.raw(item).resolve().parent == (again.folder / "raw").resolve()
        assert item.file_name.isascii()
