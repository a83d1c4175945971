"""Models of one category and what each says of the test images: a champion, as good ones, and ones that lost something.

All are the detector without training, with the composition that the exam chooses for the whole category and thresholds
by the project's calibration, from cross-fitted scores. The champion has learned 90 % of the good images; as good are
those that have learned other 90 %. Some have learned fewer images, and some are the champion with noise in its means,
as strong as it takes to lose so many hundredths of the test images' AUROC.

What they say of the test images is kept in the folder of the runs, as fitting them takes the most time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.methods import working_in
from components.density.gaussian import Scorer
from components.detection.choice import choose_compositions, make_banks
from components.detection.detector import BATCH, Composition, arrange, image_scores
from components.detection.exam import auroc_of, fold_scorers
from components.detection.promise import promise
from components.foundation.params import Params, parse_params, read_preset
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.images.dataset import list_category
from components.images.decode import read_square
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder, build_encoder
from components.stages import synthesize, validate
from components.synthesis.methods import PRETRAINED
from components.synthesis.prepared import Prepared, batches, load_prepared

SHARE, EQUAL = 0.9, 8  # of the good images, and how many models are as good as the champion
FEWER, DRAWS = (0.6, 0.3, 0.1), 4  # shares of the good images, and of each how many models
LOST, NOISES = (1, 3, 5, 10), 3  # hundredths of AUROC, and of each how many models
STRENGTHS = (-10.0, 10.0)  # of noise, powers of two of the features' own deviations
HALVINGS = 14


@dataclass(frozen=True)
class Model:
    """What a model is, its scores (N,) of the test images, and its threshold."""

    name: str
    scores: np.ndarray
    threshold: float


@dataclass(frozen=True)
class Models:
    """A champion and its challengers, which have scored the same N test images.

    Attributes:
        kinds: (N,) str, "good" or the kind of defect of each image.
        champion, challengers: the models.
    """

    kinds: np.ndarray
    champion: Model
    challengers: Sequence[Model]

    @property
    def labels(self) -> np.ndarray:
        """(N,) bool: True for a defect."""
        return np.asarray(self.kinds != "good")

    def lost_points(self, model: Model) -> float:
        """By how many hundredths the model's image AUROC on all images is lower than the champion's."""
        return 100 * (image_auroc(self.kinds, self.champion.scores) - image_auroc(self.kinds, model.scores))


@dataclass(frozen=True)
class Material:
    """What models of a category are made of.

    Attributes:
        prepared, params: of the category.
        composition: that of all models.
        good: (M, L, D) or (M, D) float32 features of the good images to learn from. test: the same of N test images.
        kinds: (N,) str, "good" or the kind of defect of each test image.
    """

    prepared: Prepared
    params: Params
    composition: Composition
    good: np.ndarray
    test: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class Fit:
    """Which good images (n,) were learned, the fold (n,) of each, what was fitted without each fold, and to all."""

    rows: np.ndarray
    folds: np.ndarray
    without: dict[int, Scorer]
    whole: Scorer


def models_of(category: Path, work: Path) -> Models:
    """The models of the category in this folder; they are fitted where `work` has none."""
    kept = work / f"{category.resolve().name}-gate" / "models.npz"
    if not kept.exists():
        keep_models(kept, *fitted(material_of(category, work)))
    with np.load(kept, allow_pickle=False) as found:
        names, scores, thresholds = found["names"].tolist(), found["scores"], found["thresholds"].tolist()
        champion, *others = (Model(*own) for own in zip(names, scores, thresholds, strict=True))
        return Models(found["kinds"], champion, others)


def keep_models(path: Path, kinds: np.ndarray, models: Sequence[Model]) -> None:
    """Write the champion and the others: names (M,), scores (M, N), thresholds (M,), kinds (N,)."""
    names, scores, thresholds = zip(*((one.name, one.scores, one.threshold) for one in models), strict=True)
    np.savez(path, names=np.array(names), scores=np.stack(scores), thresholds=np.array(thresholds), kinds=kinds)


def image_auroc(kinds: np.ndarray, scores: np.ndarray) -> float:
    """Of scores (N,) of test images of these kinds (N,)."""
    return auroc_of(scores[kinds == "good"], scores[kinds != "good"])


def material_of(category: Path, work: Path) -> Material:
    """Prepare the category in `work`, let the exam choose, and look at all images with the untrained network."""
    root = category.resolve()
    content = read_preset("cpu") | {"method": "pretrained", "seed": 0}
    content |= {"data": {"root": str(root.parent), "categories": [root.name]}}
    params = parse_params(content, "preset cpu")
    use_threads(params.threads)
    with working_in(work / f"{root.name}-gate"):
        validate.main(root.name, params)
        synthesize.main(root.name, params)
        prepared = load_prepared(Places(root.name).prepared)
        encoder = build_encoder(params.backbone, params.seed)
        _, chosen = choose_compositions(make_banks({PRETRAINED: encoder}, prepared, params)[PRETRAINED], params)
    records, limits = list_category(root).test, params.limits.image_limits().at_depth(prepared.bits)
    images = np.stack([read_square(record.path, params.image.side, limits) for record in records])
    good, test = (features_of(encoder, some, chosen.image[0]) for some in (prepared.images, images))
    return Material(prepared, params, chosen.image[0], good, test, np.array([record.kind for record in records]))


@torch.inference_mode()
def features_of(encoder: Encoder, images: np.ndarray, composition: Composition) -> np.ndarray:
    """Features of images (N, S, S, 3) uint8 as the composition's density takes them: (N, D), or (N, L, D)."""
    pieces = []
    for rows in batches(np.arange(len(images)), BATCH):
        batch = as_tensor(np.ascontiguousarray(images[rows]))
        pieces.append(arrange(encoder.features(batch, composition.levels), composition))
    return np.concatenate(pieces)


def fitted(material: Material) -> tuple[np.ndarray, list[Model]]:
    """The kinds of the test images, and the models: the champion, those of other images, those with noise."""
    learned = fit(material, SHARE, seed=0)
    models = [model(material, learned, "champion")]
    for share, count in ((SHARE, EQUAL), *((share, DRAWS) for share in FEWER)):
        for seed in range(1, 1 + count):
            models.append(model(material, fit(material, share, seed), f"{share:.0%} of the images, draw {seed}"))
    for points in LOST:
        for seed in range(NOISES):
            models.append(noisy(material, learned, points, seed))
    return material.kinds, models


def noisy(material: Material, learned: Fit, points: float, seed: int) -> Model:
    """What was learned, with noise that loses about so many hundredths of AUROC."""
    noise = noise_of(material, learned, seed)
    before = image_auroc(material.kinds, scored(material.composition, learned.whole, material.test))

    def lost(strength: float) -> float:
        scores = scored(material.composition, learned.whole, material.test + np.float32(strength) * noise)
        return 100 * (before - image_auroc(material.kinds, scores))

    strength = strength_that_loses(points, lost)
    return model(material, learned, f"noise {seed} for {points} points", np.float32(strength) * noise)


def fit(material: Material, share: float, seed: int) -> Fit:
    """Fit the composition to a random share of the good images, and to these without each fold; no turned copies."""
    count = len(material.good)
    rows = np.sort(np.random.default_rng(seed).permutation(count)[: round(share * count)])
    folds = material.prepared.folds_of(rows, material.params.threshold.folds, material.prepared.seed)
    features = material.good[rows]
    without = dict(fold_scorers(material.composition, features[None], folds))
    return Fit(rows, folds, without, material.composition.scorer_of(features))


def model(material: Material, learned: Fit, name: str, noise: np.ndarray | float = 0.0) -> Model:
    """Set the threshold by cross-fitted scores and score the test images; features moved by noise are means moved."""
    held = np.empty(len(learned.rows), np.float32)
    for k, scorer in learned.without.items():
        own = learned.folds == k
        held[own] = scored(material.composition, scorer, material.good[learned.rows[own]] + noise)
    threshold, groups = material.params.threshold, material.prepared.groups[learned.rows]
    wished, sure = threshold.false_alarm_rate, threshold.confidence
    promised = promise(held, wished, sure, threshold.promise, groups=groups, construction="cross-fitted")
    return Model(name, scored(material.composition, learned.whole, material.test + noise), promised.value)


def scored(composition: Composition, scorer: Scorer, features: np.ndarray) -> np.ndarray:
    """Image scores (n,) float32 of features as the composition's density takes them."""
    return image_scores(scorer.score(features), composition).astype(np.float32)


def noise_of(material: Material, learned: Fit, seed: int) -> np.ndarray:
    """Normal noise of the shape of the density's means, in the deviations of what it has learned."""
    features = material.good[learned.rows]
    axes = (0, 1) if material.composition.layout == "shared" else 0
    deviations = features.std(axis=axes, dtype=np.float64)
    noise: np.ndarray = np.random.default_rng(seed).normal(size=deviations.shape) * deviations
    return noise.astype(np.float32)


def strength_that_loses(points: float, lost: Callable[[float], float]) -> float:
    """The strength at which `lost(strength)`, which grows with it, is about so many points: by bisection."""
    low, high = STRENGTHS
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if lost(2**middle) < points else (low, middle)
    return float(2**high)
