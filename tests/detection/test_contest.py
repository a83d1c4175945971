"""Who serves: of equal detectors the simplest, a costlier one where it is better, by what was taught to nobody."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from components.detection.beyond_chance import Answers, mark_of
from components.detection.contest import Contender, Contest, Distances, answers_of, by_strength, decide, record
from components.detection.detector import Composition
from components.detection.exam import asked
from components.synthesis.exam_kinds import KINDS as WIDER
from components.synthesis.methods import NSA_GDE, PRETRAINED, TAUGHT, not_asked
from tests.detection.test_beyond_chance import KINDS, allowed, answers, better

NAMES = ("simple", "costly", "costliest")
ONE = Composition("e", ("b1",), "shared", grid=4)
OTHER = Composition("e", ("b2",), "shared", grid=4)
COUNT, SIDE = 12, 32


def decided(said: Sequence[Answers], margin: float = 0.0) -> Contest:
    contenders = [Contender(name, (ONE,), (ONE,)) for name in NAMES[: len(said)]]
    return decide(contenders, dict(zip(NAMES, said, strict=False)), margin, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("marks", [2, 16])
def test_of_equals_the_costlier_one_serves_as_rarely_as_is_said_though_it_was_the_best_of_many(marks: int) -> None:
    """As a training keeps the best of `marks` steps by other images; a maximum on the same images would win mostly."""
    wins = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        elsewhere = [answers(generator, 20)[1] for _ in range(marks)]
        here = [answers(generator, 20) for _ in range(marks)]
        by_mark = [float(mark_of(one, dict.fromkeys(KINDS, 1.0))[0]) for one in elsewhere]
        wins += decided(here[int(np.argmax(by_mark))]).winner.name != "simple"
    assert wins / 200 <= allowed(200)


def test_what_is_better_serves_and_what_follows_it_must_be_better_still() -> None:
    simple, costly = answers(np.random.default_rng(0), images=60, shift=1.0)
    best = better(costly, 1.5)
    assert decided([simple, best]).winner.name == "costly"
    assert decided([simple, best], margin=0.4).winner.name == "simple"
    assert decided([simple, best, best]).winner.name == "costly"
    assert decided([simple, better(costly, 1.0), better(costly, 3.0)]).winner.name == "costliest"
    assert [*decided([simple, best, best]).comparisons] == [("simple", "costly"), ("costly", "costliest")]


def test_after_one_that_is_no_better_none_is_asked() -> None:
    simple, costly = answers(np.random.default_rng(1), images=60, shift=1.0)
    contest = decided([simple, simple, better(costly, 3.0)])
    assert contest.winner.name == "simple"
    assert [*contest.comparisons] == [("simple", "costly")]


def test_what_was_taught_is_not_asked_and_the_wider_kinds_are() -> None:
    kinds = [*TAUGHT, *WIDER]
    assert asked(kinds, not_asked(PRETRAINED)) == list(WIDER)
    for method in ("cutpaste-3way", NSA_GDE, "cutpaste-ensemble"):  # a pasted part is much like what these are taught
        assert set(WIDER) - set(asked(kinds, not_asked(method))) == {"part"}
    assert "hole" not in asked(kinds, not_asked("cutout"))
    assert asked(["scar"], not_asked("cutpaste-3way")) == ["scar"]  # all there is


def test_a_mean_is_of_scores_in_standard_deviations_and_sees_where_the_defect_is() -> None:
    generator = np.random.default_rng(2)
    masks = np.zeros((COUNT, SIDE, SIDE), bool)
    masks[1:, 8:16, 16:24] = True  # cell (1, 2); the first sample is no defect
    sat = {}
    for composition, unit in ((ONE, 1.0), (OTHER, 1000.0)):  # of very different size
        good, sample = generator.normal(size=(2, COUNT, 16))
        sample[1:, 6] += 4
        sat[composition] = Distances(unit * good, {"stain": unit * sample})
    one, other, both = (
        answers_of(Contender("", own, own), sat, {"stain": masks}) for own in ((ONE,), (OTHER,), (ONE, OTHER))
    )
    np.testing.assert_allclose(both.good, (one.good + other.good) / 2)
    np.testing.assert_allclose(both.samples["stain"], (one.samples["stain"] + other.samples["stain"]) / 2)
    assert np.isnan(both.samples["stain"]).tolist() == [True] + [False] * (COUNT - 1)
    assert np.isnan(both.found["stain"][0])
    assert np.nanmean(both.found["stain"]) > 0.9
    assert both.areas["stain"].tolist() == [0.0] + [64.0] * (COUNT - 1)


def test_the_record_holds_the_marks_of_each_strength_and_every_score() -> None:
    one, other = answers(np.random.default_rng(3), images=30)
    one = replace(one, samples={**one.samples, "warp": np.where(np.arange(30) < 5, np.nan, one.samples["warp"])})
    strengths = np.repeat([1.0, 2.0, 3.0], 10)
    marks = by_strength(one, strengths)["warp"]
    for strength, name in ((1.0, "1"), (2.0, "2"), (3.0, "3")):
        scores = one.samples["warp"][(strengths == strength) & np.isfinite(one.samples["warp"])]
        labels = [0] * 30 + [1] * len(scores)
        assert marks[name] == pytest.approx(roc_auc_score(labels, np.concatenate([one.good, scores])))
    kept = record(decided([one, other]), strengths)
    assert kept["images"] == len(kept["good"]) == len(kept["strengths"]) == 30
    assert kept["samples"]["warp"][:5] == [None] * 5
    assert kept["samples"]["warp"][5] == pytest.approx(one.samples["warp"][5], abs=1e-4)
    assert kept["comparisons"][0]["low"] < kept["comparisons"][0]["high"]
