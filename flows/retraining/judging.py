"""What the gate judges a version by: the images that champion and challenger are compared on, and both models."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from components.arrivals.entries import GoneError
from components.arrivals.inbox import open_source
from components.arrivals.outcome import MANIFEST
from components.detection.card import read_card, read_roles
from components.foundation.errors import UserError
from components.foundation.files import read_json, sha256_file
from components.foundation.params import Params
from components.foundation.places import Places
from components.images.dataset import ImageRecord, list_category
from components.images.identity import LEARN
from components.images.layout import image_files
from components.registry import versions as registry
from components.registry.evidence import list_evidence
from components.registry.gate import records
from components.registry.gate.both import Maker
from components.registry.gate.comparison import Case, Judged, Model, judge, judge_first, screen_training_set
from components.registry.gate.floor import missing_for_first
from components.registry.versions import Version

SAMPLED = Path(".flawline/sampled")  # CATEGORY/: images that serving has sampled from the line


def judge_against(version: Version, champion: Version, params: Params) -> Judged:
    """The verdict on a version, by what it and the champion say of images that neither has learned."""
    category, root = version.category, Path(params.data.root) / version.category
    training = training_images(category, root)
    known = {sha256_file(record.path): record for record in list_category(root).test}
    known |= {one.digest: one.record for one in list_evidence(category)}
    old, new = (model_of(one, training) for one in (champion, version))
    case = Case(
        category,
        old,
        new,
        known={**training, **known},
        delivery=delivered_since(old.folder, training),
        production=list(islice(production_images(category, root, params), params.gate.replay)),
        errors=[str(error) for error in read_json(Places(category).validation / "report.json")["errors"]],
        exam=exam_maker(category, params),
    )
    return judge(case, params, records.folder_of(category, version.number))


def judge_as_first(version: Version, params: Params) -> Judged:
    """The verdict on a category's first version, by `gate.first` and by its training set's own screening."""
    from components.learning.backbone import build_encoder
    from components.synthesis.prepared import load_prepared

    places = Places(version.category)
    missing = missing_for_first(places.capsule, read_json(places.validation / "report.json"), params.gate.first)
    prepared = load_prepared(places.prepared)
    screened = screen_training_set(build_encoder(params.backbone, params.seed), prepared.images, params)
    model = Model(version.number, version.digest, version.method, version.data_version, places.capsule)
    folder = records.folder_of(version.category, version.number)
    known = training_images(version.category, Path(params.data.root) / version.category)
    names = [known[digest].name if digest in known else digest for digest in prepared.roles.digests]
    return judge_first(version.category, model, missing, names, prepared.images, screened, folder)


def model_of(version: Version, training: Mapping[str, ImageRecord]) -> Model:
    """A version as the gate sees it, with its stored capsule. training: the present good images by SHA-256."""
    folder = registry.download_capsule(version.category, version.number)
    learned = learned_by(folder)
    return Model(
        version.number,
        version.digest,
        version.method,
        version.data_version,
        folder,
        training.keys() if learned is None else learned,
    )


def training_images(category: str, root: Path) -> dict[str, ImageRecord]:
    """The good images that were validated last, by SHA-256, as far as they are still there."""
    names = read_json(Places(category).validation / "learned.json")["images"]
    records = {digest: ImageRecord(root / name, name, "train", "good") for name, digest in names.items()}
    return {digest: record for digest, record in records.items() if record.path.is_file()}


def learned_by(capsule: Path) -> Collection[str] | None:
    """SHA-256 of the images that a capsule has learned; None where it does not say so.

    Those that were held out count as learned, unless its threshold's promise rests on their being not: densities may
    learn them in the end (`fit.refit`).
    """
    roles = read_roles(capsule)
    if roles is None:
        return None
    promised = read_card(capsule)["selection"].get("promise", {})
    return set(roles.of_role(LEARN) if promised.get("construction") == "split" else roles.digests)


def delivered_since(champion: Path, training: Mapping[str, ImageRecord]) -> list[ImageRecord]:
    """The good images that the champion did not know; none where its capsule does not say which it knew."""
    roles = read_roles(champion)
    known = set(roles.digests) if roles else training.keys()
    return [record for digest, record in training.items() if digest not in known]


def production_images(category: str, root: Path, params: Params) -> Iterator[ImageRecord]:
    """Images of the line, the latest first: what serving has sampled, then what ingest has accepted."""
    sampled = sorted(image_files(SAMPLED / category), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in sampled:
        yield ImageRecord(path, f"sampled/{path.name}", "test", "")
    for name in _accepted(category, params):
        if (root / name).is_file():
            yield ImageRecord(root / name, name, "train", "good")


def exam_maker(category: str, params: Params) -> Maker:
    """What makes synthetic defects of good images, as the stage synthesize does."""
    from components.detection.exam import asked
    from components.synthesis.exam_samples import ExamImages, exam_makers
    from components.synthesis.methods import not_asked
    from components.synthesis.nsa import NoPatchError
    from components.synthesis.nsa_settings import load_nsa_params

    def make(good: np.ndarray, keys: np.ndarray) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        try:
            nsa = load_nsa_params(Places(category).prepared)[0]
        except NoPatchError:
            nsa = None
        makers = exam_makers(ExamImages.of(good, keys, nsa), category, params)
        kinds = asked(makers, not_asked(params.method))  # as in every exam: what was taught is not
        return {kind: makers[kind](np.arange(len(good))) for kind in kinds}

    return make


def _accepted(category: str, params: Params) -> Iterator[str]:
    """Names in the category of the images that ingest has accepted, latest delivery first; none if not to be had."""
    try:
        source = open_source(params.ingest.source)
        places = [place for place in source.places(f"accepted/{category}") if place.endswith(f"/{MANIFEST}")]
        for place in sorted(places, reverse=True):
            yield from _names_in(source.read(place))
    except (UserError, OSError, GoneError):
        return


def _names_in(manifest: bytes) -> Sequence[str]:
    try:
        entries: Any = json.loads(manifest)
        names = [str(entry["image"]) for entry in entries]
    except (ValueError, TypeError, KeyError):
        return []
    return [name for name in names if name.startswith("train/good/") and ".." not in name]
