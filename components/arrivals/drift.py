"""Has what arrives moved away from what was learned? Two-sample Kolmogorov–Smirnov tests with Holm's correction.

Each image may lie within the category's limits while a delivery as a whole is darker, softer or tinted. Holm's
step-down procedure ("A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics,
1979) keeps the probability of any false alarm in a delivery at or under the level, whatever the dependence between the
measures.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from components.images.measures import MEASURES


@dataclass(frozen=True)
class Drift:
    """One measure's test: the KS statistic, its p-value corrected for all tests, medians then and now."""

    measure: str
    statistic: float
    p_value: float
    median_before: float
    median_now: float
    drifted: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON-able dict."""
        return asdict(self)


def find_drift(before: Any, now: Any, level: float) -> list[Drift]:
    """Test every measure of `image_table.MEASURES`; `before` and `now` give each as an array (N,) under its name.

    Returns one row per measure, in that order; `drifted` are those that are rejected at the family-wise level.
    """
    from scipy import stats  # takes half a second

    tests = [stats.ks_2samp(np.asarray(before[name]), np.asarray(now[name])) for name in MEASURES]
    corrected = holm([test.pvalue for test in tests])
    return [
        Drift(
            name,
            float(test.statistic),
            float(p_value),
            float(np.median(before[name])),
            float(np.median(now[name])),
            bool(p_value <= level),
        )
        for name, test, p_value in zip(MEASURES, tests, corrected, strict=True)
    ]


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values (N,) of p-values (N,), in the same order, at most 1."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))  # N for the least p-value, N - 1 for the next, … 1
    adjusted = np.empty_like(values)
    # A larger p-value is never rejected before a smaller one, hence the running maximum.
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted
