"""The flow: for each category the stages in order, then register and gate; one category's failure stops no other."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import MissingContextError

from components.foundation.errors import ServerError, UserError, error_sentence
from components.foundation.files import read_json
from components.foundation.names import check_category_names
from components.foundation.params import Params, load_params
from components.foundation.places import Places
from components.registry import versions as registry
from components.tracking import connection
from components.tracking import runs as tracking
from components.tracking.fingerprint import shown_params, written_params
from flows.common.figures import TITLES
from flows.common.lifetime import end_in_order, ended_first
from flows.data.git import BusyError, may_pass
from flows.retraining import asking, bases, committing, gating, summary, unregistered
from flows.retraining.running import frozen_params, running, to_stderr
from flows.retraining.stages import STAGES, StageFailedError, reproduce, target_of
from flows.retraining.warm_stages import warm_stages


@task(name="demo data")
def make_demo_data() -> None:
    """Build the demo data set, the same bytes each time; as a stage it would be in every other project's way."""
    from components.data.demo import main

    main(load_params())


@task(task_run_name="{stage}@{category}", retries=5, retry_delay_seconds=3, retry_condition_fn=may_pass)
def run_stage(stage: str, category: str, force: bool = False) -> bool:
    """Run one DVC stage; True if it ran, False if it was up to date."""
    return reproduce(target_of(stage, category), force=force)


@task(task_run_name="settle@{category}", retries=2, retry_delay_seconds=3)
def settle(category: str, kind: str) -> None:
    """Write what the category's training keeps of its champion."""
    if words := bases.settle(category, kind, load_params()):
        _say(f"{category}: {words}")


@task(task_run_name="register@{category}", retries=2, retry_delay_seconds=3)
def register(category: str) -> int:
    """Register the category's capsule in MLflow; the number of its version."""
    places = Places(category)
    metrics = read_json(places.figures)
    figures = {name: metrics[name] for name in TITLES if metrics[name] is not None}
    run_id = tracking.find_run(metrics["capsule_digest"])
    return registry.register(category, places.capsule, run_id, figures, metrics["method"], metrics["by_kind"]).number


@task(task_run_name="gate@{category}")
def gate(category: str, version: int) -> str:
    """Judge a version, and promote it, reject it or leave it to a person; what became of it, in words."""
    try:
        words = gating.pass_gate(category, version, load_params())
    except ServerError:
        raise
    except (UserError, OSError) as error:
        return f"is registered, but was not judged: {error_sentence(error)}"
    try:
        asking.ask_if_waiting(category)
    except UserError as error:
        _say(f"{category}: nobody is asked by Prefect. {error}")
    return words


@task(task_run_name="commit@{category}", retries=5, retry_delay_seconds=3, retry_condition_fn=may_pass)
def commit(category: str, version: int) -> committing.Committed:
    """Give the version its commit of all that it is made from, unless it has it."""
    return committing.commit_version(category, version, load_params())


@task(task_run_name="send@{category}")
def send(category: str, done: committing.Committed) -> str:
    """Send commit, data and results to the remotes, as far as there are; in words."""
    return committing.send(category, done, load_params())


WAIT = 3600.0  # seconds that a scheduled retraining waits for another run in the project


def _flow_run_name() -> str:
    return f"retrain {', '.join(runtime.flow_run.parameters['categories'])}"


@flow(name="flawline-retrain", flow_run_name=_flow_run_name, validate_parameters=False)
def retrain(
    categories: Sequence[str], force: bool = False, with_demo: bool = False, kind: str = bases.FULL
) -> list[str]:
    """Bring every category to a registered version; returns the categories that failed.

    categories: names, each a folder in `data.root`. force: run stages whose inputs did not change as well.
    with_demo: build the demo data set first. kind: what is learned anew, see `flows.retraining.bases.settle`.
    """
    check_category_names(categories)
    with running(f"retraining of {', '.join(categories)}", WAIT, _say), frozen_params(_say) as params:
        return _retrain(categories, params, force, with_demo, kind)


def _retrain(categories: Sequence[str], params: Params, force: bool, with_demo: bool, kind: str) -> list[str]:
    with warm_stages(params.thread_variables):
        if with_demo:
            make_demo_data()
        parent = tracking.start_parent_run(
            _run_name(categories), categories, shown_params(params), written_params(params), _flow_run()
        )
        os.environ[tracking.PARENT_VARIABLE] = parent.run_id
        end_in_order()
        with ended_first(partial(tracking.cut_short_parent_run, parent)):
            try:
                catch_up(except_for=categories)
                outcomes = {category: _outcome_of(category, force, kind) for category in categories}
            except BaseException:  # such as Ctrl-C
                tracking.cut_short_parent_run(parent)
                raise
    failed = [category for category, outcome in outcomes.items() if isinstance(outcome, str)]
    for category in failed:  # what has a model has its report in its own run
        _attach_report(parent, category)
    _summarise(parent, outcomes, params)
    tracking.finish_parent_run(parent, succeeded=not failed)
    return failed


def run_category(category: str, force: bool = False, kind: str = bases.FULL) -> int:
    """All stages of one category, then register, commit and gate; the number of the version."""
    *learning, last = STAGES
    for stage in learning:
        if stage == "train":  # now it is known which images there are
            settle(category, kind)
        _run_said(stage, category, force)
    try:
        with unregistered.noted(category):
            _run_said(last, category, force)
            version = register(category)
            keep_commit(category, version)
            _say(f"{category}: version {version} {gate(category, version)}")
    except ServerError as error:
        raise UserError(
            f"computed, but not registered: {error} The model is registered by the next `flawline run`, or "
            "`flawline status`, that reaches it."
        ) from error
    return version


def _run_said(stage: str, category: str, force: bool) -> None:
    begun = time.monotonic()
    ran = run_stage(stage, category, force)
    _say(f"{category}: {stage} {f'done in {time.monotonic() - begun:.0f} s' if ran else 'is up to date'}")


def keep_commit(category: str, version: int, in_flow: bool = True) -> None:
    """Commit what the version is made from, and send it; where that cannot be, the version is none the worse.

    in_flow: as tasks of the flow that runs; without one, a task would start a server of its own.
    """
    make, pass_on = (commit, send) if in_flow else (commit.fn, send.fn)
    try:
        done = make(category, version)
        if done.is_new:
            remark = f"; {done.remark}" if done.remark else ""
            _say(f"{category}: version {version} is commit {done.commit.commit[:10]} ({done.commit.branch}){remark}")
    except (UserError, OSError) as error:
        _say(f"{category}: version {version} has no commit of its own, as {error_sentence(error)}")
        return
    try:
        if sent := pass_on(category, done):
            _say(f"{category}: version {version} {sent}")
    except (UserError, OSError) as error:
        _say(f"{category}: version {version} stays on this machine for now: {error_sentence(error)}")


def catch_up(except_for: Sequence[str] = ()) -> None:
    """Register what earlier runs computed and did not register, and send the records that wait for MLflow.

    except_for: categories that are registered anyhow. Whatever fails is said, and stays for the next time; while
    another run is at work, which may be about to register, all does.
    """
    with tracking.suppress_tracking_failure():
        tracking.send_kept_records()
    waiting = [category for category in unregistered.categories() if category not in except_for]
    if not waiting:
        return
    with suppress(BusyError), running(f"registration of {', '.join(waiting)}"):
        for category in waiting:
            _register_late(category)


def _register_late(category: str) -> None:
    try:
        if unregistered.is_current(category):
            version = register.fn(category)
            keep_commit(category, version, in_flow=False)
            _say(f"{category}: version {version} {gate.fn(category, version)}, registered late")
            unregistered.forget(category)
    except (UserError, OSError) as error:
        _say(f"{category}: still not registered: {error}")


def _outcome_of(category: str, force: bool, kind: str) -> int | str:
    """The version that a category came to, or why it came to none, which is said."""
    try:
        return run_category(category, force, kind)
    except StageFailedError as error:
        reason = f"stopped at {error}"
    except BusyError as error:
        reason = f"stopped, as {error}"
    except (UserError, OSError) as error:
        reason = error_sentence(error)
    _say(f"{category}: {reason}")
    return reason


def _summarise(parent: tracking.Run, outcomes: Mapping[str, int | str], params: Params) -> None:
    """Tell the parent run and Prefect's page of the flow run what the categories came to."""
    numbers = {name: outcome if isinstance(outcome, int) else None for name, outcome in outcomes.items()}
    try:
        made = summary.versions_made(numbers)
        notes = summary.evidence_notes(made, params.limits.image_limits())
        data = summary.data_used(made, params)
    except (UserError, OSError) as error:
        _say(f"The retraining's own run in MLflow has no table of what came of it: {error}")
        return
    if parent.is_tracked:
        parent.log_metrics(summary.mean_figures(made))
        parent.set_tags({connection.NOTE: summary.as_markdown(made, notes), **summary.verdict_tags(made)})
        parent.log_data(data)
    reasons = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
    _show_in_prefect(summary.as_page(made, reasons, parent.run_id, notes))


def _show_in_prefect(page: str) -> None:
    """Keep the page beside the flow run, as an artifact."""
    if runtime.flow_run.id is None:
        return
    from httpx import HTTPError

    try:
        create_markdown_artifact(page, key="retraining", description="What the categories came to.")
    except HTTPError as error:
        _say(f"Prefect did not take the table of what came of this retraining ({type(error).__name__}).")


def _attach_report(run: tracking.Run, category: str) -> None:
    folder = Places(category).validation
    if folder.is_dir():
        run.log_figure_files(folder, folder=f"validation/{category}")


def _flow_run() -> str:
    """The flow run that a server tries again when its process was killed; this one may be a part of it."""
    return str(runtime.flow_run.root_flow_run_id or runtime.flow_run.id or "")


def _run_name(categories: Sequence[str]) -> str:
    return f"retrain {' '.join(categories)} {datetime.now(UTC):%Y-%m-%d %H:%M}"


def _say(sentence: str) -> None:
    """Say it on stderr, or where a worker runs the flow in the flow run's log, which its stderr shows too."""
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = None
    if logger is not None and logger.isEnabledFor(logging.INFO):
        logger.info(sentence)
    else:
        to_stderr(sentence)
