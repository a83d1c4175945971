"""The gate at the end of a retraining: collect what tells challenger and champion apart, judge, act or ask a person."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from components.arrivals.entries import GoneError
from components.arrivals.inbox import open_source
from components.arrivals.outcome import MANIFEST
from components.detection.capsule import read_card, read_roles
from components.foundation.errors import UserError
from components.foundation.files import digest_of, read_json, sha256_file
from components.foundation.params import Params
from components.foundation.places import Places
from components.images.dataset import ImageRecord, list_category
from components.images.identity import LEARN
from components.images.layout import image_files
from components.registry import promotion
from components.registry import versions as registry
from components.registry.evidence import list_evidence
from components.registry.gate import records
from components.registry.gate.both import Maker
from components.registry.gate.comparison import Case, Judged, Model, judge, judge_first, screen_training_set
from components.registry.gate.floor import missing_for_first
from components.registry.journal import decided
from components.registry.versions import Version

SAMPLED = Path(".flawline/sampled")  # CATEGORY/: images that serving has sampled from the line


def pass_gate(category: str, number: int, params: Params) -> str:
    """Judge a version that was just registered, and do what the verdict and `gate.policy` say; in words.

    What was decided before stays; what waits for a person with the same evidence is not judged again.
    """
    champion = registry.champion(category)
    if champion is not None and champion.number == number:
        return f"is the {registry.CHAMPION}"
    version = registry.find_version(category, number)
    if decided(registry.journal(category), number) is not None:
        return f"stays as it was decided ({version.verdict})"
    key = evidence_key(version, champion, params)
    if records.waits_with(category, number, key):
        return _words_of_waiting(category, version.verdict.partition(f"{records.WAITS}: ")[2])
    judged = judge_against(version, champion, params) if champion else judge_as_first(version, params)
    return act_upon(category, number, judged, champion, key, params)


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


def act_upon(category: str, number: int, judged: Judged, champion: Version | None, key: str, params: Params) -> str:
    """Promote, reject, or leave it to a person; the words that say so."""
    verdict, before = judged.verdict, champion.number if champion else None
    if verdict.word == "reject":
        promotion.reject(category, number, verdict.summary, who=records.THE_GATE)
        records.keep(category, number, judged, key, before, "rejected")
        return f"is rejected by the gate, and version {before} stays the {registry.CHAMPION}: {verdict.summary}"
    if verdict.word == "promote" and params.gate.policy == "auto":
        promotion.promote(category, number, verdict.summary, who=records.THE_GATE, expected=before)
        records.keep(category, number, judged, key, before, "promoted")
        return f"is the {registry.CHAMPION}: {verdict.summary}"
    records.keep(category, number, judged, key, before, records.WAITS)
    return _words_of_waiting(category, verdict.summary)


def evidence_key(version: Version, champion: Version | None, params: Params) -> str:
    """A digest of what a verdict follows from: both capsules, the images by DVC's digest, and the gate's parameters."""
    evidence = sorted((one.digest, one.kind, one.mask) for one in list_evidence(version.category))
    followed = [version.digest, champion.digest if champion else "", version.data_version, dict(version.metrics)]
    return digest_of([*followed, evidence, params.gate.model_dump(mode="json"), params.threshold.false_alarm_rate])


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
    from components.stages.synthesize import exam_makers
    from components.synthesis.methods import not_asked
    from components.synthesis.nsa import NoPatchError
    from components.synthesis.nsa_settings import load_nsa_params

    def make(good: np.ndarray, keys: np.ndarray) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        try:
            nsa = load_nsa_params(Places(category).prepared)[0]
        except NoPatchError:
            nsa = None
        makers = exam_makers(good, keys, category, params, nsa)
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


def _words_of_waiting(category: str, summary: str) -> str:
    return (
        f"stays the {registry.CHALLENGER} and {records.WAITS}: {summary}. `flawline gate {category}` shows why and how "
        "to answer"
    )
