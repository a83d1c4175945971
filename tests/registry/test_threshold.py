"""Another threshold is another version: the same detector, from the same stored scores, the same bytes each time."""

from pathlib import Path

import numpy as np
import pytest

from components.detection.capsule import load_capsule
from components.detection.card import read_card
from components.detection.conformal import confident_threshold
from components.foundation.errors import UserError
from components.foundation.files import digest_tree
from components.registry.promotion import promote
from components.registry.threshold import capsule_with_threshold, figures_at, parse_rate, set_threshold
from components.registry.versions import Version, download_capsule, list_versions, register
from components.tracking import connection
from tests.conftest import MakeCapsule

SCORES = (
    "name,kind,score,p_value,alarm\na,good,1,1,0\nb,good,900,0.1,0\nc,hole,500,1,0\nd,hole,2000,0.1,0\ne,dent,1,1,0\n"
)


@pytest.fixture
def base(workspace: Path, make_capsule: MakeCapsule) -> Version:
    """The champion of "bottle", with a threshold that no calibration score has."""
    client, experiment = connection.connect()
    run_id = client.create_run(experiment, tags={"data_version": "abc.dir", "data_commit": "c" * 40}).info.run_id
    client.log_text(run_id, SCORES, "evaluation/scores.csv")
    figures = {"image_auroc": 0.9, "f1": 0.1, "false_alarm_rate": 0.1}
    kinds = {"hole": {"image_auroc": 0.8, "found": 0.0}, "dent": {"image_auroc": 0.7, "found": 0.0}}
    made = register("bottle", make_capsule(workspace / "one", 1e6), run_id, figures, "pretrained", kinds)
    return promote("bottle", made.number, "first")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1/500", 1 / 500), ("2 / 1000", 0.002), ("0.002", 0.002), (".5", 0.5), ("0.2 %", 0.002), ("5%", 0.05)],
)
def test_rates_as_people_write_them(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "1", "1/1", "0/5", "1/0", "500", "100%", "-1/5", "1/500x", "nan", "1e-3"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no rate of false alarms"):
        parse_rate(text)


def test_the_version_differs_in_nothing_but_the_threshold(base: Version) -> None:
    done = set_threshold("bottle", 0.5)
    before, after = (load_capsule(download_capsule("bottle", number)) for number in (1, 2))
    assert (done.version.number, done.is_new, done.version.aliases) == (2, True, ("challenger",))
    assert after.threshold == done.version.threshold == confident_threshold(before.calibration, 0.5).value
    images = np.random.default_rng(3).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(after.score(images)[0], before.score(images)[0])
    assert after.provenance["threshold"] == {
        "of_version": 1,
        "of_capsule": base.digest,
        "false_alarm_rate": 0.5,
        "confidence": 0.95,
        "in_words": f"threshold of version 1 set to {after.threshold:.6g}",
    }
    assert {name: value for name, value in after.provenance.items() if name != "threshold"} == before.provenance
    assert done.version.promise == done.promise == after.promise.sentence
    assert "at most 1 false alarm in 2 good parts with 95 % confidence" in done.promise
    assert (done.version.data_version, done.version.data_commit) == ("abc.dir", "c" * 40)


def test_figures_that_a_threshold_changes_are_measured_anew(base: Version) -> None:
    found = set_threshold("bottle", 0.25).version
    assert found.threshold < 500
    assert dict(found.metrics) == {"image_auroc": 0.9, "f1": pytest.approx(2 / 3), "false_alarm_rate": 0.5}
    assert found.by_kind == {"hole": {"image_auroc": 0.8, "found": 1.0}, "dent": {"image_auroc": 0.7, "found": 0.0}}
    again = set_threshold("bottle", 0.5, found.number).version  # its own run has the scores too
    assert again.metrics["false_alarm_rate"] == 0.5


def test_figures_at_a_threshold() -> None:
    assert figures_at(SCORES, 600.0) == ({"f1": 0.4, "false_alarm_rate": 0.5}, {"dent": 0.0, "hole": 0.5})


@pytest.mark.slow
def test_the_same_wish_again_makes_nothing(base: Version) -> None:
    first = set_threshold("bottle", 0.25)
    again = set_threshold("bottle", 0.25)
    assert (again.version.number, again.is_new) == (2, False)
    assert not set_threshold("bottle", 0.25, 2).is_new
    assert len(list_versions("bottle")) == 2
    other = set_threshold("bottle", 0.5, 2).version  # of a version that has another threshold already
    assert not set_threshold("bottle", 0.5, 1).is_new
    assert read_card(download_capsule("bottle", other.number))["provenance"]["threshold"]["of_version"] == 1
    assert first.version.digest == again.version.digest


def test_the_bytes_are_the_same_each_time(base: Version, tmp_path: Path) -> None:
    set_threshold("bottle", 0.25)
    origin = read_card(download_capsule("bottle", 2))["provenance"]["threshold"]
    made = tmp_path / "made"
    capsule_with_threshold(
        download_capsule("bottle", 1), origin["of_version"], origin["false_alarm_rate"], origin["confidence"], made
    )
    assert digest_tree(made) == digest_tree(download_capsule("bottle", 2))


def test_what_too_few_images_cannot_promise_is_said(base: Version) -> None:
    done = set_threshold("bottle", 1 / 500)
    assert done.version.threshold == max(load_capsule(download_capsule("bottle", 1)).calibration)
    assert "of 8 good images: at most 1 false alarm in 3 good parts with 95 % confidence" in done.promise
    assert "1 in 500, as wished, takes 1497" in done.promise
