"""Conformal thresholds against closed forms and by simulation of what they promise."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.detection import conformal
from components.foundation.errors import UserError

QUICK = settings(max_examples=60, deadline=None)
ALPHAS = st.sampled_from([0.005, 0.01, 0.05, 0.1, 0.25, 0.5])


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [(9, 0.1, 9), (99, 0.05, 95), (100, 0.05, 96), (19, 0.05, 19), (199, 0.005, 199), (10, 0.3, 8), (1, 0.5, 1)],
)
def test_marginal_threshold_is_the_right_order_statistic(n: int, alpha: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(n) + 1.0  # the r-th smallest is r
    threshold = conformal.split_conformal_threshold(scores, alpha)
    assert (threshold.value, threshold.rank, threshold.n) == (rank, rank, n)
    assert threshold.met
    assert threshold.guaranteed == pytest.approx((n + 1 - rank) / (n + 1))


def test_too_few_images_give_the_maximum_and_say_what_it_is_worth() -> None:
    threshold = conformal.split_conformal_threshold(np.arange(18.0), 0.05)
    assert threshold.value == 17
    assert not threshold.met
    assert threshold.guaranteed == pytest.approx(1 / 19)
    assert conformal.confident_threshold([1.0, 2.0], 0.5, 0.75).met  # just enough: 0.5^2 = 0.25
    threshold = conformal.confident_threshold(np.arange(60.0), 0.005)
    assert (threshold.value, threshold.met) == (59, False)
    assert threshold.guaranteed == pytest.approx(1 - 0.05 ** (1 / 60))


def test_marginal_coverage_by_simulation() -> None:
    """For continuous scores the false-alarm probability is exactly (n + 1 - rank) / (n + 1)."""
    rng, n, trials = np.random.default_rng(1), 24, 3000
    good, new = rng.exponential(size=(trials, n)), rng.exponential(size=(trials, 50))
    for alpha in (0.1, 0.04, 0.01):
        thresholds = [conformal.split_conformal_threshold(row, alpha) for row in good]
        rate = np.mean(new > np.array([[threshold.value] for threshold in thresholds]))
        assert rate == pytest.approx(thresholds[0].guaranteed, abs=0.004)


def test_training_conditional_guarantee_by_simulation() -> None:
    """Of many held-out sets, at least the stated share must give a true rate within the bound."""
    rng, trials = np.random.default_rng(2), 1500
    for n, alpha, confidence in [(100, 0.05, 0.95), (40, 0.1, 0.9), (60, 0.01, 0.95)]:
        sets = rng.normal(size=(trials, n))
        thresholds = [conformal.confident_threshold(row, alpha, confidence) for row in sets]
        rates = stats.norm.sf([threshold.value for threshold in thresholds])
        kept = np.mean(rates <= thresholds[0].guaranteed)
        assert kept >= confidence - 3 * np.sqrt(confidence * (1 - confidence) / trials)
        assert kept == pytest.approx(confidence, abs=0.02)  # a rank further down would promise too much
        assert thresholds[0].met == (n >= conformal.needed_images(alpha, confidence))


@QUICK
@given(st.integers(1, 400), ALPHAS, st.sampled_from([0.8, 0.95, 0.99]))
def test_rank_is_the_lowest_that_the_beta_law_allows(n: int, alpha: float, confidence: float) -> None:
    rank = conformal.conditional_rank(n, alpha, confidence)
    kept = stats.beta.cdf(alpha, n + 1 - np.arange(1, n + 1), np.arange(1, n + 1))  # P(rate <= alpha), by rank
    allowed = np.flatnonzero(kept >= confidence) + 1
    assert rank == (allowed.min() if allowed.size else None)
    assert (rank is None) == (n < conformal.needed_images(alpha, confidence))
    if rank is not None:
        assert conformal.rate_bound(n, rank, confidence) <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(
    ("alpha", "confidence", "needed"),
    [(1 / 200, 0.95, 598), (0.05, 0.95, 59), (0.1, 0.95, 29), (0.01, 0.99, 459), (0.5, 0.75, 2), (0.95, 0.95, 1)],
)
def test_needed_images_known_answers(alpha: float, confidence: float, needed: int) -> None:
    assert conformal.needed_images(alpha, confidence) == needed


@QUICK
@given(st.sampled_from(["0.5", "0.1", "0.05", "0.02", "0.9", "0.99"]), st.sampled_from(["0.75", "0.9", "0.95", "0.99"]))
def test_needed_images_in_exact_arithmetic(alpha: str, confidence: str) -> None:
    n = conformal.needed_images(float(alpha), float(confidence))
    missed, risk = 1 - Fraction(alpha), 1 - Fraction(confidence)
    assert missed**n <= risk
    assert n == 1 or missed ** (n - 1) > risk


def test_p_values_by_hand() -> None:
    calibration = [3.0, 1.0, 2.0, 2.0]
    np.testing.assert_allclose(
        conformal.p_values(calibration, [0.5, 1.0, 2.0, 2.5, 3.0, 9.0]), [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    )


@QUICK
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.lists(st.integers(-1, 7), min_size=1, max_size=10),
    st.sampled_from([0.05, 0.1, 0.25, 0.5]),
)
def test_p_value_and_threshold_give_the_same_alarms_even_with_ties(
    good: list[int], scores: list[int], alpha: float
) -> None:
    threshold = conformal.split_conformal_threshold(good, alpha)
    alarms = np.array(scores) > threshold.value
    small = conformal.p_values(good, scores) <= alpha
    if threshold.met:
        np.testing.assert_array_equal(alarms, small)
    else:
        assert not small.any()


def test_ties_only_lower_the_false_alarm_rate() -> None:
    rng = np.random.default_rng(6)
    good, new = rng.integers(0, 5, (2000, 30)), rng.integers(0, 5, (2000, 30))
    values = [[conformal.split_conformal_threshold(row, 0.2).value] for row in good]
    assert np.mean(new > np.array(values)) <= 0.2


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(UserError, match="held-out"):
        conformal.split_conformal_threshold([], 0.1)
    with pytest.raises(UserError, match="held-out"):
        conformal.p_values([], [1.0])
    for alpha in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            conformal.split_conformal_threshold([1.0], alpha)
    with pytest.raises(ValueError, match="finite"):
        conformal.confident_threshold([1.0, float("nan")], 0.1)


@pytest.mark.parametrize(("n", "level"), [(24, 0.01), (60, 0.01), (12, 0.02), (8, 0.01)])
def test_beyond_the_held_out_scores_a_tail_is_exceeded_about_as_rarely_as_asked(n: int, level: float) -> None:
    rng, trials = np.random.default_rng(3), 20_000
    k = max(2, n // 4)
    share = (k + 1) / (n + 1)
    expected = share * (1 + np.log(share / level) / k) ** -k  # of an exponential tail whose mean is estimated
    error = 3 * np.sqrt(expected / trials)
    assert expected < 1 / (n + 1)  # fewer than are above all held-out scores
    sets, new = rng.exponential(size=(trials, n)), rng.exponential(size=trials)
    limits = np.array([conformal.tail_limit(row, level) for row in sets])
    assert 0.5 * expected - error <= np.mean(new > limits) <= expected + error  # never under the largest: rarer
    normal = rng.normal(size=(trials, n))
    limits = np.array([conformal.tail_limit(row, level) for row in normal])
    assert np.mean(rng.normal(size=trials) > limits) <= expected + error  # a lighter tail
    assert (limits >= normal.max(axis=1)).all()


def test_the_tail_needs_two_scores_and_some_spread() -> None:
    assert conformal.tail_limit([3.0], 0.01) == 3.0
    assert conformal.tail_limit([3.0, 3.0, 3.0], 0.01) == 3.0
    assert conformal.tail_limit(np.arange(24.0), 0.01) > 23
