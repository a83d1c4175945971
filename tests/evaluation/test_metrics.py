"""Metrics against scikit-learn, against slow independent implementations, and against cases worked by hand."""

from itertools import pairwise
from math import erf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, roc_auc_score

from components.evaluation import metrics

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct values, hence many ties, within and across classes."""
    labels = draw(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda row: 0 < sum(row) < len(row)))
    values = draw(st.lists(st.sampled_from([-1.5, 0, 0.25, 1, 1e6]), min_size=len(labels), max_size=len(labels)))
    return np.array(labels), np.array(values)


@st.composite
def masks_and_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6)))
    masks = draw(hnp.arrays(bool, shape).filter(lambda mask: mask.any() and not mask.all()))
    maps = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])))
    return masks, maps


def regions_by_flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The 8-connected components of one mask, by flooding."""
    left = set(zip(*np.nonzero(mask), strict=True))
    regions = []
    while left:
        front, region = [left.pop()], set()
        while front:
            y, x = front.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        regions.append(region)
    return regions


def slow_aupro(masks: np.ndarray, maps: np.ndarray, limit: float) -> float:
    """AU-PRO as its definition reads: a loop over thresholds, a loop over regions, trapezoids."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        marked = maps >= threshold
        overlaps = [
            np.mean([marked[i][pixel] for pixel in region])
            for i in range(len(masks))
            for region in regions_by_flood(masks[i])
        ]
        points.append((marked[~masks].mean(), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:  # cut the segment at the limit
            if x0 < limit:
                area += (limit - x0) * (y0 + (y0 + (y1 - y0) * (limit - x0) / (x1 - x0))) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@QUICK
@given(labelled_scores())
def test_auroc_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = case
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@QUICK
@given(masks_and_maps())
def test_pixel_auroc_agrees_with_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    masks, maps = case
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(masks_and_maps(), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_aupro_agrees_with_its_definition(case: tuple[np.ndarray, np.ndarray], limit: float) -> None:
    masks, maps = case
    assert metrics.aupro(masks, maps, limit) == pytest.approx(slow_aupro(masks, maps, limit), abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixel_figures_on_smooth_maps_agree_with_the_slow_ways(dtype: type) -> None:
    rng = np.random.default_rng(3)
    masks = np.zeros((4, 16, 16), bool)
    masks[0, 2:6, 3:9] = masks[1, 1:3, 1:3] = masks[1, 3:12, 3:5] = masks[2, 14, 14] = True
    maps: np.ndarray = (rng.normal(size=masks.shape) + 1.2 * masks).astype(dtype)
    area, overlap = metrics.pixel_figures(masks, maps)
    assert area == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert overlap == pytest.approx(slow_aupro(masks, maps, 0.3), abs=1e-9)


def test_aupro_known_answers() -> None:
    masks = np.zeros((2, 10, 10), bool)
    masks[0, :2, :2] = True
    perfect = masks.astype(np.float32)
    assert metrics.aupro(masks, perfect) == pytest.approx(1.0)
    assert metrics.aupro(masks, -perfect) == 0.0
    # One tie of everything: the curve is the diagonal, whose area up to L is L^2 / 2.
    assert metrics.aupro(masks, np.zeros_like(perfect), 0.3) == pytest.approx(0.15)


def test_aupro_weighs_regions_equally_whatever_their_size() -> None:
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :5, :5] = masks[0, 9, 9] = True  # 25 pixels and 1 pixel
    maps = np.zeros(masks.shape, np.float32)
    maps[0, 9, 9] = 2.0  # the small region is found at once, the large one never
    maps[0, :5, :5] = -1.0
    assert metrics.aupro(masks, maps) == pytest.approx(0.5)


def test_aupro_joins_regions_that_touch_at_a_corner() -> None:
    masks = np.zeros((1, 6, 6), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 1, 2] = masks[0, 2, 3] = True  # one diagonal region of 4 pixels
    masks[0, 5, 5] = True
    maps = -masks.astype(np.float32)
    maps[0, 0, 0] = 1.0  # a quarter of the first of two regions
    assert metrics.aupro(masks, maps) == pytest.approx(1 / 8)


def test_regions_of_successive_images_stay_apart() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[:, 1, 1] = True
    masks[1, 1, 2] = True
    maps = -masks.astype(np.float32)
    maps[0, 1, 1] = 1.0
    assert metrics.aupro(masks, maps) == pytest.approx(0.5)


def test_figures_do_not_depend_on_the_order_of_images_nor_change_their_input() -> None:
    rng = np.random.default_rng(5)
    masks = rng.random((6, 12, 12)) < 0.1
    maps = np.round(rng.random(masks.shape), 1).astype(np.float32)
    before, order = maps.copy(), rng.permutation(6)
    assert metrics.pixel_figures(masks[order], maps[order]) == pytest.approx(metrics.pixel_figures(masks, maps))
    np.testing.assert_array_equal(maps, before)
    labels, scores = masks.any(axis=(1, 2)) & (np.arange(6) % 2 == 0), maps.max(axis=(1, 2))
    assert metrics.auroc(labels[order], scores[order]) == metrics.auroc(labels, scores)


def test_one_class_alone_gives_no_figure() -> None:
    scores = np.array([0.1, 0.2, 0.3])
    for labels in (np.zeros(3), np.ones(3)):
        assert metrics.auroc(labels, scores) is None
        assert metrics.roc_curve(labels, scores) is None
        assert metrics.f1_at(labels, scores, 0.15) is None
        assert metrics.f1_max(labels, scores) == (None, None)
        assert metrics.bootstrap_interval(metrics.auroc, labels, scores, seed=0, n=5) is None
    assert metrics.auroc([], []) is None
    assert metrics.bootstrap_interval(metrics.auroc, np.empty(0), np.empty(0), seed=0, n=5) is None
    assert metrics.false_alarm_rate([], 1.0) is None
    maps = np.zeros((2, 3, 3), np.float32)
    for masks in (np.zeros(maps.shape, bool), np.ones(maps.shape, bool)):
        assert metrics.pixel_auroc(masks, maps) is None
        assert metrics.aupro(masks, maps) is None
    assert metrics.pixel_figures(np.zeros((0, 3, 3), bool), np.zeros((0, 3, 3))) == (None, None)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.auroc([0, 1], [0.5, np.nan])
    with pytest.raises(ValueError, match="finite"):
        metrics.pixel_auroc(np.eye(2, dtype=bool)[None], np.array([[[0, np.inf], [0, 0]]]))
    with pytest.raises(ValueError, match="must both be"):
        metrics.auroc([0, 1], [0.5])


@QUICK
@given(labelled_scores())
def test_roc_curve_gives_the_rates_of_its_thresholds(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = case
    curve = metrics.roc_curve(labels, scores)
    assert curve is not None
    for false_rate, true_rate, threshold in zip(*curve, strict=True):
        assert false_rate == pytest.approx(np.mean(scores[~labels] > threshold))
        assert true_rate == pytest.approx(np.mean(scores[labels] > threshold))
    assert (curve[0][0], curve[1][0], curve[0][-1], curve[1][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve[1], curve[0]) == pytest.approx(metrics.auroc(labels, scores))


@QUICK
@given(labelled_scores())
def test_best_f1_is_attained_and_nowhere_exceeded(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = case
    best, threshold = metrics.f1_max(labels, scores)
    assert best is not None
    assert threshold is not None
    assert metrics.f1_at(labels, scores, threshold) == pytest.approx(best)
    assert f1_score(labels, scores > threshold) == pytest.approx(best)
    assert best == pytest.approx(max(f1_score(labels, scores >= score) for score in scores))


def test_best_f1_threshold_separates_neighbouring_float32_scores() -> None:
    low = np.float32(1.0)
    scores = np.array([low, np.nextafter(low, np.float32(2))], np.float32)
    best, threshold = metrics.f1_max([0, 1], scores)
    assert best == 1.0
    assert threshold is not None
    assert ((scores > threshold) == [False, True]).all()


def test_alarm_is_strictly_above_the_threshold() -> None:
    assert metrics.false_alarm_rate([1.0, 2.0, 2.0, 3.0], 2.0) == 0.25
    assert metrics.f1_at([0, 1, 1], [1.0, 2.0, 3.0], 2.0) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Scores N(0, 1) and N(1, 1): the true AUROC is Phi(1 / sqrt 2)."""
    truth, rng, trials = (1 + erf(0.5)) / 2, np.random.default_rng(11), 150
    labels = np.repeat([0, 1], [60, 40])
    covered = 0
    for trial in range(trials):
        scores = rng.normal(size=100) + labels
        interval = metrics.bootstrap_interval(metrics.auroc, labels, scores, seed=trial, n=200, level=0.9)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.83 <= covered / trials <= 0.96


def test_bootstrap_is_reproducible_paired_and_keeps_both_classes() -> None:
    rng = np.random.default_rng(2)
    labels = np.array([1] + [0] * 30)  # a single defect would be lost by a plain resample one time in three
    first = rng.normal(size=31)
    first[0] = np.median(first)
    second = first + 1e-9

    def difference(kinds: np.ndarray, a: np.ndarray, b: np.ndarray) -> float | None:
        one, other = metrics.auroc(kinds, a), metrics.auroc(kinds, b)
        return None if one is None or other is None else one - other

    intervals = [metrics.bootstrap_interval(metrics.auroc, labels, first, seed=s, n=100) for s in (4, 4, 5, 6)]
    assert intervals[0] is not None
    assert intervals[0] == intervals[1]
    assert len(set(intervals)) > 1
    assert metrics.bootstrap_interval(difference, labels, first, second, seed=4, n=50) == (0.0, 0.0)
