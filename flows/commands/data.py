"""The commands of `flawline data`: data sets, their versions, and where these are kept."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.foundation.errors import UserError
from flows.commands.tables import print_table, say_lost, say_names
from flows.common.environment import enter_project

if TYPE_CHECKING:
    from components.data.version import Placement
    from components.images.dataset import ImageRecord

data_app = typer.Typer(help="Get data sets, keep versions of them, look at them.", no_args_is_help=True)

MAX_LINES = 40  # of findings
SHEET = Path(".flawline/data-diff.png")
OneCategory = Annotated[str | None, typer.Argument(help="One category; all if not given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mvtec, or one that you name under fetch.archives in params.yaml.")],
    destination: Annotated[Path | None, typer.Argument(help="New folder for it; data/NAME if not given.")] = None,
) -> None:
    """Download and unpack a published data set, with resume, SHA-256 check and safe extraction."""
    target = destination.resolve() if destination else None
    enter_project()
    from components.data.fetch import fetch_dataset
    from components.foundation.params import load_params
    from flows.data.fetching import shown_progress

    with shown_progress() as report:
        fetch_dataset(name, load_params().fetch, target or Path("data") / name, report)
    print(f"{name} is in {target or Path('data') / name}.")


@data_app.command("import-xray")
def import_xray(
    images: Annotated[Path, typer.Argument(help="Folder with the images, in any folders below it.")],
    lists: Annotated[Path, typer.Argument(help="Folder with norm_GROUP_train_curated_list.txt and its like.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the categories, one for each GROUP.")],
    inverted: Annotated[
        Path | None, typer.Option(help="List of the images that are stored inverted (MONOCHROME1).")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(min=8, max=16, help="Bits that deep images use; found from the images if not given.")
    ] = None,
) -> None:
    """Bring chest X-rays, listed as in the paper of NSA, into the layout that `flawline run --data` takes."""
    images, lists, destination = images.resolve(), lists.resolve(), destination.resolve()
    inverted = inverted.resolve() if inverted else None
    enter_project()
    from components.data.medical import import_lists
    from components.foundation.params import load_params

    counts = import_lists(images, lists, destination, load_params().limits.image_limits(), inverted, bits)
    rows = [{"category": group, **counted} for group, counted in counts.items()]
    print_table(rows, {name: name for name in rows[0]})


@data_app.command("list")
def list_data(
    root: Annotated[Path | None, typer.Argument(help="A folder with categories; data.root if not given.")] = None,
) -> None:
    """List the categories of a data set with their numbers of images."""
    root = root.resolve() if root else None
    enter_project()
    from components.foundation.params import load_params
    from components.images.dataset import find_categories, list_category

    root = root or Path(load_params().data.root)
    rows = [{"category": name, **list_category(root / name).counts()} for name in find_categories(root)]
    print_table(rows, {name: name for row in rows for name in row})


@data_app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A folder of good images, or of a category in MVTec AD layout.")],
    category: Annotated[str, typer.Option(help="The product they show; a new name makes a new category.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the project with the categories; becomes data.root.")
    ] = None,
    note: Annotated[str, typer.Option(help="Why, or where from: goes into the commit's message.")] = "",
) -> None:
    """Add the images in PATH to a category and commit that as a new version: the files to DVC, their digests to git.

    Images that are there already (the same bytes) are skipped, but get the masks and the kind of test image that PATH
    has for them. If PATH is the category's own folder, what was changed there by hand becomes the new version.
    """
    path, data = path.resolve(), data.resolve() if data else None
    enter_project()
    from components.data.version import list_offered
    from components.foundation.params import load_params
    from components.images.dataset import list_records
    from flows.arrivals.announce import announce_commit
    from flows.data.versions import commit_folder, commit_images

    root = os.path.relpath(data) if data else None
    folder = Path(root or load_params().data.root) / category
    if path == folder.resolve():
        done = commit_folder(category, root=root, note=note)
    else:
        records = list_offered(path, {record.name: record for record in list_records(folder)})
        done = commit_images(category, records, root=root, note=note)
        _say_left_out(path, records)
    _say_placements(done.placements)
    say_lost(category, done.lost)
    if done.is_new:
        print(f"{done.message} (version {done.commit[:10]})", flush=True)
        good = sum(not name.startswith("test/") for name in done.difference.added)
        print(f"{announce_commit(category, done.commit, good)}\nNext: flawline run {category}")
    else:
        print(f"Nothing new: {category} stays at version {done.commit[:10]}.")


@data_app.command()
def remote(
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX, or a folder.")],
) -> None:
    """Set where versions are sent to and fetched from: written to .dvc/config, which is for you to commit.

    Keys and endpoint of S3 come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or
    from ~/.aws, and are written nowhere.
    """
    here = Path.cwd()
    project = enter_project()
    from flows.data.dvc_project import open_project
    from flows.data.stores import set_remote

    if "://" not in url and not os.path.isabs(url):
        url = os.path.relpath(here / url, project)
    with open_project() as repo:
        set_remote(repo, url)
    print(f"Versions are sent to {url} (.dvc/config).")


@data_app.command()
def push(category: OneCategory = None) -> None:
    """Send all versions and the models of dvc.lock to the remote; what is there already is not sent again."""
    enter_project()
    from flows.data.transfer import push as push_all

    done = push_all(category)
    say_names("left out, as this machine's cache does not hold their results", done.left_out)
    print(f"{done.objects} objects sent.")


@data_app.command()
def pull(category: OneCategory = None) -> None:
    """Bring images and models to the version that is checked out, from the cache or the remote."""
    enter_project()
    from flows.data.transfer import pull as pull_all

    done = pull_all(category)
    print(f"{done.objects} files fetched; the images are at the version that is checked out.")
    say_names("results that are not in the remote, and that `dvc repro` computes", done.left_out)


@data_app.command()
def versions(category: OneCategory = None, as_json: AsJson = False) -> None:
    """List all versions: commit, date, message, images, digest, and the versions of the model that learned from each.

    * marks the one that the project is at.
    """
    enter_project()
    from flows.data.history import list_versions
    from flows.retraining.commits import models_by_data

    found, models = list_versions(category), models_by_data(category or "")
    rows = [{**asdict(one), "models": models.get((one.category, one.digest), [])} for one in found]
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("There is no version yet: `flawline data add` makes the first.")
    else:
        shown = [
            {
                **row,
                "commit": row["commit"][:10],
                "date": row["date"][:16].replace("T", " "),
                "digest": row["digest"][:10],
                "current": "*" if row["is_current"] else "",
                "models": ", ".join(map(str, row["models"])),
            }
            for row in rows
        ]
        titles = ("current", "category", "commit", "date", "message", "good", "images", "digest", "models")
        print_table(shown, {title: "" if title == "current" else title for title in titles})


@data_app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A version: commit, tag or branch.")],
    new: Annotated[str, typer.Argument(help="Another one.")] = "HEAD",
    category: Annotated[str | None, typer.Option(help="One category; all that changed if not given.")] = None,
    sheet: Annotated[Path, typer.Option(help="Picture of what changed; several get the category's name.")] = SHEET,
    as_json: AsJson = False,
) -> None:
    """Show which images and masks were added, removed and changed from OLD to NEW; nothing is checked out."""
    sheet = sheet.resolve() if sheet != SHEET else sheet
    enter_project()
    from flows.data.history import diff_versions

    found = diff_versions(old, new, category, sheet)
    if as_json:
        rows = [{"category": name, **asdict(one), "sheet": str(path) if path else None} for name, one, path in found]
        print(json.dumps(rows, indent=2))
        return
    for name, difference, path in found:
        for words, names in asdict(difference).items():
            say_names(f"{name}: {len(names)} {words.replace('_', ' ')}", names)
        print(f"{name}: contact sheet in {path}" if path else f"{name}: no image and no mask changed, but other files")
    if not found:
        print(f"No images changed from {old} to {new}.")


@data_app.command()
def verify(
    category: OneCategory = None,
    repair: Annotated[bool, typer.Option(help="Replace what is missing or corrupt by the other side's bytes.")] = False,
    current: Annotated[bool, typer.Option(help="Only the versions that the project is at, not all.")] = False,
    as_json: AsJson = False,
) -> None:
    """Re-hash every file of DVC's cache and of the remote against what git records; exit code 1 if any is not whole."""
    enter_project()
    from flows.data.fetching import shown_progress
    from flows.data.history import verify as verify_versions

    with shown_progress() as report:
        found = verify_versions(category, current_only=current, repair=repair, report=report)
    rows = [{"name": found.names[finding.oid], **asdict(finding)} for finding in found.findings]
    rows.sort(key=lambda row: (row["store"], row["name"]))
    if as_json:
        print(json.dumps({"checked": found.checked, "findings": rows}, indent=2))
    else:
        _show_verified(found.checked, rows)
    if found.unrepaired:
        remedy = "neither side has their bytes" if repair else "--repair takes them from the other side"
        raise UserError(f"{len(found.unrepaired)} objects are missing or corrupt: {remedy}.")


def _say_placements(placements: Sequence["Placement"]) -> None:
    """Say what became of the offered images, but for those that were simply added."""
    moved = [place for place in placements if place.was]
    masked = [place for place in placements if place.masks and not place.was and not place.is_new]
    other = [place for place in placements if place.is_left_as_other_kind]
    skipped = [place for place in placements if not place.is_changed and not place.is_left_as_other_kind]
    renamed = [place for place in placements if place.is_new and place.name != place.record.name]
    say_names("moved to another kind", [f"{place.was} → {place.name}" for place in moved])
    say_names("already there, and their masks new", [place.name for place in masked])
    say_names(
        "already there as another kind, and left so (to change that, move the file in the category's own folder, and "
        "add that folder)",
        [f"{place.record.path.name} (offered as {place.record.kind}, is {place.name})" for place in other],
    )
    say_names("already there, skipped", [f"{place.record.path.name} (as {place.name})" for place in skipped])
    say_names("renamed, as the name was taken", [f"{place.record.name} → {place.name}" for place in renamed])


def _show_verified(checked: dict[str, int], rows: list[dict[str, Any]]) -> None:
    summary = [
        {
            "store": store,
            "checked": count,
            **{
                state: sum(row["store"] == store and row["state"] == state for row in rows)
                for state in ("missing", "corrupt")
            },
            "repaired": sum(row["store"] == store and row["is_repaired"] for row in rows),
        }
        for store, count in checked.items()
    ]
    print_table(summary, {name: name for name in summary[0]})
    for row in rows[:MAX_LINES]:
        print(f"{row['store']}: {row['name']} is {row['state']}{', now repaired' if row['is_repaired'] else ''}")
    if len(rows) > MAX_LINES:
        print(f"and {len(rows) - MAX_LINES} more (--json lists all)")
    if "remote" not in checked:
        print("No remote is set, so only the cache was looked at.")


def _say_left_out(folder: Path, records: Sequence["ImageRecord"]) -> None:
    from components.images.left_out import left_out, reasons

    for reason, names in reasons(left_out(folder, records)).items():
        say_names(f"left out, as each {reason}", names)
