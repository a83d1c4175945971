"""The entries of `dvc.lock`, one for each stage of each category, as the text that DVC wrote.

They are moved from one lock to another as they are: written anew, a digest such as 12e4567 may become a number.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import yaml

from components.foundation.errors import UserError
from components.foundation.files import digest_of
from components.foundation.yaml_text import parse_lock, parse_yaml

LOCK = "dvc.lock"
HEADER = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"^  \S.*:[ \t]*$", re.MULTILINE)

Entries = Mapping[str, str]  # stage@category -> its lines


def read_entries(content: bytes | None) -> dict[str, str]:
    """The entries of a lock by stage; none where there is no lock. UserError where it is not as DVC writes it."""
    entries = split_entries((content or b"").decode(errors="replace"))
    if entries.keys() != _stage_names(content or b""):
        raise UserError(f"{LOCK} is not as DVC writes it: restore it with `git checkout {LOCK}`, or run `dvc repro`.")
    return {name: lines if lines.endswith("\n") else f"{lines}\n" for name, lines in entries.items()}


def split_entries(text: str) -> dict[str, str]:
    """The same by nothing but its lines, without a look whether they are as DVC writes them."""
    starts = [match.start() for match in _ENTRY.finditer(text)]
    texts = [text[start:end] for start, end in pairwise([*starts, len(text)])]
    return {_name(lines): lines for lines in texts}


def as_text(entries: Entries) -> str:
    """A lock with these entries."""
    return HEADER + "".join(entries.values())


def parse_entries(entries: Entries) -> dict[str, dict[str, Any]]:
    """What these entries say of each stage."""
    return dict(parse_yaml(as_text(entries), LOCK)["stages"] or {})


def of_category(entries: Mapping[str, Any], category: str) -> dict[str, Any]:
    """Those of one category's stages."""
    return {name: entry for name, entry in entries.items() if name.rpartition("@")[2] == category}


def categories_of(entries: Mapping[str, Any]) -> set[str]:
    """The categories that have an entry."""
    return {name.rpartition("@")[2] for name in entries if "@" in name}


def entries_digest(entries: Entries) -> str:
    """One digest of what went into some stages and what came out: SHA-256, 64 hex digits, whatever their order."""
    return digest_of(sorted(entries.items()))


def outputs(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Path -> MD5 of everything that these stages make."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}


def inputs(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Path -> MD5 of everything that these stages read and none of them makes."""
    made = [PurePosixPath(path) for path in outputs(stages)]
    read = {dep["path"]: dep.get("md5", "") for stage in stages.values() for dep in stage.get("deps", ())}
    return {path: md5 for path, md5 in read.items() if not any(PurePosixPath(path).is_relative_to(one) for one in made)}


def parameters(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sections of params.yaml that these stages read, with their values."""
    files = [values for stage in stages.values() for values in (stage.get("params") or {}).values()]
    return {name: value for values in files for name, value in values.items()}


def _stage_names(content: bytes) -> set[str]:
    """The stages of a lock."""
    try:
        return {str(name) for name in (parse_lock(content) or {}).get("stages") or {}}
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{LOCK} cannot be read: restore it with `git checkout {LOCK}`, or run `dvc repro`.") from error


def _name(lines: str) -> str:
    return str(yaml.safe_load(lines.partition("\n")[0].strip().removesuffix(":")))
