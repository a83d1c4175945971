"""Densities against scikit-learn, against refits, against closed forms, and at the edges of what is defined."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import multivariate_normal
from sklearn.covariance import empirical_covariance, ledoit_wolf, oas
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity as SklearnKernelDensity

from components.density.gaussian import Covariance, GaussianDensity, GaussianScorer, Layout, low_rank_scorer
from components.density.kernel import KernelDensity, KernelScorer
from components.density.whitening import leading_eigenpairs
from components.foundation.errors import UserError

COVARIANCES = get_args(Covariance)
LAYOUTS = get_args(Layout)
CASES = [(layout, covariance) for layout in LAYOUTS for covariance in COVARIANCES]


def features(n: int, layout: str, d: int = 6, locations: int = 5, seed: int = 0) -> np.ndarray:
    """Correlated, skewed features with a mean far from zero, and another scale at every location."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d))
    x = rng.normal(size=(n, locations, d)) @ mix + rng.exponential(size=(n, locations, d)) + 10
    x *= np.arange(1, locations + 1)[:, None]
    return x[:, 0] if layout == "image" else x


def limit_chunks(patch: pytest.MonkeyPatch, size: int) -> None:
    """Let statistics and scores hold about `size` bytes at a time."""
    for module in ("gaussian", "moments"):
        patch.setattr(f"components.density.{module}.CHUNK_BYTES", size)


def assert_same_density(a: GaussianDensity, b: GaussianDensity, probe: np.ndarray, rtol: float = 1e-10) -> None:
    regular = b.covariance != "empirical"
    condition = np.max(np.linalg.cond(b.covariance_)) if regular else 1
    least = np.linalg.eigvalsh(b.covariance_).min() if regular else 1
    lost = 1e-14 * float(np.abs(probe).max() / np.sqrt(least))  # where a probe is near a mean that is far from zero
    for one, other, tolerance, more in (
        (a.location_, b.location_, rtol, 0),
        (a.covariance_, b.covariance_, rtol, 0),
        (a.shrinkage_, b.shrinkage_, rtol, 0),
        (a.score(probe), b.score(probe), max(rtol, 1e-12 * condition), lost),  # what float64 promises of an inverse
    ):
        reach = max(1e-300, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, tolerance, tolerance * reach + more)
    assert a.count == b.count


def mahalanobis(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    d = x - mean
    return np.sqrt(np.einsum("...i,ij,...j->...", d, np.linalg.inv(covariance), d))


# Against scikit-learn and closed forms


@pytest.mark.parametrize(("name", "reference"), [("ledoit-wolf", ledoit_wolf), ("oas", oas)])
@pytest.mark.parametrize(("n", "d"), [(3, 40), (20, 40), (500, 7), (60, 1), (40, 2)])
def test_shrinkage_equals_scikit_learn(name: Covariance, reference: Callable[..., Any], n: int, d: int) -> None:
    x = features(n, "image", d)
    expected, shrinkage = reference(x)
    fitted = GaussianDensity("image", name).fit(x)
    np.testing.assert_allclose(fitted.shrinkage_, shrinkage, rtol=1e-10, atol=1e-12)
    tolerance = 1e-10 if d > 1 else 2e-6  # one dimension has no shrinkage to compare
    np.testing.assert_allclose(fitted.covariance_, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(fitted.score(x), mahalanobis(x, x.mean(0), expected), rtol=1e-8)


def test_each_location_equals_scikit_learn_on_that_location() -> None:
    x = features(30, "location", 8)
    fitted = GaussianDensity("location").fit(x)
    scores = fitted.score(x)
    for i in range(x.shape[1]):
        covariance, shrinkage = ledoit_wolf(x[:, i])
        assert np.ravel(fitted.shrinkage_)[i] == pytest.approx(shrinkage, rel=1e-10)
        np.testing.assert_allclose(fitted.covariance_[i], covariance, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(scores[:, i], mahalanobis(x[:, i], x[:, i].mean(0), covariance), rtol=1e-9)


@pytest.mark.parametrize(("name", "reference"), [("ledoit-wolf", ledoit_wolf), ("oas", oas)])
def test_shared_and_pooled_equal_scikit_learn_on_all_vectors(name: Covariance, reference: Callable[..., Any]) -> None:
    x = features(12, "shared")
    shared = GaussianDensity("shared", name).fit(x)
    np.testing.assert_allclose(shared.covariance_, reference(x.reshape(-1, 6))[0], rtol=1e-10, atol=1e-8)

    pooled = GaussianDensity("pooled", name).fit(x)
    residuals = x - x.mean(axis=0)
    covariance, shrinkage = reference(residuals.reshape(-1, 6))
    assert pooled.shrinkage_ == pytest.approx(shrinkage, rel=1e-10)
    np.testing.assert_allclose(pooled.covariance_, covariance, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(pooled.score(x), mahalanobis(x, x.mean(0), covariance), rtol=1e-9)


def test_ridge_and_empirical_are_what_they_say() -> None:
    x = features(50, "image")
    empirical = empirical_covariance(x)
    ridge = GaussianDensity("image", "ridge", ridge=0.3).fit(x)
    np.testing.assert_allclose(ridge.covariance_, empirical + 0.3 * np.eye(6), rtol=1e-12)
    plain = GaussianDensity("image", "empirical").fit(x)
    np.testing.assert_allclose(plain.score(x), mahalanobis(x, x.mean(0), empirical), rtol=1e-9)
    few = x[:4]  # of rank 3 in six dimensions
    d = few - few.mean(0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", d, np.linalg.pinv(empirical_covariance(few), rtol=1e-10), d))
    np.testing.assert_allclose(GaussianDensity("image", "empirical").fit(few).score(few), expected, rtol=1e-8)


def test_distance_gives_the_log_density_as_documented() -> None:
    x = features(80, "image")
    fitted = GaussianDensity("image").fit(x)
    covariance = fitted.covariance_
    logdet = np.linalg.slogdet(covariance)[1]
    expected = multivariate_normal(fitted.location_, covariance).logpdf(x)
    found = -(fitted.score(x) ** 2) / 2 - logdet / 2 - 6 * np.log(2 * np.pi) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# Adding and removing


@pytest.mark.parametrize(("layout", "covariance"), CASES)
def test_adding_and_removing_equal_a_refit(layout: Layout, covariance: Covariance) -> None:
    x, probe = features(40, layout), features(7, layout, seed=1)
    added = GaussianDensity(layout, covariance)
    for start, stop in ((0, 1), (1, 13), (13, 40)):
        added.add(x[start:stop])
    assert_same_density(added, GaussianDensity(layout, covariance).fit(x), probe)
    for i in (5, 0, 20):
        added.remove(x[i : i + 1])
    kept = np.delete(x, [0, 5, 20], axis=0)
    assert_same_density(added, GaussianDensity(layout, covariance).fit(kept), probe)
    added.remove(kept[10:])
    assert_same_density(added, GaussianDensity(layout, covariance).fit(kept[:10]), probe, rtol=1e-9)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_adding_and_removing_equals_a_refit(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    covariances: list[Covariance] = ["ledoit-wolf", "oas", "ridge"]
    covariance = data.draw(st.sampled_from(covariances))
    offset = data.draw(st.sampled_from([0.0, -30.0, 1e3]))
    x = features(24, layout, d=data.draw(st.integers(1, 9)), seed=data.draw(st.integers(0, 10**6))) + offset
    order = data.draw(st.permutations(range(24)))
    kept = data.draw(st.integers(4, 24))
    cuts = sorted({0, 24, *data.draw(st.lists(st.integers(1, 23), max_size=4))})
    changed = GaussianDensity(layout, covariance)
    for start, stop in pairwise(cuts):
        changed.add(x[order[start:stop]])
    cuts = sorted({kept, 24, *data.draw(st.lists(st.integers(kept, 24), max_size=3))})
    for start, stop in pairwise(cuts):
        changed.remove(x[order[start:stop]])
    refit = GaussianDensity(layout, covariance).fit(x[order[:kept]])
    assert_same_density(changed, refit, x[:5] + 1)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {layout: GaussianDensity(layout).fit(features(50, layout)) for layout in LAYOUTS}
    limit_chunks(monkeypatch, 700)  # a few rows; two locations at a time
    for layout in LAYOUTS:
        x = features(50, layout)
        chunked = GaussianDensity(layout).fit(x)
        assert_same_density(chunked, whole[layout], x)
        assert_same_density(chunked.remove(x[:20]), GaussianDensity(layout).fit(x[20:]), x)
    streamed = GaussianDensity("image").fit(features(50, "image")[i : i + 9] for i in range(0, 50, 9))
    assert_same_density(streamed, whole["image"], features(50, "image"))


def test_memory_of_a_fit_is_bounded_by_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_chunks(monkeypatch, 1 << 16)

    def peak(chunks: int) -> int:
        stream: Iterator[np.ndarray] = (features(500, "image", 16, 1, seed) for seed in range(chunks))
        tracemalloc.start()
        GaussianDensity("image").fit(stream)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    assert peak(40) < 1.5 * peak(4)


def test_removing_everything_leaves_an_empty_density() -> None:
    x = features(9, "location")
    emptied = GaussianDensity("location").fit(x).remove(x)
    assert emptied.count == 0
    assert_same_density(emptied.add(x), GaussianDensity("location").fit(x), x)


def test_adding_nothing_changes_nothing() -> None:
    x = features(9, "image")
    fitted = GaussianDensity("image").fit(x)
    before = fitted.score(x)
    fitted.add(x[:0]).remove(x[:0])
    np.testing.assert_array_equal(fitted.score(x), before)
    assert fitted.score(x[:0]).shape == (0,)


def test_a_far_outlier_can_be_removed() -> None:
    x = features(200, "image")
    outliers = np.full((3, 6), 500.0)
    with_them = GaussianDensity("image").fit(np.concatenate([x, outliers]))
    assert_same_density(with_them.remove(outliers), GaussianDensity("image").fit(x), x, rtol=1e-7)


def test_rounding_left_by_an_outlier_is_no_direction_of_variance() -> None:
    x = features(4, "image")  # of rank 3 in six dimensions
    outlier = np.full((1, 6), 1e4)
    left = GaussianDensity("image", "empirical").fit(np.concatenate([x, outlier])).remove(outlier)
    probe = features(5, "image", seed=1)  # outside the span of x
    expected = GaussianDensity("image", "empirical").fit(x).score(probe)
    np.testing.assert_allclose(left.score(probe), expected, rtol=1e-4)


# Folds


@pytest.mark.parametrize(("layout", "covariance"), CASES)
def test_all_but_one_fold_equals_a_refit(layout: Layout, covariance: Covariance) -> None:
    x = features(30, layout)
    parts = [np.arange(i, 30, 4) for i in range(4)]
    folds = [GaussianDensity(layout, covariance).fit(x[part]) for part in parts]
    total = GaussianDensity.merge(folds)
    assert_same_density(total, GaussianDensity(layout, covariance).fit(x), x)
    for k, part in enumerate(parts):
        refit = GaussianDensity(layout, covariance).fit(np.delete(x, part, axis=0))
        assert_same_density(GaussianDensity.all_but(folds, k), refit, x[part])
        assert_same_density(total.without(folds[k]), refit, x[part])
    assert_same_density(folds[0].merged(folds[1]), GaussianDensity.merge(folds[:2]), x)
    assert [fold.count for fold in folds] == [len(part) * (5 if layout == "shared" else 1) for part in parts]


def test_unlike_densities_do_not_combine() -> None:
    image = GaussianDensity("image").fit(features(9, "image"))
    with pytest.raises(UserError, match="cannot be combined"):
        image.merged(GaussianDensity("image", "oas").fit(features(9, "image")))
    with pytest.raises(UserError, match="cannot join"):
        image.merged(GaussianDensity("image").fit(features(9, "image", d=4)))
    with pytest.raises(UserError, match="Cannot remove 10"):
        image.without(GaussianDensity("image").fit(features(10, "image")))
    with pytest.raises(UserError, match="all but fold 2 of 2"):
        GaussianDensity.all_but([image, image], 2)


# Degenerate data


@pytest.mark.parametrize(("layout", "covariance"), CASES)
@pytest.mark.parametrize("n", [2, 3])
def test_few_images_in_many_dimensions_give_finite_scores(layout: Layout, covariance: Covariance, n: int) -> None:
    x = features(n, layout, d=50)
    fitted = GaussianDensity(layout, covariance).fit(x)
    for dtype in (np.float64, np.float32):
        assert np.isfinite(fitted.score(features(5, layout, d=50, seed=3), dtype)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_image_needs_a_ridge(layout: Layout) -> None:
    x = features(1, layout, locations=1)
    ridge = GaussianDensity(layout, "ridge", ridge=0.25).fit(x)
    np.testing.assert_allclose(ridge.score(x + 1).ravel(), np.sqrt(6 / 0.25), rtol=1e-12)
    for covariance in ("ledoit-wolf", "oas", "empirical"):
        with pytest.raises(UserError, match="needs at least 2 observations, but 1 were added"):
            GaussianDensity(layout, covariance).fit(x).score(x)
    with pytest.raises(UserError, match="needs at least 1 observation, but 0"):
        GaussianDensity(layout, "ridge").score(x)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_location_that_never_varies_scores_finitely_and_leaves_the_others_alone(covariance: Covariance) -> None:
    x = features(20, "location")
    x[:, 2] = 7.5
    fitted = GaussianDensity("location", covariance).fit(x)
    scores = fitted.score(x)
    assert np.isfinite(scores).all()
    assert (scores[:, 2] == 0).all()
    changed = x[:1].copy()
    changed[:, 2, 0] += 10
    assert np.isfinite(fitted.score(changed)).all()
    if covariance != "empirical":  # a pseudo-inverse is blind where nothing varied
        assert fitted.score(changed)[0, 2] > scores.max()
    others = np.delete(x, 2, axis=1)
    rest = GaussianDensity("location", covariance).fit(others)
    np.testing.assert_allclose(np.delete(scores, 2, axis=1), rest.score(others), rtol=1e-12)


def test_rounding_noise_at_a_constant_location_does_not_drown_the_map() -> None:
    x = features(20, "location").astype(np.float32)
    x[:, 2] = 7.5 + np.random.default_rng(0).normal(scale=1e-6, size=(20, 6))
    test = features(5, "location", seed=1)
    test[:, 2] = 7.5 + 1e-4
    scores = GaussianDensity("location").fit(x).score(test)
    assert scores[:, 2].max() < np.delete(scores, 2, axis=1).min()


@pytest.mark.parametrize("covariance", ["ledoit-wolf", "oas"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_when_nothing_varies_the_distance_is_euclidean(layout: Layout, covariance: Covariance) -> None:
    x = np.full((6, 4), 3.0) if layout == "image" else np.full((6, 2, 4), 3.0)
    fitted = GaussianDensity(layout, covariance).fit(x)
    np.testing.assert_allclose(fitted.score(x + 2), 4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_feature_that_never_varies_scores_finitely(covariance: Covariance) -> None:
    x = features(30, "image")
    x[:, 4] = 0
    fitted = GaussianDensity("image", covariance).fit(x)
    assert np.isfinite(fitted.score(x + 1)).all()


# Refusals


def test_values_that_are_not_finite_are_refused_by_place_and_change_nothing() -> None:
    x = features(9, "location").astype(np.float32)
    fitted = GaussianDensity("location").fit(x)
    before = fitted.score(x)
    bad = x.copy()
    bad[3, 1, 2] = np.nan
    with pytest.raises(UserError, match="nan at image 3, location 1, feature 2"):
        fitted.add(bad)
    with pytest.raises(UserError, match="nan at image 3"):
        fitted.score(bad)
    with pytest.raises(UserError, match="nan at image 3"):
        fitted.fit(iter([x, bad]))
    np.testing.assert_array_equal(fitted.score(x), before)
    flat = features(4, "image")
    flat[2, 5] = -np.inf
    with pytest.raises(UserError, match="-inf at sample 2, feature 5"):
        GaussianDensity("image").fit(flat)


def test_wrong_shapes_and_settings_are_refused() -> None:
    fitted = GaussianDensity("location").fit(features(9, "location"))
    with pytest.raises(UserError, match=r"shape \(N, L, D\)"):
        fitted.add(features(9, "image"))
    with pytest.raises(UserError, match="cannot join a density of 5 × 6"):
        fitted.add(features(9, "location", d=7))
    with pytest.raises(UserError, match=r"\(N, 5, 6\), not \(2, 4, 6\)"):
        fitted.score(np.zeros((2, 4, 6)))
    with pytest.raises(UserError, match="Cannot remove 12 observations from a density of 9"):
        fitted.remove(features(12, "location"))
    with pytest.raises(UserError, match="layout must be one of"):
        GaussianDensity(cast(Layout, "patch"))
    with pytest.raises(UserError, match="covariance must be one of"):
        GaussianDensity("image", cast(Covariance, "lw"))
    with pytest.raises(UserError, match="ridge must be a positive number"):
        GaussianDensity("image", "ridge", ridge=0)


# Storage and deployment


@pytest.mark.parametrize(("layout", "covariance"), CASES)
def test_state_survives_safetensors_and_json_and_stays_updatable(
    layout: Layout, covariance: Covariance, tmp_path: Path
) -> None:
    x = features(20, layout)
    fitted = GaussianDensity(layout, covariance).fit(x)
    save_file(fitted.state_arrays(), tmp_path / "density.safetensors")
    meta = json.loads(json.dumps(fitted.meta()))
    restored = GaussianDensity.from_state_arrays(load_file(tmp_path / "density.safetensors"), meta)
    np.testing.assert_array_equal(restored.score(x), fitted.score(x))
    assert_same_density(restored.remove(x[:7]), GaussianDensity(layout, covariance).fit(x[7:]), x)


@pytest.mark.parametrize(("layout", "covariance"), CASES)
def test_scoring_arrays_score_as_the_estimator_does(layout: Layout, covariance: Covariance, tmp_path: Path) -> None:
    x, probe = features(100, layout), features(30, layout, seed=1)
    fitted = GaussianDensity(layout, covariance).fit(x)
    save_file(fitted.scoring_arrays(), tmp_path / "scoring.safetensors")
    arrays = load_file(tmp_path / "scoring.safetensors")
    scores = GaussianScorer.from_arrays(arrays, fitted.meta()).score(probe.astype(np.float32))
    assert scores.dtype == np.float32
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(scores, fitted.score(probe), rtol=2e-5)
    np.testing.assert_array_equal(scores, fitted.score(probe.astype(np.float32), np.float32))


def test_scores_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in LAYOUTS:
        x = features(40, layout)
        fitted = GaussianDensity(layout).fit(x)
        whole = fitted.score(x)
        assert whole.shape == x.shape[:-1]
        one_by_one = np.concatenate([fitted.score(x[i : i + 1]) for i in range(40)])
        np.testing.assert_allclose(one_by_one, whole, rtol=1e-12)
        with monkeypatch.context() as patch:
            limit_chunks(patch, 700)
            np.testing.assert_allclose(fitted.score(x), whole, rtol=1e-12)


def test_damaged_states_are_refused() -> None:
    fitted = GaussianDensity("location").fit(features(9, "location"))
    arrays, meta = fitted.state_arrays(), fitted.meta()
    with pytest.raises(UserError, match="array 'fourth' has shape None"):
        GaussianDensity.from_state_arrays({k: v for k, v in arrays.items() if k != "fourth"}, meta)
    with pytest.raises(UserError, match="'scatter' has shape"):
        GaussianDensity.from_state_arrays(arrays | {"scatter": arrays["scatter"][:, 1:]}, meta)
    with pytest.raises(UserError, match="its count is None"):
        GaussianDensity.from_state_arrays(arrays, {k: v for k, v in meta.items() if k != "count"})
    with pytest.raises(UserError, match="'whitening' has shape"):
        GaussianScorer.from_arrays(fitted.scoring_arrays(), meta | {"layout": "shared"})
    with pytest.raises(UserError, match="empty"):
        GaussianDensity("image").state_arrays()


# Kernel density


def test_kernel_density_is_scikit_learns_in_original_units() -> None:
    x, probe = features(60, "image", 3), features(20, "image", 3, seed=1)
    fitted = KernelDensity().fit(x)
    mean, scale = x.mean(0), x.std(0)
    reference = SklearnKernelDensity(bandwidth=fitted.bandwidth_).fit((x - mean) / scale)
    expected = -reference.score_samples((probe - mean) / scale) + np.log(scale).sum()
    np.testing.assert_allclose(fitted.score(probe), expected, rtol=1e-12)


def test_kernel_density_integrates_to_one() -> None:
    x = np.random.default_rng(0).normal(5, 3, size=(50, 1))
    line = np.linspace(-40, 50, 20001)[:, None]
    total = np.trapezoid(np.exp(-KernelDensity().fit(x).score(line)), line[:, 0])
    assert total == pytest.approx(1, abs=1e-6)


def test_bandwidth_is_what_a_grid_search_chooses() -> None:
    x = features(50, "image", 4)
    z = (x - x.mean(0)) / x.std(0)
    fitted = KernelDensity(folds=5, seed=3).fit(x)
    grid = np.geomspace(0.1, 10, 25) * 50 ** (-1 / 8)
    parts = np.array_split(np.random.default_rng(3).permutation(50), 5)
    splits = [(np.setdiff1d(np.arange(50), part), part) for part in parts]
    search = GridSearchCV(SklearnKernelDensity(), {"bandwidth": grid}, cv=splits).fit(z)
    assert fitted.bandwidth_ == pytest.approx(search.best_params_["bandwidth"], rel=1e-12)


def test_kernel_density_survives_storage_and_ranks_outliers(tmp_path: Path) -> None:
    x = features(40, "image").astype(np.float32)
    x[:, 3] = 1  # never varies
    fitted = KernelDensity(folds=4, seed=1).fit(x)
    save_file(fitted.state_arrays(), tmp_path / "kde.safetensors")
    meta = json.loads(json.dumps(fitted.meta()))
    restored = KernelDensity.from_state_arrays(load_file(tmp_path / "kde.safetensors"), meta)
    np.testing.assert_array_equal(restored.score(x), fitted.score(x))
    assert fitted.score(x + 100).min() > fitted.score(x).max()
    assert KernelDensity(folds=4, seed=1).fit(x).bandwidth_ == fitted.bandwidth_


def test_kernel_density_refuses_what_it_cannot_use() -> None:
    with pytest.raises(UserError, match="at least 2 samples"):
        KernelDensity().fit(np.zeros((1, 3)))
    with pytest.raises(UserError, match="nan at sample 1, feature 0"):
        KernelDensity().fit(np.array([[1.0], [np.nan]]))
    with pytest.raises(UserError, match="empty"):
        KernelDensity().score(np.zeros((1, 3)))
    with pytest.raises(UserError, match="3 features, not 2"):
        KernelDensity().fit(features(9, "image", 3)).score(np.zeros((1, 2)))
    assert np.isfinite(KernelDensity().fit(features(2, "image")).score(features(3, "image"))).all()


@pytest.mark.parametrize("module", ["gaussian", "kernel"])
def test_importing_the_module_imports_neither_torch_nor_scikit_learn(module: str) -> None:
    code = f"import sys, components.density.{module}; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# Low rank


@pytest.mark.parametrize("layout", ["image", "shared", "location", "pooled"])
def test_low_rank_scores_are_mahalanobis_distances_of_the_leading_part_plus_ridge(layout: Layout) -> None:
    generator = np.random.default_rng(5)
    x = generator.standard_normal((40, 9, 12)) * np.geomspace(3, 0.01, 12)
    x = x[:, 0] if layout == "image" else x
    density = GaussianDensity(layout, "low-rank", ridge=0.05, rank=4).fit(x)
    empirical = GaussianDensity(layout, "ridge", ridge=1e-12).fit(x)
    covariances = np.atleast_3d(empirical.covariance_).reshape(-1, 12, 12)
    expected = np.empty(density.score(x).shape)
    flat = x[:, None] if layout == "image" else x  # (N, L, D)
    for location in range(flat.shape[1]):
        values, vectors = np.linalg.eigh(covariances[location % len(covariances)])
        kept = (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T + 0.05 * np.eye(12)
        mean = np.atleast_2d(density.location_)[location % len(np.atleast_2d(density.location_))]
        d = flat[:, location] - mean
        distances = np.sqrt(np.einsum("nd,de,ne->n", d, np.linalg.inv(kept), d))
        expected[(slice(None),) if layout == "image" else (slice(None), location)] = distances
    np.testing.assert_allclose(density.score(x), expected, rtol=1e-7)
    np.testing.assert_allclose(density.scorer(np.float32).score(x), expected, rtol=1e-3)


def test_low_rank_of_full_rank_is_the_ridge_and_survives_storage() -> None:
    x = np.random.default_rng(6).standard_normal((30, 7, 5))
    low = GaussianDensity("location", "low-rank", ridge=0.1, rank=99).fit(x)
    np.testing.assert_allclose(low.score(x), GaussianDensity("location", "ridge", ridge=0.1).fit(x).score(x), rtol=1e-8)
    np.testing.assert_allclose(
        low.covariance_, GaussianDensity("location", "ridge", ridge=0.1).fit(x).covariance_, atol=1e-10
    )
    again = GaussianScorer.from_arrays(low.scorer().arrays(), low.meta())
    np.testing.assert_array_equal(again.score(x), low.scorer().score(x))
    stored = GaussianDensity.from_state_arrays(low.state_arrays(), low.meta())
    np.testing.assert_allclose(stored.score(x), low.score(x), rtol=1e-12)


def test_rank_must_be_positive() -> None:
    with pytest.raises(UserError, match="rank"):
        GaussianDensity("image", "low-rank", rank=0)


def test_leading_eigenpairs_of_few_observations_are_those_of_the_whole_decomposition() -> None:
    x = np.random.default_rng(7).standard_normal((20, 90)) @ np.diag(np.geomspace(2, 0.05, 90))
    covariance = np.cov(x.T, bias=True)
    values, vectors = leading_eigenpairs(covariance, rank=10, freedom=19)
    expected = np.linalg.eigh(covariance)[0][-10:]
    np.testing.assert_allclose(values, expected, rtol=1e-10)
    np.testing.assert_allclose(covariance @ vectors, vectors * values, atol=1e-10)


@pytest.mark.parametrize("layout", ["image", "location"])
def test_low_rank_scorer_is_that_of_the_fitted_density(layout: Layout) -> None:
    x, probe = features(12, layout, d=20), features(9, layout, d=20, seed=1)
    x[:, ..., 3] = 1.0  # a feature that never varies
    expected = GaussianDensity(layout, "low-rank", 0.05, 5).fit(x).scorer().score(probe)
    np.testing.assert_allclose(low_rank_scorer(x, layout, 0.05, 5).score(probe), expected, rtol=1e-4)


def test_low_rank_scorer_of_constant_features_is_the_euclidean_distance() -> None:
    x = np.ones((4, 2, 6), np.float32)
    scores = low_rank_scorer(x, "location", 0.25, 3).score(x + 1)
    np.testing.assert_allclose(scores, np.sqrt(6 / 0.25), rtol=1e-6)


def test_the_scorer_of_a_kernel_density_is_scikit_learns_density() -> None:
    generator = np.random.default_rng(0)
    x, other = generator.normal(3, 2, (50, 4)), generator.normal(3, 4, (6, 4))
    density = KernelDensity().fit(x)
    scorer = density.scorer()
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    reference = SklearnKernelDensity(bandwidth=density.bandwidth_).fit(z)
    jacobian = np.log(x.std(axis=0)).sum()
    expected = jacobian - reference.score_samples((other - x.mean(axis=0)) / x.std(axis=0))
    np.testing.assert_allclose(scorer.score(other), expected, rtol=1e-4)
    again = KernelScorer.from_arrays(scorer.arrays())
    np.testing.assert_array_equal(again.score(other), scorer.score(other))
    assert {value.dtype for value in scorer.arrays().values()} == {np.dtype(np.float32)}


def test_a_kernel_density_learns_batch_by_batch() -> None:
    generator = np.random.default_rng(0)
    x, other = generator.normal(size=(30, 3)), generator.normal(size=(5, 3))
    batched = KernelDensity()
    for piece in np.split(x, [10, 25]):
        batched.add(piece)
    whole = KernelDensity().fit(x)
    np.testing.assert_array_equal(batched.score(other), whole.score(other))
    stored = KernelDensity.from_state_arrays(KernelDensity().fit(x[:20]).state_arrays(), whole.meta())
    np.testing.assert_allclose(stored.add(x[20:]).score(other), whole.score(other), rtol=1e-9)
    assert batched.add(other).bandwidth_ == KernelDensity().fit(np.concatenate([x, other])).bandwidth_


def test_a_kernel_density_refuses_what_does_not_fit() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(10, 3))
    with pytest.raises(UserError, match="4 dimensions cannot join a kernel density of 3"):
        KernelDensity().add(x).add(np.zeros((2, 4)))
    with pytest.raises(UserError, match="empty"):
        KernelDensity().scorer()
    with pytest.raises(UserError, match="at least 2 samples"):
        KernelDensity().add(x[:1]).scorer()
    scorer = KernelDensity().fit(x).scorer()
    with pytest.raises(UserError, match="fitted to 3 features"):
        scorer.score(np.zeros((2, 4)))
    with pytest.raises(UserError, match="damaged"):
        KernelScorer.from_arrays({**scorer.arrays(), "mean": np.zeros(2)})
