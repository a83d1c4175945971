"""Stage fit: choose compositions by the synthetic exam, fit their Gaussians, set the threshold, write the capsule."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from components.density.gaussian import Scorer
from components.detection.calibration import Plan, calibrated, fit_and_score, learns_held_out
from components.detection.capsule import Capsule, save_capsule
from components.detection.choice import Choice, choose, make_banks, say_why, selection_summary
from components.detection.detector import BATCH, Composition, Detector, Part, activation, image_scores
from components.detection.fitting import Banks
from components.detection.keeping import UPDATED, Kept, load_kept
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
    """Write the capsule of one category; of an update, with the encoders and compositions that are kept."""
    use_threads(params.threads)
    places = Places(category)
    prepared = load_prepared(places.prepared)
    for folder in (places.prepared, places.encoder):
        check_made_in(folder, params, prepared.data_digest)
    choice, banks, heads = kept_or_chosen(category, prepared, params)
    refit = learns_held_out(prepared, params)
    plan = Plan.of(prepared, params, taught=choice.is_taught, refit=refit)
    served = fit_detector(choice, banks, prepared, params, heads, plan)
    if network := open_network(places.encoder):
        apart = Plan.of(prepared, params, taught=True, refit=False)
        unseen = fit_detector(choice, banks, prepared, params, heads, apart).detector if refit else served.detector
        view = view_of(params.network, load_nsa_params(places.prepared)[1]["kind"], category)
        served = with_network(Baseline(choice.encoder, served, unseen), network, prepared, params, view)
    capsule = make_capsule(served, choice, prepared, params)
    save_capsule(capsule, golden_images(prepared), places.capsule)


def kept_or_chosen(
    category: str, prepared: Prepared, params: Params
) -> tuple[Choice | Kept, Banks, Mapping[str, nn.Sequential]]:
    """The compositions that serve, kept by an update or else chosen by the exam; features and heads of the encoders."""
    folder = Places(category).encoder
    if kept := load_kept(folder):
        return kept, make_banks(kept.encoders, prepared, params, kept.all), kept.heads
    encoders = load_encoders(folder, params)
    heads = load_heads(folder, category, params)
    banks = make_banks({name: encoders[name] for name in heads} or encoders, prepared, params)
    choice = choose(banks, params)
    say_why(category, choice)
    return choice, banks, heads


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
    choice: Choice | Kept,
    banks: Banks,
    prepared: Prepared,
    params: Params,
    heads: Mapping[str, nn.Sequential],
    plan: Plan,
) -> Served:
    """Fit the chosen compositions, and score good images as if they were new, as `plan` says.

    Each composition is brought to the scale of these scores of its own.
    """
    fitted = fit_and_score(choice.all, choice.image, banks, prepared, plan)
    scorers, distances = fitted.scorers, fitted.distances
    encoders = {name: banks[name].encoder for name in dict.fromkeys(c.encoder for c in choice.all)}
    activations = activations_of({c: scorers[c] for c in choice.map}, encoders, heads, prepared.images, plan.rows)
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
    return Served(detector, calibrated(parts, fitted, plan), shown)


def rectified(activations: Mapping[Composition, np.ndarray]) -> dict[Composition, np.ndarray]:
    """GradCAMs (n, h·w) with their ReLU, as a detector shows them."""
    return {composition: np.maximum(cells, 0) for composition, cells in activations.items()}


def held_out_maps(detector: Detector, cells: Mapping[Composition, np.ndarray]) -> Iterator[np.ndarray]:
    """Maps (b, size, size) of good images, batch by batch, from what each composition gives them.

    cells: (n, L) or (n, h·w) per composition, by densities that have not learned them.
    """
    shown = [part for part in detector.parts if part.for_map]
    count = len(cells[shown[0].composition]) if shown else 0
    for rows in batches(np.arange(count), BATCH):
        grids = [(part.composition, part.map_scale.apply(cells[part.composition][rows])) for part in shown]
        yield detector.merged_maps(grids, [], len(rows))


def map_scale(composition: Composition, distances: np.ndarray, activations: Mapping[Composition, np.ndarray]) -> Scale:
    """The scale of a map: of the distances themselves, or of the GradCAM (n, h·w) that explains them.

    A GradCAM is in units of the scores that it explains. Its own spread may be nothing but rounding, where a density
    is flat at every good image.
    """
    scale = Scale.of(distances)
    return replace(scale, centre=float(activations[composition].mean())) if composition in activations else scale


def activations_of(
    scorers: Mapping[Composition, Scorer],
    encoders: Mapping[str, Encoder],
    heads: Mapping[str, nn.Sequential],
    good: np.ndarray,
    rows: np.ndarray,
) -> dict[Composition, np.ndarray]:
    """GradCAM (n, h·w) of the images `good[rows]` (uint8, (N, S, S, 3)) for each composition that has it.

    Without the ReLU: where it leaves nothing of the good images, there would be no scale.
    """
    found: dict[Composition, list[np.ndarray]] = {c: [] for c in scorers if c.map != "dense"}
    for batch in batches(rows, BATCH):
        images = as_tensor(np.ascontiguousarray(good[batch]))
        for c, pieces in found.items():
            maps = activation(c, scorers[c], encoders[c.encoder], heads.get(c.encoder), images, rectified=False)
            pieces.append(maps)
    return {composition: np.concatenate(pieces) for composition, pieces in found.items()}


def make_capsule(served: Served, choice: Choice | Kept, prepared: Prepared, params: Params) -> Capsule:
    """Set the threshold from the good images' scores, and put everything together."""
    calibration = served.calibration
    promised = calibration.promise(prepared, params.threshold)
    return Capsule(
        category=prepared.category,
        method=params.method,
        detector=served.detector,
        threshold=promised.value,
        calibration=calibration.by_group(prepared),
        map_range=served.map_range,
        selection=dict(choice.selection if isinstance(choice, Kept) else selection_summary(choice, prepared))
        | served.selection
        | {
            "promise": promised.to_json(),
            "set_by": calibration.setting(prepared, promised.value),
            "missed": calibration.missed(prepared, promised.value),
        },
        provenance=provenance(choice, prepared, params),
        bits=prepared.bits,
        roles=prepared.roles,
    )


def provenance(choice: Choice | Kept, prepared: Prepared, params: Params) -> dict[str, Any]:
    """What it was made with, and what it was updated from; no other key, or its bytes would grow stale."""
    made = making(params, READS, prepared.data_digest)
    return made | {UPDATED: choice.provenance(prepared.roles.digests)} if isinstance(choice, Kept) else made


def golden_images(prepared: Prepared) -> np.ndarray:
    """Reference inputs, uint8 (G, S, S, 3): held-out good images, and at least one synthetic sample of each kind."""
    good = np.asarray(prepared.images[prepared.held_out_rows[:GOLDEN]])  # (4, S, S, 3), or fewer
    kinds, count = prepared.exam_images.shape[:2]
    samples = [prepared.exam_images[i % kinds, i % count] for i in range(max(GOLDEN, kinds))]  # each of another image
    return np.concatenate([good, np.stack(samples)])


if __name__ == "__main__":
    run_stage(main, READS)
