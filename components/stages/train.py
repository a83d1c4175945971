"""Stage train: learn a representation by telling good images from synthetic defects, or keep the one there is."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from components.detection.compositions import candidates, pooled
from components.detection.exam import cross_examine, cross_paper
from components.detection.feature_bank import FeatureBank
from components.detection.keeping import keep
from components.detection.network_exam import examine_network
from components.foundation.errors import UserError
from components.foundation.files import new_directory, write_json, write_text
from components.foundation.making import check_made_in, write_making
from components.foundation.params import Params, TrainingParams
from components.foundation.pin import Pin, read_pin
from components.foundation.places import Places
from components.foundation.progress import ProgressBar
from components.foundation.runtime import use_threads
from components.learning.backbone import HEAD, Encoder, build_encoder, build_patch_encoder, save_encoder
from components.learning.checkpoint import drop_checkpoint
from components.learning.decoder import MapNetwork, save_network
from components.learning.head import save_head
from components.learning.learner import Learner, Progress
from components.learning.map_learner import MapLearner, MapTask
from components.stages.command import run_stage
from components.synthesis.methods import (
    ENSEMBLE,
    GENERATORS,
    NETWORK,
    NSA_GDE,
    PATCH,
    TRAINED,
    encoder_method,
    not_asked,
    serves_network,
    trains_network,
)
from components.synthesis.nsa import NoPatchError
from components.synthesis.nsa_settings import load_nsa_params
from components.synthesis.prepared import Prepared, load_prepared
from components.synthesis.tasks import task_of
from components.synthesis.views import view_of
from components.tracking.fingerprint import experiment_identity, learned_digest, open_category_run

READS = ("backbone", "image", "method", "network", "nsa", "patch", "seed", "synthesis", "threads", "training")
FOLDS = 2  # of the exam of a step
HISTORY = ("step", "loss", "accuracy", "rate")
Trained = tuple[Encoder, nn.Sequential | None, Progress]


def main(category: str, params: Params) -> None:
    """Write the encoder with the best exam mark, its history, and what the exam said after how many steps.

    For an update, which `bases/CATEGORY.json` asks for, that is the encoder of the version named there, as it is.
    """
    use_threads(params.threads)
    places = Places(category)
    prepared = load_prepared(places.prepared)
    check_made_in(places.prepared, params, learned_digest(category))
    if pin := read_pin(category):
        keep_version(pin, category, params, prepared.data_digest)
        return
    checkpoint = places.checkpoint / experiment_identity(category, params)[:16]
    members = [train_member(number, prepared, params, checkpoint) for number in range(members_of(params))]
    learner = learner_if_any(prepared, params, checkpoint)
    if learner:
        members[0] = train_network(learner, members[0], category, params)
    for _, _, progress in members:
        say_if_it_did_not_help(category, progress)
    write_outputs(places.encoder, members, params, prepared.data_digest, learner)
    drop_checkpoint(places.checkpoint)


def keep_version(pin: Pin, category: str, params: Params, data_digest: str) -> None:
    """Take a version's encoders and compositions instead of training; the history of this training is empty."""
    with new_directory(Places(category).encoder) as beside:
        write_making(beside, params, READS, data_digest)
        keep(pin, category, params, beside)
        write_text(beside / "history.csv", history_csv([]))
        write_json(beside / "training.json", training_summary(Progress(), params))


def members_of(params: Params) -> int:
    """How many networks are trained, each from a seed of its own."""
    return params.training.members if params.method == ENSEMBLE else 1


def train_member(number: int, prepared: Prepared, params: Params, checkpoint: Path) -> Trained:
    """Train one network of an ensemble, or the only one, number 0; its seed is the run's plus its number."""
    seed, suffix = params.seed + number, f"-{number}" if number else ""
    beside = checkpoint.with_name(f"{checkpoint.name}{suffix}")
    return train(starting_encoder(params, seed), prepared, params, seed, beside, f"train{suffix}")


def starting_encoder(params: Params, seed: int) -> Encoder:
    """What training begins with: the backbone, or for the patch-level method its own network from scratch."""
    if params.method == PATCH:
        return build_patch_encoder(params.patch, seed)
    return build_encoder(params.backbone, seed)


def schedule_of(params: Params) -> TrainingParams:
    """`params.training`; for the patch-level method with its own steps, from scratch: SGD, and batch-norm learns."""
    if params.method != PATCH:
        return params.training
    own = params.patch.model_dump(include={"steps", "rate", "batch", "exam_steps"})
    return params.training.model_copy(update={"head_steps": 0, "optimizer": "sgd", "freeze_batch_norm": False, **own})


def train(encoder: Encoder, prepared: Prepared, params: Params, seed: int, checkpoint: Path, name: str) -> Trained:
    """Train `encoder` as `params.method` says, live in MLflow as `name`; without a task it comes back as it is.

    Returns the encoder, the projection head that was trained on its features, if there is one, and the progress.
    """
    task = task_of(encoder_method(params.method), params.synthesis, params.patch)
    schedule = schedule_of(params)
    if task is None or schedule.head_steps + schedule.steps == 0:
        return encoder, None, Progress()
    learner = Learner(
        encoder,
        task,
        prepared.images,
        prepared.fit_rows,
        prepared.keys,
        schedule,
        seed=seed,
        category=prepared.category,
        examiner=lambda trained: exam_mark(trained, prepared, params, seed),
        checkpoint=checkpoint,
    )
    encoder = run_live(learner, prepared.category, params, name)
    assert isinstance(learner.head, nn.Sequential)
    return encoder, learner.head if learner.kept_head else None, learner.progress


def run_live(learner: Learner, category: str, params: Params, name: str) -> Encoder:
    """Run a training to its end, with a bar on the terminal and curves `name`/… in MLflow as it goes on."""
    with (
        open_category_run(category, params, "train") as run,
        ProgressBar(f"train {category}", learner.total_steps) as bar,
    ):

        def listen(step: int, values: Mapping[str, float]) -> None:
            run.log_metrics({f"{name}/{key}": value for key, value in values.items()}, step)
            bar.show(step, values)

        return learner.run(listen)


def train_network(learner: MapLearner, member: Trained, category: str, params: Params) -> Trained:
    """Train the network of NSA, FPI or PII; the representation beside it, which for nsa-gde is the network's own.

    Its progress is the network's, where the representation was not trained itself.
    """
    encoder, head, progress = member
    run_live(learner, category, params, NETWORK if progress.step else "train")
    encoder = learner.encoder if params.method == NSA_GDE else encoder
    return encoder, head, progress if progress.step else learner.progress


def learner_if_any(prepared: Prepared, params: Params, checkpoint: Path) -> MapLearner | None:
    """What trains the network, where the method has one.

    nsa-gde goes on without, and says so, on a category that allows no synthetic anomalies; to the other methods that
    is NoPatchError, as there would be no network to serve.
    """
    if not trains_network(params.method):
        return None
    try:
        return network_learner(prepared, params, checkpoint)
    except NoPatchError as error:
        if params.method != NSA_GDE:
            raise
        print(f"{error} The representation before training is kept.", file=sys.stderr)
        return None


def network_learner(prepared: Prepared, params: Params, checkpoint: Path) -> MapLearner:
    """What trains the network of NSA, FPI or PII on a category; UserError where it has no steps to do.

    For nsa-gde the exam marks densities of the encoder, and may keep the one before training; else it marks the map:
    mean of image and pixel AUROC, as the first alone hardly tells late weights apart.
    """
    generator, label = GENERATORS[params.method]
    settings, report = load_nsa_params(Places(prepared.category).prepared, generator, label)
    view = view_of(params.network, report["kind"], prepared.category)
    schedule = params.network.schedule(params.training, prepared.category, len(prepared.fit_rows))
    if not schedule.steps:
        raise UserError(
            f"{params.method} trains a network, but network.steps and network.epochs are 0 in params.yaml: set one of "
            "them, or choose a preset that does, such as cpu."
        )
    densities = params.method == NSA_GDE

    def examiner(network: MapNetwork) -> float:
        if densities:
            return exam_mark(network.encoder, prepared, params, params.seed)
        mark = examine_network(network, prepared, params, view)
        return (mark.image + mark.pixel) / 2

    return MapLearner(
        build_encoder(params.backbone, params.seed),
        MapTask(prepared.images, prepared.fit_rows, prepared.keys, settings, view),
        params.network,
        schedule,
        seed=params.seed,
        category=prepared.category,
        examiner=examiner,
        marks_start=densities,
        checkpoint=checkpoint.with_name(f"{checkpoint.name}-{NETWORK}"),
    )


def say_if_it_did_not_help(category: str, progress: Progress) -> None:
    """One line on stderr where no trained weights had a better exam mark than those before training."""
    if progress.step and progress.kept_step == 0:
        before, after = progress.marks[0], max(mark for step, mark in progress.marks.items() if step)
        print(
            f"{category}: the representation before training serves, exam mark {before:.4f}; training did not raise it "
            f"in {progress.step} steps ({after:.4f} at best).",
            file=sys.stderr,
        )


def exam_mark(encoder: Encoder, prepared: Prepared, params: Params, seed: int) -> float:
    """Mean image mark, by images to learn from, of the pooled feature and the first dense composition.

    By cross-fitting, in folds drawn from `seed`: the held-out images choose no step, as they decide afterwards whether
    what was trained serves.
    """
    family = candidates(TRAINED, encoder, params.image.side, len(prepared.fit_rows))
    examined = (family[0], pooled(TRAINED, (HEAD,)))
    bank = FeatureBank(TRAINED, encoder, prepared, examined)
    paper = cross_paper(bank, FOLDS, seed, not_asked=not_asked(params.method))
    return float(np.mean([cross_examine(c, paper).image for c in examined]))


def write_outputs(
    folder: Path, members: Sequence[Trained], params: Params, data_digest: str, learner: MapLearner | None = None
) -> None:
    """Write encoder.safetensors, encoder.json, head.safetensors (if any), history.csv and training.json, or none.

    Members of an ensemble after the first go into folders 1, 2, …; the network of `learner` goes into one of its own.
    """
    with new_directory(folder) as beside:
        write_making(beside, params, READS, data_digest)
        for number, (encoder, head, progress) in enumerate(members):
            own = beside / str(number) if number else beside
            own.mkdir(exist_ok=True)
            save_encoder(encoder, own)
            if head is not None:
                save_head(head, own)
            write_text(own / "history.csv", history_csv(progress.history))
            write_json(own / "training.json", training_summary(progress, params))
        if learner and serves_network(params.method):
            save_network(learner.network, beside / NETWORK)
            write_text(beside / NETWORK / "history.csv", history_csv(learner.progress.history))
            write_json(beside / NETWORK / "training.json", training_summary(learner.progress, params))


def history_csv(rows: Sequence[Mapping[str, float]]) -> str:
    """The training history as CSV: step, loss, accuracy, rate, and whatever else a learner says of its steps."""
    text = io.StringIO()
    names = dict.fromkeys([*HISTORY, *(name for row in rows for name in row)])
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
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
    run_stage(main, READS)
