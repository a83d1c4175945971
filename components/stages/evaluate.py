"""Stage evaluate: measure the capsule on the test images, draw what an engineer wants to see, close the MLflow run.

Works with whatever there is: without defective images, without good test images, without masks, what cannot be
measured is null, and the synthetic exam's mark on held-out images remains.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.detection.capsule import Capsule, load_capsule
from components.detection.detector import BATCH, Detector
from components.detection.promise import cost_words
from components.evaluation.figures import exam_figure, history_figure, roc_figure, score_histogram
from components.evaluation.metrics import (
    auroc,
    bootstrap_interval,
    f1_at,
    f1_max,
    false_alarm_rate,
    pixel_figures,
    roc_curve,
)
from components.evaluation.sheets import map_gallery, map_picture
from components.foundation.files import new_directory, sha256_file, write_json, write_text
from components.foundation.limits import ImageLimits
from components.foundation.making import check_making
from components.foundation.params import EvaluationParams, Params
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.images.dataset import ImageRecord, list_category
from components.images.decode import merged_mask, read_square
from components.stages.command import run_stage
from components.tracking.connection import FIGURES, KINDS, PICTURES, SUMMARY
from components.tracking.fingerprint import learned_digest, open_category_run
from components.tracking.runs import Run, finish_run

STEPS = 4  # pictures under each key

READS = ("evaluation", "limits", "method", "seed", "threads")


@dataclass(frozen=True)
class Scored:
    """The test images with what the capsule says of them.

    Attributes:
        records: (N) the images.
        scores: (N,) float32 image scores.
        maps: (N, S, S) float32 anomaly maps.
        masks: (N, S, S) bool ground truth; empty for good images and for defects without a mask.
        has_truth: (N,) bool: good, or a defect with a mask; only these count for pixel figures.
    """

    records: Sequence[ImageRecord]
    scores: np.ndarray
    maps: np.ndarray
    masks: np.ndarray
    has_truth: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(N,) bool: True for a defect."""
        return np.array([not record.is_good for record in self.records], dtype=bool)

    def rows_of(self, kind: str) -> np.ndarray:
        """Indices of the images of one kind ("good", or a defect's name)."""
        return np.array([row for row, record in enumerate(self.records) if record.kind == kind], dtype=int)

    @property
    def defect_kinds(self) -> list[str]:
        """Names of the defect kinds, sorted."""
        return sorted({record.kind for record in self.records if not record.is_good})


def main(category: str, params: Params) -> None:
    """Write metrics/CATEGORY.json, the folders evaluation and plots of artifacts/CATEGORY, and tell MLflow."""
    use_threads(params.threads)
    places = Places(category)
    capsule = load_capsule(places.capsule)
    check_making(str(places.capsule), capsule.provenance, params, learned_digest(category))
    images = list_category(Path(params.data.root) / category)
    records, setting = images.test, setting_images(capsule, images.train)
    with open_category_run(category, params, "evaluate") as run:
        scored = score_records(capsule.detector, records, params.limits.image_limits().at_depth(capsule.bits))
        metrics = measure(capsule, scored, params.evaluation, params.seed)
        metrics["set_by"] = [{"name": record.name, "score": score} for record, score in setting]
        write_evaluation(places.evaluation, capsule, scored, setting, metrics, params)
        write_plots(places.plots, scored, places.encoder / "history.csv")
        write_json(places.metrics, {name: metrics[name] for name in SUMMARY})
        log_pictures(run, capsule, scored, params)
        report(run, capsule, metrics, places)


def score_records(detector: Detector, records: Sequence[ImageRecord], limits: ImageLimits) -> Scored:
    """Read and score the images batch by batch; masks are resampled to the maps' size."""
    size = detector.size
    scores = np.zeros(len(records), np.float32)
    maps = np.zeros((len(records), size, size), np.float32)
    masks = np.zeros((len(records), size, size), bool)
    for start in range(0, len(records), BATCH):
        rows = range(start, min(start + BATCH, len(records)))
        images = [read_square(records[row].path, size, limits) for row in rows]
        scores[start : rows.stop], maps[start : rows.stop] = detector.score(images)
        for row in rows:
            masks[row] = merged_mask(records[row].masks, size, limits)
    has_truth = np.array([record.is_good or bool(record.masks) for record in records], dtype=bool)
    return Scored(records, scores, maps, masks, has_truth)


def measure(capsule: Capsule, scored: Scored, params: EvaluationParams, seed: int) -> dict[str, Any]:
    """All figures of the evaluation, JSON-able; null where a figure is undefined."""
    labels, scores = scored.labels, scored.scores
    truth = scored.has_truth
    pixel_auroc, aupro = pixel_figures(scored.masks[truth], scored.maps[truth], params.aupro_fpr_limit)
    best_f1, _ = f1_max(labels, scores)
    interval = None
    if params.bootstrap:
        interval = bootstrap_interval(auroc, labels, scores, seed=seed, n=params.bootstrap)
    return {
        "category": capsule.category,
        "method": capsule.method,
        "image_auroc": auroc(labels, scores),
        "image_auroc_interval": interval,
        "pixel_auroc": pixel_auroc,
        "aupro": aupro,
        "f1": f1_at(labels, scores, capsule.threshold),
        "f1_max": best_f1,
        "false_alarm_rate": false_alarm_rate(scores[~labels], capsule.threshold),
        "threshold": capsule.threshold,
        "promise": capsule.promise.sentence,
        "missed": capsule.selection["missed"],
        "exam_mark": capsule.selection["held_out_marks"][capsule.selection["encoder"]],
        "encoder": capsule.selection["encoder"],
        "training_helped": capsule.selection["encoder"] != "pretrained" if capsule.method != "pretrained" else None,
        "counts": {"good": int((~labels).sum()), "defect": int(labels.sum())},
        "by_kind": {kind: _kind_figures(scored, kind, capsule.threshold) for kind in scored.defect_kinds},
        "capsule_digest": capsule.digest,
    }


def setting_images(capsule: Capsule, good: Sequence[ImageRecord]) -> list[tuple[ImageRecord, float]]:
    """The good images that set the threshold, the highest first, with their scores by what had not learned them."""
    scores = {row["digest"]: row["score"] for row in capsule.selection["set_by"]}
    records: dict[str, ImageRecord] = {}
    for record in good:
        records.setdefault(sha256_file(record.path), record)
    return [(records[digest], score) for digest, score in scores.items() if digest in records]


def write_evaluation(
    folder: Path,
    capsule: Capsule,
    scored: Scored,
    setting: Sequence[tuple[ImageRecord, float]],
    metrics: Mapping[str, Any],
    params: Params,
) -> None:
    """Write figures.json (all figures), scores.csv, roc.png, scores.png, gallery.png and set_by.png, all or none."""
    with new_directory(folder) as beside:
        write_json(beside / "figures.json", metrics)
        write_text(beside / "scores.csv", scores_csv(capsule, scored))
        roc_figure(scored.labels, scored.scores, beside / "roc.png")
        by_kind = {kind: scored.scores[scored.rows_of(kind)] for kind in scored.defect_kinds}
        score_histogram(scored.scores[~scored.labels], by_kind, capsule.threshold, beside / "scores.png")
        if len(scored.records):
            draw_gallery(beside / "gallery.png", capsule, scored, params)
        if setting:
            draw_setting(beside / "set_by.png", capsule, setting, params)


def write_plots(folder: Path, scored: Scored, history: Path) -> None:
    """Write what `dvc plots show` draws: roc.csv, precision_recall.csv, scores.csv and training.csv, all or none.

    Without both classes the curves have no points; without training, neither has its.
    """
    roc = roc_curve(scored.labels, scored.scores)
    with new_directory(folder) as beside:
        write_text(beside / "roc.csv", _csv(("false_alarms", "found"), zip(*roc[:2], strict=True) if roc else ()))
        write_text(beside / "precision_recall.csv", _csv(("recall", "precision"), precision_recall(scored)))
        kinds = [(f"{score:.6g}", record.kind) for score, record in zip(scored.scores, scored.records, strict=True)]
        write_text(beside / "scores.csv", _csv(("score", "kind"), kinds))
        write_text(beside / "training.csv", history.read_text())


def precision_recall(scored: Scored) -> list[tuple[float, float]]:
    """(recall, precision) of the alarms above each threshold that alarms at all; none without both classes."""
    curve, defects, good = roc_curve(scored.labels, scored.scores), scored.labels.sum(), (~scored.labels).sum()
    if curve is None:
        return []
    hits, false_alarms = np.rint(curve[1] * defects), np.rint(curve[0] * good)
    pairs = zip(hits.tolist(), false_alarms.tolist(), strict=True)
    return [(hit / int(defects), hit / (hit + wrong)) for hit, wrong in pairs if hit + wrong]


def log_pictures(run: Run, capsule: Capsule, scored: Scored, params: Params) -> None:
    """Send the images that a reviewer asks for first, each with its map, under keys that every run has."""
    limits, size = params.limits.image_limits().at_depth(capsule.bits), capsule.detector.size
    for key, rows in notable_rows(scored, capsule.threshold).items():
        for step, row in enumerate(rows):
            record = scored.records[row]
            image = read_square(record.path, size, limits)
            words = f"{record.kind} {Path(record.name).name}, {scored.scores[row]:.3g}"
            picture = map_picture(image, scored.maps[row], scored.masks[row], words, capsule.map_range)
            run.log_picture(picture, f"{PICTURES}/{key}", step)


def notable_rows(scored: Scored, threshold: float) -> dict[str, list[int]]:
    """Rows of the images to look at first: defects with the lowest scores, good images with the highest, and those
    whose score is nearest to the threshold; a few of each, the worst first.
    """
    order = np.argsort(scored.scores, kind="stable")  # (N,)
    near = np.argsort(np.abs(scored.scores - threshold), kind="stable")
    return {
        "worst misses": [int(row) for row in order if scored.labels[row]][:STEPS],
        "worst false alarms": [int(row) for row in order[::-1] if not scored.labels[row]][:STEPS],
        "nearest to the threshold": [int(row) for row in near][:STEPS],
    }


def draw_gallery(path: Path, capsule: Capsule, scored: Scored, params: Params) -> None:
    """Draw a few images of every kind with ground truth and anomaly map."""
    rows = list(gallery_rows(scored, params.evaluation.gallery))
    limits, size = params.limits.image_limits().at_depth(capsule.bits), capsule.detector.size
    map_gallery(
        [read_square(scored.records[row].path, size, limits) for row in rows],
        list(scored.maps[rows]),
        [scored.masks[row] if scored.has_truth[row] else None for row in rows],
        scored.scores[rows].tolist(),
        [scored.records[row].kind for row in rows],
        path,
        map_range=capsule.map_range,
        threshold=capsule.threshold,
        title=f"{capsule.category}: anomaly maps (alarm above {capsule.threshold:.3g})",
    )


def draw_setting(path: Path, capsule: Capsule, setting: Sequence[tuple[ImageRecord, float]], params: Params) -> None:
    """Draw the good images that set the threshold, so that a person can look whether they are good."""
    limits, size = params.limits.image_limits().at_depth(capsule.bits), capsule.detector.size
    images = [read_square(record.path, size, limits) for record, _ in setting]
    map_gallery(
        images,
        list(capsule.score(images)[1]),
        None,
        [score for _, score in setting],
        [Path(record.name).name for record, _ in setting],
        path,
        map_range=capsule.map_range,
        threshold=capsule.threshold,
        title=f"{capsule.category}: the good images that set the threshold (alarm above {capsule.threshold:.3g})",
    )


def gallery_rows(scored: Scored, count: int) -> Iterator[int]:
    """Up to `count` images, taken in turn from every kind, the good ones with the highest scores first."""
    queues = [list(scored.rows_of(kind)) for kind in scored.defect_kinds]
    queues.append(sorted(scored.rows_of("good"), key=lambda row: -scored.scores[row]))
    taken = 0
    while taken < count and any(queues):
        for queue in queues:
            if queue and taken < count:
                yield int(queue.pop(0))
                taken += 1


def scores_csv(capsule: Capsule, scored: Scored) -> str:
    """One line per image: name, kind, score, p-value, alarm."""
    rows = [
        [record.name, record.kind, f"{score:.6g}", f"{p_value:.6g}", int(score > capsule.threshold)]
        for record, score, p_value in zip(scored.records, scored.scores, capsule.p_values(scored.scores), strict=True)
    ]
    return _csv(["name", "kind", "score", "p_value", "alarm"], rows)


def report(run: Run, capsule: Capsule, metrics: dict[str, Any], places: Places) -> None:
    """Send figures and pictures of all stages to MLflow, and close the run."""
    run.log_metrics({f"{FIGURES}/{name}": metrics[name] for name in SUMMARY if metrics[name] is not None})
    for kind, row in metrics["by_kind"].items():
        known = {name: value for name, value in row.items() if value is not None}
        run.log_metrics({f"{KINDS}/{name} {kind}": value for name, value in known.items()})
    history = list(csv.DictReader((places.encoder / "history.csv").open()))
    run.log_history_if_missing([{"step": row.pop("step"), **_prefixed("train/", row)} for row in history])
    with new_directory(places.root / "report") as pictures:
        marks = defaultdict(list)
        for mark in capsule.selection["marks"]:
            marks["name"].append(mark["name"])
            marks["image"].append(mark["image"])
        serving = {part.composition.name for part in capsule.detector.parts if part.for_image}
        exam_figure(marks["name"], marks["image"], serving, pictures / "exam.png", "Synthetic exam: image AUROC")
        if history:
            history_figure(history, pictures / "history.png")
        run.log_figure_files(pictures, folder="training")
    run.log_figure_files(places.prepared / "contact_sheet.png", places.encoder / "training.json", folder="training")
    run.log_figure_files(*sorted(places.prepared.glob("nsa*.*")), folder="training")
    run.log_figure_files(places.validation, folder="validation")
    run.log_figure_files(places.evaluation, places.metrics, folder="evaluation")
    run.set_tags({"flawline.encoder": capsule.selection["encoder"]})
    finish_run(run, capsule.digest, described(metrics))


def described(metrics: Mapping[str, Any]) -> str:
    """What the figures say, in words: the description of the run and of the version that comes of it."""
    names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
    found = [f"{words} {metrics[name]:.3f}" for name, words in names.items() if metrics[name] is not None]
    good, defects = metrics["counts"]["good"], metrics["counts"]["defect"]
    figures = f"{', '.join(found)} on {good} good and {defects} defective test images. " if found else ""
    helped = {True: "training helped", False: "training is not better beyond chance", None: "nothing was trained"}
    cost = cost_words(metrics["missed"])
    promise = "; ".join(filter(None, [metrics["promise"], cost]))
    return (
        f"{figures}Exam of held-out synthetic defects: {metrics['exam_mark']:.3f} with the representation "
        f"{metrics['encoder']} ({helped[metrics['training_helped']]}). {promise[:1].upper()}{promise[1:]}."
    )


def _csv(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return text.getvalue()


def _prefixed(prefix: str, row: dict[str, str]) -> dict[str, str]:
    return {prefix + name: value for name, value in row.items()}


def _kind_figures(scored: Scored, kind: str, threshold: float) -> dict[str, float | None]:
    """Of one defect kind against the good images: image AUROC, share found at the threshold, pixel AUROC."""
    rows, good = scored.rows_of(kind), scored.rows_of("good")
    both = np.concatenate([good, rows])
    truth = both[scored.has_truth[both]]
    return {
        "image_auroc": auroc(scored.labels[both], scored.scores[both]),
        "found": float((scored.scores[rows] > threshold).mean()),
        "pixel_auroc": pixel_figures(scored.masks[truth], scored.maps[truth])[0] if len(truth) else None,
    }


if __name__ == "__main__":
    run_stage(main, READS)
