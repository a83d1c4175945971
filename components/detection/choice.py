"""Which compositions of which representation serve: what the synthetic exam says of every candidate."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from components.detection.beyond_chance import ERROR
from components.detection.compositions import candidates, for_maps
from components.detection.contest import Contender, Contest, hold, record
from components.detection.detector import Composition
from components.detection.exam import ExamPaper, Mark, best, cross_examine, cross_paper, weighed
from components.detection.extraction import feature_store
from components.detection.feature_bank import FeatureBank
from components.detection.fitting import Banks
from components.foundation.params import Params
from components.foundation.progress import ProgressBar
from components.learning.backbone import Encoder
from components.synthesis.methods import MEAN, PRETRAINED, TRAINED, not_asked
from components.synthesis.prepared import Prepared

NAMES = {
    PRETRAINED: "the representation before training",
    TRAINED: "the trained representation",
    MEAN: "the mean of both representations",
}


@dataclass(frozen=True)
class Choice:
    """Which compositions serve, and what the exam said of every candidate.

    Attributes:
        marks: of all candidates, by cross-fitting.
        contest: among no training, training, and the mean of both.
    """

    marks: tuple[Mark, ...]
    contest: Contest

    @classmethod
    def of(cls, image: tuple[Composition, ...], maps: tuple[Composition, ...]) -> "Choice":
        """A choice that no exam has made."""
        only = Contender(image[0].encoder, image, maps)
        return cls((), Contest((only,), {}, {}, {}, only))

    @property
    def image(self) -> tuple[Composition, ...]:
        """Compositions for the image score."""
        return self.contest.winner.image

    @property
    def map(self) -> tuple[Composition, ...]:
        """Compositions for the anomaly map."""
        return self.contest.winner.map

    @property
    def encoder(self) -> str:
        """The representation that was chosen: "pretrained", "trained", or the mean of both."""
        return self.contest.winner.name

    @property
    def is_taught(self) -> bool:
        """Whether an encoder that was trained on the category serves."""
        return any(composition.encoder != PRETRAINED for composition in self.all)

    @property
    def all(self) -> list[Composition]:
        """Every chosen composition once."""
        return self.contest.winner.all


def make_banks(
    encoders: Mapping[str, Encoder], prepared: Prepared, params: Params, used: Sequence[Composition] = ()
) -> dict[str, FeatureBank]:
    """A bank for each encoder, of the features that its candidates need; of those `used` alone, where these are given.

    A feature is the same either way.
    """
    count, store = len(prepared.fit_rows), feature_store(params.cache.max_bytes)
    banks = {}
    for name, encoder in encoders.items():
        family = candidates(name, encoder, params.image.side, count, params.fit)
        own = [composition for composition in used if composition.encoder == name]
        banks[name] = FeatureBank(name, encoder, prepared, family, store, own)
    return banks


def choose(banks: Banks, params: Params) -> Choice:
    """Choose compositions by cross-fitting, and then by the held-out images whether what was trained serves with them.

    The compositions are those that suit the representation before training, which has seen no image of the category,
    and the trained one takes the same. Images that nobody has learned from, and that have chosen nothing else, then
    say whether the mean of both is better than no training, and if so, whether training alone is better than the mean.
    """
    first, *others = [name for name in banks if name in (PRETRAINED, TRAINED)]
    members = [name for name in banks if name != first]
    marks, chosen = choose_compositions(banks[first], params)
    contenders = [chosen if others else with_members(chosen, members)]
    if others:
        more, trained = counterpart(chosen, banks[TRAINED], params)
        trained = with_members(trained, [name for name in members if name != TRAINED])
        mean = Contender(MEAN, (*chosen.image, *trained.image), (*chosen.map, *trained.map))
        marks, contenders = (*marks, *more), [chosen, mean, trained]
    return Choice(marks, hold(contenders, banks, not_asked(params.method), params.fit.margin, params.seed))


def choose_compositions(bank: FeatureBank, params: Params) -> tuple[tuple[Mark, ...], Contender]:
    """The best compositions of one encoder for the image score and for the map, by the cross-fitted exam; all marks.

    Sums over levels tell better whether a defect is there, but not where: they serve for the map only if asked for.
    """
    count = len(bank.prepared.fit_rows)
    family = candidates(bank.name, bank.encoder, params.image.side, count, params.fit)
    most = max(family, key=lambda composition: composition.copies)
    paper = cross_paper(bank, params.fit.folds, params.seed, most.copies, most.copy_kind, not_asked(params.method))
    marks = tuple(weighed(list(said_how_far(bank, family, paper))))
    for_map = [mark for mark in marks if not mark.composition.widths] if params.fit.combine == "auto" else marks
    by_image = tuple(best(marks, params.fit.best, by="image"))
    by_pixel = tuple(best(for_map, params.fit.best, by="pixel"))
    maps = tuple(for_maps(c) for c in by_pixel) or tuple(c for c in by_image if c.map != "dense")
    return marks, Contender(bank.name, by_image, maps)


def counterpart(chosen: Contender, bank: FeatureBank, params: Params) -> tuple[tuple[Mark, ...], Contender]:
    """What stands for the trained representation: the same compositions, or where its levels are others, its own best.

    It has seen the images that its own exam would ask, so the less it is asked there the better.
    """
    if not {level for c in chosen.all for level in c.levels} <= set(bank.levels):
        return choose_compositions(bank, params)
    image, maps = (tuple(replace(c, encoder=bank.name) for c in own) for own in (chosen.image, chosen.map))
    return (), Contender(bank.name, image, maps)


def with_members(contender: Contender, members: Sequence[str]) -> Contender:
    """The same with its compositions repeated for further encoders, with which it is averaged."""
    image, maps = (
        (*own, *(replace(c, encoder=name) for name in members for c in own)) for own in (contender.image, contender.map)
    )
    return replace(contender, image=image, map=maps)


def said_how_far(bank: FeatureBank, family: Sequence[Composition], paper: ExamPaper) -> Iterator[Mark]:
    """The mark of each composition, while stderr says how many are examined."""
    with ProgressBar(f"{bank.prepared.category}: exam of compositions, {bank.name}", len(family)) as bar:
        for number, composition in enumerate(family, 1):
            yield cross_examine(composition, paper)
            bar.show(number, {})


def selection_summary(choice: Choice, prepared: Prepared) -> dict[str, Any]:
    """The exam in JSON: the mark of every candidate, what was chosen and why, and the contest that decided."""
    return {
        "image": [composition.name for composition in choice.image],
        "map": [composition.name for composition in choice.map],
        "encoder": choice.encoder,
        "why": why(choice.contest),
        "held_out_marks": choice.contest.marks,
        "marks": [
            {"name": mark.composition.name, "image": mark.image, "pixel": mark.pixel, "by_kind": dict(mark.by_kind)}
            for mark in choice.marks
        ],
        "contest": record(choice.contest, held_out_strengths(prepared)),
    }


def held_out_strengths(prepared: Prepared) -> np.ndarray:
    """The strength of the samples from each held-out image of the exam; empty where they have none."""
    if not len(prepared.exam_strengths):
        return prepared.exam_strengths
    return prepared.exam_strengths[prepared.held_out[prepared.exam_source]]


def why(contest: Contest) -> str:
    """One sentence: what serves, and by which marks. They are means of image and pixel AUROC over what was asked."""
    serves = NAMES[contest.winner.name]
    if not contest.comparisons:
        return f"{serves} serves, exam mark {contest.marks[contest.winner.name]:.3f}"
    (first, second), made = list(contest.comparisons.items())[-1]
    if second == contest.winner.name:
        reason = f"mark {made.second:.3f}, against {made.first:.3f} of {NAMES[first]}"
    else:
        reason = f"mark {made.first:.3f}, and {NAMES[second]} is not better beyond chance with {made.second:.3f}"
    asked = f"{made.images} good images that nobody learned from, {len(made.kinds)} kinds of defects"
    interval = f"a difference between {made.low:+.3f} and {made.high:+.3f} ({1 - 2 * ERROR:.0%} interval; {asked})"
    return f"{serves} serves: {reason}, {interval}"


def say_why(category: str, choice: Choice) -> None:
    """One line on stderr: what serves and why, where there was a choice."""
    if choice.contest.comparisons:
        print(f"{category}: {why(choice.contest)}.", file=sys.stderr)
