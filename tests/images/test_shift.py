"""Shifts between sets of images: against enumeration of all splits, and how often ordinary splits warn."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from components.foundation.params import ValidationParams
from components.images.shift import PERMUTED, shift_p_value
from components.stages.validate import MEASURE_RULES, shift_ranges


def test_the_p_value_is_the_share_of_splits_that_are_as_uneven() -> None:
    values = np.random.default_rng(0).permutation(11.0 + np.arange(11))
    for tested in (values[:4], np.sort(values)[-4:]):
        learned = np.setdiff1d(values, tested)
        middle = 12 * 4 / 2  # of the sum of four of the ranks 1 … 11
        sums = np.array([sum(chosen) + 4 for chosen in combinations(range(11), 4)])
        own = (tested - 10).sum()
        expected = np.mean(np.abs(sums - middle) >= abs(own - middle))
        assert shift_p_value(learned, tested) == pytest.approx(expected, abs=1e-9)  # so few splits are all tried


def test_many_values_have_the_usual_approximation() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=PERMUTED), generator.normal(0.1, 1, 60)
    assert shift_p_value(one, other) == stats.mannwhitneyu(one, other, method="asymptotic").pvalue
    assert shift_p_value(one[:300], other) == pytest.approx(stats.mannwhitneyu(one[:300], other).pvalue, abs=0.02)
    assert shift_p_value([2.0] * 9, [2.0] * 5) == 1.0
    with pytest.raises(ValueError, match="both"):
        shift_p_value([], [1.0])


def table_of(train: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """Images with these values, (n, 5) and (m, 5), of the five measures."""
    names = [measure.name for measure in MEASURE_RULES]
    table = pd.DataFrame(np.concatenate([train, test]), columns=names)
    table["split"], table["kind"] = np.repeat(["train", "test"], [len(train), len(test)]), "good"
    table["name"], table["group"] = [f"{row}.png" for row in range(len(table))], None
    return table


def warned(table: pd.DataFrame) -> set[str]:
    """The measures whose shift would be warned of."""
    found = shift_ranges(table, ValidationParams())
    medians = {name: np.median(table.loc[table["split"] == "test", name]) for name in found}
    return {name for name, near in found.items() if not near.low <= medians[name] <= near.high}


@pytest.mark.slow
def test_ordinary_splits_rarely_warn_though_there_are_two_lots_of_parts() -> None:
    """The larger lot alone sets a range that the other one is far out of."""
    generator, times = np.random.default_rng(0), 0
    for _ in range(100):
        lot = generator.random((72, 1)) < 0.4
        values = generator.normal(100, 1, (72, 5)) + 12 * lot
        times += bool(warned(table_of(values[:60], values[60:])))
    assert times <= 4  # one is expected at most; more than four have a probability of 0.003


@pytest.mark.slow
def test_true_shifts_warn() -> None:
    generator = np.random.default_rng(1)
    for count in (5, 12, 40):
        train, test = generator.normal(100, 4, (60, 5)), generator.normal(100, 4, (count, 5))
        test[:, 0] += 12  # three standard deviations brighter
        assert warned(table_of(train, test)) == {"brightness"}


@pytest.mark.slow
def test_near_duplicates_count_once() -> None:
    generator = np.random.default_rng(2)
    train, shifted = generator.normal(100, 4, (6, 5)), generator.normal(100, 4, (10, 5))
    shifted[:, 0] += 5
    table = table_of(train, shifted)
    twins = pd.concat([table.head(6)] * 20 + [table.tail(10)], ignore_index=True)
    groups = twins["name"].where(twins["split"] == "train", None)
    twins["name"] = [f"{row}.png" for row in range(len(twins))]
    assert warned(table) == set()  # of so few, chance may be the reason
    assert "brightness" in warned(twins)
    twins["group"] = groups
    assert warned(twins) == set()


def test_a_single_image_is_no_set_that_differs() -> None:
    """As where all training images are near-duplicates of each other."""
    assert shift_p_value([100.0], np.arange(40.0)) == 1.0
    assert shift_p_value(np.arange(40.0), [100.0]) == 1.0
