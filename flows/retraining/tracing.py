"""From a time to the model that was served then, and to all that it was made of."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from components.foundation.errors import ServerError, UserError
from components.registry import versions as registry
from components.registry.journal import verify_journal
from components.registry.promotion import settle
from flows.retraining import commits


@dataclass(frozen=True)
class Trace:
    """What was served at a time.

    Attributes:
        category, version, since, reason: which version, when it became the champion (ISO 8601, UTC), and why.
        run, data_version, commit, branch, capsule: MLflow's run, DVC's digest of the data, the retraining's commit and
            its branch, the capsule's digest; empty where unknown.
        command: makes it again; empty where there is no commit.
        faults: what is wrong with the journal that says so; none where its chain holds.
    """

    category: str
    version: int
    since: str
    reason: str
    run: str
    data_version: str
    commit: str
    branch: str
    capsule: str
    command: str
    faults: tuple[str, ...] = ()


def trace(category: str, moment: datetime) -> Trace:
    """What the journal says was the champion at a time, with what the registry and git know of that version.

    Raises UserError where no version was served then. A version that MLflow has no more is described by its commit.
    """
    with suppress(ServerError):  # the journal answers without MLflow too
        settle(category)  # what other hands have moved since is noticed now
    move = registry.which_model(category, moment)
    if move is None or move.target is None:
        raise UserError(f"No version of {category} was served at {moment:%Y-%m-%d %H:%M:%S %Z}.")
    commit = commits.find_commit(category, move.target, move.digest)
    run, data = (commit[commits.RUN], commit[commits.DATA]) if commit else ("", "")
    if not run or not data:
        version = registry.find_version(category, move.target)
        run, data = run or version.run_id, data or version.data_version
    return Trace(
        category=category,
        version=move.target,
        since=move.time,
        reason=move.reason,
        run=run,
        data_version=data,
        commit=commit.commit if commit else "",
        branch=commit.branch if commit else "",
        capsule=move.digest,
        command=f"flawline reproduce {category}@{move.target}" if commit else "",
        faults=verify_journal(registry.journal_path(category)).faults,
    )
