"""What an evaluation says in words, in curves, and by which images."""

from pathlib import Path
from typing import Any

import numpy as np

from components.images.dataset import ImageRecord
from components.stages.evaluate import Scored, described, notable_rows, precision_recall, write_plots

METRICS: dict[str, Any] = {
    "image_auroc": 0.99512,
    "pixel_auroc": 0.9704,
    "aupro": None,
    "counts": {"good": 20, "defect": 30},
    "exam_mark": 0.58432,
    "encoder": "pretrained",
    "training_helped": False,
    "threshold": 1.6718,
    "promise": "alarm above 1.672, the highest score of 9 good images: at most 1 false alarm in 4 good parts",
    "missed": {"scratch": {"count": 4, "missed": 0.25}},
}


def test_a_run_is_described_by_its_figures_what_was_kept_and_what_the_threshold_promises() -> None:
    assert described(METRICS) == (
        "image AUROC 0.995, pixel AUROC 0.970 on 20 good and 30 defective test images. Exam of held-out synthetic "
        "defects: 0.584 with the representation pretrained (training is not better beyond chance). Alarm above 1.672, "
        "the highest score of 9 good images: at most 1 false alarm in 4 good parts; of the exam's defects it misses "
        "25 % (scratch 25 %)."
    )


def test_without_test_images_the_exam_remains() -> None:
    found = described(METRICS | {"image_auroc": None, "pixel_auroc": None, "training_helped": None})
    assert found.startswith("Exam of held-out synthetic defects: 0.584 with the representation pretrained (nothing")


def scored(kinds: list[str], scores: list[float]) -> Scored:
    records = [ImageRecord(Path(f"{n}.png"), f"test/{kind}/{n}.png", "test", kind) for n, kind in enumerate(kinds)]
    blank = np.zeros((len(kinds), 4, 4))
    return Scored(records, np.array(scores, np.float32), blank, blank > 0, np.ones(len(kinds), bool))


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_curve

    random = np.random.default_rng(0)
    kinds = ["good" if good else "hole" for good in random.random(40) < 0.6]
    found = scored(kinds, np.round(random.normal(0, 1, 40) + [kind == "hole" for kind in kinds], 1).tolist())
    precision, recall, _ = precision_recall_curve(found.labels, found.scores)
    expected = sorted(zip(recall[:-1], precision[:-1], strict=True))  # its last point is made up
    np.testing.assert_allclose(sorted(precision_recall(found)), expected)


def test_without_both_classes_the_curves_have_titles_alone(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("step,loss\n1,0.5\n")
    write_plots(tmp_path / "plots", scored(["good", "good"], [1.0, 2.0]), tmp_path / "history.csv")
    texts = {path.name: path.read_text() for path in (tmp_path / "plots").iterdir()}
    assert texts == {
        "roc.csv": "false_alarms,found\n",
        "precision_recall.csv": "recall,precision\n",
        "scores.csv": "score,kind\n1,good\n2,good\n",
        "training.csv": "step,loss\n1,0.5\n",
    }


def test_a_reviewer_is_shown_the_worst_first() -> None:
    found = scored(["good", "good", "good", "hole", "cut", "hole"], [1.0, 5.0, 3.0, 9.0, 2.0, 4.5])
    assert notable_rows(found, threshold=4.0) == {
        "worst misses": [4, 5, 3],
        "worst false alarms": [1, 2, 0],
        "nearest to the threshold": [5, 1, 2, 4],
    }
    assert notable_rows(scored(["good"], [1.0]), threshold=4.0)["worst misses"] == []
