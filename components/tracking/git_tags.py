"""What git says of the code that makes a run, as MLflow tags it."""

import os
import subprocess
from pathlib import Path

CODE_PATHS = ("components", "flows", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock")
GIT_DIRTY = "flawline.git_dirty"
GIT_COMMIT = "mlflow.source.git.commit"
SOURCE_NAME, SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"


def source_tags(program: str, folder: Path = Path()) -> dict[str, str]:
    """What MLflow shows as the source of a run: the program, and the code's commit."""
    return {SOURCE_NAME: program, SOURCE_TYPE: "LOCAL", **_git_tags(folder)}


def _git_tags(folder: Path) -> dict[str, str]:
    """The commit, and whether code or parameters differ from it; nothing outside a git work tree."""
    commit = ask_git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = ask_git(folder, "status", "--porcelain", "--untracked-files=normal", "--", *CODE_PATHS)
    return {GIT_COMMIT: commit, GIT_DIRTY: str(bool(changed)).lower()}


def ask_git(folder: Path, *arguments: str) -> str:
    """What `git ARGUMENTS` says in a folder, without the last newline; empty where it fails or there is no git."""
    foreign = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # of a hook that we were called from
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    own = {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}  # a status must not stand in a commit's way
    fixed = ("-c", "log.showSignature=false", "-c", "color.ui=false", "-c", "i18n.logOutputEncoding=utf-8")
    try:
        done = subprocess.run(
            ["git", *fixed, *arguments], cwd=folder, capture_output=True, timeout=30, check=False, env={**kept, **own}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
