"""The synthetic exam: every image is marked by densities that have not seen it, and what sees defects gets the mark."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from components.detection.detector import Composition, arrange, image_scores
from components.detection.exam import (
    ExamPaper,
    Mark,
    best,
    cross_examine,
    cross_paper,
    examine,
    held_out_paper,
    mark,
    weighed,
)
from components.detection.feature_bank import FeatureBank
from components.foundation.params import BackboneParams
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder, build_encoder
from components.synthesis.prepared import Prepared
from tests.identified import roles_of

SIGHTED = Composition("e", ("sees",), "shared", grid=4, covariance="ridge")
BLIND = Composition("e", ("blind",), "shared", grid=4, covariance="ridge")
POOLED = Composition("e", ("head",), "image")
COUNT, SIDE = 24, 32


@pytest.fixture(scope="module")
def paper() -> ExamPaper:
    """Level "sees" is far off in one cell of each sample, level "blind" is the same kind of noise everywhere."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    good = {"sees": noise(COUNT, 3, 4, 4), "blind": noise(COUNT, 3, 4, 4), "head": noise(COUNT, 6)}
    samples, masks = {}, {}
    for number, kind in enumerate(("patch", "scar")):
        sees = noise(COUNT, 3, 4, 4)
        sees[:, :, number, 2] += 30
        samples[kind] = {"sees": sees, "blind": noise(COUNT, 3, 4, 4), "head": noise(COUNT, 6) * 2}
        masks[kind] = np.zeros((COUNT, SIDE, SIDE), bool)
        masks[kind][:, 8 * number : 8 * number + 8, 16:24] = True
    return ExamPaper(good, samples, masks, np.arange(COUNT) % 4)


@pytest.mark.parametrize("composition", [SIGHTED, BLIND, POOLED], ids=lambda c: c.levels[0])
def test_cross_fitting_is_a_refit_of_each_fold_on_the_others(paper: ExamPaper, composition: Composition) -> None:
    """Each fold is scored by a density fitted anew to the other folds; AUROC from scikit-learn."""
    good = arrange(paper.good, composition)
    expected = {}
    for kind, features in paper.samples.items():
        values = arrange(features, composition)
        scores = np.empty((2, COUNT))
        for fold in range(4):
            rows = paper.folds == fold
            density = composition.density().fit(good[~rows])
            scores[0, rows] = image_scores(density.score(good[rows]), composition)
            scores[1, rows] = image_scores(density.score(values[rows]), composition)
        expected[kind] = roc_auc_score([0] * COUNT + [1] * COUNT, scores.ravel())
    mark = cross_examine(composition, paper)
    assert dict(mark.by_kind) == pytest.approx(expected, abs=1e-3)
    assert mark.image == pytest.approx(np.mean(list(expected.values())), abs=1e-3)


def test_what_sees_the_defect_passes_and_what_is_blind_guesses(paper: ExamPaper) -> None:
    sighted, blind = cross_examine(SIGHTED, paper), cross_examine(BLIND, paper)
    assert sighted.image == 1.0
    assert sighted.pixel is not None
    assert sighted.pixel > 0.97
    assert blind.image == pytest.approx(0.5, abs=0.2)
    assert blind.pixel == pytest.approx(0.5, abs=0.1)


def test_the_pixel_mark_knows_where_the_defect_is(paper: ExamPaper) -> None:
    elsewhere = {kind: np.roll(masks, 16, axis=1) for kind, masks in paper.masks.items()}
    misplaced = cross_examine(SIGHTED, ExamPaper(paper.good, paper.samples, elsewhere, paper.folds))
    assert misplaced.image == 1.0
    assert misplaced.pixel is not None
    assert misplaced.pixel < 0.7


def test_a_pooled_composition_has_no_pixel_mark(paper: ExamPaper) -> None:
    assert cross_examine(POOLED, paper).pixel is None


def test_examine_takes_the_density_as_it_is(paper: ExamPaper) -> None:
    generator = torch.Generator().manual_seed(9)
    density = SIGHTED.density().fit(arrange({"sees": torch.randn(30, 3, 4, 4, generator=generator)}, SIGHTED))
    assert examine(SIGHTED, density.scorer(), paper).image == 1.0
    narrow = SIGHTED.density().fit(arrange({"sees": 30 + torch.randn(30, 3, 4, 4, generator=generator)}, SIGHTED))
    assert examine(SIGHTED, narrow.scorer(), paper).image < 0.8  # to it the good ones are the odd ones


def test_best_orders_by_mark_and_keeps_the_order_of_ties() -> None:
    names = [Composition("e", (f"b{i}",), "shared") for i in range(4)]
    marks = [
        Mark(names[0], 0.7, 0.9, {}, {}),
        Mark(names[1], 0.9, None, {}, {}),
        Mark(names[2], 0.9, 0.9, {}, {}),
        Mark(names[3], 0.8, 0.95, {}, {}),
    ]
    assert best(marks, 3, by="image") == [names[1], names[2], names[3]]
    assert best(marks, 2, by="pixel") == [names[3], names[0]]
    assert best(marks, 9, by="pixel") == [names[3], names[0], names[2]]


def test_kinds_count_as_far_as_the_candidates_see_them() -> None:
    """By the seen kind the second is better, by the unseen one, where all guess, the first."""
    one, two = (Composition("e", (f"b{i}",), "shared") for i in range(2))
    marks = [
        Mark(one, 0.65, 0.5, {"seen": 0.7, "unseen": 0.55}, {"seen": 0.4, "unseen": 0.3}),
        Mark(two, 0.62, 0.5, {"seen": 0.8, "unseen": 0.45}, {"seen": 0.4, "unseen": 0.5}),
    ]
    found = weighed(marks)
    assert [m.image for m in found] == pytest.approx([0.7, 0.8])
    assert [m.pixel for m in found] == pytest.approx([0.35, 0.45])  # nothing is seen: the plain means


def test_a_pooled_composition_must_be_clearly_better() -> None:
    dense, flat = Composition("e", ("b0",), "shared"), Composition("e", ("head",), "image")
    close = [Mark(dense, 0.80, 0.9, {}, {}), Mark(flat, 0.81, None, {}, {})]
    clear = [Mark(dense, 0.80, 0.9, {}, {}), Mark(flat, 0.90, None, {}, {})]
    assert best(close, 1, by="image") == [dense]
    assert best(clear, 1, by="image") == [flat]


# Papers from a prepared category ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Twenty-one images, every third held out; the even rows sit the exam."""
    generator = np.random.default_rng(0)
    source = np.arange(0, 21, 2)
    return Prepared(
        category="bolt",
        seed=0,
        data_digest="d",
        roles=roles_of(np.arange(21) % 3 == 0),
        images=generator.integers(0, 256, (21, SIDE, SIDE, 3), dtype=np.uint8),
        exam_source=source,
        exam_kinds=("patch", "scar"),
        exam_images=generator.integers(0, 256, (2, len(source), SIDE, SIDE, 3), dtype=np.uint8),
        exam_masks=generator.random((2, len(source), SIDE, SIDE)) < 0.1,
    )


def test_the_two_papers_part_the_images(encoder: Encoder, prepared: Prepared) -> None:
    """Source rows 0, 2, 4, …, 20; of them 0, 6, 12 and 18 are held out, at the places 0, 3, 6 and 9."""
    bank = FeatureBank("pretrained", encoder, prepared, [Composition("pretrained", ("head",), "image")])
    held = held_out_paper(bank)
    crossed = cross_paper(bank, folds=3, seed=0)
    places = {"held": [0, 3, 6, 9], "crossed": [1, 2, 4, 5, 7, 8, 10]}
    for paper, chosen in ((held, places["held"]), (crossed, places["crossed"])):
        with torch.no_grad():
            good = encoder(as_tensor(prepared.images[2 * np.array(chosen)]))
            scars = encoder(as_tensor(prepared.exam_images[1][chosen]))
        torch.testing.assert_close(paper.good["head"], good, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(paper.samples["scar"]["head"], scars, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(paper.masks["patch"], prepared.exam_masks[0][chosen])
    assert len(np.unique(crossed.folds)) == 3
    assert len(np.unique(held.folds)) == 1


def test_a_density_with_copies_learns_from_the_other_folds_and_their_copies_only(
    encoder: Encoder, prepared: Prepared
) -> None:
    composition = Composition("pretrained", ("b1",), "location", 2, "ridge", 0.1, copies=2)
    paper = cross_paper(FeatureBank("pretrained", encoder, prepared, [composition]), folds=3, seed=0, copies=2)
    assert paper.more is not None and paper.copies is not None  # noqa: PT018
    good, more = arrange(paper.good, composition), arrange(paper.more, composition)
    everything = np.concatenate([good, more])
    copies = arrange(paper.copies, composition).reshape(2, *everything.shape)
    folds = np.append(paper.folds, np.full(len(more), -1))
    groups = {"good": good, **{kind: arrange(features, composition) for kind, features in paper.samples.items()}}
    distances = {name: np.empty(values.shape[:2]) for name, values in groups.items()}
    for k in range(3):
        kept = folds != k
        density = composition.density().fit(np.concatenate([everything[kept], copies[0][kept], copies[1][kept]]))
        for name, values in groups.items():
            distances[name][paper.folds == k] = density.score(values[paper.folds == k])
    expected = mark(composition, distances.pop("good"), distances, paper.masks)
    found = cross_examine(composition, paper)
    assert found.by_kind == expected.by_kind
    assert found.pixel == pytest.approx(expected.pixel, abs=1e-5)
