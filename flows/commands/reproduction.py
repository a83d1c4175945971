"""The commands by which a decision is traced to what made it, and a model's version is made again."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.foundation.errors import UserError
from flows.commands.tables import say_names
from flows.common.environment import enter_project
from flows.retraining.running import to_stderr

if TYPE_CHECKING:
    from flows.retraining.reproducing import Reproduction

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def reproduce(
    version: Annotated[str, typer.Argument(help="CATEGORY@VERSION, such as bottle@7 or bottle@champion.")],
    alone: Annotated[
        bool, typer.Option(help="Of an update, not also the versions that it keeps encoder and compositions of.")
    ] = False,
    keep: Annotated[bool, typer.Option(help="Leave the scratch clone in .flawline/scratch, to look into it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version again from its commit, in a scratch clone without any cache, and compare every file's bytes.

    Before an update, the versions that it builds on are made again in their order. Prints *identical*, or what differs
    and why; exit code 1 where anything does.
    """
    enter_project()
    from components.foundation.disk import check_room, full_disk_said
    from flows.common.lifetime import end_children_with_me
    from flows.retraining.reproducing import chain_of, reproduce_version

    category, which = read_version(version)
    end_children_with_me()
    check_room()
    chain, made = [which] if alone else chain_of(category, which), []
    for one in chain:
        with full_disk_said():
            made.append(reproduce_version(category, one, keep, to_stderr))
        if not as_json:
            _show(made[-1])
    if as_json:
        print(json.dumps([{**asdict(done), "is_identical": done.is_identical} for done in made], indent=2))
    if differing := [str(done.number) for done in made if not done.is_identical]:
        raise UserError(f"{category} version {', '.join(differing)} was not made again with the same bytes.")


def _show(done: "Reproduction") -> None:
    name = f"{done.category} version {done.number}"
    if done.is_identical:
        print(
            f"{name} is identical: {done.files} files made again from commit {done.commit[:10]} in "
            f"{done.seconds:.0f} s, capsule {done.capsule}."
        )
    else:
        print(f"{name} differs: {len(done.differing)} of {done.files} files.")
        say_names("other bytes", done.differing)
        for reason in done.reasons or ("nothing that is recorded: inputs, parameters and processor are the same",):
            print(f"why: {reason}")
    if done.folder:
        print(f"The clone is in {done.folder}.")


def which(
    category: Annotated[str, typer.Argument(help="The product.")],
    at: Annotated[
        str | None,
        typer.Option(help='Such as "2026-03-02 14:05", local time unless it names a zone; now if not given.'),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which version of a category was served at a time: run, data, commit, capsule, and how to make it again."""
    moment = read_moment(at)
    enter_project()
    from flows.retraining.tracing import trace

    found = trace(category, moment)
    if as_json:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    print(f"{category} at {moment:%Y-%m-%d %H:%M:%S %Z}: version {found.version}, champion since {found.since}")
    rows: dict[str, Any] = {
        "why": found.reason,
        "run": found.run,
        "data version": found.data_version,
        "commit": f"{found.commit} ({found.branch})" if found.commit else "",
        "capsule": found.capsule,
        "made again by": found.command,
    }
    for title, words in rows.items():
        print(f"{title + ':':<15}{words or 'not known'}")
    for fault in found.faults:
        print(f"flawline: the journal of {category} was changed by other hands: {fault}.", file=sys.stderr)


def read_version(text: str) -> tuple[str, str]:
    from components.foundation.names import check_category_name

    category, at, which_one = text.rpartition("@")
    if not at or not category or not which_one:
        raise UserError(f"Name a version as CATEGORY@VERSION, such as bottle@7 or bottle@champion, not {text!r}.")
    check_category_name(category)
    return category, which_one


def read_moment(text: str | None) -> datetime:
    """A time with its zone; UserError for what is none."""
    if text is None:
        return datetime.now().astimezone()
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError) as error:
        raise UserError(f'{text!r} is no time: write it as "2026-03-02 14:05", or with a zone as "…+01:00".') from error
