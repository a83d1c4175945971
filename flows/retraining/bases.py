"""What an update begins with: which version is kept, and its capsule, fetched from wherever it is stored.

`python -m flows.retraining.bases CATEGORY` fetches it for a stage that DVC runs by itself.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.data.version import parse_manifest
from components.foundation.errors import UserError
from components.foundation.files import new_directory, read_json, write_bytes
from components.foundation.params import Params, load_params
from components.foundation.pin import Pin, read_pin, write_pin
from components.foundation.places import Places
from components.registry import versions as registry
from components.stages.command import run_guarded
from components.tracking.fingerprint import learned_digest
from flows.data import git, lock_entries
from flows.data.dvc_project import open_project
from flows.data.lock_entries import LOCK, of_category, parse_entries
from flows.data.stores import read_object
from flows.retraining import commits

FULL, UPDATE, AUTO = "full", "update", "auto"


def settle(category: str, kind: str, params: Params) -> str:
    """Write which version the category's training keeps, of the images that were validated last; in words.

    kind: "full" keeps nothing; "update" the champion's encoder and compositions, "auto" too unless the images have
    become more or fewer by `retrain.update_share`. Where there is no champion that can be kept, nothing is.
    """
    pin, words = None, ""
    if kind != FULL:
        try:
            pin = pin_of_champion(category, params)
        except UserError as error:
            words = f"everything is learned anew, as {error}"
        if pin and kind == AUTO and (share := changed_share(category, pin)) > params.retrain.update_share:
            pin, words = None, f"everything is learned anew, as the images have become more or fewer by {share:.0%}"
    if pin:
        fetch(category, pin)
        words = f"encoder and compositions of version {pin.version} are kept"
    write_pin(category, pin)
    return words


def pin_of_champion(category: str, params: Params) -> Pin | None:
    """The version that an update to the images that were validated last keeps; None where the champion knows them.

    An updated champion that knows them is what an update would make again, so it is the version which that one kept;
    of a version with another threshold it is the one that was fitted. UserError where there is none to be kept.
    """
    from components.detection.keeping import UPDATED, check_updatable
    from components.registry.threshold import threshold_origin

    card = champion_card(category)
    check_updatable(card, params)
    if card["provenance"]["data_digest"] == learned_digest(category):
        updated = card["provenance"].get(UPDATED)
        return Pin(updated["of_version"], updated["of_capsule"]) if updated else None
    origin = threshold_origin(card)
    if origin:
        return Pin(int(origin["of_version"]), str(origin["of_capsule"]))
    number, digest = registry.locate_capsule(category)
    return Pin(number, digest)


def check_champion(category: str) -> None:
    """Raise UserError where the champion cannot be updated with the present parameters."""
    from components.detection.keeping import check_updatable

    try:
        check_updatable(champion_card(category), load_params())
    except UserError as error:
        raise UserError(f"{category} cannot be updated, as {error}: run `flawline run {category}`.") from error


def champion_card(category: str) -> Mapping[str, Any]:
    """What the champion's capsule says of itself; UserError where there is no champion."""
    if registry.champion(category) is None:
        raise UserError("it has no champion yet")
    from components.detection.card import read_card

    return read_card(registry.download_capsule(category))


def changed_share(category: str, pin: Pin) -> float:
    """By what share of the last full training's good images there are more or fewer now."""
    from components.detection.card import read_card, read_roles
    from components.detection.keeping import UPDATED

    folder = fetch(category, pin)
    roles = read_roles(folder)
    known = len(roles.digests) if roles else 0
    full = int(read_card(folder)["provenance"].get(UPDATED, {}).get("full_images", known))
    now = len(read_json(Places(category).validation / "learned.json")["images"])
    return abs(now - full) / full if full else 1.0


def fetch(category: str, pin: Pin) -> Path:
    """The folder of the kept version's capsule, checked; from the registry, or else by its commit from DVC's stores."""
    if registry.is_whole_capsule(pin.folder, pin.capsule):
        return pin.folder
    try:
        number, digest = registry.locate_capsule(category, pin.version)
        if digest == pin.capsule:
            return registry.download_capsule(category, number)
    except UserError:  # another registry, or one that has lost it
        pass
    content = _stored_files(category, pin)
    with new_directory(pin.folder) as beside:
        for name, data in content.items():
            write_bytes(beside / name, data)
        if not registry.is_whole_capsule(beside, pin.capsule):
            raise _lost(category, pin)
    return pin.folder


def bring(category: str, project: Path) -> None:
    """Put the capsule that another folder's project names as kept into that project; nothing where it names none."""
    pin = read_pin(category, project)
    if pin and not (project / pin.folder).is_dir():
        source = fetch(category, pin)
        with new_directory(project / pin.folder) as beside:
            shutil.copytree(source, beside, dirs_exist_ok=True)


def _stored_files(category: str, pin: Pin) -> dict[str, bytes]:
    """The files of a capsule by name, from DVC's cache or remote, where its commit says what they are."""
    commit = commits.find_commit(category, pin.version, pin.capsule)
    entries = of_category(lock_entries.read_entries(git.read_at(commit.commit, LOCK)), category) if commit else {}
    listed = lock_entries.outputs(parse_entries(entries)).get(Places(category).capsule.as_posix(), "")
    with open_project() as repo:
        manifest = read_object(repo, listed) if listed else None
        if manifest is None:
            raise _lost(category, pin)
        found = {name: read_object(repo, md5) for name, md5 in parse_manifest(manifest).items()}
    if None in found.values():
        raise _lost(category, pin)
    return {name: data for name, data in found.items() if data is not None}


def _lost(category: str, pin: Pin) -> UserError:
    return UserError(
        f"The capsule of {category} version {pin.version} ({pin.capsule[:12]}), of which an update keeps encoder and "
        f"compositions, is neither in the registry nor in DVC's cache or remote: fetch its commit with `git fetch`, or "
        f"run `flawline run {category}` to learn everything anew."
    )


def main(category: str) -> None:
    """Fetch what `bases/CATEGORY.json` names."""
    if pin := read_pin(category):
        fetch(category, pin)


if __name__ == "__main__":
    run_guarded(lambda: main(sys.argv[1]))
