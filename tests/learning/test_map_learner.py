"""The network learns to find what was blended in, by the loss of its label kind, and resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.evaluation.metrics import pixel_auroc
from components.foundation.params import BackboneParams, NetworkParams, TrainingParams, ViewParams
from components.images.tensors import as_tensor
from components.learning.backbone import build_encoder
from components.learning.decoder import MapNetwork
from components.learning.map_learner import MapLearner, MapTask, map_loss
from components.synthesis.nsa_params import NsaParams
from tests.listeners import KilledError, ignore, killed_after

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 64
NETWORK: dict[str, Any] = {
    **{"strides": (8, 4), "reduction": (16,), "widths": (16, 8), "steps": 6, "rate": 1e-2, "batch": 3},
    **{"exam_steps": 3, "freeze_batch_norm": False},
}


def pictures(count: int = 8) -> np.ndarray:
    """Waves with noise, uint8 (N, 64, 64, 3)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = 128 + 60 * np.sin(x / 4) * np.cos(y / 5)
    return np.clip(waves[..., None] + generator.normal(0, 3, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def drift(network: MapNetwork) -> float:
    """A mark that depends on the weights alone."""
    return float(sum(value.detach().double().abs().sum() for value in network.parameters()))


def learner(
    folder: Path, examiner: Callable[[MapNetwork], float] = drift, label: str = "logistic", **changes: Any
) -> MapLearner:
    network = NetworkParams(**NETWORK | changes)
    rows = np.arange(6)
    settings = NsaParams(label=label, k=0.5, x0=5.0, height_bounds=(0.06, 0.3), width_bounds=(0.06, 0.3))  # type: ignore[arg-type]
    view = ViewParams(centre=256, crop=224, rotation=5)
    return MapLearner(
        build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0),
        MapTask(pictures(), rows, rows, settings, view),
        network,
        network.schedule(TrainingParams(checkpoint_steps=2), "bolt", len(rows)),
        seed=5,
        category="bolt",
        examiner=examiner,
        marks_start=False,
        checkpoint=folder / "checkpoint",
    )


def state_bytes(network: MapNetwork) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in network.state_dict().items()}


def test_the_loss_by_label_kind() -> None:
    """By hand, for one pixel with log-odds ln 3, that is a probability of 3/4."""
    logits = torch.full((1, 1, 1), float(np.log(3)))
    labels = torch.full((1, 1, 1), 0.25)
    expected = -(0.25 * np.log(0.75) + 0.75 * np.log(0.25))
    for label in ("binary", "logistic", "factor"):
        assert map_loss(logits, labels, label).item() == pytest.approx(expected)
    assert map_loss(logits, labels, "continuous").item() == pytest.approx(0.25)


def test_the_schedule_is_the_networks_own(tmp_path: Path) -> None:
    """Cosine from the rate to the final rate by Adam, in steps or in passes over the images."""
    made = learner(tmp_path, final_rate=1e-3)
    made.run(ignore)
    rates = [row["rate"] for row in made.progress.history]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[3] == pytest.approx((1e-2 + 1e-3) / 2)
    assert rates[-1] == pytest.approx(1e-3 + 9e-3 * 0.5 * (1 + np.cos(np.pi * 5 / 6)))
    paper = NetworkParams(epochs=320, epochs_of={"screw": 560})
    assert paper.steps_of("bottle", 209) == 320 * 4  # 209 images in batches of 64
    assert paper.steps_of("screw", 320) == 560 * 5
    assert paper.schedule(TrainingParams(optimizer="sgd"), "bottle", 209).optimizer == "adam"


@pytest.mark.slow
@pytest.mark.parametrize("label", ["logistic", "binary"])
def test_it_finds_a_planted_defect_after_learning_from_few_images(tmp_path: Path, label: str) -> None:
    """A piece of the pattern in the wrong place, in images that were not learned from."""
    made = learner(tmp_path, label=label, steps=150, batch=8, exam_steps=150)
    made.run(ignore)
    defect, mask = pictures()[6:], np.zeros((2, SIDE, SIDE), bool)
    defect[:, 20:34, 36:48] = defect[:, 40:54, 10:22]
    mask[:, 20:34, 36:48] = True
    with torch.no_grad():
        found = pixel_auroc(mask, made.network(as_tensor(defect)).numpy())
    assert found is not None
    assert found > 0.9
    losses = [row["loss"] for row in made.progress.history]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize("after", [2, 5])
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path: Path, after: int) -> None:
    undisturbed = learner(tmp_path / "a")
    undisturbed.run(ignore)
    with pytest.raises(KilledError):
        learner(tmp_path / "b").run(killed_after(after))
    resumed = learner(tmp_path / "b")
    resumed.run(ignore)
    assert state_bytes(resumed.network) == state_bytes(undisturbed.network)
    assert resumed.progress == undisturbed.progress


def test_the_weights_with_the_best_mark_are_kept_even_over_a_kill(tmp_path: Path) -> None:
    best: list[dict[str, bytes]] = []
    current: list[MapLearner] = []

    def examiner(network: MapNetwork) -> float:
        assert not network.decoder.training
        step = current[0].progress.step
        if step == 3:
            best.append(state_bytes(network))
        return {3: 0.9, 6: 0.2}[step]

    current[:] = [learner(tmp_path, examiner)]
    with pytest.raises(KilledError):
        current[0].run(killed_after(5))
    current[:] = [learner(tmp_path, examiner)]
    current[0].run(ignore)
    assert current[0].progress.kept_step == 3
    assert state_bytes(current[0].network) == best[0]
    assert not current[0].head.training


def test_frozen_blocks_stay_and_the_rest_learns(tmp_path: Path) -> None:
    made = learner(tmp_path, frozen=2, freeze_batch_norm=True)
    before = {name: value.clone() for name, value in made.encoder.body.state_dict().items()}
    made.run(ignore)
    moved = {name for name, value in made.encoder.body.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1")) for name in moved)


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    one, other = learner(tmp_path / "a"), learner(tmp_path / "b")
    for step in (2, 0):
        images, labels = one.batch(step)
        again, labels_again = other.batch(step)
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    assert images.shape == (3, 3, 56, 56)
    assert labels.shape == (3, 56, 56)
