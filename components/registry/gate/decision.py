"""The verdict on a challenger: figures in, words out. Nothing is read, computed or written here.

A figure is *fine* where it is shown to be no worse than its margin, *worse* where it is shown to be worse, and else
*few* where the images are too few to tell `gate.told_apart`, or *open*. Whatever is worse rejects; what is open is for
a person; where there are only few images, the policy decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from components.foundation.params import GateParams
from components.registry.gate.probe import Cost
from components.registry.gate.statistics import Difference, Levels, Rate, resolution

Word = Literal["promote", "hold", "reject"]
Standing = Literal["fine", "worse", "few", "open", "unseen"]
NAMES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


@dataclass(frozen=True)
class Compared:
    """A figure of both models on the same images.

    Attributes:
        name: "image_auroc", "pixel_auroc", "aupro", or of a kind of defect its name.
        difference: challenger minus champion.
        good, defects: numbers of images.
        is_kind: whether it is the image AUROC of one kind of defect.
    """

    name: str
    difference: Difference
    good: int
    defects: int
    is_kind: bool = False


@dataclass(frozen=True)
class Rates:
    """How often each model calls images defective, or misses defects, at its own threshold.

    Attributes:
        champion, challenger: of the same images.
        more, fewer: p-values of the challenger doing it no more, and no less often.
    """

    champion: Rate
    challenger: Rate
    more: float
    fewer: float


@dataclass(frozen=True)
class Evidence:
    """All that is known of a challenger and its champion.

    Attributes:
        figures: of the test images, or where no defect is known of the exam's samples.
        source: "test", "exam" or "none": what the figures were measured on.
        false_alarms: on good images that neither has learned. misses: of known defects. None without such images.
        delivery: on the good images that came since the champion learned; the challenger may have learned them.
        costs: of the champion, and of the challenger. errors: of the check of the challenger's data.
        stated_false_alarms, stated_misses: per 1000, what the plant asks; None where it asks nothing.
    """

    figures: Sequence[Compared]
    source: Literal["test", "exam", "none"]
    false_alarms: Rates | None
    misses: Rates | None
    delivery: Rates | None
    costs: tuple[Cost, Cost]
    errors: Sequence[str]
    stated_false_alarms: float
    stated_misses: float | None


@dataclass(frozen=True)
class Reason:
    """Why a verdict is what it is: `word` is what this by itself asks for, None for what is only to be known."""

    word: Word | None
    words: str


@dataclass(frozen=True)
class Verdict:
    """What becomes of a challenger.

    Attributes:
        word: "promote", "hold" for a person, or "reject".
        summary: the sentence that says why, for one line.
        reasons: all there are, the decisive ones first.
        standings: of each figure, by name; kinds of defects as "kind NAME".
    """

    word: Word
    summary: str
    reasons: Sequence[Reason]
    standings: dict[str, Standing] = field(default_factory=dict)


def count_comparisons(kinds: int) -> int:
    """How many comparisons may reject: three figures, each kind, and both rates, paired and by what is stated."""
    return 3 + kinds + 4


def decide(evidence: Evidence, gate: GateParams) -> Verdict:
    """The verdict of the gate itself, whatever `gate.policy` says of who acts upon it."""
    levels = Levels.of(gate.confidence, count_comparisons(sum(one.is_kind for one in evidence.figures)))
    standings = {_key(one): standing(one, gate) for one in evidence.figures}
    reasons = [
        *_of_health(evidence, gate),
        *(reason for one in evidence.figures if (reason := _of_figure(one, standings[_key(one)], gate))),
        *_of_rates(evidence, levels),
    ]
    asked = {reason.word for reason in reasons}
    if "reject" in asked:
        return _verdict("reject", reasons, standings)
    few = [one for one in evidence.figures if standings[_key(one)] == "few"]
    blind = few or evidence.source != "test"
    if blind:
        reasons += [*_of_delivery(evidence), *_of_few(few, evidence, gate)]
        asked = {reason.word for reason in reasons}
    word: Word = "reject" if "reject" in asked else "hold" if "hold" in asked else "promote"
    return _verdict(word, reasons, standings)


def decide_first(missing: Sequence[str], outliers: Sequence[str]) -> Verdict:
    """The verdict on a category's first version: what it lacks of `gate.first`, and images that stand out in its own
    training set, which no champion has screened."""
    reasons = [Reason("hold", words) for words in missing]
    if outliers:
        shown = ", ".join(outliers[:3]) + (f" and {len(outliers) - 3} more" if len(outliers) > 3 else "")
        reasons.append(
            Reason("hold", f"{_images(len(outliers))} of its own training set stand out from the others ({shown}): see "
                   "that they show no defect")
        )  # fmt: skip
    return _verdict("hold" if reasons else "promote", reasons or [Reason("promote", "first version")], {})


def standing(one: Compared, gate: GateParams) -> Standing:
    """What is shown of one figure. A kind of defect only ever speaks against a model: its images are few."""
    difference, margin = one.difference, margin_of(one, gate)
    if difference.low > -margin:
        return "fine"
    if one.is_kind:
        return "worse" if difference.worse_below < 0 and difference.estimate < -margin else "unseen"
    if difference.worse_below < 0:
        return "worse"
    return "few" if is_few(one, gate) else "open"


def margin_of(one: Compared, gate: GateParams) -> float:
    """By how much this figure may be lower."""
    return gate.margins.kinds.get(one.name, gate.margins.kind) if one.is_kind else getattr(gate.margins, one.name)


def is_few(one: Compared, gate: GateParams) -> bool:
    """Whether so many images cannot tell a loss of `gate.told_apart` from none."""
    return resolution(one.good, one.defects, gate.confidence) > gate.told_apart


def shown_name(one: Compared) -> str:
    """The figure's name in words."""
    return f"image AUROC of {one.name}" if one.is_kind else NAMES[one.name]


def _key(one: Compared) -> str:
    return f"kind {one.name}" if one.is_kind else one.name


def _of_health(evidence: Evidence, gate: GateParams) -> Iterator[Reason]:
    """Whether the challenger runs at all, at what cost, and on checked data."""
    if evidence.costs[0].error:
        yield Reason("hold", f"the champion does not run here, so there is no comparison: {evidence.costs[0].error}")
    cost = evidence.costs[1]
    if cost.error:
        yield Reason("reject", f"it does not run in a fresh process: {cost.error}")
    if cost.milliseconds > gate.milliseconds:
        yield Reason("reject", f"an image takes it {cost.milliseconds:.0f} ms, {gate.milliseconds:g} are allowed")
    if cost.megabytes > gate.megabytes:
        yield Reason("reject", f"it needs {cost.megabytes:.0f} MB of memory, {gate.megabytes:g} are allowed")
    if evidence.errors:
        yield Reason("reject", f"errors of the data check: {'; '.join(evidence.errors[:3])}")


def _of_figure(one: Compared, stands: Standing, gate: GateParams) -> Reason | None:
    name, margin, difference = shown_name(one), margin_of(one, gate), one.difference
    values = f"{difference.challenger:.3f}, the champion's is {difference.champion:.3f}"
    match stands:
        case "fine":
            return None if one.is_kind else Reason("promote", f"{name} {values}: no worse than {margin:g} is shown")
        case "worse":
            return Reason(
                "reject",
                f"{name} {values}: worse by {-difference.estimate:.3f}, at least {max(0.0, -difference.high):.3f}",
            )
        case "open":
            return Reason(
                "hold",
                f"{name} {values}: neither shown to be worse nor to be no worse than {margin:g} (it may be lower by "
                f"{-difference.low:.3f})",
            )
        case "few":
            tellable = resolution(one.good, one.defects, gate.confidence)
            return Reason(
                None,
                f"{name} {values}: not distinguishable, as {one.good} good and {one.defects} defective images cannot "
                f"tell models apart below {100 * tellable:.0f} points",
            )
        case _:
            return None


def _of_rates(evidence: Evidence, levels: Levels) -> Iterator[Reason]:
    """More alarms on good images, or more misses of defects: against the champion, and against what is stated.

    Where one is bought with less of the other, as by another threshold, a person decides.
    """
    risk = 1 - levels.strict
    alarms, misses = evidence.false_alarms, evidence.misses
    for name, rates, other, per_1000 in (
        ("false alarms", alarms, misses, evidence.stated_false_alarms),
        ("missed defects", misses, alarms, evidence.stated_misses),
    ):
        if rates is None:
            continue
        bought = other is not None and other.fewer < 1 - levels.confidence
        word: Word = "hold" if bought else "reject"
        if rates.more < risk:
            words = f"{name} {_share(rates.challenger)}, the champion has {_share(rates.champion)}"
            yield Reason(word, words + (", but less of the other" if bought else ""))
        if per_1000 is not None and rates.challenger.side_of(per_1000) == "beyond":
            also = rates.champion.side_of(per_1000) == "beyond"
            more = rates.challenger.count > rates.champion.count and rates.challenger.exceeds(per_1000, risk)
            words = f"{name} {_share(rates.challenger)}: beyond {per_1000:g} in 1000"
            yield Reason(word if more and not also else None, words + (", as the champion is" if also else ""))


def _of_delivery(evidence: Evidence) -> Iterator[Reason]:
    """Images that were delivered as good and that the champion calls defective: where little else tells, a person's."""
    rates = evidence.delivery
    if rates is None or rates.champion.side_of(evidence.stated_false_alarms) != "beyond":
        return
    yield Reason(
        "hold",
        f"the champion calls {_share(rates.champion)} images of this delivery defective, and there are too few test "
        "images to say whether the delivery or the champion is wrong",
    )


def _of_few(few: Sequence[Compared], evidence: Evidence, gate: GateParams) -> Iterator[Reason]:
    """What the policy makes of it that nothing can be told apart."""
    if not few and evidence.source == "exam":
        return
    low = [one for one in few if one.difference.estimate < -margin_of(one, gate)]
    pairs = {"false alarms": evidence.false_alarms, "missed defects": evidence.misses}
    more = [name for name, rates in pairs.items() if rates is not None and rates.more < 1 - gate.confidence]
    if low or more:
        names = ", ".join([*(f"{shown_name(one)} looks lower by more than the margin" for one in low),
                           *(f"it looks as if there were more {name}" for name in more)])  # fmt: skip
        yield Reason("hold", f"{names}, though so few images do not show it")
    elif gate.when_equal == "newer":
        yield Reason("promote", "not distinguishable from the champion: newer data win (gate.when_equal)")
    else:
        yield Reason("reject", "not distinguishable from the champion, which stays (gate.when_equal)")


def _verdict(word: Word, reasons: Sequence[Reason], standings: dict[str, Standing]) -> Verdict:
    """The decisive reasons first; they are the summary."""
    order = {word: 0, "reject": 1, "hold": 2, "promote": 3, None: 4}
    ordered = sorted(reasons, key=lambda reason: order[reason.word])
    decisive = [reason.words for reason in ordered if reason.word == word]
    return Verdict(word, "; ".join(decisive) or "nothing speaks against it", ordered, standings)


def _share(rate: Rate) -> str:
    return f"{rate.count} of {rate.images}"


def _images(count: int) -> str:
    return f"{count} image{'s' if count != 1 else ''}"
