"""Which version of a category's data is being worked on: as DVC and git name it, so that one name leads everywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.foundation.yaml_text import parse_lock
from components.tracking.git_tags import ask_git


@dataclass(frozen=True)
class Lineage:
    """A version of a category's data.

    Attributes:
        version: DVC's digest of the folder, as `flawline data versions` shows it; empty where DVC does not know it.
        commit: the git commit that holds this version, 40 hex digits; empty where git knows none.
    """

    version: str
    commit: str


def lineage_of(root: Path, category: str, project: Path = Path()) -> Lineage:
    """The version of `root/category` that was validated last, by dvc.lock, or else the one that its .dvc file names."""
    folder, record = root / category, root / f"{category}.dvc"
    version = _validated(project / "dvc.lock", category, folder) or _recorded(project / record)
    return Lineage(version, _commit_of(version, record, project) if version else "")


def _validated(lock: Path, category: str, folder: Path) -> str:
    """The digest of the data that stage validate has read."""
    stage = _content(lock).get("stages", {}).get(f"validate@{category}", {})
    found = [dep.get("md5", "") for dep in stage.get("deps", ()) if Path(dep["path"]) == folder]
    return str(found[0]) if found else ""


def _recorded(path: Path) -> str:
    outs = _content(path).get("outs") or [{}]
    return str(outs[0].get("md5", ""))


def _content(path: Path) -> dict[str, Any]:
    """The mapping in one of DVC's files; empty where there is none, or DVC is just writing it."""
    try:
        content = parse_lock(path.read_bytes())
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _commit_of(version: str, record: Path, project: Path) -> str:
    """The latest commit by which the .dvc file came to name this version."""
    changes = ask_git(project, "log", "--format=%H", "-S", version, "--", record.as_posix()).split()
    return next((commit for commit in changes if version in ask_git(project, "show", f"{commit}:./{record}")), "")
