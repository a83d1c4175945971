"""The commands about a category's versions: list, compare, promote, reject, roll back, and what became of them."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.foundation.errors import UserError
from flows.commands.tables import print_table
from flows.common.environment import enter_project
from flows.common.figures import TITLES, titles_of

if TYPE_CHECKING:
    from components.registry.comparison import Comparison
    from components.registry.journal import Move
    from components.registry.versions import Version

Category = Annotated[str, typer.Argument(help="The product.")]
Number = Annotated[int, typer.Argument(help="Number of the version.", min=1)]
Reason = Annotated[str, typer.Option(help="Why: for the journal, and for the version's verdict.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MAX_FLIPS = 40  # lines

FIGURES = titles_of("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate")
MODELS = {
    "category": "category",
    "version": "version",
    "alias": "alias",
    **FIGURES,
    "threshold": "threshold",
    "data": "data",
    "when": "when",
    "who": "by",
    "verdict": "verdict",
}
HISTORY = {"when": "when", "who": "by", "act": "act", "from": "from", "to": "to", "reason": "reason"}


def models(
    category: Annotated[str | None, typer.Argument(help="One category; all if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """List all versions of a category's model: figures, alias, verdict, data version, when and by whom."""
    enter_project()
    from components.registry.promotion import settle
    from components.registry.versions import list_versions, modelled_categories

    found = []
    for name in [category] if category else modelled_categories():
        settle(name)  # an alias that other hands have moved since is entered in the journal
        found += list_versions(name)
    if as_json:
        print(json.dumps([asdict(version) for version in found], indent=2, ensure_ascii=False))
    elif not found:
        print(f"{category or 'No category'} has {'no model' if category else 'a model'} yet: `flawline run` makes one.")
    else:
        print_table([_model_row(version) for version in found], MODELS)


def promote(category: Category, version: Number, reason: Reason) -> None:
    """Make VERSION the champion, which serves; a roll-back returns to the champion until now."""
    enter_project()
    from components.registry import promotion
    from components.registry.versions import journal

    before = promotion.settle(category)
    promotion.promote(category, version, reason)
    if before == version:
        print(f"{category}: version {version} is the champion already.")
        return
    was = journal(category)[-1].source
    after = f", in place of version {was}: `flawline rollback {category}` takes it back" if was else ""
    print(f"{category}: version {version} is the champion{after}.")


def reject(category: Category, version: Number, reason: Reason) -> None:
    """Say that VERSION is not to serve: it is no candidate any more, and no roll-back returns to it."""
    enter_project()
    from components.registry import promotion

    promotion.reject(category, version, reason)
    print(
        f"{category}: version {version} is rejected; `flawline promote {category} {version} --reason WHY` undoes that."
    )


def rollback(
    category: Category, reason: Annotated[str, typer.Option(help="Why: for the journal.")] = "roll-back"
) -> None:
    """Make the champion of before the champion again, however the present one became it."""
    enter_project()
    from components.registry import promotion
    from components.registry.versions import journal

    back = promotion.roll_back(category, reason)
    was = journal(category)[-1].source
    gone = (
        f"; version {was} served until now, `flawline promote {category} {was} --reason WHY` brings it back"
        if was
        else ""
    )
    print(f"{category}: version {back.number} is the champion again{gone}.")


def history(
    category: Category,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the journal's chain, and that the registry agrees with it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every act on a category's versions: when, by whom, what, why; exit code 1 if --verify finds a fault."""
    enter_project()
    from components.registry import promotion
    from components.registry.versions import journal

    found = promotion.verify(category) if verify else None
    if found is None:
        promotion.settle(category)
    faults = found.faults if found else ()
    moves = [move for move in ([] if _is_damaged(faults) else journal(category)) if move.state != "intended"]
    if as_json:
        print(json.dumps({"acts": [asdict(move) for move in moves], "faults": faults}, indent=2, ensure_ascii=False))
    elif moves:
        print_table([_history_row(move) for move in moves], HISTORY)
    else:
        print(f"Nothing was done with versions of {category} yet.")
    if faults:
        raise UserError(f"The journal of {category} does not hold: {'; '.join(faults)}.")
    if found and not as_json:
        print(_verified_words(found.lines, found.begins, found.champion))


def compare(
    category: Category,
    first: Annotated[int, typer.Argument(metavar="A", help="Number of a version.", min=1)],
    second: Annotated[int, typer.Argument(metavar="B", help="Number of another one.", min=1)],
    images: Annotated[
        bool, typer.Option(help="Score the test images with both, to find those whose verdict flips.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show versions A and B side by side: figures, kinds of defect, flipped images, and what they were made of."""
    enter_project()
    from components.foundation.params import load_params
    from components.foundation.runtime import use_threads
    from components.registry.comparison import compare_versions

    params = load_params()
    use_threads(params.threads)
    records = _judged_images(category) if images else []
    found = compare_versions(category, (first, second), records, params.limits.image_limits())
    if as_json:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        _show_comparison(found)


def threshold(
    category: Category,
    false_alarms: Annotated[str, typer.Option(help="Of good parts, such as 1/500, 0.002 or 0.2%.")],
    version: Annotated[
        int | None, typer.Option(help="Number of a version; the champion, or else the latest, if not given.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a version with the threshold for this rate of false alarms, from the stored scores: nothing is fitted.

    It is a challenger: `flawline promote` makes it serve.
    """
    enter_project()
    from components.foundation.params import load_params
    from components.registry.threshold import parse_rate, set_threshold

    done = set_threshold(category, parse_rate(false_alarms), version, load_params().threshold.confidence)
    made, base = done.version, done.base
    if made != base:
        _commit_threshold(made)
    if as_json:
        print(json.dumps(asdict(done), indent=2, ensure_ascii=False))
        return
    if made == base:
        print(f"{category}: version {base.number} has this threshold already, {base.threshold:.6g}.")
    else:
        word = "made, a challenger" if done.is_new else "there already"
        change = f"the threshold {made.threshold:.6g} instead of {base.threshold:.6g}"
        print(f"{category}: version {made.number} is {word}: version {base.number} with {change}.")
    print(f"Promised: {done.promise}.")
    if made != base:
        print(f"Next: flawline compare {category} {base.number} {made.number}")


def _commit_threshold(made: "Version") -> None:
    """Give the version a commit; where there can be none, it is none the worse, and that is said."""
    from components.detection.card import read_card
    from components.foundation.params import load_params
    from components.registry.threshold import ORIGIN
    from components.registry.versions import download_capsule
    from flows.retraining.committing import commit_threshold, send

    try:
        origin = read_card(download_capsule(made.category, made.number))["provenance"][ORIGIN]
        send(made.category, commit_threshold(made, origin), load_params())
    except UserError as error:
        print(f"flawline: version {made.number} has no commit of its own, or it was not sent: {error}", file=sys.stderr)


def _judged_images(category: str) -> list[Any]:
    """The test images of the category, as they lie there now, and what people have kept as evidence."""
    from pathlib import Path

    from components.foundation.params import load_params
    from components.images.dataset import list_category
    from components.registry.evidence import list_evidence

    test = list_category(Path(load_params().data.root) / category).test
    return [*test, *(one.record for one in list_evidence(category))]


def _show_comparison(found: "Comparison") -> None:
    a, b = found.first.number, found.second.number
    titles = {"name": "", "a": f"version {a}", "b": f"version {b}", "change": "change"}
    print(f"{found.first.category}: {_shortly(found.first)}; {_shortly(found.second)}")
    if found.figures:
        order = list(TITLES)
        figures = sorted(found.figures, key=lambda row: order.index(row[0]) if row[0] in order else len(order))
        rows = [_figure_row(TITLES.get(name, name), old, new) for name, old, new in figures]
        print_table(rows, {**titles, "name": "figure"})
    if found.kinds:
        rows = [
            _figure_row(f"{kind}: {title}", old.get(key), new.get(key))
            for kind, old, new in found.kinds
            for key, title in {"image_auroc": "image AUROC", "found": "found"}.items()
        ]
        print_table(rows, {**titles, "name": "kind of defect"})
    _show_flips(found)
    if found.made_of:
        rows = [{"name": name, "a": old, "b": new} for name, old, new in found.made_of]
        print_table(rows, {name: title for name, title in titles.items() if name != "change"} | {"name": "made of"})
    else:
        print("Both were made of the same data, with the same parameters and libraries.")


def _show_flips(found: "Comparison") -> None:
    if not found.images:
        return
    better = sum(flip.is_right for flip in found.flips)
    worse = len(found.flips) - better
    a, b = found.first.number, found.second.number
    if not found.flips:
        print(f"Both say the same of all {found.images} test images.")
    else:
        print(
            f"Of {found.images} test images {len(found.flips)} flip: version {b} is right on {better} of them, version "
            f"{a} on {worse}."
        )
        rows = [
            {"image": f.name, "kind": f.kind, "a": f.first, "b": f.second, "right": f"version {b if f.is_right else a}"}
            for f in found.flips[:MAX_FLIPS]
        ]
        titles = {"a": f"score of {a}", "b": f"score of {b}"}
        print_table(rows, {"image": "flipped image", "kind": "shows", **titles, "right": "right is"})


def _figure_row(name: str, old: float | None, new: float | None) -> dict[str, Any]:
    change = f"{new - old:+.4f}" if old is not None and new is not None else "–"
    return {"name": name, "a": old, "b": new, "change": change}


def _shortly(version: "Version") -> str:
    return f"version {version.number}, {version.verdict or ', '.join(version.aliases) or 'without alias'}"


def _model_row(version: "Version") -> Mapping[str, Any]:
    return {
        "category": version.category,
        "version": version.number,
        "alias": ", ".join(version.aliases),
        **{name: version.metrics.get(name) for name in FIGURES},
        "threshold": version.threshold,
        "data": version.data_version[:10] or None,
        "when": _minute(version.made_at),
        "who": version.made_by or None,
        "verdict": version.verdict,
    }


def _history_row(move: "Move") -> Mapping[str, Any]:
    act = move.kind if move.state == "done" else f"{move.kind}, {move.state}"
    return {
        "when": _minute(move.time),
        "who": move.who or None,
        "act": act,
        "from": None if move.kind == "reject" else move.source,
        "to": move.target,
        "reason": move.reason,
    }


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _is_damaged(faults: tuple[str, ...]) -> bool:
    return any(fault.endswith("is damaged") for fault in faults)


def _verified_words(lines: int, begins: int | None, champion: int | None) -> str:
    """That all is in order, and from which line on that was looked at."""
    if begins is None:
        chain = f"its {lines} lines were written before there was a chain" if lines else "it is empty"
    elif begins == 1:
        chain = f"each of its {lines} lines holds the digest of the one before"
    else:
        chain = (
            f"lines {begins} to {lines} each hold the digest of the one before; those up to line {begins - 1} were "
            "written before there was a chain"
        )
    served = f"version {champion} is the champion" if champion else "there is no champion"
    return f"The journal holds: {chain}. The registry agrees: {served}."
