"""The figures of a version that are told of it everywhere, and what they are called."""

TITLES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "f1": "F1",
    "false_alarm_rate": "false alarms",
    "exam_mark": "exam",
}


def titles_of(*names: str) -> dict[str, str]:
    """Some of them, in this order."""
    return {name: TITLES[name] for name in names}
