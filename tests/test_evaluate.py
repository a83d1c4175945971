"""What an evaluation says in words."""

from typing import Any

from components.evaluate import described

METRICS: dict[str, Any] = {
    "image_auroc": 0.99512,
    "pixel_auroc": 0.9704,
    "aupro": None,
    "counts": {"good": 20, "defect": 30},
    "exam_mark": 0.58432,
    "encoder": "pretrained",
    "training_helped": False,
    "threshold": 1.6718,
    "threshold_guarantee": "at most 1 false alarm in 4 good parts",
}


def test_a_run_is_described_by_its_figures_what_was_kept_and_what_the_threshold_promises() -> None:
    assert described(METRICS) == (
        "image AUROC 0.995, pixel AUROC 0.970 on 20 good and 30 defective test images. Exam of held-out synthetic "
        "defects: 0.584 with the representation pretrained (training did not help). Alarm above 1.67: at most 1 false "
        "alarm in 4 good parts."
    )


def test_without_test_images_the_exam_remains() -> None:
    found = described(METRICS | {"image_auroc": None, "pixel_auroc": None, "training_helped": None})
    assert found.startswith("Exam of held-out synthetic defects: 0.584 with the representation pretrained (nothing")
