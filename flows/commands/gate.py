"""The command by which a person sees what waits at the gate, and answers."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.foundation.errors import UserError
from flows.commands.tables import print_table
from flows.common.environment import enter_project

if TYPE_CHECKING:
    from components.registry.gate.records import Decision, Waiting

COLUMNS = {"category": "category", "version": "version", "champion": "champion", "why": "why", "answer": "answer"}


def gate(
    category: Annotated[str | None, typer.Argument(help="One category; all if not given.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="The version becomes the champion.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="It does not, and is no candidate any more.")] = False,
    reason: Annotated[str, typer.Option(help="For the journal; the gate's own words if not given.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the versions that wait for a person's decision, with page, command and link; or answer for CATEGORY."""
    if promote and reject:
        raise UserError("Either --promote or --reject: give one of them.")
    if (promote or reject) and category is None:
        raise UserError("Of which category? Name it: `flawline gate CATEGORY --promote`.")
    enter_project()
    if category is not None and (promote or reject):
        _answer(category, "promote" if promote else "reject", reason)
    else:
        _show(category, as_json)


def _answer(category: str, decision: "Decision", reason: str) -> None:
    from components.registry.gate import records
    from flows.retraining.asking import tell_answered

    found = records.waiting(category)
    if found is None:
        raise UserError(f"No version of {category} waits for an answer: `flawline models {category}` shows them all.")
    records.answer(category, found.number, decision, reason)
    done = "is the champion" if decision == "promote" else "is rejected"
    print(f"{category}: version {found.number} {done}.")
    try:
        tell_answered(found, decision, reason)
    except UserError as error:
        print(f"Prefect still asks, and may be answered the same. {error}")


def _show(category: str | None, as_json: bool) -> None:
    from components.foundation.names import check_category_name
    from components.registry.gate import records
    from components.registry.versions import modelled_categories

    if category is not None:
        check_category_name(category)
    found = records.all_waiting([category] if category else modelled_categories())
    rows = [{**_row(one), "link": _link(one)} for one in found]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not rows:
        print(f"No version{f' of {category}' if category else ''} waits for an answer.")
    else:
        print_table(rows, COLUMNS)
        for row in rows:
            link = f", or on Prefect's page: {row['link']}" if row["link"] else ""
            print(f"{row['category']}: see {row['page']}, then {row['answer']}{link}")


def _row(one: "Waiting") -> dict[str, Any]:
    return {
        "category": one.category,
        "version": one.number,
        "champion": one.champion,
        "why": one.summary,
        "page": str(one.page),
        "answer": f"flawline gate {one.category} --promote (or --reject)",
    }


def _link(one: "Waiting") -> str:
    """Prefect's page on which to answer; what its server is to blame for is no reason to show nothing."""
    from flows.retraining.asking import link_to

    try:
        return link_to(one)
    except UserError:
        return ""
