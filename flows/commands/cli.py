"""The command-line program `flawline`."""

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from components.foundation.errors import UserError, printable
from components.stages.command import run_guarded
from flows.commands.arrivals import ingest, review_app
from flows.commands.data import data_app
from flows.commands.feedback import feedback
from flows.commands.forgetting import forget
from flows.commands.gate import gate
from flows.commands.models import compare, history, models, promote, reject, rollback, threshold
from flows.commands.reproduction import reproduce, which
from flows.commands.tables import print_table
from flows.common.environment import enter_project
from flows.common.lifetime import end_children_with_me, end_in_order
from flows.retraining.running import frozen_params, running
from flows.retraining.warm_stages import warm_stages

app = typer.Typer(
    name="flawline",
    help="Learns what good looks like from good images only, and finds defects it has never seen.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(review_app, name="review")
app.command()(ingest)
for command in (
    models,
    compare,
    threshold,
    promote,
    reject,
    rollback,
    gate,
    history,
    feedback,
    forget,
    reproduce,
    which,
):
    app.command()(command)

COLUMNS = {
    "category": "category",
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "threshold": "threshold",
    "version": "version",
    "alias": "alias",
    "method": "method",
}


def main() -> None:
    """Run the program; what the user can mend is said in one sentence, with exit code 1."""
    end_in_order()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale that is not UTF-8 lacks some signs, which is no error
        sys.stdout.reconfigure(errors="backslashreplace")
    run_guarded(app)


@app.command()
def demo() -> None:
    """Build the demo data set, run the whole line on it, and show what came out and what to try next."""
    enter_project()
    from components.data.demo import PHOTOGRAPHS
    from components.foundation.places import DEMO
    from flows.data.settings import edit_params

    categories = list(PHOTOGRAPHS)
    with running(_command()):
        edit_params("demo", values={"data.root": str(DEMO), "data.categories": categories})
        failed = _retrain(categories, with_demo=True)
    _show_status(categories)
    _fail_if(failed)
    _show_next_steps(categories[0])


@app.command()
def run(
    categories: Annotated[
        list[str] | None, typer.Argument(help="Which categories; all of params.yaml if none is given.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the categories, in MVTec AD layout; becomes data.root.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings for a use: demo, cpu, paper-cutpaste, …")] = None,
    method: Annotated[str | None, typer.Option(help="What to learn with, such as cutpaste-3way or pretrained.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One parameter, as SECTION.KEY=VALUE; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Run stages again whose inputs did not change.")] = False,
) -> None:
    """Train, fit, evaluate and register CATEGORIES; options are first written to params.yaml, as `git diff` shows.

    What is up to date is not computed again. The first version of a category becomes its champion
    if it has what gate.first asks; later ones are judged against it by the gate.
    """
    data = _existing(data)
    enter_project()
    from flows.data.settings import edit_params

    with running(_command()):
        chosen = _chosen_categories(categories, data)
        values: dict[str, Any] = {"method": method, "seed": seed}
        if data is not None:
            values |= {"data.root": os.path.relpath(data), "data.categories": chosen}
        edit_params(preset, settings or [], {name: value for name, value in values.items() if value is not None})
        failed = _retrain(chosen, force=force)
    _show_status(chosen)
    _fail_if(failed)


@app.command()
def update(category: Annotated[str, typer.Argument(help="The product whose images have changed.")]) -> None:
    """Fit the champion's encoder and compositions to the images that there are now, and register the new version.

    Densities, scales and threshold are made anew from all good images; nothing is trained and nothing is chosen. Images
    come into the data by `flawline data add` or `flawline ingest`, and leave them by `flawline forget`.
    """
    enter_project()
    from flows.retraining.bases import UPDATE, check_champion

    with running(_command()):
        (category,) = _chosen_categories([category], None)
        check_champion(category)
        failed = _retrain([category], kind=UPDATE)
    _show_status([category])
    _fail_if(failed)


@app.command()
def score(
    images: Annotated[list[Path], typer.Argument(help="Images to inspect (PNG, JPEG, BMP, TIFF).")],
    category: Annotated[
        str | None, typer.Option(help="Which product they show; found from the path if that names a category.")
    ] = None,
    version: Annotated[str, typer.Option(help="Alias or number of the model's version.")] = "champion",
    maps: Annotated[
        Path | None, typer.Option(help="Folder to write a picture with the anomaly map of each to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Score IMAGES with a registered model: image score, verdict at the threshold, p-value."""
    paths = [path.resolve() for path in images]
    maps = maps.resolve() if maps else None
    enter_project()
    from components.foundation.names import check_category_name

    if category is not None:
        check_category_name(category)
    from flows.commands.scoring import category_of, score_images

    scored = score_images(paths, category or category_of(paths), version, maps)
    if as_json and scored.rows:
        print(json.dumps(scored.rows, indent=2))
    elif scored.rows:
        print_table(
            scored.rows,
            {"image": "image", "score": "score", "threshold": "threshold", "verdict": "verdict", "p_value": "p-value"},
        )
    for sentence in scored.clipped:
        print(f"flawline: {sentence}", file=sys.stderr)
    scored.check()


@app.command()
def status(
    category: Annotated[str | None, typer.Argument(help="One category, in full; a line for each if not given.")] = None,
    version: Annotated[
        int | None, typer.Option(help="Number of its version; the champion, or else the challenger, if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the figures, version and alias of every category's champion and challenger; or all about one version."""
    if version is not None and category is None:
        raise UserError("Which category's version? Name it: `flawline status CATEGORY --version N`.")
    enter_project()
    _catch_up()
    if category is not None:
        from flows.commands.status import print_version

        print_version(category, version, as_json)
        if not as_json:
            _show_evidence([category], version)
        return
    rows = _status_rows(None)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("No category has a model yet: try `flawline demo`, or `flawline run --data DIR`.")
    else:
        print_table(rows, COLUMNS)
        _show_evidence(sorted({row["category"] for row in rows}))


@app.command()
def deploy() -> None:
    """Bring your Prefect server to what the project needs: work pool, queues, deployments, automations.

    The server is the one that Prefect itself would use (PREFECT_API_URL, or its profile). Safe to repeat.
    """
    enter_project()
    from flows.retraining.deploying import NEXT
    from flows.retraining.deploying import deploy as deploy_all

    print("\n".join([*deploy_all(), NEXT]))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def worker(context: typer.Context) -> None:
    """Run what the Prefect server schedules for this project, until it is stopped; options are those of Prefect's."""
    enter_project()
    from flows.retraining.deploying import start_worker

    start_worker(context.args)


def _existing(data: Path | None) -> Path | None:
    """A folder given on the command line, seen from where the user stands; UserError where there is none."""
    if data is not None and not data.is_dir():
        raise UserError(f"There is no data folder at {data}: check --data.")
    return data.resolve() if data else None


def _chosen_categories(chosen: list[str] | None, data: Path | None) -> list[str]:
    """The categories to run: those which were named, or all there are; UserError for one that is not there."""
    from components.foundation.params import load_params
    from components.images.dataset import find_categories

    known = find_categories(data) if data else load_params().data.categories
    unknown = [name for name in chosen or [] if name not in known]
    if unknown:
        where = data or "data.categories of params.yaml"
        names = ", ".join(map(printable, unknown))
        raise UserError(f"{names} is not in {where} ({', '.join(known)}): correct the name.")
    return list(dict.fromkeys(chosen or known))


def _retrain(categories: list[str], *, force: bool = False, with_demo: bool = False, kind: str = "full") -> list[str]:
    """Run the flow; returns the categories that failed. A Prefect server that does not answer is a user's error."""
    from components.foundation.disk import FULL_BYTES, check_room, full_disk_said
    from flows.common.prefect_server import answering_server

    end_children_with_me()
    check_room()
    with full_disk_said(), frozen_params() as params, warm_stages(params.thread_variables), answering_server():
        from flows.retraining.pipeline import retrain  # seconds to import: only when all that was asked for is possible

        failed = retrain(categories, force=force, with_demo=with_demo, kind=kind)
    if failed:
        check_room(needed=FULL_BYTES)  # this explains whatever reason was said
    return failed


def _command() -> str:
    """What was typed, for others to read who must wait."""
    return shlex.join([app.info.name or "", *sys.argv[1:]])


def _status_rows(categories: list[str] | None) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from components.registry.versions import list_status

    return [asdict(row) for row in list_status(categories)]


def _catch_up() -> None:
    """Send and register what waits for MLflow; seconds of imports only where something does."""
    from components.tracking import outbox
    from flows.retraining import unregistered

    if unregistered.categories() or not outbox.is_empty():
        from flows.retraining.pipeline import catch_up

        catch_up()


def _show_status(categories: list[str]) -> None:
    rows = _status_rows(categories)
    if rows:
        print_table(rows, COLUMNS)


def _show_evidence(categories: list[str], version: int | None = None) -> None:
    """Say what champions, or a version, still get wrong of what people have kept; imports only where there is any."""
    from flows.commands.feedback import categories_with_evidence, evidence_words

    for name in categories_with_evidence(categories):
        if words := evidence_words(name, version):
            print(words)


def _fail_if(failed: list[str]) -> None:
    if failed:
        raise UserError(f"{', '.join(failed)} did not get a model: see the messages above.")


def _show_next_steps(category: str) -> None:
    from components.foundation.params import load_params
    from components.foundation.places import Places
    from components.images.dataset import list_category

    root = Path(load_params().data.root)
    defect = next(record for record in list_category(root / category).test if not record.is_good)
    print(
        f"""
Try next (first: source .venv/bin/activate):
  flawline score {shlex.quote(str(defect.path))} --maps scored
  {_how_to_review()}
  dvc repro
Anomaly maps: {Places(category).evaluation / "gallery.png"}"""
    )


def _how_to_review() -> str:
    from components.tracking.connection import experiment_page, shown_uri, tracking_uri

    uri, page = tracking_uri(), experiment_page()
    if uri.startswith("http"):
        return f"open {shown_uri(uri)}{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}   # then open http://127.0.0.1:5000{page}"


if __name__ == "__main__":
    main()
