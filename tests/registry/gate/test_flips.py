"""Which verdicts flip, and in which order they are shown."""

from pathlib import Path

import numpy as np

from components.images.dataset import ImageRecord
from components.registry.gate.both import Both, Role, Shown
from components.registry.gate.flips import find_flips


def shown(name: str, kind: str, role: Role = "test") -> Shown:
    return Shown(ImageRecord(Path(name), name, "test", kind), role)


def test_what_is_wrong_comes_first_then_what_nobody_knows_each_by_how_far_it_moved() -> None:
    images = [
        shown("same", "good"),
        shown("missed", "scratch"),
        shown("found", "scratch"),
        shown("alarm", "good"),
        shown("far alarm", "good"),
        shown("delivered", "good", "delivery"),
        shown("sampled", "", "replay"),
        shown("sample of the exam", "cutpaste", "exam"),
    ]
    champion = np.array([0, 3, 1, 1, 1, 2.5, 1, 1], np.float32)
    challenger = np.array([0, 3, 5, 5, 9, 3, 8, 9], np.float32)
    nothing = np.zeros((8, 2, 2), np.float32)
    both = Both(images, (champion, challenger), (nothing, nothing), (nothing > 0, nothing > 0))
    flips = find_flips(both, (2.0, 4.0))
    assert [(flip.name, flip.wrong) for flip in flips] == [
        ("far alarm", True),
        ("alarm", True),
        ("missed", True),
        ("sampled", None),
        ("delivered", None),
        ("found", False),
    ]
    assert [flip.words for flip in flips[2:4]] == ["no alarm any more", "now an alarm"]
    assert (flips[0].champion, flips[0].challenger) == (-1.0, 5.0)
