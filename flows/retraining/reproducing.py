"""`flawline reproduce`: make a version again from its commit alone, and compare every file with what is recorded."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.version import parse_manifest
from components.foundation.dvc_digests import md5_file
from components.foundation.errors import UserError
from components.foundation.libraries import FILE as LIBRARIES_FILE
from components.foundation.libraries import library_versions
from components.foundation.pin import pin_of
from components.foundation.places import Places
from components.foundation.processor import processor
from components.registry import versions as registry
from flows.data import git, lock_entries
from flows.data.dvc_project import open_project
from flows.data.lock_entries import LOCK, of_category, parse_entries
from flows.data.stores import read_object
from flows.retraining import commits
from flows.retraining.bases import bring
from flows.retraining.commits import Commit
from flows.retraining.scratch import Scratch, bring_data, make_again, scratch_clone

LAST = "evaluate"
RESET_CARD = "capsule.json with the threshold of this version"
Stages = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Reproduction:
    """What came of making a version again.

    Attributes:
        category, number, commit: which version, and its commit (40 hex digits).
        capsule: digest of the capsule that was made, as `flawline status` shows that of the version.
        seconds: that it took.
        files: how many files were compared.
        differing: those which differ, are lacking, or are there besides; each as "artifacts/…/history.csv".
        reasons: why they may: what was computed with other inputs, and where.
        folder: the clone, where it was kept; else empty.
    """

    category: str
    number: int
    commit: str
    capsule: str
    seconds: float
    files: int
    differing: tuple[str, ...]
    reasons: tuple[str, ...]
    folder: str

    @property
    def is_identical(self) -> bool:
        """Whether every file has the recorded bytes."""
        return not self.differing


def find_recorded(category: str, which: str) -> Commit:
    """The commit of a version, by number or alias; by number from git alone. UserError where there is none."""
    if which.isascii() and which.isdecimal():
        found = commits.list_commits(category)
        same = [one for one in found if one[commits.VERSION] == str(int(which))]
        if len({one[commits.CAPSULE] for one in same}) == 1:
            return same[0]
        version = registry.find_version(category, int(which))
    else:
        version = registry.find_version(category, registry.locate_capsule(category, which)[0])
    commit = commits.find_commit(category, version.number, version.digest)
    if commit is None:
        raise UserError(
            f"{category} version {version.number} has no commit here: fetch it with `git fetch`, or if it was made "
            f"without one, run `flawline run {category}` with its data and parameters."
        )
    return commit


def chain_of(category: str, which: str) -> list[str]:
    """The versions that lead to one, by number, and it last: each update begins with what the one before it learned.

    A version whose commit is not here ends the chain: what the next one keeps of it is taken as it is stored.
    """
    chain, place = [which], Places(category).base
    try:
        commit = find_recorded(category, which)
    except UserError:  # a threshold that was set without a commit
        return chain
    while content := git.read_at(commit.commit, place.as_posix()):
        pin = pin_of(category, json.loads(content)["base"], place)
        before = commits.find_commit(category, pin.version, pin.capsule) if pin else None
        if pin is None or before is None:
            break
        chain.insert(0, str(pin.version))
        commit = before
    return chain


def reproduce_version(
    category: str, which: str, keep: bool = False, say: Callable[[str], object] = lambda _: None
) -> Reproduction:
    """Make a version again in a scratch clone, and compare.

    which: its number, or an alias such as "champion". keep: leave the clone. say: is told what is being done.
    Raises UserError where it cannot be made here: no commit, data that are nowhere, other versions of the libraries.
    """
    reset = reset_of(category, which)
    commit = find_recorded(category, str(reset.origin["of_version"]) if reset else which)
    number = reset.number if reset else int(commit[commits.VERSION])
    recorded = _stages(git.read_at(commit.commit, LOCK), category)
    begun = time.monotonic()
    with scratch_clone(f"{category}-{number}", commit.commit, keep) as scratch:
        _check_libraries(scratch.project / LIBRARIES_FILE)
        bring_data(scratch, category, lock_entries.inputs(recorded))
        bring(category, scratch.project)
        say(f"Computing {category} version {number} anew, which takes as long as its retraining did.")
        failure = make_again(scratch, f"{LAST}@{category}")
        if failure:
            raise UserError(f"{category} version {number} could not be made again: {failure}")
        made = _stages((scratch.project / LOCK).read_bytes(), category)
        files, differing = compare_files(scratch, recorded, made)
        capsule = _capsule_digest(scratch, category)
        if reset:
            capsule = _with_threshold(scratch, category, reset)
            files, differing = files + 1, (*differing, *([] if capsule == reset.digest else [RESET_CARD]))
        reasons = reasons_for(commit, recorded, made) if differing else ()
        return Reproduction(
            category, number, commit.commit, capsule, time.monotonic() - begun, files, differing, reasons,
            str(scratch.project) if keep else "",
        )  # fmt: skip


@dataclass(frozen=True)
class Reset:
    """A version that another one's capsule became by another threshold.

    number, digest: of the version and its capsule. origin: which version it came from (`of_version`), and the
    `false_alarm_rate` and `confidence` that were wished for.
    """

    number: int
    digest: str
    origin: Mapping[str, Any]


def reset_of(category: str, which: str) -> Reset | None:
    """How a version got its threshold, by its commit or else its capsule; None where it was fitted with it."""
    if which.isascii() and which.isdecimal() and (found := commits.find_commit(category, int(which))):
        return _committed_reset(found)
    from components.detection.capsule import read_card  # torch takes seconds to import
    from components.registry.threshold import threshold_origin

    number, digest = registry.locate_capsule(category, int(which) if which.isdecimal() else which)
    origin = threshold_origin(read_card(registry.download_capsule(category, number)))
    return None if origin is None else Reset(number, digest, origin)


def _committed_reset(commit: Commit) -> Reset | None:
    if not commit[commits.THRESHOLD_OF]:
        return None
    origin = {
        "of_version": int(commit[commits.THRESHOLD_OF]),
        "false_alarm_rate": float(commit[commits.FALSE_ALARM_RATE]),
        "confidence": float(commit[commits.CONFIDENCE]),
    }
    return Reset(int(commit[commits.VERSION]), commit[commits.CAPSULE], origin)


def _with_threshold(scratch: Scratch, category: str, reset: Reset) -> str:
    """Set the threshold of the capsule that was made again; the digest of the capsule that comes of it."""
    from components.registry.threshold import capsule_with_threshold

    source, origin = scratch.project / Places(category).capsule, reset.origin
    values = int(origin["of_version"]), float(origin["false_alarm_rate"]), float(origin["confidence"])
    return str(capsule_with_threshold(source, *values, scratch.project / ".flawline" / "reset")["digest"])


def _stages(lock: bytes | None, category: str) -> Stages:
    return parse_entries(of_category(lock_entries.read_entries(lock), category))


def _check_libraries(file: Path) -> None:
    """Raise UserError where the stages would refuse to run, as other libraries are installed than made the version."""
    wanted = dict(json.loads(file.read_bytes()))
    other = [f"{name} {wanted.get(name)}, here {found}" for name, found in library_versions().items()
             if found != wanted.get(name)]  # fmt: skip
    if other:
        raise UserError(
            f"This version was made with other libraries ({', '.join(other)}), by which it cannot be compared: install "
            "the requirements.lock of its commit into an environment of its own, and run this there."
        )


def compare_files(scratch: Scratch, recorded: Stages, made: Stages) -> tuple[int, tuple[str, ...]]:
    """How many files there are, and which of them differ."""
    before, now = lock_entries.outputs(recorded), lock_entries.outputs(made)
    count, differing = 0, []
    with open_project() as repo:
        for path in sorted(before.keys() | now.keys()):
            here = _files(scratch.project / path, path)
            count += len(here)
            if before.get(path) == now.get(path):
                continue
            wanted = _recorded_files(repo, path, before.get(path, ""))
            differing += _differing(wanted, here) if wanted else [f"{path} (its recorded list of files is lost)"]
    return count, tuple(differing)


def _files(place: Path, path: str) -> dict[str, str]:
    """MD5 of each file of an output, by its path in the project."""
    if place.is_dir():
        inside = [one for one in place.rglob("*") if one.is_file()]
        return {f"{path}/{one.relative_to(place).as_posix()}": md5_file(one) for one in inside}
    return {path: md5_file(place)} if place.is_file() else {}


def _recorded_files(repo: Any, path: str, md5: str) -> dict[str, str]:
    """The same of what is recorded; none where neither cache nor remote has the list any more."""
    if not md5.endswith(".dir"):
        return {path: md5}
    content = read_object(repo, md5)
    return {f"{path}/{name}": one for name, one in parse_manifest(content).items()} if content else {}


def _capsule_digest(scratch: Scratch, category: str) -> str:
    return str(json.loads((scratch.project / Places(category).capsule / "capsule.json").read_bytes())["digest"])


def reasons_for(commit: Commit, recorded: Stages, made: Stages) -> tuple[str, ...]:
    """What was not the same as when the version was made."""
    before, now = lock_entries.inputs(recorded), lock_entries.inputs(made)
    reasons = [f"{path} is another" for path in _differing(before, now)]
    then, here = lock_entries.parameters(recorded), lock_entries.parameters(made)
    reasons += [f"other parameters: {name}" for name in _differing(then, here)]
    if commit[commits.PROCESSOR] != processor():
        reasons.append(f"another processor: {commit[commits.PROCESSOR] or 'not recorded'} then, {processor()} here")
    if commit[commits.LACKING]:
        reasons.append(f"when it was made these were not committed: {commit[commits.LACKING]}")
    return tuple(reasons)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or which only one of the two has."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
