"""Whether thresholds keep what they promise, through fit's own calibration: many categories, and real images."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.promise import DRAWS, REAL, SPLITS, cases, real_rows, row, simulated
from components.foundation.runtime import use_threads

SHARED = Path(os.environ.get("FLAWLINE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
QUICK = ("normal", "75 % near-duplicates", "tiny")


@pytest.mark.parametrize("name", QUICK)
def test_a_few_dozen_categories_keep_the_promise(name: str) -> None:
    case = next(case for case in cases() if case.name == name)
    found = row(case, 40, simulated(case, 40))
    assert found["exceeded_share"] <= found["allowed_share"]
    assert 0 < found["mean_rate"] < found["promised"]
    if case.copies:
        assert found["groups"] == case.images - case.copies


def test_near_duplicates_that_are_not_known_as_such_break_it() -> None:
    """So the rows would show it: each image's twin is learned, and scores say little about a new image."""
    case = next(case for case in cases() if case.name == "75 % near-duplicates")
    known = list(simulated(replace(case, layout="image"), 20))
    assert all(promise.groups == 30 for promise, _, _ in known)
    blind = list(simulated(replace(case, blind=True), 20))
    assert all(promise.groups == 120 for promise, _, _ in blind)
    exceeded = sum(alarms / fresh > promise.rate for promise, alarms, fresh in blind)
    assert exceeded > 5  # 5 % of 20 is one


@pytest.mark.slow
def test_300_categories_of_each_kind_keep_the_promise() -> None:
    use_threads(1)
    for case in cases():
        found = row(case, DRAWS, simulated(case, DRAWS))
        assert found["exceeded_share"] <= found["allowed_share"], found


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / REAL).is_dir(), reason=f"no real inspection images at {SHARED}")
def test_200_splits_of_real_images_keep_the_promise(tmp_path: Path) -> None:
    for found in real_rows(SHARED, tmp_path, SPLITS):
        assert found["exceeded_share"] <= found["allowed_share"], found
