"""What Great Expectations demands of arriving images: limits learned from the category's own training images."""

from typing import Any

import pandas as pd

from components.foundation.params import ValidationParams
from components.stages.validate import MEASURE_RULES, Rule, Suite, good_ranges, range_rule, run_suite

REMEDY = "look at the image, then `flawline review accept` or `refuse` it"


def unfit_images(
    arrived: pd.DataFrame, history: pd.DataFrame, limits: ValidationParams, deviations: float
) -> dict[int, str]:
    """Why images do not fit the category: positions in `arrived` -> words that follow the image's name.

    arrived: one row per image with name and the facts of `image_facts`. history: of `image_facts.category_facts`.
    Fewer than `limits.min_good` training images say nothing about what is usual; then only the size is checked.
    """
    if not len(arrived):
        return {}
    table = arrived.assign(name=range(len(arrived)), kind="good")
    checks = run_suite(arrival_suite(history, limits, deviations), table, listed=len(table))
    found: dict[int, list[str]] = {}
    for offence in (offence for check in checks for offence in check["images"]):
        found.setdefault(int(offence["name"]), []).append(offence["problem"])
    return {position: "; ".join(problems) for position, problems in sorted(found.items())}


def arrival_suite(history: pd.DataFrame, limits: ValidationParams, deviations: float) -> Suite:
    """The suite for arriving images of a category with this history."""
    from great_expectations import expectations as gxe

    short = f"has a side shorter than {limits.min_side} pixels ({{size}})"
    suite: Suite = [
        (
            _rule("large_enough", f"No side is shorter than {limits.min_side} pixels", short),
            gxe.ExpectColumnValuesToBeBetween(column="short_side", min_value=limits.min_side),
        )
    ]
    train = history[history["split"] == "train"]
    if len(train) < limits.min_good:
        return suite
    return [*suite, _known_values("size", train), _known_values("mode", train), *_ranges(train, deviations)]


def _known_values(column: str, train: pd.DataFrame) -> tuple[Rule, Any]:
    from great_expectations import expectations as gxe

    known = sorted(train[column].unique())
    rule = _rule(
        f"known_{column}",
        f"The {column} is one of those of the training images",
        f"has {column} {{{column}}}, the training images have {', '.join(known[:3])}",
    )
    return rule, gxe.ExpectColumnValuesToBeInSet(column=column, value_set=known)


def _ranges(train: pd.DataFrame, deviations: float) -> Suite:
    ranges = good_ranges(train, deviations)
    suite = [range_rule(measure, ranges[measure.name], 0.0) for measure in MEASURE_RULES]
    return [(_rule(rule.name, rule.demand, rule.problem.removeprefix("{name} ")), demand) for rule, demand in suite]


def _rule(name: str, demand: str, problem: str) -> Rule:
    return Rule(name, "warning", demand, problem, REMEDY, suite="incoming")
