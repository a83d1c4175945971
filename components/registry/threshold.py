"""Another threshold for a version, from the calibration scores that its capsule holds: nothing is fitted again.

The new version is a capsule with the same weights and statistics. Its provenance says of which version and for which
false-alarm rate, so that `capsule_with_threshold` of that version's capsule makes the same bytes again.
"""

import csv
import io
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from components.detection.capsule import checked_card
from components.detection.promise import reset
from components.evaluation.metrics import f1_at, false_alarm_rate
from components.foundation.errors import UserError
from components.foundation.files import copy_file, digest_of, new_directory, write_json
from components.registry.versions import Version, download_capsule, find_version, list_versions, register
from components.tracking.connection import NOTE, connect, server_errors_explained
from components.tracking.git_tags import GIT_COMMIT
from components.tracking.runs import CAPSULE_DIGEST, CATEGORY, DATA_COMMIT, DATA_VERSION

if TYPE_CHECKING:
    from mlflow import MlflowClient

ORIGIN = "threshold"  # in the provenance: of_version, of_capsule, false_alarm_rate, in_words
SCORES = "evaluation/scores.csv"  # artifact of the run that made a version: name, kind and score of each test image
_RATE = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*|\s*(0?\.\d+)\s*|\s*(\d+(?:\.\d+)?)\s*%\s*")
_FREE = ("image_auroc", "pixel_auroc", "aupro", "exam_mark")  # figures that no threshold changes


@dataclass(frozen=True)
class Reset:
    """What became of a wish for another threshold.

    Attributes:
        base, version: the version it was set for, and the one that has it; the same one where it had that threshold.
        is_new: whether the version was made now.
        promise: of the new threshold, in words.
    """

    base: Version
    version: Version
    is_new: bool
    promise: str


def parse_rate(text: str) -> float:
    """The false-alarm rate that "1/500", "0.002" or "0.2 %" means; UserError for anything else, or outside (0, 1).

    >>> parse_rate("1/500")
    0.002
    """
    found = _RATE.fullmatch(text)
    if found:
        parts, whole, decimal, percent = found.groups()
        if parts and int(whole):
            rate = Fraction(int(parts), int(whole))
        else:
            rate = Fraction(decimal) if decimal else Fraction(percent or 0) / 100
        if 0 < rate < 1:
            return float(rate)
    raise UserError(f"{text!r} is no rate of false alarms: write it as 1/500, 0.002 or 0.2%.")


def set_threshold(category: str, rate: float, number: int | None = None, confidence: float = 0.95) -> Reset:
    """Register a version like another one, with the threshold for this rate of false alarms; it becomes `challenger`.

    rate: share of good parts that may be called defective, in (0, 1). number: of the version; the champion, or else the
    latest, for None. confidence: of the promise. Safe to repeat: the same again gives the version that is there.
    """
    base = find_version(category, number)
    source = download_capsule(category, base.number)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "capsule"
        card = capsule_with_threshold(source, base.number, rate, confidence, folder)
        promise = str(card["selection"]["promise"]["sentence"])
        if card["threshold"] == base.threshold:
            return Reset(base, base, False, promise)
        known = {version.digest: version for version in list_versions(category)}
        if card["digest"] in known:
            return Reset(base, known[card["digest"]], False, promise)
        version = _register(base, folder, card)
    return Reset(base, version, True, promise)


def capsule_with_threshold(source: Path, number: int, rate: float, confidence: float, folder: Path) -> dict[str, Any]:
    """Write the capsule in `source` (version `number`) to `folder` with another threshold; returns its card.

    The same bytes each time, also from a capsule that only differs in its threshold: what is named is the version that
    was fitted. Raises UserError where the source is damaged.
    """
    card = checked_card(source)
    fitted = threshold_origin(card) or {"of_version": number, "of_capsule": card["digest"]}
    scores = load_file(source / "density.safetensors")["calibration"]  # (n,) ascending
    made, selection = reset(card["selection"], scores, rate, confidence)
    origin = {
        "of_version": fitted["of_version"],
        "of_capsule": fitted["of_capsule"],
        "false_alarm_rate": rate,
        "confidence": confidence,
        "in_words": f"threshold of version {fitted['of_version']} set to {made.value:.6g}",
    }
    changed = {
        **{name: value for name, value in card.items() if name != "digest"},
        "threshold": made.value,
        "selection": selection,
        "provenance": {**card["provenance"], ORIGIN: origin},
    }
    changed["digest"] = digest_of(changed)
    with new_directory(folder) as beside:
        for name in card["files"]:
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source / name, beside / name)
        write_json(beside / "capsule.json", changed)
    return changed


def threshold_origin(card: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of which version, and for which rate, the threshold of a capsule was set; None where it was fitted with it."""
    origin = card["provenance"].get(ORIGIN)
    return origin if isinstance(origin, Mapping) else None


def figures_at(scores: str, threshold: float) -> tuple[dict[str, float], dict[str, float]]:
    """F1 and false-alarm rate at a threshold, and the share of each kind of defect that is found.

    scores: the text of a scores.csv, as the evaluation writes it.
    """
    rows = [(row["kind"], float(row["score"])) for row in csv.DictReader(io.StringIO(scores))]
    labels = np.array([kind != "good" for kind, _ in rows], dtype=bool)
    values = np.array([score for _, score in rows])
    found = {"f1": f1_at(labels, values, threshold), "false_alarm_rate": false_alarm_rate(values[~labels], threshold)}
    kinds = {kind for kind, _ in rows if kind != "good"}
    shares = {kind: float(np.mean([score > threshold for k, score in rows if k == kind])) for kind in sorted(kinds)}
    return {name: value for name, value in found.items() if value is not None}, shares


def _register(base: Version, folder: Path, card: Mapping[str, Any]) -> Version:
    """Register the capsule under a run of its own, which has what the base's run says of data and code."""
    with server_errors_explained():
        client, experiment = connect()
        scores = _scores_of(client, base)
        metrics = {name: value for name, value in base.metrics.items() if name in _FREE}
        by_kind = {kind: {**row, "found": None} for kind, row in base.by_kind.items()}
        if scores:
            measured, shares = figures_at(scores, card["threshold"])
            metrics |= measured
            by_kind = {kind: {**row, "found": shares.get(kind)} for kind, row in base.by_kind.items()}
        run_id = _new_run(client, experiment, base, card)
        if scores:
            client.log_text(run_id, scores, SCORES)
        client.set_terminated(run_id, "FINISHED")
    return register(base.category, folder, run_id, metrics, base.method, by_kind)


def _scores_of(client: "MlflowClient", base: Version) -> str:
    """The scores of the test images that the base's run holds; empty where it holds none."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            return Path(client.download_artifacts(base.run_id, SCORES, scratch)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return ""


def _new_run(client: "MlflowClient", experiment: str, base: Version, card: Mapping[str, Any]) -> str:
    origin = card["provenance"][ORIGIN]
    tags = {
        CATEGORY: base.category,
        DATA_VERSION: base.data_version,
        DATA_COMMIT: base.data_commit,
        GIT_COMMIT: base.commit,
        CAPSULE_DIGEST: str(card["digest"]),
        NOTE: f"{origin['in_words'].capitalize()}: {card['selection']['promise']['sentence']}.",
    }
    name = f"{base.category} {origin['in_words']}"
    return str(client.create_run(experiment, run_name=name, tags={k: v for k, v in tags.items() if v}).info.run_id)
