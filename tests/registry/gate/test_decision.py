"""What the gate makes of figures: each rule by a case of its own."""

from dataclasses import replace
from typing import Any

import pytest

from components.foundation.params import GateParams, MarginParams
from components.registry.gate.decision import Compared, Evidence, Rates, Reason, decide, decide_first
from components.registry.gate.probe import Cost
from components.registry.gate.statistics import Difference, Rate, more_often

GATE = GateParams()


def compared(name: str, estimate: float, width: float, images: int = 100, **kind: Any) -> Compared:
    difference = Difference(0.9, 0.9 + estimate, estimate - width, estimate + width, estimate + 1.2 * width)
    return Compared(name, difference, images, images, **kind)


def rates(old: int, new: int, images: int = 200) -> Rates:
    """Alarms of the champion on the first `old` images, of the challenger on the first `new`."""
    masks = [[row < count for row in range(images)] for count in (old, new)]
    of = [Rate.of(mask, 0.95) for mask in masks]
    return Rates(of[0], of[1], more_often(*masks), more_often(masks[1], masks[0]))


def evidence(*figures: Compared, **others: Any) -> Evidence:
    base = Evidence(figures or (FINE,), "test", None, None, None, (Cost(10, 500), Cost(10, 500)), (), 20, None)
    return replace(base, **others)


FINE = compared("image_auroc", 0.0, 0.02)
WORSE = compared("image_auroc", -0.06, 0.02)
OPEN = compared("image_auroc", -0.01, 0.05)
FEW = compared("image_auroc", -0.01, 0.1, images=20)


def test_what_is_shown_to_be_no_worse_is_promoted() -> None:
    verdict = decide(evidence(), GATE)
    assert verdict.word == "promote"
    assert "image AUROC 0.900, the champion's is 0.900: no worse than 0.04" in verdict.summary


def test_what_is_shown_to_be_worse_is_rejected_whatever_else_is_fine() -> None:
    verdict = decide(evidence(WORSE, compared("aupro", 0.1, 0.02)), GATE)
    assert verdict.word == "reject"
    assert verdict.summary == "image AUROC 0.840, the champion's is 0.900: worse by 0.060, at least 0.040"
    assert verdict.standings == {"image_auroc": "worse", "aupro": "fine"}


def test_a_small_loss_that_is_shown_is_within_the_margin() -> None:
    assert decide(evidence(compared("image_auroc", -0.02, 0.005)), GATE).word == "promote"
    strict = GATE.model_copy(update={"margins": MarginParams(image_auroc=0.01)})
    assert decide(evidence(compared("image_auroc", -0.02, 0.005)), strict).word == "reject"


def test_enough_images_that_show_neither_are_left_to_a_person() -> None:
    assert decide(evidence(OPEN), GATE).word == "hold"


@pytest.mark.parametrize(("when_equal", "word"), [("newer", "promote"), ("champion", "reject")])
def test_where_so_few_images_tell_nothing_the_policy_decides_and_it_is_said(when_equal: str, word: str) -> None:
    verdict = decide(evidence(FEW), GATE.model_copy(update={"when_equal": when_equal}))
    assert verdict.word == word
    assert "not distinguishable" in verdict.summary
    said = [reason.words for reason in verdict.reasons if reason.word is None]
    assert any("20 good and 20 defective images cannot tell models apart below 8 points" in words for words in said)


def test_of_few_images_a_model_that_looks_worse_is_left_to_a_person() -> None:
    assert decide(evidence(compared("image_auroc", -0.05, 0.1, images=20)), GATE).word == "hold"


def test_a_kind_of_defect_that_is_lost_rejects_and_has_a_margin_of_its_own() -> None:
    lost = compared("scratch", -0.2, 0.1, images=15, is_kind=True)
    assert decide(evidence(FINE, lost), GATE).word == "reject"
    generous = GATE.model_copy(update={"margins": MarginParams(kinds={"scratch": 0.3})})
    assert decide(evidence(FINE, lost), generous).word == "promote"


def test_a_kind_with_too_few_images_to_say_anything_does_not_stop_a_model() -> None:
    verdict = decide(evidence(FINE, compared("hole", -0.1, 0.4, images=3, is_kind=True)), GATE)
    assert (verdict.word, verdict.standings["kind hole"]) == ("promote", "unseen")


def test_more_false_alarms_or_missed_defects_reject_unless_one_buys_the_other() -> None:
    assert decide(evidence(false_alarms=rates(2, 30)), GATE).word == "reject"
    assert decide(evidence(misses=rates(2, 30)), GATE).word == "reject"
    assert decide(evidence(false_alarms=rates(2, 30), misses=rates(30, 2)), GATE).word == "hold"


def test_the_plants_rate_is_said_and_only_who_went_beyond_it_is_rejected() -> None:
    both = decide(evidence(false_alarms=rates(40, 41)), GATE)
    assert both.word == "promote"
    assert Reason(None, "false alarms 41 of 200: beyond 20 in 1000, as the champion is") in both.reasons
    one = decide(evidence(false_alarms=rates(4, 15)), GATE)
    assert one.word == "reject"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"costs": (Cost(), Cost(error="its golden inputs score otherwise"))}, "does not run in a fresh process"),
        ({"costs": (Cost(), Cost(milliseconds=2001.0))}, "2001 ms"),
        ({"costs": (Cost(), Cost(megabytes=9000.0))}, "9000 MB"),
        ({"errors": ["too few images"]}, "errors of the data check: too few images"),
    ],
)
def test_a_model_that_is_unfit_to_serve_is_rejected(broken: dict[str, Any], words: str) -> None:
    verdict = decide(evidence(**broken), GATE)
    assert verdict.word == "reject"
    assert words in verdict.summary


def test_a_champion_that_does_not_run_leaves_it_to_a_person() -> None:
    assert decide(evidence(costs=(Cost(error="x"), Cost()), source="none", figures=()), GATE).word == "hold"


def test_a_delivery_that_the_champion_calls_defective_needs_a_person_where_little_else_tells() -> None:
    suspicious = rates(8, 0, images=20)
    assert decide(evidence(FEW, delivery=suspicious), GATE).word == "hold"
    assert decide(evidence(source="exam", delivery=suspicious), GATE).word == "hold"
    assert decide(evidence(delivery=suspicious), GATE).word == "promote"


def test_without_any_image_to_compare_on_the_policy_decides() -> None:
    verdict = decide(evidence(source="none", figures=()), GATE)
    assert (verdict.word, "not distinguishable" in verdict.summary) == ("promote", True)


def test_a_first_version_lacks_something_or_has_images_that_stand_out() -> None:
    assert decide_first([], []).word == "promote"
    verdict = decide_first(["exam mark 0.40, 0.55 is needed (gate.first.mark)"], ["a.png", "b.png", "c.png", "d.png"])
    assert verdict.word == "hold"
    assert "exam mark 0.40" in verdict.summary
    assert "4 images of its own training set stand out from the others (a.png, b.png, c.png and 1 more)" in (
        verdict.summary
    )
