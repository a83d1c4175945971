"""Who would serve, and with which figures, from stored scores of several encoders: no feature is computed again.

A file SET.npz holds of a set: `kinds` (K,), `mask_area` (K, M), `masks64` (packed bits of (K, M, 64, 64)), `ex_held`
(M,) bool and `src` (M,) of the exam's images, `held_rows` (H,), `labels` (T,) and `tmask128` (packed bits of (T, 128,
128)) of the test images; and for every ENCODER|COMPOSITION the distances `held` (H, …) of the held-out good images,
`hs` (K, m, …) of the held-out samples, `test` (T, …), by densities of the images to learn from (for `test`: of all good
images); `cg` (M − m, 2), `cs` (K, M − m, 2) the cross-fitted image scores (mean of the top, maximum) of the others.
Per-location ones of low rank have `hs` as image scores, and all arrays once more at the map's rank as `… r32`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from components.detection.beyond_chance import Answers
from components.detection.contest import Contender, Distances, answers_of, decide
from components.detection.detector import Composition, gaussian_blur, grown, image_scores
from components.detection.exam import asked, auroc_of
from components.detection.scale import Scale
from components.evaluation.metrics import auroc, pixel_figures
from components.synthesis.methods import NSA_GDE, not_asked

# As the family has them where every encoder was stored with them.
FAMILY = ("4+8+16+32 loc", "4+8+16+32 sh", "8+16+32 loc", "8+16+32 sh")
TRAINED = {"cutpaste-3way": "cp1", NSA_GDE: "nsa100"}
START = "pre"
GRID, SIDE, RASTER, SIGMA = 16, 256, 128, 1.0
Arrays = Mapping[str, np.ndarray]
Figures = tuple[float, float, float]


def stored_sets(folder: Path) -> Iterator[tuple[str, dict[str, str], dict[str, Figures]]]:
    """Of each set its name, who serves with each method, and the test figures of every contender."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        served, figures = {}, {}
        for method, encoder in TRAINED.items():
            first, both = START, f"{START} + {encoder}"
            composition = chosen_composition(arrays, method)
            groups = {first: (START,), both: (START, encoder), encoder: (encoder,)}
            contenders = [contender(name, group, composition) for name, group in groups.items()]
            answers = {own.name: stored_answers(own, arrays, method) for own in contenders}
            names = {first: "pretrained", both: f"pretrained + {method}", encoder: method}
            served[method] = names[decide(contenders, answers, margin=0.0, seed=0).winner.name]
            figures.update({names[name]: test_figures(group, composition, arrays) for name, group in groups.items()})
        yield path.stem, served, figures


def chosen_composition(arrays: Arrays, method: str) -> str:
    """The one with the best image mark before training, cross-fitted, of the kinds that this method is asked."""
    kinds = arrays["kinds"].tolist()
    numbers = [kinds.index(kind) for kind in asked(kinds, not_asked(method))]
    changed = arrays["mask_area"][:, ~arrays["ex_held"]] > 0
    marks = {}
    for name in FAMILY:
        good, samples = arrays[f"{START}|{name}|cg"][:, 0], arrays[f"{START}|{name}|cs"][..., 0]
        marks[name] = np.array([auroc_of(good, samples[k][changed[k]]) for k in numbers if changed[k].any()])
    weights = np.maximum(0, np.mean(list(marks.values()), axis=0) - 0.5)
    return max(FAMILY, key=lambda name: float(marks[name] @ weights))


def contender(name: str, encoders: Sequence[str], composition: str) -> Contender:
    """A contender of these encoders: image scores stand for themselves, maps are of GRID × GRID cells."""
    image = tuple(Composition(encoder, (composition, "image"), "image") for encoder in encoders)
    return Contender(name, image, tuple(Composition(encoder, (composition,), "shared", GRID) for encoder in encoders))


def stored_answers(who: Contender, arrays: Arrays, method: str) -> Answers:
    """What a contender says of the held-out images of the exam."""
    kinds = arrays["kinds"].tolist()
    numbers = {kind: kinds.index(kind) for kind in asked(kinds, not_asked(method))}
    rows = np.searchsorted(arrays["held_rows"], arrays["src"][arrays["ex_held"]])
    sat = {}
    for composition in who.all:
        key = f"{composition.encoder}|{composition.levels[0]}"
        image = not composition.is_dense
        good = scores_of(arrays[f"{key}|held"]) if image else arrays[f"{map_key(key, arrays)}|held"].astype(np.float32)
        samples = image_samples(arrays[f"{key}|hs"]) if image else arrays[f"{map_key(key, arrays)}|hs"]
        sat[composition] = Distances(good[rows], {kind: samples[k].astype(np.float32) for kind, k in numbers.items()})
    return answers_of(who, sat, {kind: exam_masks(arrays)[k] for kind, k in numbers.items()})


def exam_masks(arrays: Arrays) -> np.ndarray:
    """Masks (K, m, SIDE, SIDE) of the held-out samples; those of which the raster shows nothing count as unchanged."""
    shape = (len(arrays["kinds"]), len(arrays["src"]), 64, 64)
    masks = np.unpackbits(arrays["masks64"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    return masks[:, arrays["ex_held"]].repeat(SIDE // 64, axis=2).repeat(SIDE // 64, axis=3)


def map_key(key: str, arrays: Arrays) -> str:
    """The arrays of a composition at the rank of its map."""
    return f"{key} r32" if f"{key} r32|test" in arrays else key


def scores_of(distances: np.ndarray) -> np.ndarray:
    """Image scores (N,) of distances (N, L) or of scores."""
    return image_scores(distances.astype(np.float32), Composition("", (), "shared"))


def image_samples(distances: np.ndarray) -> np.ndarray:
    """Image scores (K, m) of distances (K, m, L), or of pairs of the mean of the top and the maximum."""
    if distances.shape[-1] == 2:
        return distances[..., 0]
    return np.stack([scores_of(own) for own in distances])


def test_figures(encoders: Sequence[str], composition: str, arrays: Arrays) -> Figures:
    """Image AUROC, and pixel AUROC and AUPRO on a raster of RASTER × RASTER, of the mean of these encoders."""
    keys = [f"{encoder}|{composition}" for encoder in encoders]
    scores = [Scale.of(scores_of(arrays[f"{k}|held"])).apply(scores_of(arrays[f"{k}|test"])) for k in keys]
    grids = []
    for key in (map_key(key, arrays) for key in keys):
        scale = Scale.of(arrays[f"{key}|held"].astype(np.float32))
        cells = scale.apply(arrays[f"{key}|test"].astype(np.float32))
        grids.append(grown(cells, Composition("", (), "shared", GRID), RASTER, RASTER))
    maps = gaussian_blur(sum(grids[1:], grids[0]) / len(grids), SIGMA)[:, 0].numpy()
    labels = arrays["labels"]
    shape = (len(labels), RASTER, RASTER)
    masks = np.unpackbits(arrays["tmask128"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    truth = ~labels | masks.any(axis=(1, 2))
    pixel, aupro = pixel_figures(masks[truth], maps[truth])
    return auroc(labels, np.mean(scores, axis=0)) or 0.0, pixel or 0.0, aupro or 0.0
