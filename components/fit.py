"""Stage fit: choose compositions by the synthetic exam, fit their Gaussians, set the threshold, write the capsule."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.backbone import Encoder, build_encoder, load_encoder
from components.capsule import Capsule, library_versions, save_capsule
from components.compositions import candidates
from components.conformal import guarantee, split_conformal_threshold
from components.density import GaussianDensity
from components.detector import Composition, Detector, Part, Scale, arrange, as_tensor, image_scores, levels_of
from components.exam import (
    BATCH,
    Mark,
    best,
    cross_examine,
    cross_paper,
    examine,
    extract_copies,
    held_out_paper,
    weighed,
)
from components.files import read_json
from components.methods import NSA_GDE, encoder_method
from components.network_fit import open_network, with_network
from components.nsa_settings import load_nsa_params
from components.params import Params
from components.places import Places
from components.prepared import Prepared, batches, load_prepared
from components.runtime import use_threads
from components.stage import run_stage
from components.views import view_of

PRETRAINED, TRAINED = "pretrained", "trained"
# What the capsule says it was made with: no more than this stage's params in dvc.yaml, or its bytes would grow stale.
MAKING = (
    "method",
    "seed",
    "threads",
    "image",
    "synthesis",
    "backbone",
    "training",
    "network",
    "nsa",
    "fit",
    "threshold",
)
GOLDEN = 4
SIGMA = 2.0  # of the receptive field's Gaussian, in 1/256 of the image's side


@dataclass(frozen=True)
class Choice:
    """Which compositions serve, and what the exam said of every candidate.

    Attributes:
        image, map: compositions for the image score and for the anomaly map.
        marks: of all candidates, by cross-fitting.
        held_out: mean image mark on held-out images of each encoder's chosen compositions.
    """

    image: tuple[Composition, ...]
    map: tuple[Composition, ...]
    marks: tuple[Mark, ...]
    held_out: Mapping[str, float]

    @property
    def encoder(self) -> str:
        """The encoder whose compositions were chosen."""
        return self.image[0].encoder

    @property
    def all(self) -> list[Composition]:
        """Every chosen composition once."""
        return list(dict.fromkeys([*self.image, *self.map]))


def main(category: str, params: Params) -> None:
    """Write the capsule of one category."""
    use_threads(params.threads)
    places = Places(category)
    prepared = load_prepared(places.prepared)
    encoders = load_encoders(places.encoder, params)
    choice = choose(encoders, prepared, params)
    say_if_training_did_not_help(category, choice)
    detector = fit_detector(choice, encoders, prepared, params)
    network_selection: dict[str, Any] = {}
    if network := open_network(places.encoder, params):
        kind = load_nsa_params(places.prepared)[1]["kind"]
        view = view_of(params.network, kind, category)
        detector, network_selection = with_network(detector, network, prepared, params, view, choice.encoder)
    capsule = make_capsule(detector, choice, prepared, params, network_selection)
    save_capsule(capsule, golden_images(prepared), places.capsule)


def load_encoders(folder: Path, params: Params) -> dict[str, Encoder]:
    """The representation before training, and the trained one where training was kept by its own exam."""
    encoders = {PRETRAINED: build_encoder(params.backbone, params.seed)}
    trained = encoder_method(params.method) != "pretrained" or params.method == NSA_GDE
    if trained and read_json(folder / "training.json")["kept_step"] > 0:
        encoders[TRAINED] = load_encoder(folder)
    return encoders


def choose(encoders: Mapping[str, Encoder], prepared: Prepared, params: Params) -> Choice:
    """Choose compositions for each encoder by cross-fitting, then the encoder by the held-out images.

    The trained encoder has seen the images it learned from, so only held-out ones can say whether it is better; it
    must be so by more than `fit.margin`.
    """
    choices = [choose_compositions(name, encoder, prepared, params) for name, encoder in encoders.items()]
    marks = tuple(mark for choice in choices for mark in choice.marks)
    held_out = {choice.encoder: held_out_mark(encoders[choice.encoder], choice.image, prepared) for choice in choices}
    winner = choices[0]
    for other in choices[1:]:
        if held_out[other.encoder] > held_out[winner.encoder] + params.fit.margin:
            winner = other
    return Choice(winner.image, winner.map, marks, held_out)


def choose_compositions(name: str, encoder: Encoder, prepared: Prepared, params: Params) -> Choice:
    """The best compositions of one encoder for the image score and for the map, by the cross-fitted exam."""
    family = candidates(name, encoder, params.image.size, len(prepared.fit_rows))
    copies = max(composition.copies for composition in family)
    paper = cross_paper(encoder, prepared, levels_of(name, family), params.fit.folds, params.seed, copies)
    marks = tuple(weighed([cross_examine(composition, paper) for composition in family]))
    return Choice(
        tuple(best(marks, params.fit.best, by="image")), tuple(best(marks, params.fit.best, by="pixel")), marks, {}
    )


def held_out_mark(encoder: Encoder, compositions: Sequence[Composition], prepared: Prepared) -> float:
    """Mean image mark on held-out images of compositions fitted to all others."""
    densities = fit_densities(compositions, {compositions[0].encoder: encoder}, prepared)
    paper = held_out_paper(encoder, prepared, levels_of(compositions[0].encoder, compositions))
    return float(np.mean([examine(c, densities[c], paper).image for c in compositions]))


@torch.inference_mode()
def fit_densities(
    compositions: Sequence[Composition], encoders: Mapping[str, Encoder], prepared: Prepared
) -> dict[Composition, GaussianDensity]:
    """Fit each composition's Gaussian to the images to learn from; memory is bounded by a batch."""
    densities = {composition: composition.density() for composition in compositions}
    for rows in batches(prepared.fit_rows, BATCH):
        images = as_tensor(np.ascontiguousarray(prepared.images[rows]))
        for name, encoder in encoders.items():
            levels = levels_of(name, compositions)
            features = encoder.features(images, levels) if levels else {}
            for composition in (c for c in compositions if c.encoder == name):
                densities[composition].add(arrange(features, composition))
            learn_copies(
                [c for c in compositions if c.encoder == name and c.copies], encoder, prepared, rows, densities
            )
    return densities


def learn_copies(
    compositions: Sequence[Composition],
    encoder: Encoder,
    prepared: Prepared,
    rows: np.ndarray,
    densities: Mapping[Composition, GaussianDensity],
) -> None:
    """Add the copies of the good images `rows` to the densities of those compositions which learn from copies."""
    for composition in compositions:
        features = extract_copies(encoder, prepared, rows, composition.levels, composition.copies, prepared.seed)
        densities[composition].add(arrange(features, composition))


def fit_detector(choice: Choice, encoders: Mapping[str, Encoder], prepared: Prepared, params: Params) -> Detector:
    """Fit the chosen compositions and bring each to the scale of its own scores on held-out good images."""
    needed = {c.encoder: encoders[c.encoder] for c in choice.all}
    densities = fit_densities(choice.all, needed, prepared)
    scorers = {composition: density.scorer() for composition, density in densities.items()}
    distances = held_out_distances(scorers, needed, prepared)
    parts = [
        Part(
            composition,
            scorers[composition],
            Scale.of(image_scores(values, composition)),
            Scale.of(values),
            composition in choice.image,
            composition in choice.map,
        )
        for composition, values in distances.items()
    ]
    return Detector(needed, parts, params.image.size, SIGMA * params.image.size / 256)


@torch.inference_mode()
def held_out_distances(
    scorers: Mapping[Composition, Any], encoders: Mapping[str, Encoder], prepared: Prepared
) -> dict[Composition, np.ndarray]:
    """Distances (n,) or (n, L) of the held-out good images for each composition."""
    found: dict[Composition, list[np.ndarray]] = {composition: [] for composition in scorers}
    for rows in batches(prepared.held_out_rows, BATCH):
        images = as_tensor(np.ascontiguousarray(prepared.images[rows]))
        for name, encoder in encoders.items():
            features = encoder.features(images, levels_of(name, list(scorers)))
            for composition in (c for c in scorers if c.encoder == name):
                found[composition].append(scorers[composition].score(arrange(features, composition)))
    return {composition: np.concatenate(pieces) for composition, pieces in found.items()}


def make_capsule(
    detector: Detector, choice: Choice, prepared: Prepared, params: Params, selection: Mapping[str, Any] | None = None
) -> Capsule:
    """Set the threshold from the held-out good images, and put everything together.

    selection: what replaces or adds to the summary of the choice.
    """
    calibration = np.concatenate(
        [detector.score(np.asarray(prepared.images[rows]))[0] for rows in batches(prepared.held_out_rows, BATCH)]
    )
    wish = params.threshold
    threshold = split_conformal_threshold(calibration, wish.false_alarm_rate)
    return Capsule(
        category=prepared.category,
        method=params.method,
        detector=detector,
        threshold=threshold.value,
        calibration=calibration,
        selection=selection_summary(choice)
        | dict(selection or {})
        | {
            "threshold_guaranteed_rate": threshold.guaranteed,
            "threshold_guarantee": guarantee(len(calibration), wish.false_alarm_rate, wish.confidence).words,
        },
        provenance={
            "data_digest": prepared.data_digest,
            "params": params.model_dump(mode="json", include=set(MAKING)),
            "libraries": library_versions(),
        },
    )


def selection_summary(choice: Choice) -> dict[str, Any]:
    """The exam in JSON: the mark of every candidate, what was chosen, and whether training helped."""
    return {
        "image": [composition.name for composition in choice.image],
        "map": [composition.name for composition in choice.map],
        "encoder": choice.encoder,
        "held_out_marks": dict(choice.held_out),
        "marks": [
            {"name": mark.composition.name, "image": mark.image, "pixel": mark.pixel, "by_kind": dict(mark.by_kind)}
            for mark in choice.marks
        ],
    }


def say_if_training_did_not_help(category: str, choice: Choice) -> None:
    """One line on stderr where a trained representation lost its exam against the one before training."""
    if TRAINED in choice.held_out and choice.encoder != TRAINED:
        before, after = choice.held_out[PRETRAINED], choice.held_out[TRAINED]
        print(
            f"Training did not help on {category}: exam mark {before:.4f} before, {after:.4f} after; "
            "the representation before training is kept.",
            file=sys.stderr,
        )


def golden_images(prepared: Prepared) -> np.ndarray:
    """Reference inputs, uint8 (G, S, S, 3): held-out good images, and synthetic samples of each kind."""
    good = np.asarray(prepared.images[prepared.held_out_rows[:GOLDEN]])
    samples = [np.asarray(images[: GOLDEN // len(prepared.exam_kinds) + 1]) for images in prepared.exam_images]
    return np.ascontiguousarray(np.concatenate([good, *samples])[: 2 * GOLDEN])


if __name__ == "__main__":
    run_stage(main)
