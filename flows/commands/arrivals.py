"""The commands for new images: `flawline ingest`, `flawline review`."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from components.foundation.errors import UserError
from flows.commands.tables import print_table, say_lost
from flows.common.environment import enter_project

Source = Annotated[
    str | None,
    typer.Option(help="The inbox: a folder or s3://BUCKET/PREFIX; ingest.source of params.yaml if not given."),
]
Names = Annotated[
    list[str],
    typer.Argument(help="Names as `flawline review` lists them, or their ends that are clear, such as 00003-a.png."),
]
review_app = typer.Typer(help="Look at held images, accept or refuse them.", invoke_without_command=True)
HELD = {
    "place": "name",
    "code": "reason",
    "score": "score",
    "p_value": "p-value",
    "reason": "in words",
    "map": "anomaly map",
}


def ingest(
    categories: Annotated[
        list[str] | None, typer.Argument(help="Which categories; all that have a folder in the inbox if none is given.")
    ] = None,
    source: Source = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of prose.")] = False,
) -> None:
    """Take in the new good images that lie in INBOX/CATEGORY/: accepted ones become one new version of the data.

    What does not pass is moved to held/ or quarantine/ beside the inbox, with the reason. Safe to repeat at any time:
    what was cut short before is completed first.
    """
    source = _absolute(source)
    enter_project()
    from components.arrivals.inbox import open_source
    from components.foundation.names import check_category_names
    from components.foundation.params import load_params
    from flows.arrivals.steps import awaited, sentence_on_strays

    check_category_names(categories or [])
    params = load_params()
    inbox = open_source(source or params.ingest.source)
    strays = None if categories else sentence_on_strays(inbox)
    chosen = categories or awaited(inbox, params)
    if not chosen and not strays:
        print("[]" if as_json else "Nothing has arrived.")
        return
    summaries = _ingest(source, chosen) if chosen else []
    summaries += [{"category": "", "error": strays}] if strays else []
    errors = [summary["error"] for summary in summaries if "error" in summary]
    if as_json:
        print(json.dumps(summaries, indent=2))
    else:
        for summary in summaries:
            say_summary(summary)
    if errors:
        raise UserError(" ".join(errors))


@review_app.callback()
def review(
    context: typer.Context,
    source: Source = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List the images that are held for a person, with the reason and the picture of their anomaly map."""
    context.obj = _absolute(source)
    enter_project()
    if context.invoked_subcommand:
        return
    from components.arrivals.review import review_name
    from flows.arrivals.review import held_images

    held = held_images(context.obj)
    if as_json:
        print(json.dumps(held, indent=2))
    elif held:
        print_table([{**one, "place": review_name(one["place"])} for one in held], HELD)
        print("Then: flawline review accept NAME…, or flawline review refuse NAME… (the end of a name is enough)")
    else:
        print("No image is held.")


@review_app.command()
def accept(context: typer.Context, names: Names) -> None:
    """Take held images for good: they become one new version of their category's data."""
    from flows.arrivals.review import accept as accept_held

    for done, announced in accept_held(names, context.obj):
        say_lost(done.category, done.lost)
        print(f"{done.message} (version {done.commit[:10]})\n{announced}\nNext: flawline run {done.category}")


@review_app.command()
def refuse(context: typer.Context, names: Names) -> None:
    """Take held images for bad: they go to quarantine."""
    from flows.arrivals.review import refuse as refuse_held

    print(f"{refuse_held(names, context.obj)} moved to quarantine.")


def _ingest(source: str | None, categories: list[str]) -> list[dict[str, Any]]:
    from components.foundation.disk import check_room, full_disk_said
    from flows.common.lifetime import end_children_with_me
    from flows.common.prefect_server import answering_server

    end_children_with_me()
    check_room()
    with full_disk_said(), answering_server():
        from flows.arrivals.ingest import ingest as run_ingest  # seconds to import: only when there is something to do

        return list(run_ingest(source, categories))


def say_summary(summary: Mapping[str, Any]) -> None:
    """Say what became of a delivery."""
    from components.arrivals.outcome import count_words

    if "error" in summary:
        return
    version = f"; version {summary['commit'][:10]}" if summary["commit"] else ""
    print(f"{summary['category']}: {count_words(summary)}{version}")
    say_lost(summary["category"], summary.get("lost", ()))
    if summary.get("announced"):
        print(f"{summary['category']}: {summary['announced']}")
    if not summary["screened"] and summary["accepted"]:
        print(f"{summary['category']}: there is no champion yet that could have looked at them for defects")
    for drift in summary["drift"]:
        words = f"{drift['measure']} {drift['median_before']:.4g} → {drift['median_now']:.4g}"
        print(f"{summary['category']}: it differs from the training images: {words} (p = {drift['p_value']:.2g})")
    if summary["held"] or summary["quarantined"] or summary["drift"]:
        print(f"{summary['category']}: what was not accepted is shown in {summary['page']}")
    if summary["held"]:
        print("Held images wait for you: flawline review")


def _absolute(source: str | None) -> str | None:
    """An inbox folder seen from where the user stands."""
    return os.path.abspath(source) if source and "://" not in source else source
