"""One retraining, one commit: what a version was made from, and what came out, under a branch of its own.

`flawline/CATEGORY/VERSION` holds what HEAD holds, but `dvc.lock`, `metrics/CATEGORY.json`, `bases/CATEGORY.json`,
`params.yaml` and the category's `.dvc` file are those of the retraining. The user's index, branch and files are not
touched. The same version again, with the same entries in `dvc.lock`, has its commit already; where it was examined on
other test images since, it gets a further one behind the first.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.foundation.dvc_digests import folder_digest, md5_bytes
from components.foundation.errors import UserError
from components.foundation.files import held_lock
from components.foundation.libraries import library_versions
from components.foundation.params import PARAMS, Params, settled_file
from components.foundation.places import DEMO, Places
from components.foundation.processor import processor
from components.foundation.yaml_text import parse_yaml
from components.registry import versions as registry
from components.registry.versions import Version
from flows.common.figures import titles_of
from flows.data import git, lock_entries
from flows.data.git import BusyError
from flows.data.lock_entries import LOCK, categories_of, entries_digest, of_category, parse_entries
from flows.data.transfer import push_state
from flows.data.versions import dvc_file, recorded_digest
from flows.retraining import commits
from flows.retraining.commits import Commit

GIT_LOCK = Path(".flawline/locks/git.lock")
LOCK_SECONDS = 120.0
MOST_NAMED = 20  # files in a commit's message
FIGURES = titles_of("image_auroc", "pixel_auroc", "aupro", "exam_mark")

Files = dict[str, bytes]  # path in the project -> content


@dataclass(frozen=True)
class Committed:
    """The commit of a version, and whether it was made just now."""

    commit: Commit
    is_new: bool

    @property
    def remark(self) -> str:
        """Why a version cannot be made again from it; empty where it can."""
        lacking = self.commit[commits.LACKING]
        if not lacking:
            return ""
        return (
            f"it cannot be made again from that, which lacks what it depends on ({lacking}): commit it, and run again"
        )


def commit_version(category: str, number: int, params: Params) -> Committed:
    """The commit of a version whose results lie in the project's folder, made unless it is there; the version names it.

    Raises UserError where there can be none: no repository, no commit in it, parameters that are not those of the
    results; its subclass `BusyError` where another git command is at work. Safe to repeat after any kill.
    """
    version = registry.find_version(category, number)
    with held_lock(GIT_LOCK, LOCK_SECONDS, _busy()):
        head = git.head_commit()
        if not head:
            raise UserError("there is no commit yet to build on: run `git add` and `git commit` first.")
        own = _own_entries(category)
        before = commits.find_commit(category, number, version.digest)
        same = before is not None and before[commits.LOCK] == entries_digest(own)
        if before is not None and same and not _is_completed(before, own, params):
            done = Committed(_here(before), is_new=False)
        else:
            done = Committed(_make(version, own, before, head, params), is_new=True)
    registry.note_commit(category, number, done.commit.commit, done.commit.branch)
    return done


def commit_threshold(made: Version, origin: Mapping[str, Any]) -> Committed:
    """The commit of a version that is another one but for its threshold: that one's, with the threshold in the message.

    origin: what the capsule says of it, see `components.registry.threshold`. Raises UserError where that one has none.
    """
    category = made.category
    with held_lock(GIT_LOCK, LOCK_SECONDS, _busy()):
        found = commits.find_commit(category, made.number, made.digest)
        if found is not None:
            done = Committed(_here(found), is_new=False)
        else:
            done = Committed(_make_threshold(made, origin), is_new=True)
    registry.note_commit(category, made.number, done.commit.commit, done.commit.branch)
    return done


def send(category: str, done: Committed, params: Params) -> str:
    """Send the commit to the git remote, and before it data and results to DVC's, as far as there are such; in words.

    Data that are in no version stay here, and so does the commit, which nobody else could rebuild.
    """
    if not dvc_file(category, params).is_file():
        return ""
    remote = git.remote_to_push()
    if remote and git.has_pushed(remote, done.commit.branch, done.commit.commit):
        return ""  # and before that the data and results were
    sent = push_state(category)
    if remote:
        git.push(remote, done.commit.branch)
        return f"sent to {remote}"
    return "data and results sent to the remote" if sent else ""


def _make(version: Version, own: Mapping[str, str], before: Commit | None, head: str, params: Params) -> Commit:
    """Make the commit of a version, behind the one that it had before."""
    files = _files(version.category, own, params)
    _check_params(own, params_content := settled_file().read_bytes())
    if _differs(PARAMS.as_posix(), params_content):
        files[PARAMS.as_posix()] = params_content
    facts = _facts(version, own, params, files)
    branch = before.own_branch if before else _free_branch(version)
    if git.current_branch() == branch:
        raise UserError(f"{branch} is checked out, and is not moved under you: run `git switch BRANCH`, and run again.")
    parents = list(dict.fromkeys([head, *([before.commit] if before else [])]))
    old = before.commit if before and before.is_here else ""
    return Commit(branch, git.commit_aside(branch, files, _message(version, facts), parents, old), facts)


def _make_threshold(made: Version, origin: Mapping[str, Any]) -> Commit:
    of = int(origin["of_version"])
    before = commits.find_commit(made.category, of, str(origin["of_capsule"]))
    if before is None:
        raise UserError(f"version {of}, whose threshold it changes, has none.")
    facts = {
        **before.facts,
        commits.VERSION: str(made.number),
        commits.CAPSULE: made.digest,
        commits.RUN: made.run_id,
        commits.THRESHOLD_OF: str(of),
        commits.FALSE_ALARM_RATE: repr(float(origin["false_alarm_rate"])),
        commits.CONFIDENCE: repr(float(origin["confidence"])),
    }
    branch = _free_branch(made)
    return Commit(branch, git.commit_aside(branch, {}, _message(made, facts), [before.commit]), facts)


def _busy() -> BusyError:
    return BusyError("another process is committing a retraining in this project: run this again when it has ended.")


def _is_completed(before: Commit, own: Mapping[str, str], params: Params) -> bool:
    """Whether HEAD has by now all that the result depends on, which it had not when the commit was made."""
    category = before[commits.CATEGORY]
    return bool(before[commits.LACKING]) and not _not_in_commit(own, _files(category, own, params))


def _here(commit: Commit) -> Commit:
    """A commit with a branch of this clone's, where it has one of its remote's alone."""
    if not commit.is_here:
        git.git("branch", "--no-track", "--", commit.own_branch, commit.commit)
    return Commit(commit.own_branch, commit.commit, commit.facts)


def _own_entries(category: str) -> dict[str, str]:
    own = of_category(lock_entries.read_entries(_content(Path(LOCK))), category)
    if not own:
        raise UserError(f"{LOCK} knows nothing of {category}: run `flawline run {category}`.")
    return own


def _free_branch(version: Version) -> str:
    """The version's branch; where another registry's version of that number has it, one with the capsule's digest."""
    branch = commits.branch_of(version.category, version.number)
    return f"{branch}-{version.digest[:8]}" if git.has_branch(branch) else branch


def _files(category: str, own: Mapping[str, str], params: Params) -> Files:
    """What the commit has otherwise than HEAD."""
    base = lock_entries.read_entries(git.read_at("HEAD", LOCK))
    here = lock_entries.read_entries(_content(Path(LOCK)))
    files: Files = {}
    entries = {**base, **own}
    committed = {one[commits.LOCK] for one in commits.list_commits()}  # entries that are whole, and sent with theirs
    for other in sorted(categories_of(here) - {category}):
        theirs = of_category(here, other)
        metrics = Places(other).metrics
        if entries_digest(theirs) in committed and _is_current(metrics, theirs):
            entries |= theirs
            kept = (metrics, Places(other).base)
            files |= {path.as_posix(): content for path in kept if (content := _content(path)) is not None}
    files[LOCK] = lock_entries.as_text({name: entries[name] for name in _order(base, here) if name in entries}).encode()
    for path in (Places(category).metrics, Places(category).base, *_data_files(category, params)):
        if (content := _content(path)) is not None:
            files[path.as_posix()] = content
    return {path: content for path, content in files.items() if _differs(path, content)}


def _order(*locks: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(name for lock in locks for name in lock))


def _differs(path: str, content: bytes) -> bool:
    return git.read_at("HEAD", path) != content


def _is_current(metrics: Path, entries: Mapping[str, str]) -> bool:
    content = _content(metrics)
    recorded = lock_entries.outputs(parse_entries(entries)).get(metrics.as_posix())
    return content is not None and md5_bytes(content) == recorded


def _data_files(category: str, params: Params) -> list[Path]:
    """The .dvc file and the .gitignore beside it, where HEAD names other data than lie here."""
    path = dvc_file(category, params)
    content = _content(path)
    if content is None or not _differs(path.as_posix(), content):
        return []
    return [path, path.with_name(".gitignore")]


def _check_params(own: Mapping[str, str], content: bytes) -> None:
    """Raise UserError where the results were computed with other parameters than the commit would hold."""
    computed = lock_entries.parameters(parse_entries(own))
    present = parse_yaml(content.decode(), PARAMS.name)
    changed = sorted(name for name, value in computed.items() if present.get(name) != value)
    if changed:
        raise UserError(f"{PARAMS} says something else now ({', '.join(changed)}) than it was computed with: retrain.")


def _not_in_commit(own: Mapping[str, str], files: Mapping[str, bytes]) -> list[str]:
    """What the results depend on, and which the commit holds otherwise, or not at all.

    Folders under DVC are in it by their .dvc files; the demo's are made anew.
    """
    read = lock_entries.inputs(parse_entries(own))
    records = {path for path in (*git.list_files("HEAD"), *files) if path.endswith(".dvc")}
    lacking = {path for path, md5 in read.items() if not _is_in_commit(path, md5, files, records)}
    return sorted(path for path in lacking if not any(_holds(other, path) for other in lacking - {path}))


def _is_in_commit(path: str, md5: str, files: Mapping[str, bytes], records: Set[str]) -> bool:
    """Whether the commit holds this file or folder with this digest of DVC's. records: the .dvc files in it."""
    above = [parent.as_posix() for parent in (Path(path), *Path(path).parents)]
    owner = next((folder for folder in above if f"{folder}.dvc" in records), None)
    if owner == path:
        content = files.get(f"{owner}.dvc") or git.read_at("HEAD", f"{owner}.dvc") or b""
        return recorded_digest(content) == md5
    return owner is not None or Path(path).is_relative_to(DEMO) or _digest_in_commit(path, files) == md5


def _digest_in_commit(path: str, files: Mapping[str, bytes]) -> str:
    """DVC's digest of a file or folder as HEAD holds it, or of one of `files`; empty where it is not there."""
    if path in files:
        return md5_bytes(files[path])
    if not Path(path).resolve().is_relative_to(Path.cwd()):
        return ""
    names = git.list_files("HEAD", path)
    digests = {name: md5_bytes(content) for name, content in git.read_many("HEAD", names).items()}
    return digests.get(path) or (folder_digest(_below(digests, path)) if digests else "")


def _below(digests: Mapping[str, str], folder: str) -> dict[str, str]:
    return {Path(name).relative_to(folder).as_posix(): digest for name, digest in digests.items()}


def _facts(version: Version, own: Mapping[str, str], params: Params, files: Mapping[str, bytes]) -> dict[str, str]:
    """What the commit's message says for programs."""
    lacking = _not_in_commit(own, files)
    changed = [path for path in git.changed_files() if not any(_holds(path, name) for name in files)]
    because = [path for path in changed if any(_holds(name, path) or _holds(path, name) for name in lacking)]
    also = [path for path in changed if path not in because]
    facts = {
        commits.CATEGORY: version.category,
        commits.VERSION: str(version.number),
        commits.CAPSULE: version.digest,
        commits.DATA: version.data_version,
        commits.RUN: version.run_id,
        commits.LOCK: entries_digest(own),
        commits.PROCESSOR: processor(),
        commits.THREADS: str(params.threads),
        commits.LIBRARIES: ", ".join(f"{name} {number}" for name, number in library_versions().items()),
        commits.LACKING: _brief(
            [*because, *(name for name in lacking if not any(_holds(name, one) for one in because))]
        ),
        commits.DIRTY: _brief(also),
    }
    return {name: value for name, value in facts.items() if value}


def _holds(folder: str, path: str) -> bool:
    """Whether a path is that folder, or in it."""
    return Path(path).is_relative_to(folder)


def _message(version: Version, facts: Mapping[str, str]) -> str:
    figures = [f"{words} {version.metrics[name]:.3f}" for name, words in FIGURES.items() if name in version.metrics]
    subject = f"{version.category} version {version.number}: {', '.join(figures) or 'no figures'}"
    rebuilt = f"Rebuild it with `flawline reproduce {version.category}@{version.number}`."
    return f"{subject}\n\n{rebuilt}\n\n{commits.as_facts(facts)}\n"


def _brief(paths: list[str]) -> str:
    more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(paths[:MOST_NAMED]) + more


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
