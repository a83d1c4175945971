"""Images that one model calls defective and the other good: what a change of models changes on the line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.registry.gate.both import Both

KNOWN = ("test", "held-out")


@dataclass(frozen=True)
class Flip:
    """One image on which the models' verdicts differ.

    Attributes:
        row: in `Both`.
        name, role, kind: of the image; kind is "" where nobody has said what it shows.
        champion, challenger: how far each score lies above its threshold, in units of the good scores' spread.
        wrong: whether the challenger is known to be the one that errs; None where what the image shows is not known:
            an image that was delivered as good is only said to be.
    """

    row: int
    name: str
    role: str
    kind: str
    champion: float
    challenger: float
    wrong: bool | None

    @property
    def words(self) -> str:
        """What changes, in words."""
        return "now an alarm" if self.challenger > 0 else "no alarm any more"


def find_flips(both: Both, thresholds: tuple[float, float], skipped: Sequence[str] = ("exam",)) -> list[Flip]:
    """The flipped images, the worst first: what is known to be wrong, then by how far the scores moved."""
    above = [scores - threshold for scores, threshold in zip(both.scores, thresholds, strict=True)]  # (N,) each
    (rows,) = np.nonzero((above[0] > 0) != (above[1] > 0))
    flips = []
    for row in rows.tolist():
        shown = both.images[row]
        if shown.role in skipped:
            continue
        record = shown.record
        is_known = shown.role in KNOWN and bool(record.kind)
        wrong = bool(above[1][row] > 0) == record.is_good if is_known else None
        flips.append(Flip(row, record.name, shown.role, record.kind, float(above[0][row]), float(above[1][row]), wrong))
    order = {True: 0, None: 1, False: 2}
    return sorted(flips, key=lambda flip: (order[flip.wrong], -abs(flip.challenger - flip.champion), flip.name))
