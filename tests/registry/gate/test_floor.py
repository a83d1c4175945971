"""What the first version of a category must have to become its champion by itself."""

from pathlib import Path

import pytest

from components.foundation.params import FirstParams
from components.registry.gate.floor import missing_for_first
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
