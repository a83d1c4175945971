"""Stage train: learn a representation by telling good images from synthetic defects, or keep the one there is."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from components.backbone import Encoder, build_encoder, save_encoder
from components.checkpoint import drop_checkpoint
from components.compositions import candidates, pooled
from components.detector import arrange
from components.exam import examine, extract, held_out_paper
from components.files import new_directory, write_json, write_text
from components.fingerprint import experiment_identity, open_category_run
from components.head import save_head
from components.learner import Learner, Progress
from components.params import Params
from components.places import Places
from components.prepared import Prepared, load_prepared
from components.progress import ProgressBar
from components.runtime import use_threads
from components.stage import run_stage
from components.tasks import task_of

HISTORY = ("step", "loss", "accuracy", "rate")


def main(category: str, params: Params) -> None:
    """Write the encoder with the best exam mark, its history, and what the exam said after how many steps."""
    use_threads(params.threads)
    places = Places(category)
    prepared = load_prepared(places.prepared)
    encoder = build_encoder(params.backbone, params.seed)
    checkpoint = places.checkpoint / experiment_identity(category, params)[:16]
    encoder, head, progress = train(encoder, prepared, params, checkpoint)
    say_if_it_did_not_help(category, progress)
    write_outputs(places.encoder, encoder, head, progress, params)
    drop_checkpoint(places.checkpoint)


def train(
    encoder: Encoder, prepared: Prepared, params: Params, checkpoint: Path
) -> tuple[Encoder, nn.Sequential | None, Progress]:
    """Train `encoder` as `params.method` says, live in MLflow; without a task it comes back as it is.

    Returns the encoder, the projection head that was trained on its features, if there is one, and the progress.
    """
    task = task_of(params.method, params.synthesis)
    if task is None or params.training.head_steps + params.training.steps == 0:
        return encoder, None, Progress()
    learner = Learner(
        encoder,
        task,
        prepared.images,
        prepared.fit_rows,
        params.training,
        seed=params.seed,
        category=prepared.category,
        examiner=lambda trained: exam_mark(trained, prepared, params),
        checkpoint=checkpoint,
    )
    with (
        open_category_run(prepared.category, params, "train") as run,
        ProgressBar(f"train {prepared.category}", learner.total_steps) as bar,
    ):

        def listen(step: int, values: Mapping[str, float]) -> None:
            run.log_metrics({f"train/{name}": value for name, value in values.items()}, step)
            bar.show(step, values)

        encoder = learner.run(listen)
    return encoder, learner.head if learner.kept_head else None, learner.progress


def say_if_it_did_not_help(category: str, progress: Progress) -> None:
    """One line on stderr where no trained weights had a better exam mark than those before training."""
    if progress.step and progress.kept_step == 0:
        before, after = progress.marks[0], max(mark for step, mark in progress.marks.items() if step)
        print(
            f"Training did not help on {category}: exam mark {before:.4f} before, {after:.4f} at best after; "
            "the representation before training is kept.",
            file=sys.stderr,
        )


def exam_mark(encoder: Encoder, prepared: Prepared, params: Params) -> float:
    """Mean image mark, by held-out images and their samples, of the pooled feature and the first dense composition."""
    first, head = (
        candidates("trained", encoder, params.image.size, len(prepared.fit_rows))[0],
        pooled("trained", ("head",)),
    )
    levels = sorted({*first.levels, *head.levels})
    rows = prepared.fit_rows[: params.synthesis.exam_images]
    good = extract(encoder, prepared.images, rows, levels)
    paper = held_out_paper(encoder, prepared, levels)
    marks = [examine(c, c.scorer_of(arrange(good, c)), paper).image for c in (first, head)]
    return float(np.mean(marks))


def write_outputs(
    folder: Path, encoder: Encoder, head: nn.Sequential | None, progress: Progress, params: Params
) -> None:
    """Write encoder.safetensors, encoder.json, head.safetensors (if any), history.csv and training.json, or none."""
    with new_directory(folder) as beside:
        save_encoder(encoder, beside)
        if head is not None:
            save_head(head, beside)
        write_text(beside / "history.csv", history_csv(progress.history))
        write_json(beside / "training.json", training_summary(progress, params))


def history_csv(rows: Sequence[Mapping[str, float]]) -> str:
    """The training history as CSV: step, loss, accuracy, rate."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def training_summary(progress: Progress, params: Params) -> dict[str, Any]:
    """What was trained, the exam marks by step, and the step whose weights were kept (0: those before training)."""
    return {
        "method": params.method,
        "steps": progress.step,
        "marks": [{"step": step, "mark": mark} for step, mark in sorted(progress.marks.items())],
        "kept_step": progress.kept_step,
    }


if __name__ == "__main__":
    run_stage(main)
