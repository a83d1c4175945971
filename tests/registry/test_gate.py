"""What the first version of a category must have to become its champion by itself."""

from pathlib import Path

import pytest
import yaml

from components.foundation.files import write_json
from components.foundation.params import FirstParams
from components.foundation.places import Places
from components.registry.gate import missing_for_first
from tests.conftest import MakeCapsule

FINE: dict[str, list[str]] = {"errors": []}


@pytest.fixture
def capsule(make_capsule: MakeCapsule, tmp_path: Path) -> Path:
    """Eight held-out good images, and an exam mark of 0.8."""
    selection = {"encoder": "pretrained", "held_out_marks": {"pretrained": 0.8, "trained": 0.2}}
    return make_capsule(tmp_path / "capsule", selection=selection)


def test_enough_is_enough(capsule: Path) -> None:
    assert missing_for_first(capsule, FINE, FirstParams(held_out=8, mark=0.8)) == []


@pytest.mark.parametrize(
    ("floor", "report", "words"),
    [
        (FirstParams(held_out=9, mark=0.0), FINE, "8 held-out good images, 9 are needed (gate.first.held_out)"),
        (FirstParams(held_out=1, mark=0.81), FINE, "exam mark 0.80, 0.81 is needed (gate.first.mark)"),
        (FirstParams(held_out=1, mark=0.0), {"errors": ["x"]}, "errors of the data check: 1"),
    ],
)
def test_what_is_missing_is_said(capsule: Path, floor: FirstParams, report: dict[str, list[str]], words: str) -> None:
    assert missing_for_first(capsule, report, floor) == [words]


def test_below_the_floor_the_first_version_stays_a_challenger_until_it_is_lowered(
    workspace: Path, make_capsule: MakeCapsule
) -> None:
    from components.registry import versions as registry
    from flows.retraining.pipeline import promote

    selection = {"encoder": "pretrained", "held_out_marks": {"pretrained": 0.8}}
    places = Places("bottle")
    number = registry.register(
        "bottle", make_capsule(places.capsule, selection=selection), "", {}, method="pretrained"
    ).number
    write_json(places.validation / "report.json", FINE)
    write_params(held_out=9)
    words = promote.fn("bottle", number)
    assert words.startswith("stays the challenger")
    assert "8 held-out good images, 9 are needed" in words
    assert registry.champion("bottle") is None
    write_params(held_out=8)
    assert promote.fn("bottle", number) == "is the champion"
    champion = registry.champion("bottle")
    assert champion is not None
    assert champion.number == number


def write_params(held_out: int) -> None:
    data = {"root": "data", "categories": ["bottle"]}
    Path("params.yaml").write_text(yaml.safe_dump({"data": data, "gate": {"first": {"held_out": held_out}}}))
