"""Experiment tracking with MLflow: an experiment run is known by the digest of its inputs, not by the process.

The stages of a category run one after another as separate processes. Each finds its run by the tag
`flawline.identity`: a run that has not finished, also one whose process was killed, is continued; after a finished
one, a new attempt begins, which records at its end whether it made the same bytes. Tracking never decides what is
computed: without a reachable server a training goes on and gives the same files, and its record waits in the outbox
(`components.tracking.outbox`) for the next connection.
"""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote

from components.foundation.files import digest_of, sha256_file
from components.tracking import open_runs, outbox
from components.tracking.connection import (
    CATEGORY,
    NOTE,
    connect,
    experiment_id,
    experiment_name,
    is_tracking_failure,
    offer_views,
    prepare_environment,
    reason,
    say,
    server_errors_explained,
    shown_uri,
    tracking_uri,
)
from components.tracking.git_tags import source_tags
from components.tracking.names import fit_name

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.entities import Run as MlflowRun
    from PIL import Image

Point = tuple[str, float, int, int]  # of a metric: name, value, time in ms, step
CODE = Path(__file__).parents[1]

IDENTITY = "flawline.identity"
ATTEMPT = "flawline.attempt"
METHOD = "flawline.method"
STAGE = "flawline.stage"
DATA_DIGEST = "flawline.data_digest"
DATA_VERSION, DATA_COMMIT = "data_version", "data_commit"
VERDICT = "verdict"
CAPSULE_DIGEST = "flawline.capsule_digest"
BYTES_AGREE = "flawline.bytes_agree"
COMPARED_WITH = "flawline.compared_with"
PARENT_RUN = "mlflow.parentRunId"
FLOW_RUN = "flawline.flow_run"
PARENT_VARIABLE = "FLAWLINE_PARENT_RUN"

_FLUSH_SECONDS = 5.0
_FLUSH_POINTS = 500
_BATCH_METRICS, _BATCH_PARAMS = 1000, 100  # MLflow's own limits per request
_BUFFER_POINTS = 100_000
_BACKOFF_FACTOR = 20
_DIGEST_LENGTH = 36  # MLflow's limit for the digest of a dataset


@dataclass(frozen=True)
class DataVersion:
    """The data that a run learned from, as MLflow shows it.

    Attributes:
        name: the category, or the name of the data set.
        digest: digest of the images; MLflow keeps the first 36 characters, a tag keeps all.
        source: the folder.
        counts: number of images per "split/kind".
        version, commit: DVC's digest of the folder, which is shown instead of `digest`, and the git commit that holds
            it; empty where the data are under no version.
        table: one row per image, for the schema; `counts` as a table where there is none.
    """

    name: str
    digest: str
    source: Path
    counts: Mapping[str, int]
    version: str = ""
    commit: str = ""
    table: "pd.DataFrame | None" = None


def run_identity(data_digest: str, params: Mapping[str, Any], code: str, category: str) -> str:
    """The identity of an experiment: SHA-256 (64 hex digits) of its data, its parameters, its code, its category."""
    return digest_of({"category": category, "code": code, "data": data_digest, "params": dict(params)})


def code_digest(folder: Path = CODE) -> str:
    """One digest of the Python sources in `folder` and its rooms: of their paths and contents."""
    return digest_of(
        [[path.relative_to(folder).as_posix(), sha256_file(path)] for path in sorted(folder.rglob("*.py"))]
    )


@dataclass
class _Kept:
    """A run in the outbox: its store's client, its id there, and the file that says that it is written to."""

    client: "MlflowClient"
    run_id: str
    lock: IO[bytes]


class Run:
    """One MLflow run; what the server does not take is kept in the outbox, and sent by a later connection.

    No call raises because of MLflow: the first failure is one warning on stderr, and after a failure MLflow is left
    alone for `20 ×` the time that the failure took, so that an outage costs a training at most a twentieth of its
    time. All calls are safe from several threads.

    As a context manager it sends what is buffered at the end and leaves the run open for the next stage; an exception
    marks the run as failed (it is continued by the next try all the same).
    """

    def __init__(
        self, client: "MlflowClient | None", run_id: str = "", continued: bool = False, kept: _Kept | None = None
    ) -> None:
        self._client = client
        self.run_id = run_id
        self._continued = continued
        self._kept = kept
        self._lock = threading.RLock()
        self._points: list[Point] = []
        self._logged_steps: dict[str, set[int]] = defaultdict(set)
        self._flushed_at = time.monotonic()
        self._paused_until = 0.0
        self._said: set[str] = set()

    @property
    def is_tracked(self) -> bool:
        """Whether there is a run, on a server or in the outbox."""
        return self._client is not None or self._kept is not None

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Buffer metrics of one step, and send the buffer every few seconds; a step that is there is not repeated."""
        if not self.is_tracked:
            return
        with self._lock:
            now = int(time.time() * 1000)
            for chosen, value in metrics.items():
                name = "/".join(fit_name(part) for part in chosen.split("/"))
                if step not in self._steps(name):
                    self._logged_steps[name].add(step)
                    self._points.append((name, float(value), now, step))
            if len(self._points) >= _FLUSH_POINTS or time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
                self.flush()

    def log_history_if_missing(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log the rows of a training history (`step` and metrics) whose steps the run does not have yet."""
        for row in rows:
            metrics = {name: float(value) for name, value in row.items() if name != "step" and value not in ("", None)}
            self.log_metrics(metrics, int(row["step"]))
        self.flush()

    def log_figure_files(self, *paths: Path, folder: str = "") -> None:
        """Store files, or all files of folders, as artifacts of the run in `folder`."""
        for path in paths:
            self._attempt(partial(_log_path, path=path, folder=folder or None))

    def log_text(self, text: str, name: str) -> None:
        """Store a text as an artifact of the run under this name."""
        self._attempt(lambda client, run_id: client.log_text(run_id, text, name))

    def log_picture(self, picture: "Image.Image", key: str, step: int) -> None:
        """Store a picture under a key that all runs have, so that MLflow shows those of several runs side by side."""
        self._attempt(lambda client, run_id: client.log_image(run_id, picture, key=key, step=step))

    def log_data(self, data: "Sequence[DataVersion]") -> None:
        """Add data versions to the inputs of the run."""
        inputs = [_dataset_input(one) for one in data]
        if inputs:
            self._attempt(lambda client, run_id: client.log_inputs(run_id, inputs))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._attempt(partial(_send_tags, tags=tags))

    def flush(self) -> None:
        """Send what is buffered, or else keep it; where neither can be done it stays in the buffer."""
        with self._lock:
            self._flushed_at = time.monotonic()
            del self._points[:-_BUFFER_POINTS]
            while self._points:
                batch = self._points[:_BATCH_METRICS]
                if not self._attempt(partial(_send_metrics, points=batch, refused=self._refused)):
                    return
                del self._points[: len(batch)]

    def end(self, status: str) -> None:
        """Send what is buffered and set the run's status: FINISHED, FAILED or KILLED."""
        self._paused_until = 0.0  # the last chance: try, however recent the last failure is
        self.flush()
        self._paused_until = 0.0
        self._attempt(lambda client, run_id: client.set_terminated(run_id, status))
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._paused_until = 0.0
            self.flush()
            self._close()
        else:
            self.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _steps(self, name: str) -> set[int]:
        """The steps of a metric that are stored or in the buffer; asked for once, for a continued run only."""
        if self._continued and name not in self._logged_steps:
            self._logged_steps[name] = set()
            self._attempt(lambda client, run_id: self._logged_steps[name].update(_steps_of(client, run_id, name)))
        return self._logged_steps[name]

    def _attempt(self, action: "Callable[[MlflowClient, str], object]") -> bool:
        """Do `action(client, run id)` on the server, or else in the outbox; return whether it was done."""
        with self._lock:
            if self._client is not None and time.monotonic() >= self._paused_until and self._reaches(action):
                return True
            return self.is_tracked and self._keep(action)

    def _reaches(self, action: "Callable[[MlflowClient, str], object]") -> bool:
        """Whether the server did it; if not, it is left alone for a while."""
        assert self._client is not None
        begun = time.monotonic()
        try:
            action(self._client, self.run_id)
        except Exception as error:
            if not is_tracking_failure(error):
                raise
            now = time.monotonic()
            self._paused_until = now + _BACKOFF_FACTOR * (now - begun)
            self._warn(f"does not take the records of this run, which wait in {outbox.FOLDER} until it does", error)
            return False
        return True

    def _keep(self, action: "Callable[[MlflowClient, str], object]") -> bool:
        """Do it in the outbox, in a run that holds the rest of this one; return whether it was done."""
        try:
            if self._kept is None:
                tags = {outbox.FOR_RUN: self.run_id, outbox.AT_SERVER: shown_uri(tracking_uri())}
                self._kept = _keep_run(lambda client, experiment: client.create_run(experiment, tags=tags).info.run_id)
            action(self._kept.client, self._kept.run_id)
        except Exception as error:
            if not is_tracking_failure(error):
                raise
            self._warn("does not take a record, and it cannot be kept either", error)
            return False
        return True

    def _close(self) -> None:
        """Let go of what was kept, and send it where the server is back."""
        if self._kept is None:
            return
        self._kept.lock.close()
        if self._client is not None and time.monotonic() >= self._paused_until:
            self._kept = None
            with suppress_tracking_failure():
                send_kept(self._client)

    def _refused(self, error: Exception) -> None:
        """Say that a metric is lost, for good."""
        self._warn("does not take a metric", error)

    def _warn(self, sentence: str, error: Exception) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            say(f"MLflow at {shown_uri(tracking_uri())} {sentence} ({reason(error)})")


def open_run(
    category: str,
    identity: str,
    params: Mapping[str, Any],
    data: DataVersion,
    stage: str,
    folder: Path = Path(),
    everything: str = "",
) -> Run:
    """Continue the unfinished run of `identity`, or begin its next attempt; in the outbox if MLflow cannot be reached.

    Args:
        category: the product; first part of the run's name.
        identity: from `run_identity`.
        params: nested parameters; logged flat ("training.rate"), once. `params["method"]` names the method.
        data: the data version, logged once as the input of the run.
        stage: the stage which is about to run, as a tag.
        folder: the work tree whose git commit is recorded.
        everything: all parameters as text, kept as the artifact params.yaml, where `params` are only some of them.
    """
    tags = _run_tags(category, identity, params, data, folder)

    def find_or_begin(client: "MlflowClient", experiment: str) -> Run:
        runs = _runs_of(client, experiment, identity)
        found = runs[0] if runs and runs[0].info.status != "FINISHED" else None
        run = found or _begin(client, experiment, tags, attempt=len(runs) + 1)
        _complete(client, run, params, data, tags | {STAGE: stage})
        return Run(client, run.info.run_id, continued=found is not None)

    run = _run_or_kept(find_or_begin)
    if everything:
        run.log_text(everything, "params.yaml")
    return run


def finish_run(run: Run, digest: str, note: str = "") -> None:
    """Close a run which made the capsule with this digest, and say whether the attempt before it made the same one.

    note: what the figures say; with a link to all runs on the same data it becomes the run's description.
    """
    run.set_tags({CAPSULE_DIGEST: digest})
    run._attempt(lambda client, run_id: client.set_tag(run_id, NOTE, _described(client, run_id, note)))
    run._attempt(lambda client, run_id: _compare_attempts(client, run_id, digest))
    run.end("FINISHED")


def find_run(digest: str) -> str:
    """The id of the latest run that made the capsule with this digest; empty where no run is known."""
    if not digest.isalnum():  # it goes into a query
        return ""
    with server_errors_explained():
        client, experiment = connect()
        send_kept(client)
        runs = client.search_runs([experiment], f"tags.`{CAPSULE_DIGEST}` = '{digest}'", max_results=1)
    return runs[0].info.run_id if runs else ""


def start_parent_run(
    name: str, categories: Sequence[str], params: Mapping[str, Any], everything: str = "", flow_run: str = ""
) -> Run:
    """Begin the run of a retraining; its categories' runs become children where `FLAWLINE_PARENT_RUN` is its run_id.

    params, everything: as in `open_run`. flow_run: which flow run this is; where that is tried again after its process
    was killed, its MLflow run goes on.
    """
    end_abandoned_runs()
    tags = {"flawline.categories": " ".join(categories), **source_tags("flawline run")}
    tags |= {FLOW_RUN: flow_run} if flow_run else {}

    def begin(client: "MlflowClient", experiment: str) -> Run:
        offer_views(client, experiment)
        cut_short = f"tags.`{FLOW_RUN}` = '{flow_run}' and attributes.status = 'KILLED'"
        found = client.search_runs([experiment], cut_short, max_results=1) if flow_run else []
        run = found[0] if found else client.create_run(experiment, run_name=name, tags=tags)
        if found:
            client.update_run(run.info.run_id, status="RUNNING")
        open_runs.hold(run.info.run_id)
        _log_params(client, run, {"categories": " ".join(categories), **flat_params(params)})
        return Run(client, run.info.run_id)

    run = _run_or_kept(begin)
    if everything:
        run.log_text(everything, "params.yaml")
    return run


def finish_parent_run(run: Run, succeeded: bool = True) -> None:
    """Close the run of a retraining; FAILED where a category did not succeed."""
    run.end("FINISHED" if succeeded else "FAILED")
    with suppress_tracking_failure():
        send_kept_records()
    open_runs.release(run.run_id)


def cut_short_parent_run(run: Run) -> None:
    """Close the run of a retraining that is told to end, and what is open inside it, as KILLED."""
    if run.is_tracked:
        _end_open_runs([run.run_id])


def end_abandoned_runs() -> None:
    """End as KILLED what a retraining of this workspace had open in MLflow when its process was killed."""
    if run_ids := open_runs.take_abandoned():
        _end_open_runs(run_ids)


def _end_open_runs(run_ids: Sequence[str]) -> None:
    with suppress_tracking_failure():  # the next run tries again
        client, experiment = connect()
        for run_id in run_ids:
            for which in (f"tags.`{PARENT_RUN}` = '{run_id}'", f"attributes.run_id = '{run_id}'"):
                for run in client.search_runs([experiment], f"{which} and attributes.status = 'RUNNING'"):
                    client.set_terminated(run.info.run_id, "KILLED")
            open_runs.release(run_id)


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as flat text: {"training": {"rate": 0.1}} gives {"training.rate": "0.1"}."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def send_kept_records() -> None:
    """Send what the outbox holds; without effect, and without a connection, where it holds nothing.

    Raises what MLflow raises where it cannot be reached.
    """
    if not outbox.is_empty():
        send_kept(connect()[0])


def send_kept(client: "MlflowClient") -> None:
    """Send the runs that earlier processes had to keep; one that the server refuses is said, and stays.

    Raises what MLflow raises where it cannot be reached.
    """
    if outbox.is_empty():
        return
    sent = 0
    with outbox.sending() as folders:
        for kept in outbox.in_each_store(folders, _outbox_client):
            for run in outbox.waiting(kept):
                sent += _is_sent(kept, run, client)
    if sent:
        say(f"the records of {sent} run{'s' if sent > 1 else ''} that had been kept were sent to MLflow")


@contextmanager
def suppress_tracking_failure() -> Iterator[None]:
    """Go on without MLflow where it fails inside: what is kept stays kept."""
    try:
        yield
    except Exception as error:
        if not is_tracking_failure(error):
            raise


def _is_sent(kept: "MlflowClient", run: "MlflowRun", client: "MlflowClient") -> bool:
    """Copy one kept run to the server and drop it; False where it is another server's, or refused."""
    at_server = run.data.tags.get(outbox.AT_SERVER)
    if at_server is not None and at_server != shown_uri(tracking_uri()):
        return False
    try:
        _send(kept, run, client)
    except Exception as error:
        if not is_tracking_failure(error):
            raise
        client.search_experiments(max_results=1)  # raises where the server is away, which is no refusal
        say(f"MLflow refuses the kept record of {run.info.run_name} ({reason(error)}): it stays in {outbox.FOLDER}")
        return False
    outbox.drop(kept, run)
    return True


def _send(kept: "MlflowClient", run: "MlflowRun", client: "MlflowClient") -> None:
    tags = {name: value for name, value in run.data.tags.items() if name not in (outbox.FOR_RUN, outbox.AT_SERVER)}
    target = run.data.tags.get(outbox.FOR_RUN)
    if target is None:
        experiment = experiment_id(client, kept.get_experiment(run.info.experiment_id).name)
        if parent := tags.get(PARENT_RUN):
            tags[PARENT_RUN] = _sent_as(client, experiment, parent) or parent
        target = _begin_sent(client, experiment, run, tags)
        _adopt(client, experiment, run.info.run_id, target)
        tags.pop(ATTEMPT, None)
    else:
        tags = {name: value for name, value in tags.items() if name != "mlflow.runName"}
    outbox.copy_run(kept, run, client, target, tags)
    if CAPSULE_DIGEST in tags and run.info.status == "FINISHED":
        _compare_attempts(client, target, tags[CAPSULE_DIGEST])
    status = run.info.status
    if status == "RUNNING" and IDENTITY not in client.get_run(target).data.tags:
        status = "KILLED"  # a retraining whose process has ended; a category's run is continued by its next stage
    if status in outbox.ENDED:
        client.set_terminated(target, status, run.info.end_time)


def _begin_sent(client: "MlflowClient", experiment: str, run: "MlflowRun", tags: dict[str, str]) -> str:
    """The server's run that a kept one belongs to: its copy, or the unfinished run of its identity, or a new one."""
    if found := _sent_as(client, experiment, run.info.run_id):
        return found
    mark = {outbox.KEPT: run.info.run_id}
    runs = _runs_of(client, experiment, tags[IDENTITY]) if IDENTITY in tags else []
    if runs and runs[0].info.status != "FINISHED":
        client.set_tag(runs[0].info.run_id, outbox.KEPT, run.info.run_id)
        return str(runs[0].info.run_id)
    if IDENTITY in tags:
        mark[ATTEMPT] = str(len(runs) + 1)
    return str(client.create_run(experiment, run.info.start_time, {**tags, **mark}, run.info.run_name).info.run_id)


def _sent_as(client: "MlflowClient", experiment: str, kept: str) -> str:
    """The server's run that a kept one was copied to; empty where it was not yet."""
    runs = client.search_runs([experiment], f"tags.`{outbox.KEPT}` = '{kept}'", max_results=1)
    return str(runs[0].info.run_id) if runs else ""


def _adopt(client: "MlflowClient", experiment: str, kept: str, target: str) -> None:
    """Put the runs that know their parent by its id in the outbox under its copy."""
    for run in client.search_runs([experiment], f"tags.`{PARENT_RUN}` = '{kept}'", max_results=1000):
        client.set_tag(run.info.run_id, PARENT_RUN, target)


def _run_or_kept(make: "Callable[[MlflowClient, str], Run]") -> Run:
    """What `make(client, experiment id)` gives, or the same run in the outbox and one line on stderr."""
    try:
        client, experiment = connect()
        send_kept(client)
        return make(client, experiment)
    except Exception as error:
        if not is_tracking_failure(error):
            raise
        away = f"MLflow at {shown_uri(tracking_uri())} cannot be reached ({reason(error)})"
    continued = False

    def make_kept(client: "MlflowClient", experiment: str) -> str:
        nonlocal continued
        run = make(client, experiment)
        continued = run._continued
        return run.run_id

    try:
        kept = _keep_run(make_kept)
    except Exception as error:
        if not is_tracking_failure(error):
            raise
        say(f"{away}: this run is not tracked, and its record cannot be kept either ({reason(error)})")
        return Run(None)
    say(f"{away}: the record of this run is kept in {outbox.FOLDER} and sent by the next run that reaches it")
    return Run(None, kept.run_id, continued, kept)


def _keep_run(begin: "Callable[[MlflowClient, str], str]") -> _Kept:
    """A run of the outbox, which `begin(client, experiment id)` begins or finds; raises what MLflow raises."""
    prepare_environment()
    with outbox.writing() as folder:
        client = _outbox_client(folder)
        run_id = begin(client, experiment_id(client, experiment_name(), (folder / "artifacts").as_uri()))
        return _Kept(client, run_id, outbox.hold(run_id))


def _outbox_client(folder: Path) -> "MlflowClient":
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _runs_of(client: "MlflowClient", experiment: str, identity: str) -> "list[MlflowRun]":
    """All runs of an identity, the latest attempt first."""
    runs = client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'", max_results=1000)
    return sorted(runs, key=lambda run: (int(run.data.tags.get(ATTEMPT, 0)), run.info.start_time), reverse=True)


def _begin(client: "MlflowClient", experiment: str, tags: Mapping[str, str], attempt: int) -> "MlflowRun":
    offer_views(client, experiment)
    name = " · ".join(part for part in (tags[CATEGORY], tags[METHOD], tags[IDENTITY][:6]) if part)
    return client.create_run(experiment, run_name=name, tags={**tags, ATTEMPT: str(attempt)})


def _complete(
    client: "MlflowClient", run: "MlflowRun", params: Mapping[str, Any], data: DataVersion, tags: Mapping[str, str]
) -> None:
    """Bring a new or a continued run to the state in which a stage begins, whatever a killed process left out."""
    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    _send_tags(client, run_id, tags)
    _log_params(client, run, flat_params(params))
    if run.inputs is None or not run.inputs.dataset_inputs:
        client.log_inputs(run_id, [_dataset_input(data)])


def _log_params(client: "MlflowClient", run: "MlflowRun", params: Mapping[str, str]) -> None:
    """Log the parameters which the run does not have: MLflow refuses to change one."""
    from mlflow.entities import Param

    missing = [Param(name, value) for name, value in params.items() if name not in run.data.params]
    for start in range(0, len(missing), _BATCH_PARAMS):
        client.log_batch(run.info.run_id, params=missing[start : start + _BATCH_PARAMS])


def _dataset_input(data: DataVersion) -> "DatasetInput":
    """The data version as MLflow's dataset: name, digest, path, columns of the table, and the counts as its profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=data.name,
        digest=(data.version or data.digest)[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": str(Path(data.source).resolve())}),
        schema=json.dumps({"mlflow_colspec": _columns(data.table)}),
        profile=json.dumps({"images": sum(data.counts.values()), **data.counts}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _columns(table: "pd.DataFrame | None") -> list[dict[str, Any]]:
    """The columns of a table in MLflow's terms; none where there is no table."""
    if table is None:
        return []
    types = {"i": "long", "u": "long", "f": "double", "b": "boolean"}
    return [
        {"name": str(name), "type": types.get(kind.kind, "string"), "required": True}
        for name, kind in table.dtypes.items()
    ]


def _run_tags(
    category: str, identity: str, params: Mapping[str, Any], data: DataVersion, folder: Path
) -> dict[str, str]:
    tags = {IDENTITY: identity, CATEGORY: category, METHOD: str(params.get("method", "")), DATA_DIGEST: data.digest}
    tags |= {name: value for name, value in ((DATA_VERSION, data.version), (DATA_COMMIT, data.commit)) if value}
    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        tags[PARENT_RUN] = parent
    return tags | source_tags("flawline run" if parent else "dvc repro", folder)


def _described(client: "MlflowClient", run_id: str, note: str) -> str:
    run = client.get_run(run_id)
    version, commit = run.data.tags.get(DATA_VERSION, ""), run.data.tags.get(DATA_COMMIT, "")
    if not version:
        return note
    same = quote(f"tags.{DATA_VERSION} = '{version}'")
    link = f"[all runs on them](#/experiments/{run.info.experiment_id}/runs?searchFilter={same})"
    held = f", commit {commit[:10]}" if commit else ""
    return f"{note}\n\nData: version {version}{held}; {link}.".strip()


def _compare_attempts(client: "MlflowClient", run_id: str, digest: str) -> None:
    run = client.get_run(run_id)
    runs = _runs_of(client, run.info.experiment_id, run.data.tags[IDENTITY])
    number = int(run.data.tags[ATTEMPT])
    earlier = [r for r in runs if int(r.data.tags.get(ATTEMPT, 0)) < number and CAPSULE_DIGEST in r.data.tags]
    if earlier:
        agree = earlier[0].data.tags[CAPSULE_DIGEST] == digest
        client.set_tag(run_id, BYTES_AGREE, str(agree).lower())
        client.set_tag(run_id, COMPARED_WITH, earlier[0].info.run_id)


def _send_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _send_metrics(
    client: "MlflowClient", run_id: str, points: Sequence[Point], refused: Callable[[Exception], None]
) -> None:
    """Send points; where MLflow refuses them together, those of each name by themselves, so that one loses no other."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    try:
        client.log_batch(run_id, metrics=[Metric(*point) for point in points])
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        names = dict.fromkeys(point[0] for point in points)
        if len(names) == 1:
            refused(error)
            return
        for name in names:
            _send_metrics(client, run_id, [point for point in points if point[0] == name], refused)


def _steps_of(client: "MlflowClient", run_id: str, name: str) -> set[int]:
    return {metric.step for metric in client.get_metric_history(run_id, name)}


def _log_path(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder)
