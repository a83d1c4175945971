"""What the alarm threshold promises: its value, the false-alarm rate and the sentence come from one object.

A promise counts groups of near-duplicates, not images: two shots of one part are one observation. A group's score is
its highest, so the rate at which groups are exceeded bounds that of parts.

Two rules: "confident" bounds the rate of this very threshold, with a stated confidence over the draw of the good images
(training-conditional; Vovk, "Conditional validity of inductive conformal predictors", ACML 2012: the rate above the
r-th smallest of n scores is Beta(n + 1 - r, r) distributed); "marginal" bounds its average over such draws (split
conformal; Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005).

Two constructions. "split": the images were neither learned nor chose anything; both rules then hold for any score and
any distribution. "cross-fitted": every image calibrates, scored by densities that did not learn it or its
near-duplicates, while the densities that serve learned them all. There is no bound of that kind that holds for any
method whatever (Bian and Barber, "Training-conditional coverage for distribution-free predictive inference", 2023); it
holds where leaving a fold out hardly changes a score (Steinberger and Leeb, "Conditional predictive inference for
stable algorithms", Annals of Statistics 2023; Bayle et al., "Cross-validation confidence intervals for test error",
NeurIPS 2020), so the sentence says so, and `python -m benchmarks.promise` measures it. "examined": the images
were not learned, but chose what serves, as there were too few to put some aside: nothing is promised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from components.detection.conformal import Threshold, confident_threshold, needed_images, split_conformal_threshold

Rule = Literal["confident", "marginal"]
Construction = Literal["split", "cross-fitted", "examined"]
HOW: dict[Construction, str] = {
    "split": "they were not learned and chose nothing",
    "cross-fitted": "each scored by densities that had not learned it; supposed is that a few images more hardly "
    "change a score",
    "examined": "they were not learned, but chose what serves, as there are too few to put some aside",
}


@dataclass(frozen=True)
class Promise:
    """A threshold with what it promises of good parts to come.

    Attributes:
        value: image scores above it are alarms: the (above + 1)-th highest of the groups' scores.
        rule, construction: see this file's first lines.
        images, groups: good images that calibrate, and how many of them differ (near-duplicates count once).
        above: groups whose score lies above the threshold.
        wished, rate: false-alarm rates in (0, 1]: asked for, and promised; the latter is larger where groups are few.
        confidence: in (0, 1), of the promise; None for the marginal rule.
        needed: fewest groups that could promise what is wished.
    """

    value: float
    rule: Rule
    construction: Construction
    images: int
    groups: int
    above: int
    wished: float
    rate: float
    confidence: float | None
    needed: int

    @property
    def met(self) -> bool:
        """Whether what is promised is at most what was wished."""
        return self.rate <= self.wished

    @property
    def sentence(self) -> str:
        """All of it in words."""
        images = f"{self.groups} good image{'s' if self.groups != 1 else ''}"
        if self.groups < self.images:
            images = f"{self.groups} differing good image{'s' if self.groups != 1 else ''} (of {self.images})"
        of = f"the highest score of {images}" if not self.above else f"exceeded by {self.above} of {images}"
        return f"alarm above {self.value:.4g}, {of}: {self.claim}{self._wish()} ({HOW[self.construction]})"

    @property
    def claim(self) -> str:
        """The promised rate in words, and how sure it is."""
        parts = floor(1 / self.rate)  # rounded towards the weaker promise
        if not self.met and parts == 1:
            return "nothing useful is promised"
        rate = _wish_words(self.wished) if self.met else f"1 false alarm in {parts} good parts"
        sure = "on average" if self.confidence is None else f"with {100 * self.confidence:g} % confidence"
        return f"at most {rate} {sure}"

    def _wish(self) -> str:
        return "" if self.met else f"; {_rate_words(self.wished)}, as wished, takes {self.needed} that differ"

    def to_json(self) -> dict[str, Any]:
        """All of it, the sentence among it for who reads the file alone."""
        return {**asdict(self), "sentence": self.sentence}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Promise":
        """The inverse of `to_json`; the sentence is made anew."""
        return cls(**{name: value for name, value in content.items() if name != "sentence"})


def promise(
    scores: ArrayLike,
    wished: float,
    confidence: float,
    rule: Rule = "confident",
    *,
    groups: ArrayLike | None = None,
    construction: Construction = "split",
) -> Promise:
    """The lowest threshold among good images' scores (n,) that keeps what is wished; the highest where none does.

    groups: (n,) the group of near-duplicates of each image; None where all differ.
    Raises UserError without scores, ValueError for a probability outside (0, 1) or scores that are not finite.

    >>> promise(range(59), 0.05, 0.95).claim
    'at most 1 false alarm in 20 good parts with 95 % confidence'
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be confident or marginal, not {rule}")
    highest = group_scores(scores, groups)
    needed = needed_images(wished, confidence) if rule == "confident" else needed_on_average(wished)
    found: Threshold = (
        confident_threshold(highest, wished, confidence)
        if rule == "confident"
        else split_conformal_threshold(highest, wished)
    )
    rate = 1.0 if construction == "examined" else found.guaranteed
    return Promise(
        found.value, rule, construction, np.size(scores), found.n, found.n - found.rank, wished, rate,
        found.confidence, needed,
    )  # fmt: skip


def group_scores(scores: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
    """The highest score of each group (G,), ascending, from those of images (n,) and the group of each (n,).

    >>> group_scores([1, 4, 2], ["one part", "one part", "another"]).tolist()
    [2.0, 4.0]
    """
    values = np.asarray(scores, np.float64).ravel()
    if groups is None:
        return np.sort(values)
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    highest = np.full(int(number.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(highest, number, values)
    return np.sort(highest)


def needed_on_average(wished: float) -> int:
    """Fewest good images whose highest score is exceeded at this rate on average: the smallest n ≥ 1 / wished − 1.

    >>> needed_on_average(0.02)
    49
    """
    if not 0 < wished < 1:
        raise ValueError(f"wished must lie strictly between 0 and 1, not {wished}")
    return max(1, ceil(1 / Fraction(str(float(wished)))) - 1)


def _rate_words(rate: float) -> str:
    ratio = Fraction(rate).limit_denominator(10**6) or Fraction(str(float(rate)))
    return f"{ratio.numerator} in {ratio.denominator}"


def _wish_words(wished: float) -> str:
    many, parts = _rate_words(wished).split(" in ")
    return f"{many} false alarm{'s' if many != '1' else ''} in {parts} good parts"


def reset(
    selection: Mapping[str, Any], scores: ArrayLike, wished: float, confidence: float
) -> tuple[Promise, dict[str, Any]]:
    """What another threshold for the scores (G,) of a capsule's calibration promises, and the selection that says so.

    Nothing is promised for a capsule that is older than promises. What the threshold misses is not known.

    >>> before = {"promise": promise(range(200), 0.05, 0.95).to_json()}
    >>> made, _ = reset(before, range(200), 0.02, 0.95)
    >>> made.value, made.claim
    (199.0, 'at most 1 false alarm in 50 good parts with 95 % confidence')
    """
    before = selection.get("promise", {"rule": "confident", "construction": "examined", "images": np.size(scores)})
    made = promise(scores, wished, confidence, before["rule"], construction=before["construction"])
    made = replace(made, images=before["images"])
    return made, {**selection, "promise": made.to_json(), "missed": {}, "set_by": []}


def promise_words(selection: Mapping[str, Any]) -> str:
    """The sentence of a capsule's selection, and what it costs; empty where a capsule is older than that.

    >>> promise_words({})
    ''
    >>> promise_words({"promise": promise(range(59), 0.05, 0.95).to_json(), "missed": {}})[:54]
    'alarm above 58, the highest score of 59 good images: a'
    """
    if "promise" not in selection:
        return ""
    return "; ".join(filter(None, [Promise.from_json(selection["promise"]).sentence, cost_words(selection["missed"])]))


def cost_words(missed: Mapping[str, Mapping[str, Any]]) -> str:
    """What the threshold costs, in words, from `Calibration.missed`; empty where there is no such defect.

    >>> cost_words({"stain": {"count": 30, "missed": 0.1}, "blur": {"count": 10, "missed": 0.5}})
    "of the exam's defects it misses 20 % (blur 50 %, stain 10 %)"
    """
    if not missed:
        return ""
    by_strength: dict[str, list[Mapping[str, Any]]] = {}
    for row in missed.values():
        for strength, own in row.get("by_strength", {}).items():
            by_strength.setdefault(strength, []).append(own)
    strengths = [f"{_percent(rows)} at strength {strength}" for strength, rows in sorted(by_strength.items())]
    kinds = sorted(missed.items(), key=lambda item: -item[1]["missed"])
    words = [*strengths, *(f"{kind} {_percent([row])}" for kind, row in kinds)]
    return f"of the exam's defects it misses {_percent(list(missed.values()))} ({', '.join(words)})"


def _percent(rows: Sequence[Mapping[str, Any]]) -> str:
    share = sum(row["missed"] * row["count"] for row in rows) / sum(row["count"] for row in rows)
    return f"{100 * share:.0f} %"
