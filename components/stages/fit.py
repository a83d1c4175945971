"""Stage fit: choose compositions by the synthetic exam, fit their Gaussians, set the threshold, write the capsule."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from components.density.gaussian import Scorer
from components.detection.capsule import Capsule, save_capsule
from components.detection.choice import Choice, choose, make_banks, say_if_training_did_not_help, selection_summary
from components.detection.conformal import guarantee, split_conformal_threshold
from components.detection.detector import BATCH, Composition, Detector, Part, activation, arrange, image_scores
from components.detection.exam import fold_scorers
from components.detection.feature_bank import few_images
from components.detection.fitting import Banks, fit_scorers, learned
from components.detection.network_fit import Baseline, Served, open_network, with_network
from components.detection.scale import Scale
from components.evaluation.map_range import map_range
from components.foundation.errors import UserError
from components.foundation.files import read_json
from components.foundation.making import check_made_in, making
from components.foundation.params import Params
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder, build_encoder, load_encoder
from components.learning.head import FILE as HEAD_FILE
from components.learning.head import load_head
from components.stages.command import run_stage
from components.synthesis.methods import NSA_GDE, PRETRAINED, TRAINED, encoder_method
from components.synthesis.nsa_settings import load_nsa_params
from components.synthesis.prepared import Prepared, batches, load_prepared
from components.synthesis.views import view_of

READS = (
    *("backbone", "fit", "image", "method", "network", "nsa", "patch", "seed", "synthesis", "threads", "threshold"),
    "training",
)
GOLDEN = 4  # good images, and at least as many synthetic samples, by which a capsule is checked
SIGMA = 2.0  # of the receptive field's Gaussian, in 1/256 of the image's side


def main(category: str, params: Params) -> None:
    """Write the capsule of one category."""
    use_threads(params.threads)
    places = Places(category)
    prepared = load_prepared(places.prepared)
    for folder in (places.prepared, places.encoder):
        check_made_in(folder, params, prepared.data_digest)
    encoders = load_encoders(places.encoder, params)
    heads = load_heads(places.encoder, category, params)
    banks = make_banks({name: encoders[name] for name in heads} or encoders, prepared, params)
    choice = choose(banks, params)
    say_if_training_did_not_help(category, choice)
    refit = learns_held_out(prepared, params)
    served = fit_detector(choice, banks, prepared, params, heads, refit)
    if network := open_network(places.encoder, params):
        unseen = fit_detector(choice, banks, prepared, params, heads, refit=False) if refit else served
        view = view_of(params.network, load_nsa_params(places.prepared)[1]["kind"], category)
        baseline = Baseline(choice.encoder, served.detector, served.calibration, served.map_range, unseen.detector)
        served = with_network(baseline, network, prepared, params, view)
    capsule = make_capsule(served, choice, prepared, params)
    save_capsule(capsule, golden_images(prepared), places.capsule)


def trained_folders(folder: Path, params: Params) -> dict[str, Path]:
    """Where the representations lie whose training was kept by its own exam: "trained", and an ensemble's others."""
    if encoder_method(params.method) == PRETRAINED and params.method != NSA_GDE:
        return {}
    folders = [folder, *sorted(path for path in folder.iterdir() if path.name.isdecimal())]
    kept = [own for own in folders if read_json(own / "training.json")["kept_step"] > 0]
    return {f"{TRAINED}-{number}" if number else TRAINED: own for number, own in enumerate(kept)}


def load_encoders(folder: Path, params: Params) -> dict[str, Encoder]:
    """The representation before training, and the trained ones."""
    trained = {name: load_encoder(own) for name, own in trained_folders(folder, params).items()}
    return {PRETRAINED: build_encoder(params.backbone, params.seed), **trained}


def load_heads(folder: Path, category: str, params: Params) -> dict[str, nn.Sequential]:
    """The trained heads of the encoders that were kept, where `fit.map` needs them; UserError where there is none."""
    if params.fit.map != "gradcam-logit":
        return {}
    folders = trained_folders(folder, params) or {PRETRAINED: folder}
    if not all((own / HEAD_FILE).is_file() for own in folders.values()):
        raise UserError(
            f"fit.map gradcam-logit needs a trained head, and none fits what was kept for {category}: set fit.map to "
            "gradcam, or method and training.head_steps to train one."
        )
    return {name: load_head(own) for name, own in folders.items()}


def fit_detector(
    choice: Choice,
    banks: Banks,
    prepared: Prepared,
    params: Params,
    heads: Mapping[str, nn.Sequential],
    refit: bool,
) -> Served:
    """Fit the chosen compositions, and score the held-out good images.

    refit: whether densities learn the held-out images in the end, which are then scored by cross-fitting. Each
    composition is brought to the scale of its own scores on held-out good images.
    """
    if refit:
        scorers, distances = fit_to_all(choice.all, banks, prepared, params.fit.folds)
    else:
        scorers = fit_scorers(choice.all, banks)
        distances = held_out_distances(scorers, banks, prepared)
    encoders = {name: banks[name].encoder for name in dict.fromkeys(c.encoder for c in choice.all)}
    activations = held_out_activations({c: scorers[c] for c in choice.map}, encoders, heads, prepared)
    parts = [
        Part(
            composition,
            scorers[composition],
            Scale.of(image_scores(values, composition)),
            map_scale(composition, values, activations),
            composition in choice.image,
            composition in choice.map,
        )
        for composition, values in distances.items()
    ]
    detector = Detector(encoders, parts, params.image.side, SIGMA * params.image.side / 256, heads)
    shown = map_range(held_out_maps(detector, {**distances, **rectified(activations)}))
    return Served(detector, calibration_scores(parts, distances), shown)


def rectified(activations: Mapping[Composition, np.ndarray]) -> dict[Composition, np.ndarray]:
    """GradCAMs (n, h·w) with their ReLU, as a detector shows them."""
    return {composition: np.maximum(cells, 0) for composition, cells in activations.items()}


def held_out_maps(detector: Detector, cells: Mapping[Composition, np.ndarray]) -> Iterator[np.ndarray]:
    """Maps (b, size, size) of the held-out good images, batch by batch, from what each composition gives them.

    cells: (n, L) or (n, h·w) per composition, by densities that have not learned them.
    """
    shown = [part for part in detector.parts if part.for_map]
    count = len(cells[shown[0].composition]) if shown else 0
    for rows in batches(np.arange(count), BATCH):
        grids = [(part.composition, part.map_scale.apply(cells[part.composition][rows])) for part in shown]
        yield detector.merged_maps(grids, [], len(rows))


def learns_held_out(prepared: Prepared, params: Params) -> bool:
    """Whether the densities learn the held-out good images in the end: where images are few, each one counts."""
    return params.fit.refit and few_images(prepared) and len(prepared.held_out_rows) >= 2


def fit_to_all(
    compositions: Sequence[Composition], banks: Banks, prepared: Prepared, folds: int
) -> tuple[dict[Composition, Scorer], dict[Composition, np.ndarray]]:
    """Scorers that have learned all good images, and cross-fitted distances (n,) or (n, L) of the held-out ones."""
    rows = np.concatenate([prepared.fit_rows, prepared.held_out_rows])
    held_out = prepared.folds_of(prepared.held_out_rows, folds, prepared.seed)
    numbers = np.concatenate([np.full(len(prepared.fit_rows), -1), held_out])
    scorers, distances = {}, {}
    for widest, alike in nested(compositions).items():
        features = learned(widest, banks[widest.encoder], rows)
        everything = widest.scorer_of(features.reshape(-1, *features.shape[2:]))
        by_fold = dict(fold_scorers(widest, features, numbers))
        for composition in alike:
            scorers[composition] = composition.narrowed(everything)
            own = {k: composition.narrowed(scorer) for k, scorer in by_fold.items()}
            distances[composition] = cross_fitted(own, features[0], numbers)
    return scorers, {composition: distances[composition] for composition in compositions}


def nested(compositions: Sequence[Composition]) -> dict[Composition, list[Composition]]:
    """Compositions by the one whose fit holds theirs: those that differ in rank alone have the same directions."""
    alike: dict[Composition, list[Composition]] = defaultdict(list)
    for composition in compositions:
        alike[replace(composition, rank=0) if composition.is_low_rank else composition].append(composition)
    return {max(same, key=lambda c: c.rank): same for same in alike.values()}


def cross_fitted(scorers: Mapping[int, Scorer], features: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Distances (n,) or (n, L) of the images that are in a fold, by the scorer that has not learned that fold.

    features: (N, …). folds: (N,) the fold of each image; −1 for those in none (cross-conformal prediction: Vovk,
    "Cross-conformal predictors", 2015).
    """
    distances = np.empty(features.shape[:-1], np.float32)
    for k, scorer in scorers.items():
        distances[folds == k] = scorer.score(features[folds == k])
    return distances[folds >= 0]


def held_out_distances(
    scorers: Mapping[Composition, Scorer], banks: Banks, prepared: Prepared
) -> dict[Composition, np.ndarray]:
    """Distances (n,) or (n, L) of the held-out good images for each composition; memory is bounded by a batch."""
    found: dict[Composition, list[np.ndarray]] = {composition: [] for composition in scorers}
    for rows in batches(prepared.held_out_rows, BATCH):
        features = {name: banks[name].of(rows) for name in dict.fromkeys(c.encoder for c in scorers)}
        for composition, pieces in found.items():
            pieces.append(scorers[composition].score(arrange(features[composition.encoder], composition)))
    return {composition: np.concatenate(pieces) for composition, pieces in found.items()}


def map_scale(composition: Composition, distances: np.ndarray, activations: Mapping[Composition, np.ndarray]) -> Scale:
    """The scale of a map: of the distances themselves, or of the GradCAM (n, h·w) that explains them.

    A GradCAM is in units of the scores that it explains. Its own spread may be nothing but rounding, where a density
    is flat at every good image.
    """
    scale = Scale.of(distances)
    return replace(scale, centre=float(activations[composition].mean())) if composition in activations else scale


def held_out_activations(
    scorers: Mapping[Composition, Scorer],
    encoders: Mapping[str, Encoder],
    heads: Mapping[str, nn.Sequential],
    prepared: Prepared,
) -> dict[Composition, np.ndarray]:
    """GradCAM (n, h·w) of the held-out good images for each composition that has it.

    Without the ReLU: where it leaves nothing of the good images, there would be no scale.
    """
    found: dict[Composition, list[np.ndarray]] = {c: [] for c in scorers if c.map != "dense"}
    for rows in batches(prepared.held_out_rows, BATCH):
        images = as_tensor(np.ascontiguousarray(prepared.images[rows]))
        for c, pieces in found.items():
            maps = activation(c, scorers[c], encoders[c.encoder], heads.get(c.encoder), images, rectified=False)
            pieces.append(maps)
    return {composition: np.concatenate(pieces) for composition, pieces in found.items()}


def calibration_scores(parts: Sequence[Part], distances: Mapping[Composition, np.ndarray]) -> np.ndarray:
    """Image scores (n,) float32 of the held-out good images, from their distances, as `Detector.score` makes them."""
    scores = [
        part.image_scale.apply(image_scores(distances[part.composition], part.composition))
        for part in parts
        if part.for_image
    ]
    return np.mean(scores, axis=0).astype(np.float32)


def make_capsule(served: Served, choice: Choice, prepared: Prepared, params: Params) -> Capsule:
    """Set the threshold from the held-out good images' scores, and put everything together."""
    calibration = served.calibration
    threshold = split_conformal_threshold(calibration, params.threshold.false_alarm_rate)
    return Capsule(
        category=prepared.category,
        method=params.method,
        detector=served.detector,
        threshold=threshold.value,
        calibration=calibration,
        map_range=served.map_range,
        selection=selection_summary(choice)
        | served.selection
        | {
            "threshold_guaranteed_rate": threshold.guaranteed,
            "threshold_guarantee": guarantee_words(len(calibration), prepared, params, bool(served.detector.parts)),
        },
        provenance=making(params, READS, prepared.data_digest),  # no other key, or its bytes would grow stale
        bits=prepared.bits,
        roles=prepared.roles,
    )


def guarantee_words(count: int, prepared: Prepared, params: Params, has_density: bool = True) -> str:
    """What the threshold promises, and that the promise is approximate where a density learned those images too."""
    words = guarantee(count, params.threshold.false_alarm_rate, params.threshold.confidence).words
    if has_density and learns_held_out(prepared, params):
        words += " (approximately, as in the end the model has learned these images too)"
    return words


def golden_images(prepared: Prepared) -> np.ndarray:
    """Reference inputs, uint8 (G, S, S, 3): held-out good images, and at least one synthetic sample of each kind."""
    good = np.asarray(prepared.images[prepared.held_out_rows[:GOLDEN]])  # (4, S, S, 3), or fewer
    kinds, count = prepared.exam_images.shape[:2]
    samples = [prepared.exam_images[i % kinds, i % count] for i in range(max(GOLDEN, kinds))]  # each of another image
    return np.concatenate([good, np.stack(samples)])


if __name__ == "__main__":
    run_stage(main, READS)
