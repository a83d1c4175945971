"""Two versions of a category side by side: figures, kinds of defect, flipped verdicts, what they were made of.

The verdicts are those of both versions on the same images, each at its own threshold. Nothing is concluded here: what
the figures are worth, with their intervals, the gate says.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.detection.card import read_card, read_roles
from components.foundation.limits import ImageLimits
from components.foundation.making import differences
from components.images.dataset import ImageRecord
from components.images.identity import HELD_OUT, Roles, both_held_out, changes
from components.registry.kept_scores import scores_of
from components.registry.threshold import ORIGIN, threshold_origin
from components.registry.versions import Version, download_capsule, find_version

Row = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Flip:
    """An image that one version calls defective and the other good.

    Attributes:
        name, kind: of the image; "good" or a kind of defect.
        first, second: scores. is_right: whether the second version is.
    """

    name: str
    kind: str
    first: float
    second: float
    is_right: bool


@dataclass(frozen=True)
class Comparison:
    """What two versions differ by.

    Attributes:
        first, second: the versions.
        figures: of both, by name; None where not measured.
        kinds: image AUROC, and share found at the threshold, of each kind of defect.
        made_of: what they were made of, where it differs: name, first, second.
        images: how many both have judged. flips: those of them that flip, the farthest beyond the thresholds first.
    """

    first: Version
    second: Version
    figures: tuple[Row, ...]
    kinds: tuple[tuple[str, Mapping[str, float | None], Mapping[str, float | None]], ...]
    made_of: tuple[tuple[str, str, str], ...]
    images: int
    flips: tuple[Flip, ...]


def compare_versions(
    category: str, numbers: tuple[int, int], records: Sequence[ImageRecord], limits: ImageLimits
) -> Comparison:
    """Compare two versions; `records` are the images whose verdicts are compared, which neither should have learned."""
    first, second = (find_version(category, number) for number in numbers)
    folders = [download_capsule(category, number) for number in numbers]
    flips = tuple(_flips((first, second), folders, records, limits)) if records else ()
    return Comparison(
        first,
        second,
        tuple((name, first.metrics.get(name), second.metrics.get(name)) for name in _names(first, second)),
        tuple(
            (kind, first.by_kind.get(kind, {}), second.by_kind.get(kind, {}))
            for kind in sorted({*first.by_kind, *second.by_kind})
        ),
        tuple(_made_of(first, second, folders)),
        len(records),
        flips,
    )


def _names(*versions: Version) -> list[str]:
    return list(dict.fromkeys(name for version in versions for name in version.metrics))


def _made_of(first: Version, second: Version, capsules: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """Data, threshold, parameters and libraries that differ."""
    facts = {
        "method": (first.method, second.method),
        "threshold": (f"{first.threshold:.6g}", f"{second.threshold:.6g}"),
        "training images": (first.data_digest[:10], second.data_digest[:10]),
        "data version": (first.data_version[:10], second.data_version[:10]),
        "data commit": (first.data_commit[:10], second.data_commit[:10]),
        "code commit": (first.commit[:10], second.commit[:10]),
    }
    yield from ((name, old or "–", new or "–") for name, (old, new) in facts.items() if old != new)
    roles = [read_roles(folder) for folder in capsules]
    if roles[0] and roles[1]:
        yield from role_rows(roles[0], roles[1])
    cards = [read_card(folder) for folder in capsules]
    origins = [(threshold_origin(card) or {}).get("in_words") for card in cards]
    if origins[0] != origins[1]:
        yield "set later", _text(origins[0]), _text(origins[1])
    for key, old, new in differences(*(card["provenance"] for card in cards)):
        if key.partition(".")[0] not in ("data_digest", ORIGIN):
            yield key.removeprefix("params."), _text(old), _text(new)


def role_rows(one: Roles, other: Roles) -> Iterator[tuple[str, str, str]]:
    """How many images were held out, how many of them by both, and which known images have another role, and why."""
    held = [len(roles.of_role(*HELD_OUT)) for roles in (one, other)]
    same = len(both_held_out(one, other))
    if held != [same, same]:
        yield "held-out images", str(held[0]), f"{held[1]}, {same} of them the same"
    alike = Counter((change.before, change.after, change.reason) for change in changes(one, other))
    for (before, after, reason), count in alike.most_common():
        words = f"{count} image{'s' if count > 1 else ''}, as {reason}"
        yield "changed role", before, f"{after}: {words}"


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _flips(
    versions: tuple[Version, Version], capsules: Sequence[Path], records: Sequence[ImageRecord], limits: ImageLimits
) -> list[Flip]:
    """The images that only one of the two calls defective."""
    first, second = versions
    paths = [record.path for record in records]
    found: list[tuple[float, Flip]] = []
    scores = [scores_of(folder, one.digest, paths, limits) for one, folder in zip(versions, capsules, strict=True)]
    for record, one, other in zip(records, *scores, strict=True):
        alarms = one > first.threshold, other > second.threshold
        if alarms[0] != alarms[1]:
            beyond = abs(one - first.threshold) + abs(other - second.threshold)
            found.append((beyond, Flip(record.name, record.kind, one, other, alarms[1] != record.is_good)))
    return [flip for _, flip in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]
