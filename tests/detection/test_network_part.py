"""A network's map as a part of a detector: its score, its scale, its capsule, and whether it may serve."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.detection.calibration import Calibration, Plan, no_samples
from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.detector import Composition, Detector, Part, arrange
from components.detection.network_exam import examine_detector, part_of
from components.detection.network_fit import Baseline, Served, calibrated, open_network, with_network
from components.detection.network_part import NetworkPart
from components.detection.scale import Scale
from components.evaluation.map_range import map_range
from components.foundation.errors import UserError
from components.foundation.params import BackboneParams, Params, ViewParams, parse_params
from components.images.tensors import as_tensor
from components.learning.backbone import build_encoder
from components.learning.decoder import MapNetwork, build_decoder, save_network
from components.synthesis.methods import NETWORK
from components.synthesis.prepared import Prepared
from tests.identified import roles_of

SIZE, COUNT = 32, 12
TINY = BackboneParams(name="lcnet_035", weights="none")


class BrightPixels(torch.nn.Module):
    """Log-odds of a pixel: how much brighter than 100 it is, in tens; stands for a trained network."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.sign * (images.float().mean(dim=1) - 100) / 10  # (N, H, W)


def part(sign: float = 1.0, **changes: Any) -> NetworkPart:
    network: Any = BrightPixels(sign)
    return replace(NetworkPart(network, 1.0, 0), **changes)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Good images of noise around 60; samples have a bright square; the last four images are held out."""
    generator = np.random.default_rng(0)
    images = generator.normal(60, 6, (COUNT, SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
    kinds = ("cutpaste", "nsa", "cutout")
    samples, masks = np.stack([images] * 3), np.zeros((3, COUNT, SIZE, SIZE), bool)
    masks[:, :, 8:20, 8:20] = True
    samples[masks] = 220
    samples[1] = images  # what a network was trained on: unlike the rest, so that it would show in a mark
    return Prepared(
        category="bolt",
        seed=0,
        data_digest="d",
        roles=roles_of(np.arange(COUNT) >= 8, calibrate=(10, 11)),
        images=images,
        exam_source=np.arange(COUNT),
        exam_kinds=kinds,
        exam_images=samples,
        exam_masks=masks,
    )


def params(**sections: Any) -> Params:
    data = {"root": "data", "categories": ["bolt"]}
    return parse_params({"data": data, "image": {"side": SIZE}, "method": "nsa-logistic", **sections}, "test")


@pytest.fixture(scope="module")
def baseline(prepared: Prepared) -> Detector:
    encoder = build_encoder(TINY, 0)
    composition = Composition("pretrained", ("b1",), "shared", grid=4)
    with torch.inference_mode():
        features = arrange(encoder.features(as_tensor(prepared.images[:8]), ("b1",)), composition)
    scorer = composition.density().fit(features).scorer()
    return Detector({"pretrained": encoder}, [Part(composition, scorer, Scale(0, 1), Scale(0, 1))], SIZE, 0.0)


def test_the_image_score_is_the_mean_of_the_map_in_log_odds() -> None:
    images = np.random.default_rng(1).integers(60, 160, (3, SIZE, SIZE, 3), dtype=np.uint8)
    odds = 1 / (1 + np.exp(-(images.mean(axis=-1) - 100) / 10)).reshape(3, -1)
    scores, maps = part().log_odds(as_tensor(images))
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), odds.mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(maps.numpy(), (images.mean(axis=-1) - 100) / 10, rtol=1e-4, atol=1e-4)
    highest = np.sort(odds, axis=1)[:, -10:]
    scores, _ = part(top=10 / SIZE**2).log_odds(as_tensor(images))
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), highest.mean(axis=1), rtol=1e-4)


def test_with_a_window_the_middle_counts_and_the_rest_gets_its_lowest_value() -> None:
    images = np.full((1, SIZE, SIZE, 3), 90, np.uint8)
    images[:, :2] = 250  # outside
    images[:, 10:12, 10:12] = 110
    scores, maps = part(window=24).log_odds(as_tensor(images))
    alone, middle = part().log_odds(as_tensor(np.ascontiguousarray(images[:, 4:28, 4:28])))
    np.testing.assert_allclose(scores, alone)
    assert torch.equal(maps[:, 4:28, 4:28], middle)
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[4:28, 4:28] = False
    assert (maps[0][outside] == -1).all()


def test_a_score_does_not_overflow() -> None:
    images = np.stack([np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)])
    network: Any = lambda pixels: 100 * BrightPixels()(pixels)  # noqa: E731
    scores, _ = replace(part(), network=network).log_odds(as_tensor(images))
    assert np.isfinite(scores).all()
    assert scores[1] > scores[0]


def test_calibrated_scores_of_held_out_good_images_have_mean_0_and_deviation_1(prepared: Prepared) -> None:
    plan = Plan.of(prepared, params(), taught=True, refit=False)
    network, own = calibrated(part(), prepared, plan)
    scores, maps = network.score(as_tensor(np.asarray(prepared.images[8:])))
    np.testing.assert_allclose(own.scores, scores, atol=1e-5)
    samples = network.score(as_tensor(np.asarray(prepared.exam_images[0, 8:])))[0]
    np.testing.assert_allclose(own.samples[0, 8:], samples, atol=1e-4)
    assert np.isnan(own.samples[:, :8]).all()  # of images that the network may have learned
    assert scores.mean() == pytest.approx(0, abs=1e-4)
    assert scores.std() == pytest.approx(1, abs=1e-3)
    assert maps.shape == (4, 1, SIZE, SIZE)
    assert abs(float(maps.mean())) < 0.1
    assert float(maps.std()) == pytest.approx(1, abs=0.1)


def test_a_detector_averages_the_network_with_its_compositions(prepared: Prepared, baseline: Detector) -> None:
    images = np.asarray(prepared.exam_images[0, :3])
    network, _ = calibrated(part(), prepared, Plan.of(prepared, params(), taught=True, refit=False))
    both = Detector(baseline.encoders, baseline.parts, SIZE, 0.0, networks=[network])
    scores, maps = both.score(images)
    alone_scores, alone_maps = baseline.score(images)
    own_scores, own_maps = network.score(as_tensor(images))
    np.testing.assert_allclose(scores, (alone_scores + own_scores) / 2, rtol=1e-5)
    np.testing.assert_allclose(maps, (alone_maps + own_maps[:, 0].numpy()) / 2, rtol=1e-4, atol=1e-5)


def test_the_exam_of_a_detector_leaves_out_the_kind_that_networks_learn_from(prepared: Prepared) -> None:
    mark = examine_detector(Detector({}, [], SIZE, 0.0, networks=[part()]), prepared)
    assert (mark.image, mark.pixel) == (1.0, 1.0)
    assert set(mark.by_kind) == {"cutpaste", "cutout"}
    assert examine_detector(Detector({}, [], SIZE, 0.0, networks=[part(-1.0)]), prepared).image == 0.0


def baseline_of(detector: Detector, prepared: Prepared) -> Baseline:
    """A detector without network whose score of each good image, as if it were new, is the image's number."""
    plan = Plan.of(prepared, params(), taught=False, refit=True)
    calibration = Calibration(plan, np.arange(COUNT, dtype=np.float32), no_samples(prepared))
    return Baseline("pretrained", Served(detector, calibration, (0.0, 1.0)), detector)


def test_a_network_that_helps_serves_alone_or_in_the_mean(
    prepared: Prepared, baseline: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    network: Any = BrightPixels()
    without = baseline_of(baseline, prepared)
    served = with_network(without, network, prepared, params(), ViewParams())
    found, own, selection = served.detector, served.calibration, served.selection
    assert served.map_range == map_range([found.score(np.asarray(prepared.images[8:]))[1]])
    np.testing.assert_allclose(own.scores, found.score(np.asarray(prepared.images[8:]))[0], atol=1e-4)
    assert (len(found.parts), len(found.networks)) == (0, 1)
    assert selection["encoder"] == "network"
    hybrid = params(method="nsa-cutpaste")
    served = with_network(replace(without, name="trained"), network, prepared, hybrid, ViewParams())
    found, together, selection = served.detector, served.calibration, served.selection
    np.testing.assert_allclose(together.scores, (np.arange(8, 12) + own.scores) / 2, atol=1e-5)
    assert together.plan.counts.tolist() == [False, False, True, True]  # those that sat no exam
    assert (own.plan.construction, together.plan.construction) == ("split", "cross-fitted")
    assert (len(found.parts), len(found.networks)) == (1, 1)
    assert selection["encoder"] == "trained + network"
    assert set(selection["held_out_marks"]) == {"trained", "trained + network"}
    assert not capsys.readouterr().err


@pytest.mark.parametrize("keep", ["exam", "always"])
def test_a_network_that_is_worse_is_named_and_serves_only_where_it_shall(
    prepared: Prepared, baseline: Detector, keep: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network: Any = BrightPixels(-1.0)
    asked = params(network={"keep": keep})
    without = baseline_of(baseline, prepared)
    served = with_network(without, network, prepared, asked, ViewParams())
    found, scores, selection = served.detector, served.calibration, served.selection
    assert (served.map_range == (0.0, 1.0)) == (keep == "exam")
    assert (scores is without.served.calibration) == (keep == "exam")
    serves = "the detector without nsa-logistic" if keep == "exam" else "nsa-logistic"
    assert f"bolt: {serves} serves, exam mark" in capsys.readouterr().err
    assert selection["encoder"] == ("pretrained" if keep == "exam" else "network")
    assert (found is baseline) == (keep == "exam")
    assert selection["held_out_marks"]["network"] == 0.0


def test_a_training_that_left_no_network_has_none_to_open(tmp_path: Path) -> None:
    """As that of an update, which keeps a detector whose network had lost its exam, whatever the method is called."""
    assert open_network(tmp_path) is None
    encoder = build_encoder(TINY, 1)
    save_network(MapNetwork(encoder, build_decoder(encoder, (8, 4), (8,), (8, 4), 1)), tmp_path / NETWORK)
    assert open_network(tmp_path) is not None


def test_the_part_follows_the_parameters() -> None:
    network: Any = BrightPixels()
    assert part_of(network, params(nsa={"score": "top"}), ViewParams()).top == 0.01
    assert part_of(network, params(), ViewParams()).top == 1.0
    assert part_of(network, params(), ViewParams(test=224)).window == 28


@pytest.fixture(scope="module")
def written(prepared: Prepared, baseline: Detector, tmp_path_factory: pytest.TempPathFactory) -> tuple[Capsule, Path]:
    encoder = build_encoder(TINY, 1)
    network = MapNetwork(encoder, build_decoder(encoder, (8, 4), (8,), (8, 4), 1)).eval()
    plan = Plan.of(prepared, params(), taught=True, refit=False)
    own, _ = calibrated(NetworkPart(network, 0.05, 28), prepared, plan)
    detector = Detector(baseline.encoders, baseline.parts, SIZE, 0.0, networks=[own])
    capsule = Capsule("bolt", "nsa-cutpaste", detector, 1.0, np.zeros(4, np.float32), {}, {"data_digest": "d"})
    folder = tmp_path_factory.mktemp("capsule") / "capsule"
    save_capsule(capsule, np.asarray(prepared.images[:3]), folder)
    return capsule, folder


def test_a_capsule_with_a_network_scores_as_it_did(written: tuple[Capsule, Path], prepared: Prepared) -> None:
    capsule, folder = written
    images = np.asarray(prepared.exam_images[0])
    for found, expected in zip(load_capsule(folder).score(images), capsule.score(images), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_changed_decoder_is_refused(written: tuple[Capsule, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written[1], tmp_path / "capsule"))
    weights = folder / "networks" / "0" / "decoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"networks/0/decoder\.safetensors is missing or changed"):
        load_capsule(folder)
