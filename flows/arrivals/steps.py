"""How new images become a version of the data, step by step; `flows.arrivals.ingest` runs the steps as a Prefect flow.

A step takes the delivery and returns what is written down when it is finished (`components.arrivals.delivery`). It may
be cut short anywhere and repeated. What lies in the delivery's folder is all that one step tells the next.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.arrivals.delivery import Delivery, Item, category_lock, facts_cache, new_delivery, open_deliveries
from components.arrivals.entries import Entry, GoneError
from components.arrivals.inbox import Source, are_at_rest, at_rest, open_source
from components.arrivals.inspection import Inspection, Inspectors
from components.arrivals.outcome import count_words, image_name, store_outcomes, summarise
from components.arrivals.review import list_held
from components.arrivals.triage import Verdict, arrival_limits, check_entry, triage
from components.foundation.errors import UserError, printable
from components.foundation.files import write_text
from components.foundation.params import Params
from components.images.dataset import Category, ImageRecord, list_records
from components.images.known_depth import with_depth
from components.registry.evidence import list_evidence
from components.registry.forgotten import list_forgotten, record_of
from flows.arrivals.announce import announce_commit
from flows.data.versions import commit_images

if TYPE_CHECKING:
    from components.detection.capsule import Capsule

PARALLEL = 8  # files fetched at once
Step = Callable[[Delivery, Params], Any]
Run = Callable[[Step, Delivery, Params], Any]


def call(step: Step, delivery: Delivery, params: Params) -> Any:
    """Run a step here and now."""
    return step(delivery, params)


def awaited(inbox: Source, params: Params) -> list[str]:
    """The folders of the inbox with something in them, and the categories with a delivery that was cut short.

    A folder of no known category is among them: `ingest_category` says so, else its images would wait unseen.
    """
    filled = [name for name in inbox.categories() if inbox.entries(name)]
    return sorted({*filled, *(name for name in params.data.categories if open_deliveries(name))})


def sentence_on_strays(inbox: Source) -> str | None:
    """What lies in the inbox and will never be taken in, as it is in no category's folder; None for nothing."""
    names = inbox.strays()
    if not names:
        return None
    return (
        f"{len(names)} {'file lies' if len(names) == 1 else 'files lie'} beside the categories' folders in the inbox "
        f"{inbox.url}, such as {printable(names[0])!r}: move each into the folder of its category."
    )


def ingest_category(category: str, inbox: Source, params: Params, run: Run = call) -> list[dict[str, Any]]:
    """Bring the open deliveries of a category to their end, then a new one; one summary each.

    Only one process does so at a time in this workspace, others wait. run: how a step is run.
    """
    if category not in params.data.categories:
        raise UserError(
            f"The inbox {inbox.url} has a folder {printable(category)!r}, which is not in data.categories of "
            "params.yaml: correct its name, or add the category."
        )
    with category_lock(category):
        summaries = [complete(delivery, params, run) for delivery in open_deliveries(category)]
        delivery = claim(category, inbox, params)
        return [*summaries, *([complete(delivery, params, run)] if delivery else [])]


def complete(delivery: Delivery, params: Params, run: Run = call) -> dict[str, Any]:
    """Do what is still to be done of a delivery; its summary."""
    for name, step in STEPS.items():
        if delivery.step(name) is None:
            delivery.record(name, run(step, delivery, params))
    summary = run(acknowledge, delivery, params)
    delivery.finish(summary)
    return dict(summary)


def claim(category: str, inbox: Source, params: Params) -> Delivery | None:
    """Take the files that no one is still writing as a new delivery, up to its limits; None where there are none."""
    entries = _entries_at_rest(category, inbox, params.ingest.settle_seconds)
    chosen = _within_limits(entries, params)
    return new_delivery(category, inbox.url, chosen, datetime.now(UTC).isoformat()) if chosen else None


def fetch(delivery: Delivery, params: Params) -> dict[str, Any]:
    """Copy the delivery's files here, and look at each once it is there, while others are on their way.

    gone: the numbers of those that changed since, which the next delivery takes. looks: what was found, by number.
    """
    inbox, limits = _inbox(delivery), arrival_limits(with_depth(params, delivery.category))
    wanted = [item for item in delivery.items() if check_entry(item, params) is None]
    raw = delivery.folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)  # of a run that was killed: what is there may be there in part
    raw.mkdir()

    def fetched(item: Item) -> "Future[Inspection] | None":
        try:
            inbox.fetch(delivery.category, item.entry, delivery.raw(item))
        except GoneError:
            delivery.raw(item).unlink(missing_ok=True)
            return None
        return looking.submit(inspectors.look, delivery.raw(item), item.shown, limits)

    count = max(1, min(params.threads, len(wanted)))
    threads = ThreadPoolExecutor
    with Inspectors(count) as inspectors, threads(count) as looking, threads(PARALLEL) as fetching:
        found = list(zip(wanted, fetching.map(fetched, wanted), strict=True))
        looks = {str(item.number): look.result().to_json() for item, look in found if look}
    os.sync()  # all at once: waiting for each file by itself takes longer than fetching it
    return {"gone": [item.number for item, look in found if not look], "looks": looks}


def triage_files(delivery: Delivery, params: Params) -> dict[str, Any]:
    """Decide what becomes of each file."""
    from components.images.facts import category_facts, remember

    params = with_depth(params, delivery.category)
    looks = {int(number): Inspection(**fields) for number, fields in delivery.result("fetched")["looks"].items()}
    refused = [verdict for item in delivery.items() if (verdict := check_entry(item, params))]
    looked_at = [item for item in delivery.items() if item.number in looks]
    cache, capsule = facts_cache(delivery.category), _champion(delivery.category, params.threads)
    history = category_facts(_category(delivery.category, params), params.limits.image_limits(), cache)
    held = list_held(_inbox(delivery), delivery.category)
    forgotten = list_forgotten(record_of(Path(params.data.root), delivery.category))
    triaged = triage(delivery, looked_at, looks, history, held, capsule, params, forgotten)
    verdicts = sorted([*refused, *triaged.verdicts], key=lambda verdict: verdict.number)
    remember(cache, {one.sha256: dict(one.facts) for one in verdicts if one.facts})
    return {
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "drift": [drift.to_json() for drift in triaged.drift],
        "screened_by": capsule.digest if capsule else None,
    }


def commit(delivery: Delivery, params: Params) -> dict[str, Any]:
    """Commit the accepted images as one new version; `commit` is None where nothing was accepted, `lost` as there."""
    del params
    verdicts, items = _verdicts(delivery), {item.number: item for item in delivery.items()}
    accepted = [(items[verdict.number], verdict) for verdict in verdicts if verdict.outcome == "accepted"]
    if not accepted:
        return {"commit": None}
    records = [ImageRecord(delivery.raw(item), image_name(item, one), "train", "good") for item, one in accepted]
    source, counts = delivery.result("claim")["source"], count_words(summarise(verdicts))
    note = f"Ingested from {source}, delivery {delivery.name}: {counts}."
    done = commit_images(delivery.category, records, note=note, validate=False, link=True)
    return {"commit": done.commit, "message": done.message, "lost": list(done.lost)}


def push(delivery: Delivery, params: Params) -> dict[str, Any]:
    """Send the new version to the remote, if there is one of each; `pushed`: whether it was."""
    del params
    from flows.data.dvc_project import open_project
    from flows.data.stores import remote_store
    from flows.data.transfer import push_versions

    with open_project() as repo:
        is_wanted = bool(delivery.result("committed")["commit"]) and remote_store(repo) is not None
    if is_wanted:
        push_versions(delivery.category)
    return {"pushed": is_wanted}


def announce(delivery: Delivery, params: Params) -> dict[str, Any]:
    """Tell Prefect's automations of the new version; announced: a sentence that says who was told."""
    del params
    committed = delivery.result("committed")
    if committed["commit"]:
        accepted = sum(verdict.outcome == "accepted" for verdict in _verdicts(delivery))
        return {"announced": announce_commit(delivery.category, committed["commit"], accepted)}
    return {"announced": ""}


def acknowledge(delivery: Delivery, params: Params) -> dict[str, Any]:
    """Move the files out of the inbox; the summary of the delivery.

    Keys: category, batch (its name), source, time; arrived, accepted, held, quarantined, reasons (`outcome.summarise`);
    left: how many files changed meanwhile and stay; drift: the measures that drifted; screened: whether a champion
    looked at them; commit, message, lost (see `versions.Committed`; these three only where something was accepted,
    but for commit), pushed, announced (in words); page: where the page about the delivery is.
    """
    from components.arrivals.page import render_arrivals  # imports pandas

    verdicts, claimed, triaged = _verdicts(delivery), delivery.result("claim"), delivery.result("triaged")
    limits = arrival_limits(with_depth(params, delivery.category))
    store_outcomes(delivery, _inbox(delivery), verdicts)
    summary = {
        "category": delivery.category,
        "batch": delivery.name,
        "source": claimed["source"],
        "time": claimed["time"],
        **summarise(verdicts),
        "left": len(delivery.result("fetched")["gone"]),
        "drift": [one for one in triaged["drift"] if one["drifted"]],
        "screened": triaged["screened_by"] is not None,
        **delivery.result("committed"),
        **delivery.result("pushed"),
        **delivery.result("announced"),
        "page": delivery.page.as_posix(),
    }
    write_text(delivery.page, render_arrivals(delivery, verdicts, summary, limits))
    return summary


STEPS: dict[str, Step] = {
    "fetched": fetch,
    "triaged": triage_files,
    "committed": commit,
    "pushed": push,
    "announced": announce,
}


def _entries_at_rest(category: str, inbox: Source, seconds: float) -> list[Entry]:
    """Look once if all files have been left alone for so long, else a second time after that time."""
    entries = inbox.entries(category)
    if are_at_rest(entries, time.time(), seconds):
        return entries
    time.sleep(seconds)
    return at_rest(entries, inbox.entries(category))


def _within_limits(entries: Sequence[Entry], params: Params) -> list[Entry]:
    """The first files that make one delivery; those that will not be fetched take no space."""
    chosen: list[Entry] = []
    room, most = params.ingest.max_batch_bytes, arrival_limits(params).max_bytes
    for entry in entries[: params.ingest.max_files]:
        room -= entry.size if entry.size <= most else 0
        if chosen and room < 0:
            break
        chosen.append(entry)
    return chosen


def _champion(category: str, threads: int) -> "Capsule | None":
    from components.registry import versions as registry

    if registry.champion(category) is None:
        return None
    from components.detection.capsule import load_capsule
    from components.foundation.runtime import use_threads

    use_threads(threads)
    return load_capsule(registry.download_capsule(category))


def _category(category: str, params: Params) -> Category | None:
    """The category as it is; None where its first images are just arriving. What is kept as evidence counts as test."""
    root = Path(params.data.root) / category
    records = list_records(root)
    evidence = [one.record for one in list_evidence(category)]
    return Category(category, root, (*records, *evidence)) if records else None


def _inbox(delivery: Delivery) -> Source:
    return open_source(delivery.result("claim")["source"])


def _verdicts(delivery: Delivery) -> list[Verdict]:
    return [Verdict(**fields) for fields in delivery.result("triaged")["verdicts"]]
