"""The facts of a category's images, kept from one look to the next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from components.foundation.errors import UserError
from components.foundation.files import read_json, sha256_file, write_json
from components.foundation.limits import ImageLimits
from components.images.dataset import Category, ImageRecord
from components.images.decode import read_with_header
from components.images.measures import MEASURES, Facts, image_facts

FORMAT = 1


def category_facts(category: Category | None, limits: ImageLimits, cache: Path) -> pd.DataFrame:
    """One row for each image of a category that can be decoded, with name, split, kind, sha256 and the image's facts.

    Facts are kept in the file `cache` by the SHA-256 of the image file: an image is decoded once in its life, and
    files that have neither changed their size nor their time are not even read. None is a category without images.
    """
    known = _read_cache(cache, limits.bits)
    rows = [_row(record, limits, known) for record in (category.records if category else ())]
    _write_cache(cache, rows, limits.bits)
    table = pd.DataFrame([row for row in rows if row["pixels"] is not None])
    return table if len(table) else pd.DataFrame(columns=["name", "split", "kind", "sha256", "pixels", *MEASURES])


def remember(cache: Path, facts: Mapping[str, Facts]) -> None:
    """Add the facts of images, by the SHA-256 of their files, to the cache of `category_facts`."""
    content = _read_cache(cache)
    write_json(cache, {**content, "facts": {**content["facts"], **facts}})


def _row(record: ImageRecord, limits: ImageLimits, known: dict[str, Any]) -> dict[str, Any]:
    status = record.path.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    before = known["files"].get(record.name)
    digest = before[2] if before and before[:2] == stamp else sha256_file(record.path)
    facts = known["facts"].get(digest) or _read_facts(record.path, limits)
    return {"name": record.name, "split": record.split, "kind": record.kind, "stamp": stamp, "sha256": digest} | facts


def _read_facts(path: Path, limits: ImageLimits) -> Facts:
    try:
        decoded = read_with_header(path, limits)
    except UserError:
        return {"pixels": None}
    return image_facts(decoded.pixels, decoded.mode)


def _read_cache(cache: Path, bits: int | None = None) -> dict[str, Any]:
    """What is known; of images that were read at another depth only the digests of their files."""
    try:
        content = read_json(cache)
    except (FileNotFoundError, ValueError):
        content = {}
    if content.get("format") != FORMAT:
        return {"format": FORMAT, "files": {}, "facts": {}}
    return {**content, "facts": {}} if bits not in (None, content.get("bits", 16)) else dict(content)


def _write_cache(cache: Path, rows: list[dict[str, Any]], bits: int) -> None:
    own = ("name", "split", "kind", "stamp", "sha256")
    write_json(
        cache,
        {
            "format": FORMAT,
            "bits": bits,
            "files": {row["name"]: [*row["stamp"], row["sha256"]] for row in rows},
            "facts": {row["sha256"]: {key: row[key] for key in row if key not in own} for row in rows},
        },
    )
