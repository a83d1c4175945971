"""What a threshold promises: against closed forms, in words that are never stronger than the numbers."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from components.detection.promise import Promise, cost_words, group_scores, promise, promise_words
from components.foundation.errors import UserError

QUICK = settings(max_examples=60, deadline=None)


def test_one_in_50_takes_149_good_images() -> None:
    enough = promise(np.arange(149.0), 0.02, 0.95, construction="cross-fitted")
    assert (enough.value, enough.met, enough.above, enough.needed) == (148, True, 0, 149)
    few = promise(np.arange(148.0), 0.02, 0.95)
    assert (few.value, few.met, few.needed) == (147, False, 149)
    assert few.rate == pytest.approx(1 - 0.05 ** (1 / 148))
    assert promise(np.arange(49.0), 0.02, 0.95, "marginal").met
    assert not promise(np.arange(48.0), 0.02, 0.95, "marginal").met


def test_the_words() -> None:
    assert promise(np.arange(59.0), 0.05, 0.95).sentence == (
        "alarm above 58, the highest score of 59 good images: at most 1 false alarm in 20 good parts with 95 % "
        "confidence (they were not learned and chose nothing)"
    )
    few = promise(np.arange(60.0), 0.02, 0.9, groups=np.arange(60) // 2, construction="cross-fitted")
    assert few.sentence == (
        "alarm above 59, the highest score of 30 differing good images (of 60): at most 1 false alarm in 13 good parts "
        "with 90 % confidence; 1 in 50, as wished, takes 114 that differ (each scored by densities that had not "
        "learned it; supposed is that a few images more hardly change a score)"
    )
    many = promise(np.arange(300.0), 0.03, 0.95, "marginal")
    assert many.sentence.startswith(
        "alarm above 291, exceeded by 8 of 300 good images: at most 3 false alarms in 100 good parts on average ("
    )
    one = promise([1.5], 0.02, 0.95)
    assert one.sentence.startswith("alarm above 1.5, the highest score of 1 good image: nothing useful is promised; ")
    chose = promise(np.arange(200.0), 0.05, 0.95, construction="examined")
    assert (chose.rate, chose.met) == (1.0, False)
    assert "nothing useful is promised" in chose.sentence


@QUICK
@given(
    st.integers(1, 400),
    st.sampled_from([0.005, 0.02, 0.05, 0.3]),
    st.sampled_from([0.8, 0.95]),
    st.sampled_from(["confident", "marginal"]),
    st.sampled_from(["split", "cross-fitted"]),
)
def test_value_numbers_and_sentence_are_one(
    n: int, wished: float, confidence: float, rule: Any, construction: Any
) -> None:
    scores = np.random.default_rng(n).permutation(n) + 0.5
    made = promise(scores, wished, confidence, rule, construction=construction)
    assert np.count_nonzero(scores > made.value) == made.above
    if rule == "confident":  # the rate above the threshold is Beta distributed
        assert stats.beta.cdf(made.rate, made.above + 1, n - made.above) >= confidence - 1e-9
        assert made.met == ((1 - wished) ** n <= (1 - confidence) * (1 + 1e-12))
    else:
        assert made.rate == pytest.approx((made.above + 1) / (n + 1))
    assert f"alarm above {made.value:.4g}" in made.sentence
    assert Promise.from_json(made.to_json()) == made
    said = re.search(r"at most (\d+) false alarms? in (\d+) good parts", made.sentence)
    if said:
        assert int(said[1]) / int(said[2]) >= made.rate * (1 - 1e-12)
    else:
        assert made.rate > 0.5


def test_near_duplicates_count_once_with_their_highest_score() -> None:
    scores, groups = [3.0, 1.0, 2.0, 5.0, 4.0, 0.0], ["a", "a", "b", "b", "c", "c"]
    np.testing.assert_array_equal(group_scores(scores, groups), [3, 4, 5])
    np.testing.assert_array_equal(group_scores(scores), [0, 1, 2, 3, 4, 5])
    twice = np.repeat(np.arange(40.0), 3)
    made = promise(twice, 0.05, 0.95, groups=twice)
    alone = promise(np.arange(40.0), 0.05, 0.95)
    assert (made.value, made.groups, made.rate) == (alone.value, 40, alone.rate)
    assert (made.images, alone.images) == (120, 40)


def test_near_duplicates_do_not_break_the_promise() -> None:
    """Of 120 images 90 are near-duplicates of ten of the other 30: the rate of 30 is promised, and kept."""
    generator, exceeded = np.random.default_rng(0), []
    for _ in range(2000):
        own = generator.exponential(size=30)
        groups = np.concatenate([np.arange(30), generator.integers(0, 10, 90)])
        made = promise(own[groups], 0.05, 0.95, groups=groups)
        exceeded.append(np.exp(-made.value) > made.rate)
    assert np.mean(exceeded) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert np.mean(exceeded) >= 0.03  # the promise is not empty either


def test_what_a_threshold_costs_in_words() -> None:
    strengths = {"1": {"count": 20, "missed": 0.7}, "3": {"count": 10, "missed": 0.1}}
    missed: dict[str, Any] = {
        "stain": {"count": 10, "missed": 0.1},
        "scratch": {"count": 30, "missed": 0.5, "by_strength": strengths},
    }
    assert cost_words(missed) == (
        "of the exam's defects it misses 40 % (70 % at strength 1, 10 % at strength 3, scratch 50 %, stain 10 %)"
    )
    assert cost_words({}) == ""
    made = promise([1.0, 2.0], 0.1, 0.9)
    words = promise_words({"promise": made.to_json(), "missed": missed})
    assert words == f"{made.sentence}; {cost_words(missed)}"
    assert promise_words({"threshold_guarantee": "at most"}) == ""


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(UserError):
        promise([], 0.1, 0.9)
    with pytest.raises(ValueError, match="finite"):
        promise([1.0, float("nan")], 0.1, 0.9)
    with pytest.raises(ValueError, match="rule"):
        promise([1.0], 0.1, 0.9, "certain")  # type: ignore[arg-type]
    rules: list[Any] = ["confident", "marginal"]
    for rule in rules:
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            promise([1.0], 1.0, 0.9, rule)
