"""Self-supervised training of an encoder: tell normal images from synthetic ones (CutPaste, section 3 and 4.3).

First the head alone on the encoder's fixed features, then all layers; one cosine cycle each. Every batch is a function
of (seed, category, step), so a run that was killed and resumed ends with the bytes of one that was not.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from components.foundation.draws import SampleKeys, random_order
from components.foundation.errors import UserError
from components.foundation.params import TrainingParams
from components.foundation.runtime import has_bf16
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder
from components.learning.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from components.learning.head import projection_head
from components.synthesis.pool import in_order

Examiner = Callable[[Encoder], float]
Listener = Callable[[int, dict[str, float]], None]


class Lesson(Protocol):
    """What is learned, such as `components.synthesis.tasks.Task`: batches of images with labels, in so many classes."""

    @property
    def classes(self) -> int: ...

    def batch(self, images: Tensor, keys: SampleKeys) -> tuple[Tensor, Tensor]: ...


@dataclass
class Progress:
    """How far a training is, and what it has seen.

    Attributes:
        step: steps done.
        history: one row a step: step, loss, accuracy, rate.
        marks: exam mark of the encoder after so many steps; step 0 is the representation before any training.
        kept_step: the step with the best mark, whose weights are kept.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    marks: dict[int, float] = field(default_factory=dict)
    kept_step: int = 0


class Learner:
    """Trains one encoder on one category for one task, with checkpoints.

    images: uint8 (N, S, S, 3), may be mapped from disk. rows: the images to learn from. keys: int64 (N,) who
    each image is (`components.images.identity.keys_of`), on which the order and all draws depend.
    examiner: marks an encoder by the synthetic exam; the weights with the best mark are kept, those before training
    among them.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: Lesson,
        images: np.ndarray,
        rows: np.ndarray,
        keys: np.ndarray,
        params: TrainingParams,
        *,
        seed: int,
        category: str,
        examiner: Examiner,
        checkpoint: Path,
    ) -> None:
        self.device = choose_device(params.device)
        self.encoder = encoder.to(self.device)
        self.task, self.images, self.params = task, images, params
        self.rows, self.keys = rows, keys
        self.seed, self.category = seed, category
        self.examiner, self.checkpoint = examiner, checkpoint
        self.head = self.make_head().to(self.device)
        self.progress = Progress()
        self.kept = _weights(self.encoder.body)
        self.kept_head: dict[str, Tensor] | None = None

    @property
    def total_steps(self) -> int:
        """Steps of both phases."""
        return self.params.head_steps + self.params.steps

    @property
    def is_futile(self) -> bool:
        """Whether an exam after half of the steps, or later, has just found none that is better than the start.

        Of nine sets at 100 steps of nsa-gde, the seven that gained in the end had all gained after 50.
        """
        done, marked = self.progress.step - self.params.head_steps, self.progress.step in self.progress.marks
        return marked and done > 0 and 2 * done >= self.params.steps and self.progress.kept_step == 0

    def run(self, listen: Listener) -> Encoder:
        """Train to the end, from the last checkpoint if there is one; returns the encoder with the best exam mark.

        The end is earlier where it `is_futile`.

        Afterwards `head` is the head that fits it, where `kept_head` is not None: the one that was trained together
        with it, or for the representation before training the one of the head's phase, if there was such a phase.
        listen(step, {"loss", "accuracy", "rate"} or {"exam"}) is called as training goes on.
        """
        optimizer = self._resume()
        self._sit_exam(listen)
        made = in_order(self.batch, range(self.progress.step, self.total_steps), self.params.workers)
        while self.progress.step < self.total_steps and not self.is_futile:
            if self.progress.step == self.params.head_steps:
                optimizer = self._optimizer()
            listen(self.progress.step + 1, self._take_step(optimizer, *next(made)))
            self._sit_exam(listen)
            if self.progress.step % self.params.checkpoint_steps == 0 and self.progress.step < self.total_steps:
                self._save(optimizer)
        self.encoder.body.load_state_dict(self.kept)
        self.head.load_state_dict(self.kept_head or self.head.state_dict())
        self.head.to("cpu").eval()
        return self.encoder.to("cpu").eval()

    def make_head(self) -> nn.Module:
        """What learns on top of the encoder: here the projection head with the task's classes."""
        return projection_head(self.encoder.width, self.params.projection, self.task.classes, self.seed)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The uint8 images (B·k, 3, S, S) and labels (B·k,) of one step."""
        numbers = np.arange(step * self.params.batch, (step + 1) * self.params.batch)
        epochs, places = numbers // len(self.rows), numbers % len(self.rows)
        orders = {epoch: self._order(epoch) for epoch in np.unique(epochs).tolist()}
        rows = np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])
        keys = SampleKeys(self.seed, self.category, epochs, self.keys[rows])
        return self.task.batch(as_tensor(np.ascontiguousarray(self.images[rows])), keys)

    def loss(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """The loss of one batch, and the share of it that is answered right."""
        accuracy = (outputs.argmax(dim=1) == labels).float().mean().item()
        return nn.functional.cross_entropy(outputs, labels), accuracy

    def outputs(self, images: Tensor, learns: bool) -> Tensor:
        """What `loss` takes, of uint8 images; without gradients of the encoder unless it learns."""
        with torch.set_grad_enabled(learns):
            features = self.encoder(images)  # (B·k, width)
        return self.head(features)  # (B·k, classes)

    def mark(self) -> float:
        """The exam mark of the present weights."""
        return self.examiner(self.encoder)

    def _order(self, epoch: int) -> np.ndarray:
        return self.rows[random_order(self.seed, ("order",), epoch, self.keys[self.rows])]

    def _take_step(self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> dict[str, float]:
        rate = self._rate(self.progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        labels = labels.to(self.device)
        loss, accuracy = self.loss(self._forward(images), labels)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"The training on {self.category} diverged at step {self.progress.step + 1}: lower training.rate or "
                "training.head_rate in params.yaml."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        self.progress.step += 1
        row = {"loss": loss.item(), "accuracy": accuracy, "rate": rate}
        self.progress.history.append({"step": self.progress.step, **row})
        return row

    def _forward(self, images: Tensor) -> Tensor:
        in_head_phase = self.progress.step < self.params.head_steps
        self.encoder.train(not in_head_phase and not self.params.freeze_batch_norm)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=in_bf16(self.params.precision, self.device)):
            return self.outputs(images, not in_head_phase).float()

    def _optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimizer for the phase that begins at the present step."""
        parameters = list(self.head.parameters())
        if self.progress.step >= self.params.head_steps:
            parameters += [p for p in _trainable(self.encoder, self.params.freeze_batch_norm) if p.requires_grad]
        rate = self._rate(self.progress.step)
        if self.params.optimizer == "adam":
            return torch.optim.Adam(parameters, rate, weight_decay=self.params.weight_decay)
        return torch.optim.SGD(parameters, rate, momentum=self.params.momentum, weight_decay=self.params.weight_decay)

    def _rate(self, step: int) -> float:
        """Learning rate of a step: half a cosine from the phase's rate down to zero."""
        if step < self.params.head_steps:
            return cosine(self.params.head_rate, step, self.params.head_steps)
        return cosine(self.params.rate, step - self.params.head_steps, self.params.steps, self.params.final_rate)

    def _sit_exam(self, listen: Listener) -> None:
        """Mark the encoder where its weights can have changed since the last mark, and keep the best."""
        step, done = self.progress.step, self.progress.step - self.params.head_steps
        if step == self.params.head_steps > 0:
            self.kept_head = _weights(self.head)
        due = step == 0 or (done > 0 and (done % self.params.exam_steps == 0 or step == self.total_steps))
        if not due or step in self.progress.marks:
            return
        self.encoder.eval()
        mark = self.mark()
        if not self.progress.marks or mark > max(self.progress.marks.values()):
            self.progress.kept_step, self.kept = step, _weights(self.encoder.body)
            self.kept_head = _weights(self.head) if step else None
        self.progress.marks[step] = mark
        listen(step, {"exam": mark})

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        tensors = {
            "encoder": _weights(self.encoder.body),
            "head": self.head.state_dict(),
            "optimizer": optimizer_tensors(optimizer),
            "kept": self.kept,
            **({"kept_head": self.kept_head} if self.kept_head else {}),
        }
        facts = {
            "step": self.progress.step,
            "history": self.progress.history,
            "marks": list(self.progress.marks.items()),
            "kept_step": self.progress.kept_step,
        }
        save_checkpoint(self.checkpoint, tensors, facts)

    def _resume(self) -> torch.optim.Optimizer:
        found = load_checkpoint(self.checkpoint)
        if found is None:
            return self._optimizer()
        tensors, facts = found
        self.encoder.body.load_state_dict(tensors["encoder"])
        self.head.load_state_dict(tensors["head"])
        self.kept, self.kept_head = tensors["kept"], tensors.get("kept_head")
        marks = {int(step): float(mark) for step, mark in facts["marks"]}
        self.progress = Progress(facts["step"], facts["history"], marks, facts["kept_step"])
        optimizer = self._optimizer()
        if self.progress.step != self.params.head_steps:  # there a fresh one begins the next phase
            restore_optimizer(optimizer, tensors["optimizer"])
        return optimizer


def cosine(rate: float, step: int, steps: int, final: float = 0.0) -> float:
    """Half a cosine from `rate` at step 0 to `final` at `steps`."""
    return final + (rate - final) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def choose_device(name: str) -> torch.device:
    """The device that `training.device` names; "auto" takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def in_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16; "auto" does where the device has it."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def _trainable(encoder: Encoder, freeze_batch_norm: bool) -> Iterator[nn.Parameter]:
    for module in encoder.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if not (is_norm and freeze_batch_norm):
            yield from module.parameters(recurse=False)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
