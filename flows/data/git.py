"""What the flows ask of git, in the current folder: each answer, or one sentence that says what to mend.

The user's settings are the user's; where they change the form of what is read here, it is asked for in a fixed form.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError

LOCK_SIGN = ".lock': File exists"
FIXED = {
    "color.ui": "false",
    "core.quotePath": "false",
    "core.safecrlf": "false",
    "i18n.commitEncoding": "utf-8",
    "i18n.logOutputEncoding": "utf-8",
    "log.follow": "false",
    "log.showRoot": "true",
    "log.showSignature": "false",
}
# Of a git command or hook that called us: which repository is meant says the current folder, as it does to DVC.
FOREIGN = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_EXTERNAL_DIFF", "GIT_PAGER_IN_USE", "GIT_TRACE"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
)
LITERAL = {"GIT_LITERAL_PATHSPECS": "1"}
ABSENT = (
    "does not exist in",
    "exists on disk, but not in",
    "Not a valid object name HEAD",
    "invalid object name 'HEAD'",
)


class BusyError(UserError):
    """Another command holds a lock that this one needs: the same act may succeed a little later."""


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether Prefect retries a task: what may pass by itself (a held lock), not what a person must mend."""
    return isinstance(state.result(raise_on_failure=False), BusyError)


def git(*arguments: str, patterns: bool = False) -> str:
    """Standard output of `git ARGUMENTS`; UserError with git's own first words where it fails.

    patterns: whether `*` and its like in the paths stand for others; else each path means the file of that very name.
    """
    return _output(arguments, {} if patterns else None)


def says_yes(*arguments: str) -> bool:
    """Whether `git ARGUMENTS` ends with exit code 0 and not 1; UserError with git's own words for any other."""
    done = _run(arguments)
    if done.returncode not in (0, 1):
        raise _failure(arguments, done.stderr)
    return done.returncode == 0


def read_at(revision: str, path: str) -> bytes | None:
    """Content of the file `path` (seen from the current folder) in a revision; None where it is not there."""
    arguments = ("cat-file", "blob", f"{revision}:./{path}")
    done = _run(arguments)
    if done.returncode == 0:
        return done.stdout
    if any(words in done.stderr.decode(errors="replace") for words in ABSENT):
        return None
    raise _failure(arguments, done.stderr)


def resolve(revision: str) -> str:
    """The commit that a tag, branch or abbreviated digest names, as 40 hex digits; UserError where there is none."""
    done = _run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"])
    if done.returncode:
        _check_repository()
        raise UserError(f"git knows no version {revision!r}: `flawline data versions` lists them.")
    return done.stdout.decode().strip()


def check_committable() -> None:
    """Raise UserError where a commit cannot be made: no repository, no branch, no identity, a merge, a held lock."""
    _check_repository()
    if not says_yes("symbolic-ref", "--quiet", "HEAD"):
        raise UserError("No branch is checked out, so a new version could be lost: run `git switch BRANCH` first.")
    if any(_run(["var", name]).returncode for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")):
        raise UserError(
            "git does not know who you are: run `git config user.name NAME` and `git config user.email ADDRESS` first."
        )
    if says_yes("rev-parse", "--verify", "--quiet", "MERGE_HEAD"):
        raise UserError("A merge is not finished here: end it with `git commit` or `git merge --abort` first.")
    if os.path.exists(_lock_path()):
        raise BusyError(_lock_sentence())


def has_commit() -> bool:
    """Whether there is any commit yet; False where there is no repository."""
    done = _run(["rev-parse", "--git-dir"])
    if done.returncode and _is_no_repository(done.stderr):
        return False
    return says_yes("rev-parse", "--verify", "--quiet", "HEAD")


def commit(paths: Sequence[str], message: str, edited: Mapping[str, Callable[[str], str]] | None = None) -> str:
    """Commit these files as they are on disk, and nothing else that is staged; returns the commit, 40 hex digits.

    edited: files of HEAD of which nothing but an edit is committed, and stays staged beside what is; on disk, the
    caller has made it.
    """
    git("add", "--", *paths)
    if edited:
        for path, edit in edited.items():
            _stage_edit(path, edit, f":./{path}")
        with _index_of_its_own() as own:
            _output(("add", "--", *paths), own)
            for path, edit in edited.items():
                _stage_edit(path, edit, f"HEAD:./{path}", own)
            _output(("commit", "--quiet", "--cleanup=whitespace", "--message", message), own)
    else:
        git("commit", "--quiet", "--cleanup=whitespace", "--message", message, "--only", "--", *paths)
    return git("rev-parse", "HEAD").strip()


@contextmanager
def _index_of_its_own() -> Iterator[dict[str, str]]:
    """Variables by which git uses an index with HEAD's content, and not the user's."""
    path = Path(git("rev-parse", "--absolute-git-dir").strip()) / f"flawline-index-{os.getpid()}"
    path.unlink(missing_ok=True)
    own = {**LITERAL, "GIT_INDEX_FILE": os.fspath(path)}
    try:
        _output(("read-tree", "HEAD"), own)
        yield own
    finally:
        path.unlink(missing_ok=True)


def _stage_edit(path: str, edit: Callable[[str], str], at: str, own: Mapping[str, str] | None = None) -> None:
    """Put the edited content of `at` into the index."""
    listed = _output(("ls-files", "--stage", "--", path), own)
    before = _output(("cat-file", "blob", at))
    if "\ufffd" in before:
        raise UserError(f"{path} is not UTF-8 as it is staged: save it as UTF-8, stage it, and run this again.")
    text = edit(before)
    blob = _output(("hash-object", "-w", "--stdin"), data=text.encode()).strip()
    prefix = git("rev-parse", "--show-prefix").strip()
    _output(("update-index", "--cacheinfo", f"{listed.split()[0]},{blob},{prefix}{path}"), own)


def _check_repository() -> None:
    done = _run(["rev-parse", "--show-toplevel"])
    if done.returncode == 0:
        return
    if _is_no_repository(done.stderr):
        raise UserError("The project is in no git repository: run `git init` in its folder first.")
    raise _failure(("rev-parse",), done.stderr)


def _is_no_repository(words: bytes) -> bool:
    return b"not a git repository" in words


def _output(arguments: Sequence[str], own: Mapping[str, str] | None = None, data: bytes = b"") -> str:
    done = _run(arguments, own, data)
    if done.returncode:
        raise _failure(arguments, done.stderr)
    return done.stdout.decode(errors="replace")  # a message may be in another encoding than it says


def _run(
    arguments: Sequence[str], own: Mapping[str, str] | None = None, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """git with these arguments, `data` as its standard input; UserError where there is no git.

    own: variables for it; LITERAL, by which each path means the file of that very name, if None.
    """
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment = {**kept, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(LITERAL if own is None else own)}
    fixed = [word for name, value in FIXED.items() for word in ("-c", f"{name}={value}")]
    command = ["git", *fixed, *arguments]
    try:
        return subprocess.run(command, input=data, capture_output=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise UserError("There is no program `git` here: install it, or put it on the PATH.") from error


def _failure(arguments: Sequence[str], stderr: bytes) -> UserError:
    words = stderr.decode(errors="replace")
    if LOCK_SIGN in words:
        return BusyError(_lock_sentence())
    if "dubious ownership" in words:
        folder = words.partition("repository at '")[2].partition("'")[0]
        return UserError(
            f"git refuses the repository {folder}, as it belongs to another user (dubious ownership): if you trust it, "
            f"run `git config --global --add safe.directory {folder}`."
        )
    return UserError(f"git {arguments[0]} failed: {_brief(words)}.")


def _lock_path() -> str:
    return _run(["rev-parse", "--git-path", "index.lock"]).stdout.decode().strip()


def _lock_sentence() -> str:
    return (
        f"Another git command holds {_lock_path()}: wait for it to end, or remove the file if no git command runs, "
        "and run this again."
    )


def _brief(words: str) -> str:
    return (
        " ".join(words.split())[:300].removeprefix("fatal: ").removeprefix("error: ").rstrip(".") or "no reason given"
    )
