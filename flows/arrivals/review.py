"""A person's decisions on held images: accepted ones become a new version of the data, refused ones are quarantined."""

import getpass
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from components.arrivals.admission import Opened, open_arrival
from components.arrivals.delivery import category_lock, open_deliveries
from components.arrivals.inbox import Source, open_source
from components.arrivals.names import safe_suffix
from components.arrivals.review import Held, choose, decide, list_held
from components.arrivals.triage import arrival_limits
from components.foundation.errors import UserError
from components.foundation.files import write_bytes
from components.foundation.params import Params, load_params
from components.images.dataset import ImageRecord
from flows.arrivals.announce import announce_commit
from flows.data.versions import Committed, commit_images


def held_images(source: str | None = None) -> list[Held]:
    """All held images of the known categories, with `map` and `file` as a person finds them."""
    params = load_params()
    inbox = open_source(source or params.ingest.source)
    found = [held for category in params.data.categories for held in list_held(inbox, category)]
    return [
        {**held, "file": inbox.shown(held["place"]), "map": inbox.shown(held["map"]) if held["map"] else None}
        for held in found
    ]


def accept(names: Sequence[str], source: str | None = None) -> list[tuple[Committed, str]]:
    """Commit held images as good ones, one new version per category, then move them to accepted/.

    Returns each version with the sentence that says which Prefect server was told of it.

    Safe to repeat after a kill. Raises UserError for an unknown name, and for an image that shows a test image.
    """
    params = load_params()
    inbox = open_source(source or params.ingest.source)
    with ExitStack() as locks:
        chosen = _locked_choice(inbox, names, params, locks)
        _refuse_test_images(chosen)
        return [_accept(inbox, category, held, params) for category, held in _by_category(chosen).items()]


def refuse(names: Sequence[str], source: str | None = None) -> int:
    """Move held images to quarantine/; how many."""
    params = load_params()
    inbox = open_source(source or params.ingest.source)
    with ExitStack() as locks:
        chosen = _locked_choice(inbox, names, params, locks)
        for held in chosen:
            decide(inbox, held, "quarantine", _decision("refused"))
    return len(chosen)


def _accept(inbox: Source, category: str, held: Sequence[Held], params: Params) -> tuple[Committed, str]:
    with tempfile.TemporaryDirectory() as folder:
        records = [_record(inbox, one, Path(folder), params) for one in held]
        done = commit_images(category, records, note=f"Accepted by {_person()} after review.", validate=False)
    for one in held:
        decide(inbox, one, "accepted", _decision("accepted"))
    return done, announce_commit(category, done.commit, len(held))


def _record(inbox: Source, held: Held, folder: Path, params: Params) -> ImageRecord:
    """The held image in `folder`; UserError where it is no longer the one that was triaged."""
    data = inbox.read(held["place"])
    opened = open_arrival(data, held["name"], arrival_limits(params))
    if not isinstance(opened, Opened) or opened.sha256 != held["sha256"]:
        raise UserError(f"{held['place']} was changed since it was triaged: refuse it, or deliver it anew.")
    stem = Path(held["place"]).stem.partition("-")[2]
    path = folder / f"{stem}-{held['sha256'][:12]}{safe_suffix(held['place'])}"
    write_bytes(path, data)
    return ImageRecord(path, f"train/good/{path.name}", "train", "good")


def _locked_choice(inbox: Source, names: Sequence[str], params: Params, locks: ExitStack) -> list[Held]:
    """The held images that are meant, with the locks of their categories held."""
    for category in sorted(params.data.categories):
        locks.enter_context(category_lock(category))
        if open_deliveries(category):
            raise UserError(f"An ingest of {category} was cut short: run `flawline ingest` first, which completes it.")
    return choose([held for category in params.data.categories for held in list_held(inbox, category)], names)


def _refuse_test_images(chosen: Sequence[Held]) -> None:
    near = [held["name"] for held in chosen if held["code"] == "near-test-image"]
    if near:
        raise UserError(
            f"{near[0]} shows a test image, and learning it would make the test worthless: refuse it, or take the test "
            "image out of the test first."
        )


def _by_category(chosen: Sequence[Held]) -> dict[str, list[Held]]:
    found: dict[str, list[Held]] = {}
    for held in chosen:
        found.setdefault(held["category"], []).append(held)
    return found


def _decision(word: str) -> dict[str, str]:
    return {"decision": word, "decided_by": _person(), "decided_at": datetime.now(UTC).isoformat()}


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
