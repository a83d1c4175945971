"""The command by which an image leaves a category for good."""

import json
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.tables import say_names
from flows.common.environment import enter_project
from flows.retraining.running import running


def forget(
    category: Annotated[str, typer.Argument(help="The product.")],
    images: Annotated[
        list[str], typer.Argument(help="Images to forget: paths, names in the category, or SHA-256 digests.")
    ],
    reason: Annotated[str, typer.Option(help="Why, in your own words: goes into the record.")],
    erase: Annotated[
        bool, typer.Option(help="Remove the bytes too, from DVC's cache and remote and the evidence: cannot be undone.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of sentences.")] = False,
) -> None:
    """Take IMAGES out of a category: a "good" image that was not good, or data that must go.

    A new version of the data is committed without them, with a record of their digests and the reason, and they are
    refused from then on. What is learned next is what would be learned had they never been there.
    """
    here = Path.cwd()
    enter_project()
    from components.foundation.params import load_params
    from flows.data.forgetting import forget as forget_images
    from flows.data.versions import category_folder

    folder = category_folder(category, load_params()).resolve()
    named = [_named(image, here, folder) for image in images]
    # what a run has read of the images it would keep anew, after it was erased
    with running(f"forgetting of images of {category}") if erase else nullcontext():
        done = forget_images(category, named, reason, erase=erase)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    say_names(f"{category}: forgotten", done.files)
    print(f"{done.message} (version {done.commit[:10]})")
    if erase:
        print(f"{category}: {done.erased} objects erased; results that were computed with them may still show them")
        say_names("not erased, as a file that stays has the same bytes", done.kept)
    for sentence in served_words(category, {one.digest for one in done.images}):
        print(sentence)
    print(f"Next: flawline run {category}")


def _named(image: str, here: Path, folder: Path) -> str:
    """A path as it is from anywhere, also of a file that a call which was cut short has removed; else what was typed.

    here: where it was typed. folder: of the category.
    """
    path = (here / image).resolve()
    is_path = path.is_file() or (bool(path.suffix) and path.is_relative_to(folder))
    return str(path) if is_path else image


def served_words(category: str, digests: Collection[str]) -> list[str]:
    """Which of the versions that serve or may soon were made with these images, a sentence each."""
    from components.registry.roles import knowing_versions

    return [
        f"{category}: version {version.number} ({', '.join(version.aliases)}) "
        f"{'has learned from them' if learned else 'has set its threshold by them'} and stays what it is."
        for version, learned in knowing_versions(category, digests)
    ]
