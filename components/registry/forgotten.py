"""Images that a category must not have any more: a record that names them by their digests and says why, without them.

It lies beside the category's `.dvc` file, is committed with the version of the data that is the first without them, and
keeps them from coming back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.files import is_digest, read_json, sha256_file, write_json
from components.images.dataset import ImageRecord


@dataclass(frozen=True)
class Forgotten:
    """One image that was forgotten.

    Attributes:
        digest: SHA-256 of the file, 64 hex digits.
        reason: a person's own words.
        who, when: who did it, when (ISO 8601, UTC).
        erased: MD5 of the objects that were removed from DVC's cache and remote too, and so from all versions before:
            of the image, its masks and the evidence of it; none where the versions before keep them.
    """

    digest: str
    reason: str
    who: str
    when: str
    erased: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Forgotten":
        """The inverse of `dataclasses.asdict`, after a way through JSON."""
        return cls(**{**entry, "erased": tuple(entry["erased"])})


def record_of(root: Path, category: str) -> Path:
    """Where the record of a category is, whose images lie in `root/CATEGORY`."""
    return root / f"{category}.forgotten.json"


def list_forgotten(record: Path) -> dict[str, Forgotten]:
    """What was forgotten, by digest; nothing where there is no record. UserError for a damaged one."""
    if not record.is_file():
        return {}
    try:
        found = [Forgotten.from_json(entry) for entry in read_json(record)]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"The record {record} is damaged: restore it with `git checkout {record}`.") from error
    if not all(is_digest(one.digest) for one in found):
        raise UserError(f"The record {record} names no digest: restore it with `git checkout {record}`.")
    return {one.digest: one for one in found}


def add_forgotten(record: Path, new: Sequence[Forgotten]) -> None:
    """Add to the record; of an image that is in it already, the new entry counts."""
    known: Mapping[str, Forgotten] = list_forgotten(record) | {one.digest: one for one in new}
    write_json(record, [asdict(one) for one in sorted(known.values(), key=lambda one: (one.when, one.digest))])


def check_not_forgotten(record: Path, offered: Sequence[ImageRecord]) -> None:
    """Raise UserError where one of the images that are offered to a category was forgotten."""
    known = list_forgotten(record)
    for image in offered if known else ():
        if one := known.get(sha256_file(image.path)):
            raise UserError(
                f"{image.path} was forgotten on {one.when[:10]} ({one.reason}): leave it out, or remove the entry "
                f"{one.digest[:10]}… from {record} first."
            )
