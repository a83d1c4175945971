"""Which compositions of which representation serve: what the synthetic exam says of every candidate."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from components.detection.compositions import candidates, for_maps
from components.detection.detector import Composition
from components.detection.exam import (
    ExamPaper,
    Mark,
    best,
    cross_examine,
    cross_paper,
    examine,
    held_out_paper,
    weighed,
)
from components.detection.extraction import feature_store
from components.detection.feature_bank import FeatureBank
from components.detection.fitting import Banks, fit_scorers
from components.foundation.params import Params
from components.foundation.progress import ProgressBar
from components.learning.backbone import Encoder
from components.synthesis.methods import PRETRAINED, TRAINED
from components.synthesis.prepared import Prepared


@dataclass(frozen=True)
class Choice:
    """Which compositions serve, and what the exam said of every candidate.

    Attributes:
        image, map: compositions for the image score and for the anomaly map.
        marks: of all candidates, by cross-fitting.
        held_out: mean image mark on held-out images of each encoder's chosen compositions.
    """

    image: tuple[Composition, ...]
    map: tuple[Composition, ...]
    marks: tuple[Mark, ...]
    held_out: Mapping[str, float]

    @property
    def encoder(self) -> str:
        """The encoder whose compositions were chosen."""
        return self.image[0].encoder

    @property
    def is_taught(self) -> bool:
        """Whether an encoder that was trained on the category serves."""
        return any(composition.encoder != PRETRAINED for composition in self.all)

    @property
    def all(self) -> list[Composition]:
        """Every chosen composition once."""
        return list(dict.fromkeys([*self.image, *self.map]))


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
    """Choose compositions by cross-fitting, before training and after it, then one of the two by the held-out images.

    A trained encoder has seen the images it learned from, so only held-out ones can say whether it is better; it must
    be so by more than `fit.margin`. The members of an ensemble all take the compositions that suit the first.
    """
    first = [name for name in banks if name in (PRETRAINED, TRAINED)]
    members = [name for name in banks if name not in first]
    choices = [choose_compositions(banks[name], params) for name in first]
    choices = [with_members(choice, members) if choice.encoder == TRAINED else choice for choice in choices]
    marks = tuple(mark for choice in choices for mark in choice.marks)
    held_out = {choice.encoder: held_out_mark(banks, choice.image) for choice in choices}
    winner = choices[0]
    for other in choices[1:]:
        if held_out[other.encoder] > held_out[winner.encoder] + params.fit.margin:
            winner = other
    return Choice(winner.image, winner.map, marks, held_out)


def with_members(choice: Choice, members: Sequence[str]) -> Choice:
    """The same choice with its compositions repeated for further encoders, with which it is averaged."""
    image, maps = (
        tuple(replace(c, encoder=name) for name in (choice.encoder, *members) for c in compositions)
        for compositions in (choice.image, choice.map)
    )
    return replace(choice, image=image, map=maps)


def choose_compositions(bank: FeatureBank, params: Params) -> Choice:
    """The best compositions of one encoder for the image score and for the map, by the cross-fitted exam."""
    count = len(bank.prepared.fit_rows)
    family = candidates(bank.name, bank.encoder, params.image.side, count, params.fit)
    most = max(family, key=lambda composition: composition.copies)
    paper = cross_paper(bank, params.fit.folds, params.seed, most.copies, most.copy_kind)
    marks = tuple(weighed(list(said_how_far(bank, family, paper))))
    by_image, by_pixel = (tuple(best(marks, params.fit.best, by=by)) for by in ("image", "pixel"))
    maps = tuple(for_maps(c) for c in by_pixel) or tuple(c for c in by_image if c.map != "dense")
    return Choice(by_image, maps, marks, {})


def said_how_far(bank: FeatureBank, family: Sequence[Composition], paper: ExamPaper) -> Iterator[Mark]:
    """The mark of each composition, while stderr says how many are examined."""
    with ProgressBar(f"{bank.prepared.category}: exam of compositions, {bank.name}", len(family)) as bar:
        for number, composition in enumerate(family, 1):
            yield cross_examine(composition, paper)
            bar.show(number, {})


def held_out_mark(banks: Banks, compositions: Sequence[Composition]) -> float:
    """Mean image mark on held-out images of compositions fitted to all others."""
    scorers = fit_scorers(compositions, banks)
    papers = {name: held_out_paper(banks[name]) for name in dict.fromkeys(c.encoder for c in compositions)}
    return float(np.mean([examine(c, scorers[c], papers[c.encoder]).image for c in compositions]))


def selection_summary(choice: Choice) -> dict[str, Any]:
    """The exam in JSON: the mark of every candidate, what was chosen, and whether training helped."""
    return {
        "image": [composition.name for composition in choice.image],
        "map": [composition.name for composition in choice.map],
        "encoder": choice.encoder,
        "held_out_marks": dict(choice.held_out),
        "marks": [
            {"name": mark.composition.name, "image": mark.image, "pixel": mark.pixel, "by_kind": dict(mark.by_kind)}
            for mark in choice.marks
        ],
    }


def say_if_training_did_not_help(category: str, choice: Choice) -> None:
    """One line on stderr where a trained representation lost its exam against the one before training."""
    if TRAINED in choice.held_out and choice.encoder != TRAINED:
        before, after = choice.held_out[PRETRAINED], choice.held_out[TRAINED]
        print(
            f"Training did not help on {category}: exam mark {before:.4f} before, {after:.4f} after; "
            "the representation before training is kept.",
            file=sys.stderr,
        )
