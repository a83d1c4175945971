"""Training goes as it would undisturbed, wherever it was killed, and keeps the weights with the best exam mark."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.foundation.errors import UserError
from components.foundation.params import BackboneParams, SynthesisParams, TrainingParams
from components.learning.backbone import Encoder, build_encoder
from components.learning.learner import Learner, cosine, projection_head
from components.synthesis.tasks import task_of
from tests.listeners import KilledError, ignore, killed_after

SIDE, IMAGES = 32, 10
TRAINING: dict[str, Any] = {
    "head_steps": 3,
    "head_rate": 0.05,
    "steps": 5,
    "rate": 0.01,
    "batch": 3,
    "projection": (16,),
    "checkpoint_steps": 2,
    "exam_steps": 2,
}


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)


def drift(encoder: Encoder) -> float:
    """A mark that depends on the weights alone, and rises from 0 as soon as they change."""
    start = build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)
    before, now = (one.body.get_parameter("conv_stem.weight").detach().double() for one in (start, encoder))
    return float((now.cpu() - before).abs().sum())


def told(marks: list[int]) -> Callable[[Encoder], float]:
    """An examiner that gives these marks, one after the other."""
    left = iter(marks)
    return lambda _: float(next(left))


def learner(
    folder: Path, examiner: Callable[[Encoder], float] = drift, method: str = "cutpaste-3way", **changes: Any
) -> Learner:
    task = task_of(method, SynthesisParams())
    assert task is not None
    return Learner(
        build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0),
        task,
        pictures(),
        np.array([0, 2, 3, 4, 6, 7, 9]),
        np.arange(IMAGES),
        TrainingParams(**TRAINING).model_copy(update=changes),  # without the bounds that a user's values have
        seed=5,
        category="bolt",
        examiner=examiner,
        checkpoint=folder / "checkpoint",
    )


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in encoder.body.state_dict().items()}


def assert_same_bytes(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].contiguous().numpy().tobytes() == expected[name].contiguous().numpy().tobytes(), name


def test_cosine_goes_from_the_rate_to_zero_in_half_a_wave() -> None:
    assert cosine(0.4, 0, 10) == 0.4
    assert cosine(0.4, 5, 10) == pytest.approx(0.2)
    assert cosine(0.4, 10, 10) == pytest.approx(0)
    assert cosine(0.4, 2, 8) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))


def test_each_phase_has_one_cosine(tmp_path: Path) -> None:
    made = learner(tmp_path)
    made.run(ignore)
    rates = [row["rate"] for row in made.progress.history]
    scheduler_rates = []
    for rate, steps in ((0.05, 3), (0.01, 5)):
        optimizer = torch.optim.SGD([torch.zeros(1)], rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            scheduler_rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert rates == pytest.approx(scheduler_rates)


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    one, other = learner(tmp_path), learner(tmp_path)
    expected = [one.batch(step) for step in range(5)]
    for step in (3, 1, 4):
        images, labels = other.batch(step)
        assert torch.equal(images, expected[step][0])
        assert torch.equal(labels, expected[step][1])
    assert not torch.equal(expected[0][0], expected[1][0])


@pytest.mark.slow
def test_batches_of_worker_processes_teach_the_same_bytes(tmp_path: Path) -> None:
    alone, helped = learner(tmp_path / "alone"), learner(tmp_path / "helped", workers=2)
    assert_same_bytes(weights(helped.run(ignore)), weights(alone.run(ignore)))
    assert helped.progress == alone.progress


def test_an_epoch_shows_every_row_once_and_no_other(tmp_path: Path) -> None:
    """Seven rows and batches of three: the samples of seven steps are three epochs."""
    made = learner(tmp_path)
    shown: list[int] = []

    class Watching:
        classes = 3

        def batch(self, images: torch.Tensor, keys: Any) -> tuple[torch.Tensor, torch.Tensor]:
            assert torch.equal(images, torch.from_numpy(pictures()[keys.index]).permute(0, 3, 1, 2))
            shown.extend(keys.index.tolist())
            return images, torch.zeros(len(images))

    made.task = Watching()
    for step in range(7):
        made.batch(step)
    epochs = [shown[:7], shown[7:14], shown[14:]]
    assert all(sorted(epoch) == [0, 2, 3, 4, 6, 7, 9] for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adam"}, {"momentum": 0.0}, {"freeze_batch_norm": False}],
    ids=["sgd", "adam", "no momentum", "batch norm"],
)
def test_a_killed_training_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Killed in the head's phase, at its end (where no checkpoint is), and twice in the phase of all layers."""
    undisturbed = learner(tmp_path / "a", **changes)
    expected = weights(undisturbed.run(ignore))
    for step in (1, 3, 5, 7):
        with pytest.raises(KilledError):
            learner(tmp_path / "b", **changes).run(killed_after(step))
    resumed = learner(tmp_path / "b", **changes)
    assert_same_bytes(weights(resumed.run(ignore)), expected)
    assert resumed.progress == undisturbed.progress
    assert_same_bytes(resumed.head.state_dict(), undisturbed.head.state_dict())


def test_a_checkpoint_between_the_phases_begins_the_second_afresh(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"checkpoint_steps": 3, "optimizer": "adam"}
    expected = weights(learner(tmp_path / "a", **changes).run(ignore))
    with pytest.raises(KilledError):
        learner(tmp_path / "b", **changes).run(killed_after(4))
    assert_same_bytes(weights(learner(tmp_path / "b", **changes).run(ignore)), expected)


def test_a_resumed_training_does_not_repeat_what_was_done(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        learner(tmp_path).run(killed_after(5))
    steps = []
    learner(tmp_path).run(lambda step, values: steps.append(step) if "loss" in values else None)
    assert steps == [5, 6, 7, 8]  # the checkpoint of step 4 was the last


def test_exams_are_sat_before_training_and_at_regular_steps_of_the_second_phase(tmp_path: Path) -> None:
    made = learner(tmp_path)
    made.run(ignore)
    assert sorted(made.progress.marks) == [0, 5, 7, 8]


@pytest.mark.parametrize(
    ("marks", "kept"), [([9, 1, 2, 3], 0), ([1, 9, 2, 3], 5), ([1, 2, 3, 9], 8), ([5, 5, 5, 5], 0)]
)
def test_the_weights_with_the_best_mark_are_kept(tmp_path: Path, marks: list[int], kept: int) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def examiner(encoder: Encoder) -> float:
        assert not encoder.body.training
        seen.append(weights(encoder))
        return marks[len(seen) - 1]

    made = learner(tmp_path, examiner)
    encoder = made.run(ignore)
    assert made.progress.kept_step == kept
    assert_same_bytes(weights(encoder), seen[[0, 5, 7, 8].index(kept)])
    assert not encoder.training


def test_what_does_not_gain_in_half_of_the_steps_is_not_paid_for_to_the_end(tmp_path: Path) -> None:
    """Exams are after 2, 4 and 5 of the 5 steps that follow the head's 3."""
    for folder, marks, end in (("a", [9, 1, 2, 3], 7), ("b", [9, 8, 8, 10], 7), ("c", [1, 2, 0, 0], 8)):
        made = learner(tmp_path / folder, told(marks))
        made.run(ignore)
        assert made.progress.step == end
        assert len(made.progress.history) == end


def test_the_best_weights_are_kept_across_a_kill(tmp_path: Path) -> None:
    """The best mark is that of step 5, before the kill: the resumed run has never seen those weights itself."""
    best: list[dict[str, torch.Tensor]] = []

    def examiner(encoder: Encoder) -> float:
        step = current[0].progress.step
        if step == 5:
            best.append(weights(encoder))
        return {0: 1.0, 5: 9.0, 7: 3.0, 8: 2.0}[step]

    current = [learner(tmp_path, examiner)]
    with pytest.raises(KilledError):
        current[0].run(killed_after(7))
    current[0] = learner(tmp_path, examiner)
    assert_same_bytes(weights(current[0].run(ignore)), best[0])
    assert current[0].progress.kept_step == 5


@pytest.mark.parametrize(("best", "kept"), [(0, 3), (5, 5), (8, 8)])
def test_the_head_that_fits_the_kept_encoder_is_kept(tmp_path: Path, best: int, kept: int) -> None:
    """For the representation before training it is that of the end of the head's phase, step 3."""
    made = learner(tmp_path, lambda _: 9.0 if made.progress.step == best else float(0 < made.progress.step < best))
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def listen(step: int, values: dict[str, float]) -> None:
        if "loss" in values:
            seen[step] = {name: value.clone() for name, value in made.head.state_dict().items()}

    made.run(listen)
    assert made.progress.kept_step == best
    assert made.kept_head is not None
    assert_same_bytes(made.head.state_dict(), seen[kept])
    assert not made.head.training


def test_the_kept_head_survives_a_kill(tmp_path: Path) -> None:
    best = [float(step == 5) for step in range(9)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs = [learner(folder, lambda _: best[runs[-1].progress.step]) for folder in (whole,)]
    runs[0].run(ignore)
    runs.append(learner(killed, lambda _: best[runs[-1].progress.step]))
    with pytest.raises(KilledError):
        runs[1].run(killed_after(7))
    runs.append(learner(killed, lambda _: best[runs[-1].progress.step]))
    runs[2].run(ignore)
    assert_same_bytes(runs[2].head.state_dict(), runs[0].head.state_dict())


def test_without_a_phase_of_its_own_no_head_fits_the_encoder_before_training(tmp_path: Path) -> None:
    made = learner(tmp_path, lambda _: -float(made.progress.step), head_steps=0)
    made.run(ignore)
    assert made.progress.kept_step == 0
    assert made.kept_head is None


def test_the_head_phase_leaves_the_encoder_alone(tmp_path: Path) -> None:
    made = learner(tmp_path, steps=0)
    before, head = weights(made.encoder), made.head.get_parameter("0.weight").detach().clone()
    assert_same_bytes(weights(made.run(ignore)), before)
    assert not torch.equal(made.head.get_parameter("0.weight"), head)
    assert sorted(made.progress.marks) == [0]


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_stays_and_the_rest_moves(tmp_path: Path, frozen: bool) -> None:
    made = learner(tmp_path, freeze_batch_norm=frozen)
    before = weights(made.encoder)
    made.examiner = lambda _: float(made.progress.step)  # the last weights are kept
    after = weights(made.run(ignore))
    norms = {
        f"{name}.{key}"
        for name, module in made.encoder.body.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for key in module.state_dict()
    }
    assert norms
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "conv_stem.weight" in moved
    assert bool(moved & norms) != frozen
    if not frozen:
        assert any(name.endswith("running_mean") for name in moved)


def test_a_step_goes_down_the_gradient_of_the_cross_entropy(tmp_path: Path) -> None:
    """The first step without momentum, by hand: w − rate · (∂loss/∂w + decay · w)."""
    changes: dict[str, Any] = {"head_steps": 0, "momentum": 0.0, "weight_decay": 0.1, "freeze_batch_norm": False}
    twin, made = learner(tmp_path / "a", **changes), learner(tmp_path / "b", **changes)
    images, labels = twin.batch(0)
    logits = twin.head(twin.encoder.train()(images))
    loss = -torch.log_softmax(logits, dim=1)[torch.arange(len(labels)), labels].mean()
    parameters = {
        "stem": twin.encoder.body.get_parameter("conv_stem.weight"),
        "head": twin.head.get_parameter("3.weight"),
    }
    slopes = torch.autograd.grad(loss, list(parameters.values()))
    expected = {name: w - 0.01 * (slope + 0.1 * w) for (name, w), slope in zip(parameters.items(), slopes, strict=True)}
    with pytest.raises(KilledError):
        made.run(killed_after(1))
    found = {"stem": made.encoder.body.get_parameter("conv_stem.weight"), "head": made.head.get_parameter("3.weight")}
    for name, slope in zip(parameters, slopes, strict=True):
        assert slope.abs().max() > 1e-6
        torch.testing.assert_close(found[name], expected[name])
        assert not torch.equal(found[name], parameters[name])
    assert made.progress.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert made.progress.history[0]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor's instructions are not listed here")
def test_what_precision_is_best_follows_the_processor(tmp_path: Path) -> None:
    native = {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split())
    losses = {}
    for precision in ("auto", "fp32", "bf16"):
        made = learner(tmp_path / precision, precision=precision, head_steps=0, steps=2, device="cpu")
        made.run(ignore)
        losses[precision] = [row["loss"] for row in made.progress.history]
    assert losses["auto"] == losses["bf16" if native else "fp32"]
    assert losses["fp32"] != losses["bf16"]


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bolt diverged at step \d+: lower training\.rate"):
        learner(tmp_path, head_steps=0, steps=30, rate=1e30).run(ignore)


def test_the_head_has_the_layers_asked_for_and_comes_from_the_seed() -> None:
    head = projection_head(20, (16, 8), 3, seed=1)
    shapes = [tuple(m.weight.shape) for m in head if isinstance(m, torch.nn.Linear)]
    assert shapes == [(16, 20), (8, 16), (3, 8)]
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in head) == 2
    assert_same_bytes(head.state_dict(), projection_head(20, (16, 8), 3, seed=1).state_dict())
    other = projection_head(20, (16, 8), 3, seed=2)
    assert not torch.equal(head.get_parameter("0.weight"), other.get_parameter("0.weight"))
    assert projection_head(20, (), 3, seed=0).get_parameter("0.weight").shape == (3, 20)
