"""The registry of models: one registered model per category, its versions, and which of them is served.

A version is a capsule; registering the same capsule again gives the version that is there. The alias `champion` says
which version is served, `challenger` which one is the candidate, `previous` what a roll-back returns to. MLflow sets
aliases without looking: they are moved by `components.registry.promotion`, and by `register` for a new challenger.
"""

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.detection.promise import promise_words
from components.foundation.errors import UserError
from components.foundation.files import held_lock, is_digest, new_directory
from components.foundation.mlflow_store import database_of, database_uri
from components.foundation.names import check_category_name, is_category_name
from components.foundation.places import CAPSULES
from components.registry.journal import Move, champion_at, decided, read_moves
from components.registry.packaging import save_model
from components.registry.person import who_am_i
from components.registry.version_lookup import known_models, version_tag
from components.tracking.connection import (
    NOTE,
    STATE,
    connect,
    registry_uri,
    run_page,
    server_errors_explained,
    shown_uri,
    tracking_uri,
)
from components.tracking.git_tags import GIT_COMMIT
from components.tracking.runs import DATA_COMMIT, DATA_VERSION, VERDICT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion

PREFIX = "flawline-"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
LOCK_SECONDS = 600.0
MOST_VERSIONS = 2**31 - 1  # a larger number is none to MLflow's databases

_DIGEST, _METHOD, _DATA, _THRESHOLD, _METRIC = "capsule_digest", "method", "data_digest", "threshold", "metric."
_KINDS, _PROMISE, _COMMIT, _RUN_PAGE = "by_kind", "promise", "commit", "run_page"
_MADE_BY, _UPDATED = "made_by", "updated"
_GONE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"}  # of what was deleted
_GIT_COMMIT, _GIT_BRANCH = "git_commit", "git_branch"
_CAPSULE_PATH = "artifacts/capsule"


@dataclass(frozen=True)
class Version:
    """A registered version of a category's model.

    Attributes:
        category, number: which one; `number` counts from 1.
        digest: of the capsule.
        method, data_digest, threshold: what the capsule says of itself.
        run_id: the MLflow run that made it, or one that was begun to hold it where that was not tracked.
        metrics: what was measured on the test images.
        aliases: such as "champion".
        by_kind: figures of each kind of defect.
        promise: of the threshold, in words.
        data_version, data_commit: the data that it learned from, as DVC and git name them; empty where unknown.
        commit: of the code that the run began with. run_page: of the run, to be put after the address of an MLflow
            server.
        git_commit, git_branch: the retraining's own commit, which holds all that the version is made from, and its
            branch; empty where there is none.
        verdict: the alias, and why it has it.
        updated: from which version it was updated, in words; empty where it was learned anew.
        made_at, made_by: when it was registered (ISO 8601, UTC), and by whom; the latter may be empty.
    """

    category: str
    number: int
    digest: str
    method: str
    data_digest: str
    threshold: float
    run_id: str
    metrics: Mapping[str, float]
    aliases: tuple[str, ...]
    by_kind: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    promise: str = ""
    data_version: str = ""
    data_commit: str = ""
    commit: str = ""
    git_commit: str = ""
    git_branch: str = ""
    run_page: str = ""
    verdict: str = ""
    updated: str = ""
    made_at: str = ""
    made_by: str = ""


@dataclass(frozen=True)
class StatusRow:
    """One line of `flawline status`; a figure that was not measured is None."""

    category: str
    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    threshold: float
    version: int
    alias: str
    method: str


def model_name(category: str) -> str:
    """The name of a category's registered model."""
    check_category_name(category)
    return PREFIX + category


def register(
    category: str,
    capsule_dir: Path,
    run_id: str,
    metrics: Mapping[str, float],
    method: str,
    by_kind: Mapping[str, Mapping[str, float | None]] | None = None,
) -> Version:
    """Register a capsule as the next version, with the alias `challenger`.

    The same capsule again gives its version, with these figures; what was decided of it stays: a version that was
    rejected, or had to go as champion, is no challenger again.

    The capsule of a new one is loaded first, which checks its digests and its golden scores. Its MLflow model is made
    of code (`components.registry.served_model`) and needs no network to be made.

    Args:
        category: the product.
        capsule_dir: the capsule's folder.
        run_id: the MLflow run that made it, which gets the model as an artifact; empty for none.
        metrics: what was measured, such as {"image_auroc": 0.99}.
        method: as in params.yaml.
        by_kind: what was measured on each kind of defect.
    """
    from components.detection.card import read_card

    card = read_card(capsule_dir)
    with locked(category), server_errors_explained():
        client, experiment = connect()
        found = _find_digest(client, category, card["digest"])
        if found is None:
            from components.detection.capsule import load_capsule  # seconds to import, and for a new version only

            load_capsule(capsule_dir)
            tags = _version_tags(card, metrics, method, by_kind or {})
            found = _new_version(client, experiment, category, capsule_dir, run_id, tags)
        elif dict(found.metrics) != dict(metrics):
            _renew_figures(client, found, run_id, _version_tags(card, metrics, method, by_kind or {}))
        aliases = aliases_of(client, category)
        if aliases.get(CHAMPION) != found.number and decided(journal(category), found.number) is None:
            client.set_registered_model_alias(model_name(category), CHALLENGER, str(found.number))
            _note_challenger(client, category, found.number, aliases)
        if run_id:
            _link_to_version(client, run_id, category, found.number)
        return version_of(client, category, found.number)


def note_verdict(category: str, number: int, verdict: str) -> None:
    """Write what became of a version, and why, on it and on its run: the column "verdict" of MLflow's list."""
    with server_errors_explained():
        write_verdict(connect()[0], category, number, verdict)


def note_commit(category: str, number: int, commit: str, branch: str) -> None:
    """Write on a version which commit holds all that it is made from, unless it says so."""
    with server_errors_explained():
        client, _ = connect()
        if version_of(client, category, number).git_commit != commit:
            for tag, value in ((_GIT_BRANCH, branch), (_GIT_COMMIT, commit)):
                client.set_model_version_tag(model_name(category), str(number), tag, value)


def champion(category: str) -> Version | None:
    """The version that is served, or None."""
    with server_errors_explained():
        client, _ = connect()
        number = aliases_of(client, category).get(CHAMPION)
        return None if number is None else version_of(client, category, number)


def which_model(category: str, at: datetime) -> Move | None:
    """The move by which the champion at that time became it, from the journal; None where there was no champion.

    A time without zone is local time. Moves made outside the project count from when they were noticed.
    """
    return champion_at(journal(category), at.astimezone(UTC))


def list_status(categories: Sequence[str] | None = None) -> list[StatusRow]:
    """Rows by category, sorted by name: of the champion, then of the challenger; else of the latest version.

    categories: which ones; all that are registered for None. A category without a version has no row.
    """
    with server_errors_explained():
        client, _ = connect()
        names = _registered_categories(client) if categories is None else categories
        return [_status_row(version) for category in sorted(names) for version in _status_versions(client, category)]


def list_versions(category: str) -> list[Version]:
    """All versions of a category, the latest first; none where it has no model."""
    with server_errors_explained():
        client, _ = connect()
        aliases: dict[int, list[str]] = defaultdict(list)
        for alias, number in aliases_of(client, category).items():
            aliases[number].append(alias)
        found = sorted(_all_versions(client, category), key=lambda one: -int(one.version))
        return [_as_version(category, one, tuple(sorted(aliases[int(one.version)]))) for one in found]


def find_version(category: str, number: int | None = None) -> Version:
    """One version; for None the champion, or the latest version where there is none. UserError where there is none."""
    with server_errors_explained():
        client, _ = connect()
        if number is None:
            return _shown_first(client, category)
        return version_of(client, category, number)


def modelled_categories() -> list[str]:
    """The categories that have a model, sorted."""
    names = known_models(database_of(STATE.parent)) if _is_own_registry() else None
    if names is None:
        return sorted({row.category for row in list_status()})
    categories = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
    return [category for category in categories if is_category_name(category)]


def locate_capsule(category: str, which: str | int = CHAMPION) -> tuple[int, str]:
    """Number and capsule digest of a version, by alias or number; UserError where there is none."""
    if _is_own_registry():
        found = version_tag(database_of(STATE.parent), model_name(category), which, _DIGEST)
        if found is not None:
            return found[0], _checked_digest(category, *found)
    with server_errors_explained():
        client, _ = connect()
        number = which if isinstance(which, int) else aliases_of(client, category).get(which)
        if number is None:
            raise _without_alias(client, category, str(which))
        return number, _checked_digest(category, number, version_of(client, category, number).digest)


def download_capsule(category: str, which: str | int = CHAMPION) -> Path:
    """The folder of a version's capsule, by alias or number; fetched once and kept under `.flawline/capsules`.

    What is fetched is checked before it is kept, and what is kept and was damaged since is fetched again.
    """
    number, digest = locate_capsule(category, which)
    folder = CAPSULES / digest
    lock = STATE / "locks" / f"capsule-{digest}.lock"
    with held_lock(lock, LOCK_SECONDS, UserError(f"Another process has fetched {folder} for long: end it.")):
        if not is_whole_capsule(folder, digest):
            with server_errors_explained():
                _fetch_capsule(connect()[0], category, number, digest, folder)
    return folder


def journal(category: str) -> list[Move]:
    """All lines of a category's journal, oldest first."""
    return read_moves(journal_path(category))


@contextmanager
def locked(category: str) -> Iterator[None]:
    """One writer per category, among all processes and threads of this workspace."""
    check_category_name(category)
    path = STATE / "locks" / f"{category}.lock"
    busy = UserError(
        f"Another process has held the lock of {category} ({path}) for {LOCK_SECONDS:.0f} s: wait for it or end it."
    )
    with held_lock(path, LOCK_SECONDS, busy):
        yield


def _note_challenger(client: "MlflowClient", category: str, number: int, before: Mapping[str, int]) -> None:
    """Say of a version that it is the challenger, and of the one before that it is not any more."""
    champion = before.get(CHAMPION)
    reason = f"version {champion} is the champion" if champion else "there is no champion yet"
    write_verdict(client, category, number, f"challenger: {reason}")
    last = before.get(CHALLENGER, number)
    if last != number:
        write_verdict(client, category, last, f"not promoted: version {number} came after it")


def write_verdict(client: "MlflowClient", category: str, number: int, verdict: str) -> None:
    """Write what became of a version, and why, on it and on the run that made it, where these still exist."""
    name = model_name(category)
    with _gone_suppressed():
        client.set_model_version_tag(name, str(number), VERDICT, verdict)
        if run_id := client.get_model_version(name, str(number)).run_id:
            client.set_tag(run_id, VERDICT, verdict)


@contextmanager
def _gone_suppressed() -> Iterator[None]:
    """Go on where a version or a run was deleted; a server that does not answer is no reason to."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise


def _link_to_version(client: "MlflowClient", run_id: str, category: str, number: int) -> None:
    """Let the description of a run lead to the version that holds its capsule."""
    from mlflow.exceptions import MlflowException

    link = f"[{model_name(category)} version {number}](#/models/{model_name(category)}/versions/{number})"
    with suppress(MlflowException):
        note = client.get_run(run_id).data.tags.get(NOTE, "")
        if link not in note:
            client.set_tag(run_id, NOTE, f"{note}\n\nRegistered as {link}.".strip())


def journal_path(category: str) -> Path:
    """The file of a category's journal."""
    check_category_name(category)
    return STATE / "journal" / f"{category}.jsonl"


def aliases_of(client: "MlflowClient", category: str) -> dict[str, int]:
    """Alias → version number; empty where nothing is registered."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(model_name(category))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {alias: int(number) for alias, number in model.aliases.items()}


def version_of(client: "MlflowClient", category: str, number: int) -> Version:
    """A version by its number; UserError where there is none."""
    from mlflow.exceptions import MlflowException

    unknown = UserError(f"{category} has no version {number}: `flawline models {category}` lists what is registered.")
    if number > MOST_VERSIONS:
        raise unknown
    try:
        found = client.get_model_version(model_name(category), str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise unknown from error
    aliases = aliases_of(client, category)
    return _as_version(category, found, tuple(sorted(alias for alias, at in aliases.items() if at == number)))


def exists(client: "MlflowClient", category: str, number: int | None) -> bool:
    """Whether there is a version of this number."""
    return number is not None and any(int(v.version) == number for v in _all_versions(client, category))


def _as_version(category: str, found: "ModelVersion", aliases: tuple[str, ...]) -> Version:
    tags = found.tags
    return Version(
        category=category,
        number=int(found.version),
        digest=tags.get(_DIGEST, ""),
        method=tags.get(_METHOD, ""),
        data_digest=tags.get(_DATA, ""),
        threshold=float(tags.get(_THRESHOLD, "nan")),
        run_id=found.run_id or "",
        metrics={name.removeprefix(_METRIC): float(tags[name]) for name in sorted(tags) if name.startswith(_METRIC)},
        aliases=aliases,
        by_kind=json.loads(tags.get(_KINDS, "{}")),
        promise=tags.get(_PROMISE, ""),
        data_version=tags.get(DATA_VERSION, ""),
        data_commit=tags.get(DATA_COMMIT, ""),
        commit=tags.get(_COMMIT, ""),
        git_commit=tags.get(_GIT_COMMIT, ""),
        git_branch=tags.get(_GIT_BRANCH, ""),
        run_page=tags.get(_RUN_PAGE, ""),
        verdict=tags.get(VERDICT, ""),
        updated=tags.get(_UPDATED, ""),
        made_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        made_by=tags.get(_MADE_BY, ""),
    )


def _all_versions(client: "MlflowClient", category: str, condition: str = "") -> "list[ModelVersion]":
    return list(client.search_model_versions(f"name = '{model_name(category)}'{condition}"))


def _find_digest(client: "MlflowClient", category: str, digest: str) -> Version | None:
    if not is_digest(digest):
        raise UserError(f"The capsule of {category} names no digest: make it anew with `flawline run`.")
    found = _all_versions(client, category, f" and tags.{_DIGEST} = '{digest}'")
    return _as_version(category, found[0], ()) if found else None


def _registered_categories(client: "MlflowClient") -> list[str]:
    """The categories that have a model; models of others, whose names no category can have, are left alone."""
    models = client.search_registered_models(f"name LIKE '{PREFIX}%'", max_results=1000)
    names = (model.name.removeprefix(PREFIX) for model in models if model.name.startswith(PREFIX))
    return [name for name in names if is_category_name(name)]


def _status_versions(client: "MlflowClient", category: str) -> list[Version]:
    """The champion and the challenger, as far as there are; else the latest version; else none."""
    aliases = aliases_of(client, category)
    numbers = [aliases[alias] for alias in (CHAMPION, CHALLENGER) if alias in aliases]
    if not numbers:
        numbers = sorted(int(found.version) for found in _all_versions(client, category))[-1:]
    return [version_of(client, category, number) for number in numbers]


def _shown_first(client: "MlflowClient", category: str) -> Version:
    """The champion, else the challenger, else the latest version; UserError where there is none."""
    found = _status_versions(client, category)
    if not found:
        raise UserError(f"{category} has no model yet: `flawline run {category}` makes one.")
    return found[0]


def _without_alias(client: "MlflowClient", category: str, alias: str) -> UserError:
    """That no version has the alias, and which one there is instead, with the verdict on it."""
    other = _shown_first(client, category)
    name = other.aliases[0] if other.aliases else other.number
    return UserError(
        f"{category} has no version with the alias {alias!r}, but version {other.number} "
        f"({other.verdict or 'without alias'}): it is used with `--version {name}`."
    )


def _status_row(version: Version) -> StatusRow:
    return StatusRow(
        category=version.category,
        image_auroc=version.metrics.get("image_auroc"),
        pixel_auroc=version.metrics.get("pixel_auroc"),
        aupro=version.metrics.get("aupro"),
        threshold=version.threshold,
        version=version.number,
        alias=next((alias for alias in (CHAMPION, CHALLENGER) if alias in version.aliases), ", ".join(version.aliases)),
        method=version.method,
    )


def _version_tags(
    card: Mapping[str, Any], metrics: Mapping[str, float], method: str, by_kind: Mapping[str, Any]
) -> dict[str, str]:
    return {
        _DIGEST: str(card["digest"]),
        _METHOD: method,
        _DATA: str(card["provenance"].get("data_digest", "")),
        _THRESHOLD: repr(float(card["threshold"])),
        _KINDS: json.dumps(_rounded(by_kind), ensure_ascii=False),
        _PROMISE: promise_words(card["selection"]),
        **_updated(card),
        **{_METRIC + name: repr(float(value)) for name, value in metrics.items() if value is not None},
    }


def _updated(card: Mapping[str, Any]) -> dict[str, str]:
    """From which version it was updated, and with how many images, in words; nothing of one that was learned anew."""
    words = card["provenance"].get("updated", {}).get("in_words")
    return {_UPDATED: str(words)} if words else {}


def _rounded(by_kind: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Figures with the digits that are shown."""
    return {
        kind: {name: None if value is None else round(value, 4) for name, value in figures.items()}
        for kind, figures in by_kind.items()
    }


def _new_version(
    client: "MlflowClient", experiment: str, category: str, capsule_dir: Path, run_id: str, tags: Mapping[str, str]
) -> Version:
    """Upload the model to its run, then make the version: one that is visible is whole, with all its tags."""
    name = model_name(category)
    run_id = run_id or _run_for_upload(client, experiment, name)
    place = f"capsule-{tags[_DIGEST][:12]}"
    with tempfile.TemporaryDirectory() as scratch:
        save_model(capsule_dir, Path(scratch) / "model")
        client.log_artifacts(run_id, str(Path(scratch) / "model"), place)
    _ensure_model(client, name)
    run = client.get_run(run_id)
    source, tags = f"{run.info.artifact_uri}/{place}", {**tags, **_origin_tags(run), _MADE_BY: who_am_i()}
    made = client.create_model_version(name, source, run_id, tags, description=_version_note(run))
    return _as_version(category, made, ())


def _origin_tags(run: "MlflowRun") -> dict[str, str]:
    """What a version has of the run that made it: its data, the code's commit, its page."""
    found = {
        DATA_VERSION: run.data.tags.get(DATA_VERSION, ""),
        DATA_COMMIT: run.data.tags.get(DATA_COMMIT, ""),
        _COMMIT: run.data.tags.get(GIT_COMMIT, ""),
        _RUN_PAGE: run_page(run.info.experiment_id, run.info.run_id),
    }
    return {name: value for name, value in found.items() if value}


def _version_note(run: "MlflowRun") -> str:
    """The description of a version: its run's, with a link to the run."""
    link = f"[{run.info.run_name}]({run_page(run.info.experiment_id, run.info.run_id).lstrip('/')})"
    return f"{run.data.tags.get(NOTE, '')}\n\nMade by the run {link}.".strip()


def _renew_figures(client: "MlflowClient", found: Version, run_id: str, tags: Mapping[str, str]) -> None:
    """Give a version the figures of its latest evaluation: there are other test images than when it was made."""
    name, number = model_name(found.category), str(found.number)
    figures = {key: value for key, value in tags.items() if key == _KINDS or key.startswith(_METRIC)}
    for gone in {_METRIC + metric for metric in found.metrics} - figures.keys():
        client.delete_model_version_tag(name, number, gone)
    for key, value in figures.items():
        client.set_model_version_tag(name, number, key, value)
    if run_id:
        client.update_model_version(name, number, _version_note(client.get_run(run_id)))


def _run_for_upload(client: "MlflowClient", experiment: str, name: str) -> str:
    """A finished run of its own, for a capsule whose making was not tracked."""
    run_id = str(client.create_run(experiment, run_name=f"register {name}").info.run_id)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _checked_digest(category: str, number: int, digest: str) -> str:
    if not is_digest(digest):
        raise UserError(f"The tags of {model_name(category)} version {number} name no capsule: register it again.")
    return digest


def _is_own_registry() -> bool:
    """Whether the models are in the project's own SQLite file."""
    return registry_uri() == database_uri(STATE.parent)


def is_whole_capsule(folder: Path, digest: str) -> bool:
    """Whether a folder holds the capsule with this digest, undamaged."""
    from components.detection.capsule import checked_card

    with suppress(UserError):
        return bool(checked_card(folder)["digest"] == digest)
    return False


def _fetch_capsule(client: "MlflowClient", category: str, number: int, digest: str, folder: Path) -> None:
    import mlflow.artifacts

    with new_directory(folder) as beside, tempfile.TemporaryDirectory() as scratch:
        place = client.get_model_version_download_uri(model_name(category), str(number))
        stored = f"{place}/{_CAPSULE_PATH}"
        source = mlflow.artifacts.download_artifacts(stored, dst_path=scratch, tracking_uri=tracking_uri())
        shutil.copytree(source, beside, dirs_exist_ok=True)
        if not is_whole_capsule(beside, digest):
            raise UserError(
                f"The stored capsule of {category} version {number} is damaged, or not the one that was registered: "
                f"put the files at {shown_uri(stored)} back from a copy, such as artifacts/{category}/capsule."
            )
