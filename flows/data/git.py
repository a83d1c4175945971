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
OURSELVES = {"NAME": "Flawline", "EMAIL": "flawline@localhost"}  # who commits where git does not know who the user is
ASKS_NOTHING = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true"}
INDEX = "flawline-index-"
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


def head_commit() -> str:
    """The commit that is checked out, 40 hex digits; empty where there is none yet. UserError outside a repository."""
    _check_repository()
    return git("rev-parse", "HEAD").strip() if has_commit() else ""


def current_branch() -> str:
    """The branch that is checked out; empty where none is."""
    return _word("symbolic-ref", "--quiet", "--short", "HEAD")


def has_branch(branch: str) -> bool:
    """Whether there is a branch of this name here."""
    return says_yes("show-ref", "--verify", "--quiet", f"refs/heads/{branch}")


def list_refs(*patterns: str) -> list[tuple[str, str, str]]:
    """(full name, commit, message) of each ref that matches one of the patterns, sorted by name."""
    listed = git("for-each-ref", "--format=%(refname)%00%(objectname)%00%(contents)%00", *patterns)
    words = listed.split("\0")[:-1]
    return [(words[n].lstrip("\n"), words[n + 1], words[n + 2]) for n in range(0, len(words), 3)]


def read_many(revision: str, paths: Sequence[str]) -> dict[str, bytes]:
    """The content of each of these files (seen from the current folder) in a revision, as far as they are there."""
    asked = "".join(f"{revision}:./{path}\n" for path in paths)
    data = _checked(("cat-file", "--batch"), data=asked.encode())
    found, at = {}, 0
    for path in paths:
        end = data.index(b"\n", at)
        header = data[at:end].split(b" ")
        at = end + 1
        if len(header) == 3 and header[1] == b"blob":
            found[path] = data[at : at + int(header[2])]
        at += int(header[2]) + 1 if len(header) == 3 and header[2].isdigit() else 0
    return found


def list_files(revision: str, *paths: str) -> list[str]:
    """The files of a revision that are one of the paths or in it, seen from the current folder; without paths all."""
    return [name for name in git("ls-tree", "-r", "-z", "--name-only", revision, "--", *paths).split("\0") if name]


def changed_files() -> list[str]:
    """What differs from HEAD in the whole work tree, staged or not, with what git does not know and does not ignore.

    Seen from the current folder; a new folder is one of them, with a slash at its end.
    """
    words = git("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=normal").split("\0")
    prefix = git("rev-parse", "--show-prefix").strip() or "."
    return sorted(os.path.relpath(word[3:], prefix) + word[-1] * word.endswith("/") for word in words if word)


def commit_aside(branch: str, files: Mapping[str, bytes], message: str, parents: Sequence[str], old: str = "") -> str:
    """Commit the first parent's content with these files (seen from the current folder) replaced, as a branch's end.

    Index, work tree and what is checked out are left alone, and no hook runs. Where git does not know who the user is,
    Flawline itself is the author.

    old: where the branch ends now; empty for one that does not exist. Raises UserError where it ends elsewhere.
    Returns the commit, 40 hex digits.
    """
    prefix = git("rev-parse", "--show-prefix").strip()
    with _index_of_its_own(parents[0]) as own:
        lines = []
        for path, content in files.items():
            blob = _output(("hash-object", "-w", "--stdin"), data=content).strip()
            lines.append(f"100644 {blob}\t{prefix}{path}\0")
        _output(("update-index", "-z", "--index-info"), own, "".join(lines).encode())
        tree = _output(("write-tree",), own).strip()
    behind = [word for parent in parents for word in ("-p", parent)]
    commit = _output(("commit-tree", tree, *behind), {**LITERAL, **_identity()}, message.encode()).strip()
    nothing = "0" * len(commit)
    git("update-ref", "-m", "flawline: retraining", f"refs/heads/{branch}", commit, old or nothing)
    return commit


def clone_at(commit: str, folder: Path) -> None:
    """A clone of this repository in a new folder, with `commit` checked out; it shares this one's objects."""
    top = git("rev-parse", "--show-toplevel").strip()
    folder.parent.mkdir(parents=True, exist_ok=True)
    no_hooks = ("-c", f"core.hooksPath={os.devnull}")
    git(
        *no_hooks,
        "clone",
        "--quiet",
        "--shared",
        "--no-checkout",
        "--no-tags",
        "--config",
        "core.autocrlf=false",
        "--",
        top,
        os.fspath(folder),
    )
    git("-C", os.fspath(folder), *no_hooks, "checkout", "--quiet", "--detach", commit)


def remote_to_push() -> str:
    """The remote that the present branch is pushed to, else origin, else the only one; empty where there is none."""
    remotes = git("remote").split()
    branch = current_branch()
    keys = (f"branch.{branch}.pushRemote", "remote.pushDefault", f"branch.{branch}.remote")
    candidates = [name for name in (*(_word("config", key) for key in keys), "origin") if name in remotes]
    return (candidates or (remotes if len(remotes) == 1 else [""]))[0]


def has_pushed(remote: str, branch: str, commit: str) -> bool:
    """Whether this clone knows that the remote's branch ends in the commit."""
    return _word("rev-parse", "--verify", "--quiet", f"refs/remotes/{remote}/{branch}") == commit


def push(remote: str, branch: str) -> None:
    """Send a branch, without asking anything and without the user's hooks; UserError with git's words if it fails."""
    own = {**LITERAL, **{name: os.environ.get(name, value) for name, value in ASKS_NOTHING.items()}}
    if "GIT_SSH_COMMAND" not in os.environ and not _word("config", "core.sshCommand"):
        own["GIT_SSH_COMMAND"] = "ssh -oBatchMode=yes -oConnectTimeout=15"
    alone = ("--quiet", "--no-verify", "--no-follow-tags", "--recurse-submodules=no")
    _output(("push", *alone, "--", remote, f"refs/heads/{branch}:refs/heads/{branch}"), own)


def _word(*arguments: str) -> str:
    """What git answers, without the last newline; nothing where it has no answer."""
    return _run(arguments).stdout.decode(errors="replace").strip()


def _identity() -> dict[str, str]:
    """Variables that say who commits, where git does not know."""
    who: dict[str, str] = {}
    for role in ("AUTHOR", "COMMITTER"):
        if _run(["var", f"GIT_{role}_IDENT"]).returncode:
            who |= {f"GIT_{role}_{name}": value for name, value in OURSELVES.items()}
    return who


@contextmanager
def _index_of_its_own(revision: str = "HEAD") -> Iterator[dict[str, str]]:
    """Variables by which git uses an index with a revision's content, and not the user's."""
    folder = Path(git("rev-parse", "--absolute-git-dir").strip())
    for left in folder.glob(f"{INDEX}*"):  # by a process that was killed
        if not Path("/proc", left.name.removeprefix(INDEX).removesuffix(".lock")).exists():
            left.unlink(missing_ok=True)
    path = folder / f"{INDEX}{os.getpid()}"
    path.unlink(missing_ok=True)
    own = {**LITERAL, "GIT_INDEX_FILE": os.fspath(path)}
    try:
        _output(("read-tree", revision), own)
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
    return _checked(arguments, own, data).decode(errors="replace")  # a message may be in another encoding than it says


def _checked(arguments: Sequence[str], own: Mapping[str, str] | None = None, data: bytes = b"") -> bytes:
    done = _run(arguments, own, data)
    if done.returncode:
        raise _failure(arguments, done.stderr)
    return done.stdout


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
        return BusyError(_lock_sentence(words.partition(LOCK_SIGN)[0].rpartition("'")[2]))
    if "dubious ownership" in words:
        folder = words.partition("repository at '")[2].partition("'")[0]
        return UserError(
            f"git refuses the repository {folder}, as it belongs to another user (dubious ownership): if you trust it, "
            f"run `git config --global --add safe.directory {folder}`."
        )
    return UserError(f"git {arguments[0]} failed: {_brief(words)}.")


def _lock_path() -> str:
    return _run(["rev-parse", "--git-path", "index.lock"]).stdout.decode().strip()


def _lock_sentence(file: str = "") -> str:
    """That a lock is held. file: the lock's, without ".lock"; that of the index if not given."""
    held = f"{file}.lock" if file else _lock_path()
    return (
        f"Another git command holds {held}: wait for it to end, or remove the file if no git command runs, and run "
        "this again."
    )


def _brief(words: str) -> str:
    return (
        " ".join(words.split())[:300].removeprefix("fatal: ").removeprefix("error: ").rstrip(".") or "no reason given"
    )
