"""The flow by which new images become a version of the data: one batch per category and run, step by step.

Steps: claim, fetch, judge, commit, push, announce, acknowledge. Each leaves a file in the batch's folder when it is
finished (`components.batch`); what was cut short before, by whatever, is brought to its end first.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, task

from components import registry
from components.batch import Batch, Item, category_lock, facts_cache, new_batch, open_batches
from components.capsule import Capsule, load_capsule
from components.dataset import Category, ImageRecord, list_records
from components.errors import UserError
from components.image_facts import category_facts, remember
from components.inbox import Entry, GoneError, Source, are_settled, open_source, settled
from components.judge import Verdict, arrival_limits, check_entry, judge
from components.outcome import count_words, image_name, settle, summarise
from components.params import Params, load_params
from components.review import list_held
from components.runtime import use_threads
from flows.announce import announce_commit
from flows.git import BusyError
from flows.versions import commit_images

PARALLEL = 8  # files fetched at once
RETRIES: dict[str, Any] = {"retries": 5, "retry_delay_seconds": 3}


def _is_passing(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what may pass by itself (a lock of git or DVC), not what a person must mend."""
    return isinstance(state.result(raise_on_failure=False), BusyError)


@flow(name="flawline-ingest", flow_run_name="ingest {source}", validate_parameters=False)
def ingest(source: str | None = None, categories: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Take in what lies in an inbox; one summary per batch, or with the key "error" for a category that failed.

    source: `ingest.source` of params.yaml if None. categories: those that have a folder in the inbox, or a batch that
    was cut short, if None.
    """
    params = load_params()
    use_threads(params.threads)
    inbox = open_source(source or params.ingest.source)
    summaries: list[dict[str, Any]] = []
    for category in categories or _awaited(inbox, params):
        try:
            summaries += ingest_category(category, inbox, params)
        except UserError as error:
            summaries.append({"category": category, "error": str(error)})
    return summaries


def ingest_category(category: str, inbox: Source, params: Params) -> list[dict[str, Any]]:
    """Bring open batches of a category to their end, then a new one; other processes wait meanwhile."""
    if category not in params.data.categories:
        raise UserError(f"{category} is not in data.categories of params.yaml: add it there, or empty its inbox.")
    with category_lock(category):
        summaries = [_complete(batch, params) for batch in open_batches(category)]
        batch = claim(category, inbox, params)
        return [*summaries, *([_complete(batch, params)] if batch else [])]


@task(task_run_name="claim@{category}")
def claim(category: str, inbox: Source, params: Params) -> Batch | None:
    """Take the files that no one is still writing as a new batch, up to its limits; None where there are none."""
    entries = _settled_entries(category, inbox, params.ingest.settle_seconds)
    chosen = _within_limits(entries, params)
    return new_batch(category, inbox.url, chosen, datetime.now(UTC).isoformat()) if chosen else None


@task(task_run_name="fetch@{category}", retries=2, retry_delay_seconds=1)
def fetch(category: str, batch: Batch, params: Params) -> int:
    """Copy the batch's files here; how many are gone or have changed since, which stay for the next batch."""
    from concurrent.futures import ThreadPoolExecutor

    inbox = open_source(_claim(batch)["source"])
    wanted = [item for item in batch.items() if check_entry(item, params) is None]

    def fetched(item: Item) -> bool:
        path = batch.raw(item)
        try:
            if not (path.is_file() and path.stat().st_size == item.entry.size):
                inbox.fetch(category, item.entry, path)
            return True
        except GoneError:
            return False

    with ThreadPoolExecutor(PARALLEL) as pool:
        gone = [item.number for item, there in zip(wanted, pool.map(fetched, wanted), strict=True) if not there]
    batch.record("fetched", {"gone": gone})
    return len(gone)


@task(task_run_name="judge@{category}")
def judge_batch(category: str, batch: Batch, params: Params) -> dict[str, Any]:
    """Decide what becomes of each file."""
    gone = set((batch.step("fetched") or {})["gone"])
    items = [item for item in batch.items() if item.number not in gone]
    condemned = {item.number: verdict for item in items if (verdict := check_entry(item, params))}
    opened = [item for item in items if item.number not in condemned]
    inbox, capsule = open_source(_claim(batch)["source"]), _champion(category)
    history = category_facts(_category(category, params), params.limits.image_limits(), facts_cache(category))
    judged = judge(batch, opened, history, list_held(inbox, category), capsule, params)
    verdicts = sorted([*condemned.values(), *judged.verdicts], key=lambda verdict: verdict.number)
    remember(facts_cache(category), {one.sha256: dict(one.facts) for one in verdicts if one.facts})
    batch.record(
        "judged",
        {
            "verdicts": [verdict.to_json() for verdict in verdicts],
            "drift": [drift.to_json() for drift in judged.drift],
            "screened_by": capsule.digest if capsule else None,
        },
    )
    return summarise(verdicts)


@task(task_run_name="commit@{category}", retry_condition_fn=_is_passing, **RETRIES)
def commit(category: str, batch: Batch) -> str | None:
    """Commit the accepted images as one new version; the git commit, or None where nothing was accepted."""
    verdicts, items = _verdicts(batch), {item.number: item for item in batch.items()}
    accepted = [verdict for verdict in verdicts if verdict.outcome == "accepted"]
    done = None
    if accepted:
        records = [
            ImageRecord(batch.raw(items[one.number]), image_name(items[one.number], one), "train", "good")
            for one in accepted
        ]
        note = f"Ingested from {_claim(batch)['source']}, batch {batch.name}: {count_words(summarise(verdicts))}."
        done = commit_images(category, records, note=note, validate=False)
    batch.record("committed", {"commit": done.commit, "message": done.message} if done else {"commit": None})
    return done.commit if done else None


@task(task_run_name="push@{category}", retry_condition_fn=_is_passing, **RETRIES)
def push(category: str, batch: Batch) -> bool:
    """Send the new version to the remote, if one is set; whether it was."""
    from flows.dvc_project import open_project
    from flows.stores import remote_store
    from flows.transfer import push as push_versions

    with open_project() as repo:
        is_set = remote_store(repo) is not None
    sent = bool((batch.step("committed") or {})["commit"]) and is_set
    if sent:
        push_versions(category)
    batch.record("pushed", {"pushed": sent})
    return sent


@task(task_run_name="announce@{category}")
def announce(category: str, batch: Batch) -> None:
    """Tell Prefect's automations of the new version."""
    committed = batch.step("committed") or {}
    if committed["commit"]:
        accepted = sum(verdict.outcome == "accepted" for verdict in _verdicts(batch))
        announce_commit(category, committed["commit"], accepted)
    batch.record("announced", {})


@task(task_run_name="acknowledge@{category}", retries=2, retry_delay_seconds=1)
def acknowledge(category: str, batch: Batch) -> dict[str, Any]:
    """Move the files out of the inbox and end the batch; its summary."""
    verdicts, claimed = _verdicts(batch), _claim(batch)
    settle(batch, open_source(claimed["source"]), verdicts)
    summary = {"category": category, "batch": batch.name, "source": claimed["source"], **summarise(verdicts)}
    judged, gone = batch.step("judged") or {}, (batch.step("fetched") or {})["gone"]
    summary |= {"drift": [one for one in judged["drift"] if one["drifted"]], "screened": bool(judged["screened_by"])}
    summary |= {"left": len(gone), **(batch.step("committed") or {}), **(batch.step("pushed") or {})}
    batch.finish(summary)
    return summary


def _complete(batch: Batch, params: Params) -> dict[str, Any]:
    """All steps of a batch that are still to be done, in order."""
    category = batch.category
    if batch.step("fetched") is None:
        fetch(category, batch, params)
    if batch.step("judged") is None:
        judge_batch(category, batch, params)
    if batch.step("committed") is None:
        commit(category, batch)
    if batch.step("pushed") is None:
        push(category, batch)
    if batch.step("announced") is None:
        announce(category, batch)
    return acknowledge(category, batch)


def _awaited(inbox: Source, params: Params) -> list[str]:
    """The known categories with a folder in the inbox, or with a batch that was cut short."""
    folders = set(inbox.categories())
    return [name for name in params.data.categories if name in folders or open_batches(name)]


def _settled_entries(category: str, inbox: Source, seconds: float) -> list[Entry]:
    """Look once if all files have been left alone for so long, else a second time after that time."""
    entries = inbox.entries(category)
    if are_settled(entries, time.time(), seconds):
        return entries
    time.sleep(seconds)
    return settled(entries, inbox.entries(category))


def _within_limits(entries: Sequence[Entry], params: Params) -> list[Entry]:
    """The first files that make one batch; those that will not be fetched take no space."""
    chosen: list[Entry] = []
    room, most = params.ingest.max_batch_bytes, arrival_limits(params).max_bytes
    for entry in entries[: params.ingest.max_files]:
        room -= entry.size if entry.size <= most else 0
        if chosen and room < 0:
            break
        chosen.append(entry)
    return chosen


def _champion(category: str) -> Capsule | None:
    return load_capsule(registry.download_capsule(category)) if registry.champion(category) else None


def _category(category: str, params: Params) -> Category | None:
    """The category as it is; None where its first images are just arriving."""
    root = Path(params.data.root) / category
    records = list_records(root)
    return Category(category, root, records) if records else None


def _claim(batch: Batch) -> dict[str, Any]:
    return dict(batch.step("claim") or {})


def _verdicts(batch: Batch) -> list[Verdict]:
    return [Verdict(**fields) for fields in (batch.step("judged") or {})["verdicts"]]
