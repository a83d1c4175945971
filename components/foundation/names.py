"""What a category and the folder of the data may be called: one rule for every place where a name enters.

A category's name becomes a folder, DVC's target `stage@NAME`, MLflow's model `flawline-NAME`, a part of S3 keys, of
git's refs and of YAML: it may hold only what means nothing else in any of them, nor in a shell.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable

from components.foundation.errors import UserError

MOST_SIGNS = 100  # file systems allow 255 bytes, and a name gets prefixes and endings
OWN_FOLDERS = (".dvc", ".flawline", ".git", "artifacts", "evidence", "metrics")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SIGNS = "$`\\*?"  # which shells, DVC's templates and git's patterns take for their own
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SHOWN = 60


def check_category_name(name: str) -> None:
    """Raise UserError unless `name` can name a category: ASCII letters, digits, hyphen, underscore; at most 100."""
    if not is_category_name(name):
        raise UserError(
            f"{_shown(name)} cannot name a category: use letters, digits, '-' and '_', beginning with a letter or "
            f"digit, at most {MOST_SIGNS} in all."
        )


def is_category_name(name: str) -> bool:
    """Whether `name` can name a category."""
    return len(name) <= MOST_SIGNS and _NAME.fullmatch(name) is not None


def check_category_names(names: Iterable[str]) -> None:
    """Raise UserError unless each can name a category, and no two are the same but for capital letters."""
    names = list(names)
    for name in names:
        check_category_name(name)
    twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
    if twice:
        same = [name for name in names if name.lower() == twice[0]]
        raise UserError(
            f"{' and '.join(map(repr, same))} are one name where capital letters do not count: name each category once."
        )


def check_data_root(root: str) -> None:
    """Raise UserError unless `root` is a folder that DVC, git and a shell take for nothing else.

    It may lie outside of the project (the current folder); it is neither the file system's root nor a folder of the
    project's own outputs.
    """
    is_plain = root.isprintable() and root == root.strip() and not any(sign in root for sign in _SIGNS)
    if not root or not is_plain or root[0] in "-:~":
        raise UserError(
            f"{_shown(root)} cannot be the folder of the data: write a path without {' '.join(_SIGNS)}, control signs "
            "and spaces at its ends, which does not begin with '-', ':' or '~'."
        )
    if _ADDRESS.match(root):
        raise UserError(f"{_shown(root)} is no folder: bring the images to one on this machine, and name that.")
    if not os.path.abspath(root).strip(os.sep) or os.path.relpath(root).split(os.sep)[0] in OWN_FOLDERS:
        raise UserError(f"{_shown(root)} cannot be the folder of the data: choose one for it, such as data/line1.")


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")
