"""GradCAM against its closed form, and against gradients taken another way."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from components.density.gaussian import Covariance
from components.detection.detector import Composition, Detector, Part, arrange
from components.detection.gradcam import distance, gradcam
from components.detection.scale import Scale
from components.foundation.errors import UserError
from components.foundation.params import BackboneParams
from components.images.tensors import as_tensor
from components.learning.backbone import HEAD, Encoder, build_encoder
from components.learning.head import defect_logit, load_head, projection_head, save_head

SIZE = 64
WHOLE = Composition("pretrained", ("b2",), "image", map="gradcam", cam_level="b2")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (19, SIZE, SIZE, 3), dtype=np.uint8)


def by_full_graph(
    encoder: Encoder,
    images: Tensor,
    block: str,
    levels: tuple[str, ...],
    target: Callable[[Mapping[str, Tensor]], Tensor],
) -> np.ndarray:
    """Eq. 1 and 2 with a graph of the whole pass, one image at a time."""
    maps = []
    for image in images:
        kept: list[Tensor] = []
        handle = encoder.blocks[block].register_forward_hook(
            lambda _m, _i, out, kept=kept: kept.append(out), prepend=True
        )
        value = target(encoder.features(image[None], levels))
        handle.remove()
        (gradient,) = torch.autograd.grad(value[0], kept[0])
        channels = [gradient[0, k].mean() * kept[0][0, k] for k in range(gradient.shape[1])]
        maps.append(torch.clamp(torch.stack(channels).sum(dim=0), min=0).detach().numpy())
    return np.stack(maps)


def test_of_an_average_and_a_linear_layer_it_is_the_class_activation_map(encoder: Encoder, images: np.ndarray) -> None:
    """Zhou et al. 2016: the map is the channels weighted by the linear layer (here over the number of cells)."""
    activations = encoder.features(as_tensor(images[:3]), ("b3",))["b3"].detach()
    weights = torch.randn(activations.shape[1], generator=torch.Generator().manual_seed(0))
    found = gradcam(encoder, as_tensor(images[:3]), "b3", ("b3",), lambda f: f["b3"].mean(dim=(2, 3)) @ weights)
    cells = activations.shape[2] * activations.shape[3]
    expected = torch.einsum("nkhw,k->nhw", activations, weights).clamp(min=0) / cells
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-7)
    assert found.max() > 0


@pytest.mark.parametrize("block", ["b1", "b4"])
def test_through_later_layers_it_is_that_of_the_whole_graph(encoder: Encoder, images: np.ndarray, block: str) -> None:
    head = projection_head(encoder.width, (16,), 3, seed=0).eval()
    batch = as_tensor(images[:3])

    def target(features: Mapping[str, Tensor]) -> Tensor:
        return defect_logit(head(features[HEAD]))

    found = gradcam(encoder, batch, block, (HEAD,), target)
    expected = by_full_graph(encoder, batch, block, (HEAD,), target)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())
    raw = gradcam(encoder, batch, block, (HEAD,), target, rectified=False)
    np.testing.assert_array_equal(np.maximum(raw, 0), found)
    assert raw.min() < 0


def test_it_leaves_the_encoder_and_torch_as_they_were(encoder: Encoder, images: np.ndarray) -> None:
    batch = as_tensor(images[:2])
    with torch.inference_mode():
        before = encoder.features(batch, ("b3",))["b3"]
        gradcam(encoder, as_tensor(images[:2]), "b2", ("b3",), lambda f: f["b3"].sum(dim=(1, 2, 3)))
        assert torch.is_inference_mode_enabled()
        assert torch.equal(encoder.features(batch, ("b3",))["b3"], before)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    with torch.no_grad():
        gradcam(encoder, batch, "b2", ("b3",), lambda f: f["b3"].sum(dim=(1, 2, 3)))
        assert not torch.is_grad_enabled()


# Distances -----------------------------------------------------------------------------------------------------------

KINDS: list[Composition] = [
    *(replace(WHOLE, covariance=name, rank=3) for name in ("ledoit-wolf", "oas", "empirical", "ridge", "low-rank")),
    replace(WHOLE, estimator="kernel"),
    replace(WHOLE, levels=("b1", "b2"), widths=(5, 3)),
]


@pytest.mark.parametrize("composition", KINDS, ids=lambda c: c.name)
def test_the_distance_is_the_scorers_and_its_gradient_that_of_differences(composition: Composition) -> None:
    generator = np.random.default_rng(0)
    scorer = composition.density().fit(generator.normal(size=(40, 8))).scorer()
    x = generator.normal(size=(5, 8)) * 2
    leaf = torch.from_numpy(x).requires_grad_()
    values = distance(scorer, leaf)
    offset = scorer.score(x) - values.detach().numpy()
    np.testing.assert_allclose(offset - offset[0] if composition.estimator == "kernel" else offset, 0, atol=1e-5)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    step = 1e-6
    for feature in range(8):
        moved = np.eye(8)[feature] * step
        change = distance(scorer, torch.from_numpy(x + moved)) - distance(scorer, torch.from_numpy(x - moved))
        np.testing.assert_allclose(gradient[:, feature], change / (2 * step), rtol=1e-4, atol=1e-6)


def test_at_the_mean_the_gradient_is_zero_and_not_undefined() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    scorer = WHOLE.density().fit(features).scorer()
    leaf = torch.from_numpy(scorer.arrays()["mean"].astype(np.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(distance(scorer, leaf).sum(), leaf)
    np.testing.assert_array_equal(gradient, 0)


# In a detector -------------------------------------------------------------------------------------------------------


def surfaces(count: int, seed: int) -> np.ndarray:
    """Grey images with a little noise, uint8 (count, S, S, 3)."""
    generator = np.random.default_rng(seed)
    return np.clip(generator.normal(120, 12, (count, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def detector_of(encoder: Encoder, composition: Composition) -> Detector:
    with torch.inference_mode():
        features = arrange(encoder.features(as_tensor(surfaces(40, 0)), composition.levels), composition)
    part = Part(composition, composition.density().fit(features).scorer(), Scale(0, 1), Scale(0, 1))
    return Detector({"pretrained": encoder}, [part], SIZE, 1.0)


@pytest.mark.parametrize("covariance", ["ledoit-wolf", "low-rank"])
@pytest.mark.parametrize("corner", [(8, 8), (8, 40), (36, 24)])
def test_the_map_of_a_distance_peaks_where_a_patch_was_planted(
    encoder: Encoder, covariance: Covariance, corner: tuple[int, int]
) -> None:
    top, left = corner
    image = surfaces(1, 1)
    image[:, top : top + 16, left : left + 16] = (250, 30, 30)
    composition = replace(WHOLE, levels=("b1",), cam_level="b1", covariance=covariance)
    _, maps = detector_of(encoder, composition).score(image)
    row, column = np.unravel_index(maps[0].argmax(), maps[0].shape)
    assert top - 4 <= row < top + 20
    assert left - 4 <= column < left + 20
    inside = maps[0, top : top + 16, left : left + 16].mean()
    assert inside > 3 * maps[0].mean()


def test_images_in_a_batch_get_the_maps_they_get_alone(encoder: Encoder, images: np.ndarray) -> None:
    detector = detector_of(encoder, replace(WHOLE, levels=(HEAD,), cam_level="b3"))
    scores, maps = detector.score(images)
    assert maps.shape == (19, SIZE, SIZE)
    assert np.ptp(maps, axis=(1, 2)).min() > 0
    for row in (0, 7, 18):
        alone, alone_map = detector.score(images[row : row + 1])
        np.testing.assert_allclose(alone, scores[row : row + 1], rtol=1e-4)
        np.testing.assert_allclose(alone_map[0], maps[row], rtol=1e-3, atol=1e-4 * maps[row].max())


# The head ------------------------------------------------------------------------------------------------------------


def test_the_logit_is_the_log_odds_of_the_softmax() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    probability = logits.softmax(dim=1)
    expected = torch.log((probability[:, 1] + probability[:, 2]) / probability[:, 0])
    torch.testing.assert_close(defect_logit(logits), expected)
    torch.testing.assert_close(defect_logit(logits[:, :2]), logits[:, 1] - logits[:, 0])


@pytest.mark.parametrize("hidden", [(), (16,), (16, 8, 8, 8)])
def test_a_head_comes_back_whatever_its_shape(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    head = projection_head(12, hidden, 3, seed=3)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    head(x * 3 + 1)  # so that batch norm has statistics of its own
    head.eval()
    save_head(head, tmp_path)
    found = load_head(tmp_path)
    assert not found.training
    torch.testing.assert_close(found(x), head(x), rtol=0, atol=0)


def test_no_head_and_a_damaged_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train the category anew"):
        load_head(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="train the category anew"):
        load_head(tmp_path)
