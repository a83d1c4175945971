"""The command by which a person overrules the model, and what `flawline status` says of it."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from components.foundation.errors import UserError, printable
from flows.common.environment import enter_project


class Truth(StrEnum):
    """What an image shows."""

    GOOD = "good"
    DEFECT = "defect"


def feedback(
    image: Annotated[Path, typer.Argument(help="An image on which the model was wrong.")],
    category: Annotated[str, typer.Option(help="The product it shows.")],
    truth: Annotated[Truth, typer.Option("--is", help="What it shows in truth.")],
    mask: Annotated[
        Path | None, typer.Option(help="Where the defect is: white on black, as large as the image.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Kind of the defect, such as scratch.")] = "defect",
    note: Annotated[str, typer.Option(help="In your own words: goes into its record.")] = "",
) -> None:
    """Keep IMAGE as evidence against this model and those to come: a missed defect, or a false alarm.

    It goes to evidence/CATEGORY under DVC. Every later version is judged on it, and none learns from it.
    """
    image, mask = image.resolve(), mask.resolve() if mask else None
    enter_project()
    from components.foundation.names import check_category_name
    from flows.data.evidence import keep, learned_as

    check_category_name(category)
    if not image.is_file():
        raise UserError(f"There is no image at {printable(str(image))}: check the path.")
    if kind == "good":
        raise UserError("No defect is called good: name its kind, or say --is good.")
    verdict = _verdict(category, image)
    is_good = truth is Truth.GOOD
    kept, commit = keep(category, image, mask, kind="good" if is_good else kind, note=note, verdict=verdict)
    print(f"{category}: kept as {kept.path} (commit {commit[:10]}); {_said(verdict, is_good)}")
    if learned := learned_as(category, image):
        print(f"{category}: this image is also learned from, as {learned}: what a model says of it proves little.")


def evidence_words(category: str, number: int | None = None) -> str:
    """What a version (None: the champion) still gets wrong, in a sentence; empty without evidence, or a champion."""
    from components.foundation.params import load_params
    from components.foundation.runtime import use_threads
    from components.registry.evidence import list_evidence, standing
    from components.registry.versions import champion, find_version

    found = list_evidence(category)
    judge = champion(category) if number is None else find_version(category, number)
    if not found or judge is None:
        return ""
    params = load_params()
    use_threads(params.threads)
    words = standing(judge, found, params.limits.image_limits()).words
    who = f"version {judge.number}" if number else f"the champion (version {judge.number})"
    return f"{category}: of what people kept as evidence, {who} {words}."


def categories_with_evidence(known: Sequence[str]) -> list[str]:
    """Those of the categories for which anything was kept."""
    from components.registry.evidence import dvc_file_of

    return [name for name in known if dvc_file_of(name).is_file()]


def _verdict(category: str, image: Path) -> dict[str, Any]:
    """The champion's, as `flawline score` says it; empty where the category has no champion."""
    from components.registry.versions import champion

    if champion(category) is None:
        return {}
    from flows.commands.scoring import score_images  # which needs torch

    scored = score_images([image], category, "champion", None)
    scored.check()
    (row,) = scored.rows
    return {key: row[key] for key in ("version", "capsule_digest", "score", "threshold", "verdict", "p_value")}


def _said(verdict: dict[str, Any], is_good: bool) -> str:
    if not verdict:
        return "there is no champion yet that could have judged it."
    right = (verdict["verdict"] == "good") == is_good
    why = f"score {verdict['score']:.4g}, threshold {verdict['threshold']:.4g}"
    return (
        f"the champion (version {verdict['version']}) says {verdict['verdict']} ({why}), and is "
        f"{'right' if right else 'wrong'}."
    )
