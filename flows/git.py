"""What the flows ask of git, in the current folder: each answer, or one sentence that says what to mend."""

import os
import subprocess
from collections.abc import Sequence

from components.errors import UserError

LOCK_SIGN = ".lock': File exists"


class BusyError(UserError):
    """Another command holds a lock that this one needs: the same act may succeed a little later."""


def git(*arguments: str, patterns: bool = False) -> str:
    """Standard output of `git ARGUMENTS`; UserError with git's own first words where it fails.

    patterns: whether `*` and its like in the paths stand for others; else each path means the file of that very name.
    """
    done = _run(arguments, patterns)
    if done.returncode == 0:
        return done.stdout.decode()
    words = done.stderr.decode(errors="replace")
    if LOCK_SIGN in words:
        raise BusyError(_lock_sentence())
    raise UserError(f"git {arguments[0]} failed: {_brief(words)}.")


def git_succeeds(*arguments: str) -> bool:
    """Whether `git ARGUMENTS` ends with exit code 0."""
    return _run(arguments).returncode == 0


def read_at(revision: str, path: str) -> bytes | None:
    """Content of the file `path` (seen from the current folder) in a revision; None where it is not there."""
    done = _run(["show", f"{revision}:./{path}"])
    return done.stdout if done.returncode == 0 else None


def resolve(revision: str) -> str:
    """The commit that a tag, branch or abbreviated digest names, as 40 hex digits; UserError where there is none."""
    done = _run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"])
    if done.returncode:
        raise UserError(f"git knows no version {revision!r}: `flawline data versions` lists them.")
    return done.stdout.decode().strip()


def check_committable() -> None:
    """Raise UserError where a commit cannot be made: no repository, no branch, no identity, or git's lock is held."""
    if not git_succeeds("rev-parse", "--git-dir"):
        raise UserError("The project is in no git repository: run `git init` in its folder first.")
    if not git_succeeds("symbolic-ref", "--quiet", "HEAD"):
        raise UserError("No branch is checked out, so a new version could be lost: run `git switch BRANCH` first.")
    if not git_succeeds("var", "GIT_AUTHOR_IDENT") or not git_succeeds("var", "GIT_COMMITTER_IDENT"):
        raise UserError(
            "git does not know who you are: run `git config user.name NAME` and `git config user.email ADDRESS` first."
        )
    if os.path.exists(_lock_path()):
        raise BusyError(_lock_sentence())


def commit(paths: Sequence[str], message: str) -> str:
    """Commit these files as they are on disk, and nothing else that is staged; returns the commit, 40 hex digits."""
    git("add", "--", *paths)
    git("commit", "--quiet", "--message", message, "--only", "--", *paths)
    return git("rev-parse", "HEAD").strip()


def is_unchanged(path: str) -> bool:
    """Whether git has the file, and its content on disk is that of HEAD."""
    return git_succeeds("ls-files", "--error-unmatch", "--", path) and git_succeeds(
        "diff", "--quiet", "HEAD", "--", path
    )


def _run(arguments: Sequence[str], patterns: bool = False) -> subprocess.CompletedProcess[bytes]:
    literal = {} if patterns else {"GIT_LITERAL_PATHSPECS": "1"}
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **literal}
    return subprocess.run(["git", *arguments], capture_output=True, check=False, env=environment)


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
