"""What a detector's figures are made of, against computation by hand, and that they depend on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from components.detection.detector import Composition, Detector, Part, arrange, gaussian_blur, image_scores, levels_of
from components.detection.scale import Scale
from components.foundation.params import BackboneParams
from components.images.decode import resize_image
from components.images.tensors import as_tensor
from components.learning.backbone import build_encoder

SHARED = Composition("pretrained", ("b0", "b1"), "shared", grid=2)
SIZE = 32


def features() -> dict[str, torch.Tensor]:
    """Levels (2, 3, 4, 4), (2, 1, 2, 2) and a head (2, 5) of known numbers."""
    return {
        "b0": torch.arange(96.0).reshape(2, 3, 4, 4),
        "b1": torch.arange(8.0).reshape(2, 1, 2, 2),
        "head": torch.arange(10.0).reshape(2, 5),
    }


def test_arrange_averages_cells_and_concatenates_levels() -> None:
    found = arrange(features(), SHARED)
    b0, b1 = features()["b0"].numpy(), features()["b1"].numpy()
    assert found.shape == (2, 4, 4)
    assert found.dtype == np.float32
    for image in range(2):
        for row in range(2):
            for column in range(2):
                cell = b0[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(axis=(1, 2))
                expected = np.append(cell, b1[image, 0, row, column])
                np.testing.assert_allclose(found[image, 2 * row + column], expected)


def test_arrange_multiplies_each_level_by_its_factor() -> None:
    plain, scaled = (arrange(features(), c) for c in (SHARED, replace(SHARED, factors=(2.0, 0.5))))
    np.testing.assert_allclose(scaled, plain * [2, 2, 2, 0.5])


def test_arrange_pools_for_an_image_gaussian() -> None:
    found = arrange(features(), Composition("pretrained", ("b0", "head"), "image"))
    assert found.shape == (2, 8)
    np.testing.assert_allclose(found[1], [55.5, 71.5, 87.5, 5, 6, 7, 8, 9])


def test_arrange_interpolates_where_the_level_is_coarser_than_the_grid() -> None:
    found = arrange({"b": torch.tensor([[[[0.0, 4.0]] * 2]])}, Composition("e", ("b",), "location", grid=4))
    np.testing.assert_allclose(found.reshape(4, 4), [[0, 1, 3, 4]] * 4)


def test_arrange_smooths_over_the_neighbours_that_exist() -> None:
    level = torch.zeros(1, 1, 3, 3)
    level[0, 0, 0, 0] = 1.0
    found = arrange({"b": level}, Composition("e", ("b",), "location", grid=3, smooth=3))
    np.testing.assert_allclose(found.reshape(3, 3), np.array([[1 / 4, 1 / 6, 0], [1 / 6, 1 / 9, 0], [0, 0, 0]]))


def test_image_score_is_the_mean_of_the_top_share() -> None:
    distances = np.random.default_rng(0).permuted(np.tile(np.arange(100.0), (3, 1)), axis=1)
    np.testing.assert_allclose(image_scores(distances, replace(SHARED, top=0.05)), [97.0] * 3)
    np.testing.assert_allclose(image_scores(distances, replace(SHARED, top=0.001)), [99.0] * 3)
    np.testing.assert_allclose(image_scores(distances, replace(SHARED, top=1.0)), [49.5] * 3)
    np.testing.assert_array_equal(image_scores(distances[0], SHARED), distances[0])


@pytest.mark.parametrize("sigma", [0.5, 2.0, 4.0])
def test_blur_is_scipys_gaussian_filter(sigma: float) -> None:
    maps = np.random.default_rng(0).random((2, 40, 40)).astype(np.float32)
    expected = [gaussian_filter(each.astype(np.float64), sigma, mode="mirror", truncate=4) for each in maps]
    found = gaussian_blur(torch.from_numpy(maps)[:, None], sigma)[:, 0]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_blur_of_a_tiny_map_and_without_width() -> None:
    maps = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gaussian_blur(maps, 0), maps)
    wide = gaussian_blur(maps, 50.0)
    assert wide.shape == maps.shape
    assert float(wide.std()) < float(maps.std())


def test_scale_standardises() -> None:
    scale = Scale.of(np.array([[1.0, 3.0], [1.0, 3.0]]))
    assert scale == Scale(2.0, 1.0)
    np.testing.assert_allclose(scale.apply(np.array([4.0])), [2.0])
    assert Scale.of(np.ones(3)).spread > 0


def test_levels_of_gives_each_needed_level_once() -> None:
    others = [SHARED, Composition("pretrained", ("b3", "b1"), "shared", 2), Composition("trained", ("b7",), "shared")]
    assert levels_of("pretrained", others) == ("b0", "b1", "b3")
    assert levels_of("nobody", others) == ()


# The whole detector ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A location, a shared and a pooled Gaussian of a tiny random network, each with its own scale."""
    encoder = build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)
    good = np.random.default_rng(0).integers(80, 120, (12, SIZE, SIZE, 3), dtype=np.uint8)
    compositions = [
        Composition("pretrained", ("b1", "b3"), "location", grid=4, covariance="low-rank", rank=4),
        Composition("pretrained", ("b2",), "shared", grid=2),
        Composition("pretrained", ("head",), "image"),
    ]
    with torch.inference_mode():
        levels = levels_of("pretrained", compositions)
        fitted = [(c, arrange(encoder.features(as_tensor(good), levels), c)) for c in compositions]
    parts = [
        Part(c, c.density().fit(values).scorer(), Scale(1.0 + i, 2.0 + i), Scale(0.5, 3.0 + i), i != 1, i != 2)
        for i, (c, values) in enumerate(fitted)
    ]
    return Detector({"pretrained": encoder}, parts, SIZE, 2.0)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Nineteen images of different sizes: more than one batch, the last one not full."""
    generator = np.random.default_rng(5)
    sides = [(SIZE + 3 * i, SIZE + 40 - 2 * i) for i in range(19)]
    return [generator.integers(0, 200, (*side, 3), dtype=np.uint8) for side in sides]


@torch.inference_mode()
def by_hand(detector: Detector, image: np.ndarray) -> tuple[float, np.ndarray]:
    """Score and map of one image, from the definition: means over the parts that serve of standardised distances."""
    pixels = as_tensor(resize_image(image, SIZE)[None].copy())
    found = detector.encoders["pretrained"].features(pixels, ("b1", "b2", "b3", "head"))
    distances = [part.scorer.score(arrange(found, part.composition))[0] for part in detector.parts]
    location, shared, pooled = (distances[i] for i in range(3))
    score = ((location.max() - 1.0) / 2.0 + (pooled - 3.0) / 4.0) / 2
    cells = [(location.reshape(4, 4) - 0.5) / 3.0, (shared.reshape(2, 2) - 0.5) / 4.0]
    grown = [
        torch.nn.functional.interpolate(torch.from_numpy(c)[None, None].float(), (SIZE, SIZE), mode="bilinear")[0, 0]
        for c in cells
    ]
    return float(score), gaussian_filter(np.mean([g.numpy() for g in grown], axis=0), 2.0, mode="mirror")


def test_scores_and_maps_are_the_means_over_the_parts_that_serve(detector: Detector, images: list[np.ndarray]) -> None:
    scores, maps = detector.score(images)
    assert scores.shape == (19,)
    assert maps.shape == (19, SIZE, SIZE)
    assert scores.dtype == maps.dtype == np.float32
    for row in (0, 15, 16, 18):
        score, anomaly_map = by_hand(detector, images[row])
        np.testing.assert_allclose(scores[row], score, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(maps[row], anomaly_map, rtol=1e-4, atol=1e-4)


def test_an_image_scores_the_same_in_any_company_and_order(detector: Detector, images: list[np.ndarray]) -> None:
    scores, maps = detector.score(images)
    order = np.random.default_rng(1).permutation(len(images))
    shuffled, shuffled_maps = detector.score([images[i] for i in order])
    np.testing.assert_allclose(shuffled, scores[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shuffled_maps, maps[order], rtol=1e-4, atol=1e-4)
    alone, alone_maps = detector.score([images[7]])
    np.testing.assert_allclose(alone, scores[7:8], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(alone_maps, maps[7:8], rtol=1e-4, atol=1e-4)


def test_an_array_of_images_is_scored_as_a_list_of_them(detector: Detector) -> None:
    batch = np.random.default_rng(2).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    for one, other in zip(detector.score(batch), detector.score(list(batch)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_images_give_no_scores(detector: Detector) -> None:
    scores, maps = detector.score([])
    assert scores.shape == (0,)
    assert maps.shape == (0, SIZE, SIZE)


def test_without_a_part_for_the_map_the_map_is_flat(detector: Detector, images: list[np.ndarray]) -> None:
    pooled = Detector(detector.encoders, detector.parts[2:], SIZE, 2.0)
    assert not pooled.score(images[:2])[1].any()


def test_a_composition_comes_back_from_json() -> None:
    import json
    from dataclasses import asdict

    composition = replace(SHARED, factors=(2.0, 1.0), smooth=3)
    assert Composition.from_json(json.loads(json.dumps(asdict(composition)))) == composition
