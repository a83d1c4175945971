"""Stage validate: is this category fit to learn from? Great Expectations over a table with one row per image.

Errors stop the category, warnings travel along; either way `report.json` and `report.html` say what was found.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from components.evaluation.report_page import render_page
from components.foundation.byte_cache import ByteCache
from components.foundation.dvc_digests import digest_of_folder
from components.foundation.errors import UserError, printable
from components.foundation.files import new_directory, write_json, write_text
from components.foundation.params import Params, ValidationParams
from components.foundation.pin import ensure_pin
from components.foundation.places import KNOWN
from components.images.dataset import Category, list_category
from components.images.depth import find_bits
from components.images.layout import name_key
from components.images.left_out import LeftOut, left_out, reasons
from components.images.shift import shift_p_value
from components.images.table import LARGE_MASK, data_digest, good_values, image_table, learned_images
from components.stages.command import run_stage

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation
    from great_expectations.expectations.row_conditions import AndCondition

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # Great Expectations reads it when it is imported, in the functions below

READS = ("limits", "validation")
LISTED = 50  # offending images that the report names per rule
FEW_LEVELS = 32  # of 256; fewer, and most of what the camera saw is lost
SHIFT_IMAGES = 5  # fewer good test images say nothing about their median


@dataclass(frozen=True)
class Measure:
    """A figure of an image whose range is learned from the category.

    floor: the least deviation that counts as one, so that images all alike do not make a range of no width.
    log: whether deviations are ratios (of 1 + value) rather than differences.
    """

    name: str
    words: str
    floor: float
    log: bool = False


MEASURE_RULES = (
    Measure("brightness", "brightness", 0.5),
    Measure("contrast", "contrast", 0.5),
    Measure("sharpness", "sharpness", 0.02, log=True),
    Measure("red_share", "share of red", 0.001),
    Measure("blue_share", "share of blue", 0.001),
)


class Range(NamedTuple):
    """The interval that is expected of a measure, ends included, and the median it is built around."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Rule:
    """One demand on the table, and how to say that it is not met.

    demand: what is expected. problem: a format string over the offending row (or `observed`, for a whole table).
    remedy: what to do. other: the column with the name of the second file concerned. suite: which one it is part of.
    """

    name: str
    severity: Literal["error", "warning"]
    demand: str
    problem: str
    remedy: str
    other: str | None = None
    suite: Literal["category", "evaluation", "incoming"] = "category"


Suite = list[tuple[Rule, "Expectation"]]


def main(category_name: str, params: Params) -> None:
    """Check one category, write artifacts/CATEGORY/validation/report.{json,html}; UserError where a rule is broken.

    `learned.json` beside them names the images that are learned from: what is learned depends on nothing else of these
    files, so that new test images and masks change the evaluation alone.
    """
    ensure_pin(category_name)  # what a later stage depends on must be there
    category = list_category(Path(params.data.root) / category_name)
    limits = params.limits.image_limits()
    learned = [record.path for record in category.train]
    limits = limits.at_depth(params.limits.bits or find_bits(learned, limits, params.threads))
    store = ByteCache(KNOWN, params.cache.max_bytes)
    table = image_table(category, limits, params.threads, params.validation.near_distance, store)
    report = validation_report(category, table, params.validation, limits.bits)
    folder = Path("artifacts") / category_name / "validation"
    with new_directory(folder) as new:
        write_json(new / "report.json", report)
        write_json(new / "learned.json", learned_images(table) | {"bits": limits.bits})
        write_text(new / "report.html", render_page(report, table, category, limits))
    if not report["passed"]:
        raise UserError(failure_sentence(report, folder / "report.html"))


def validation_report(
    category: Category, table: pd.DataFrame, limits: ValidationParams, bits: int = 16
) -> dict[str, Any]:
    """All that validation knows of a category, as a JSON-able dict which depends on the files' names and bytes alone.

    Keys: category, passed (no error), errors and warnings (one sentence for each broken rule), images, bits (at which
    deep grey images are read, see `components.images.depth`), counts (per "split/kind"), left_out (per reason: count,
    names, the first 50 of the files that are not used), data_digest, data_version (DVC's digest of the folder), ranges
    (per measure: low, median, high), checks (per rule: rule, suite, severity, demand, remedy, success, checked,
    failing, images: the first 50 offending, each with name, problem, other file).
    """
    ranges = good_ranges(table, limits.max_deviations)
    checks = run_suite([*category_suite(table, limits, bits), *evaluation_suite(table, limits)], table)
    unused = left_out(category.root, category.records)
    checks += use_checks(unused, len(table), sum(len(record.masks) for record in category.records))
    checks += [kinds_check(category)]
    errors = [_said(check) for check in checks if not check["success"] and check["severity"] == "error"]
    warnings = [_said(check) for check in checks if not check["success"] and check["severity"] == "warning"]
    return {
        "category": category.name,
        "passed": not errors,
        "errors": errors,
        "warnings": warnings,
        "images": len(table),
        "bits": bits,
        "counts": {printable(key): count for key, count in category.counts().items()},
        "left_out": {
            reason: {"count": len(names), "names": names[:LISTED]} for reason, names in reasons(unused).items()
        },
        "data_digest": data_digest(category, table),
        "data_version": digest_of_folder(category.root),
        "ranges": {
            name: {key: round(end, 6) for key, end in expected._asdict().items()} for name, expected in ranges.items()
        },
        "checks": checks,
    }


def use_checks(unused: list[LeftOut], images: int, masks: int) -> list[dict[str, Any]]:
    """What is expected of the files in a category's folder: that all are used, and each mask for one image."""
    return [
        _use_check(
            Rule(
                "masks_clear",
                "error",
                "Each mask is for one image, and each image has one mask or one folder of masks",
                "",
                "rename the masks as their images (NAME_mask.png in ground_truth/KIND), or remove those too many",
                suite="evaluation",
            ),
            [one for one in unused if one.severity == "error"],
            masks,
        ),
        _use_check(
            Rule(
                "masks_used",
                "warning",
                "Every mask is used",
                "",
                "name it as its image (ground_truth/KIND/NAME_mask.png for test/KIND/NAME.png), or remove it",
                suite="evaluation",
            ),
            [one for one in unused if one.severity == "warning" and one.concern == "mask"],
            masks,
        ),
        _use_check(
            Rule(
                "images_used",
                "warning",
                "Every image is used",
                "",
                "move it to train/good or test/KIND as a PNG, JPEG, BMP or TIFF file, or remove it",
            ),
            [one for one in unused if one.severity == "warning" and one.concern == "image"],
            images,
        ),
    ]


def kinds_check(category: Category) -> dict[str, Any]:
    """What is expected of the kinds of defects: that each has one folder. Images are named by the folder too many."""
    alike: dict[str, set[str]] = {}
    for record in category.test:
        alike.setdefault(name_key(record.kind), set()).add(record.kind)
    twice = [(other, min(kinds)) for kinds in alike.values() for other in sorted(kinds)[1:]]
    words = "differs from the kind {} in capital letters or spaces alone: the figures of one kind are split over two"
    found = [LeftOut(f"test/{printable(other)}", words.format(printable(kind)), "warning") for other, kind in twice]
    rule = Rule(
        "kinds_distinct",
        "warning",
        "No two kinds of defects have names that differ in capital letters or spaces alone",
        "",
        "bring their images, and their masks, into one folder",
        suite="evaluation",
    )
    return _use_check(rule, found, len(alike))


def _use_check(rule: Rule, broken: list[LeftOut], used: int) -> dict[str, Any]:
    """A check as `run_suite` gives it, of files that are no rows of the table."""
    check = {key: getattr(rule, key) for key in ("suite", "severity", "demand", "remedy")}
    files = [{"name": one.name, "problem": f"{one.name} {one.reason}", "other": None} for one in broken[:LISTED]]
    check |= {"rule": rule.name, "success": not broken, "checked": used + len(broken), "failing": len(broken)}
    return check | {"images": files}


def failure_sentence(report: dict[str, Any], page: Path) -> str:
    """The errors of a report in one sentence, and where to look."""
    errors, broken = report["errors"], [check for check in report["checks"] if not check["success"]]
    remedies = [check["remedy"] for check in broken if check["severity"] == "error"]
    more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
    remedy = remedies[0] if len(errors) == 1 else "mend or remove these files"
    return f"Validation of {report['category']} failed: {'; '.join(errors[:3])}{more}: {remedy}. Details: {page}."


def category_suite(table: pd.DataFrame, limits: ValidationParams, bits: int = 16) -> Suite:
    """What is expected of a category's images: whole, enough, each there once, all taken alike."""
    whole = [*readable_rules(limits), *fidelity_rules(bits)]
    return [*whole, *repetition_rules(), *uniformity_rules(table), *range_rules(table, limits)]


def evaluation_suite(table: pd.DataFrame, limits: ValidationParams) -> Suite:
    """What is expected of the test images, so that their figures mean something; no rule applies where none is."""
    rules = [*leak_rules(), *label_rules(), *mask_rules(table), *shift_rules(table, limits)]
    return [(replace(rule, suite="evaluation"), demand) for rule, demand in rules]


def readable_rules(limits: ValidationParams) -> Suite:
    """Every file is an image, large enough, and there are enough of them."""
    from great_expectations import expectations as gxe

    return [
        (
            Rule("decodes", "error", "Every image can be decoded", "{name} {error}", "mend or remove the file"),
            gxe.ExpectColumnValuesToBeInSet(column="decodes", value_set=[True]),
        ),
        (
            Rule(
                "enough_good",
                "error",
                f"At least {limits.min_good} good training images can be decoded",
                f"{{observed}} good training images can be decoded, {limits.min_good} are needed",
                "add good images to train/good",
            ),
            gxe.ExpectTableRowCountToBeBetween(min_value=limits.min_good, row_condition=_readable("train")),
        ),
        (
            Rule(
                "large_enough",
                "error",
                f"No side is shorter than {limits.min_side} pixels",
                f"{{name}} is {{size}}, with a side shorter than {limits.min_side} pixels",
                "replace or remove the file",
            ),
            gxe.ExpectColumnValuesToBeBetween(column="short_side", min_value=limits.min_side),
        ),
    ]


def fidelity_rules(bits: int) -> Suite:
    """What is learned is what the camera saw: one image a file, in enough grey levels, none cut off."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        (
            Rule(
                "one_frame",
                "warning",
                "Every file holds one image",
                "{name} holds {frames:.0f} images, of which the first alone is used",
                "save the image that is meant as a file of its own",
            ),
            gxe.ExpectColumnValuesToBeBetween(column="frames", max_value=1),
        ),
        (
            Rule(
                "enough_levels",
                "warning",
                f"Every good image has at least {FEW_LEVELS} grey levels",
                "{name} has {levels:.0f} grey levels of 256",
                "check how the camera's bits were stored: grey files of 16 bits are read as limits.bits says, colour "
                "files of 16 bits keep the upper 8 of each channel",
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="levels", min_value=FEW_LEVELS, row_condition=Column("kind") == "good"
            ),
        ),
        (
            Rule(
                "within_bits",
                "warning",
                f"No grey value needs more than {bits} bits",
                f"{{name}} has grey values up to {{highest:.0f}}; all above {(1 << bits) - 1} are read as white",
                "check the camera's setting, or give the bits that it uses as limits.bits in params.yaml",
            ),
            gxe.ExpectColumnValuesToBeBetween(column="highest", max_value=(1 << bits) - 1),
        ),
    ]


def repetition_rules() -> Suite:
    """What is learned is there once."""
    from great_expectations import expectations as gxe

    return [
        (
            Rule(
                "no_duplicate",
                "warning",
                "No training image is there twice",
                "{name} shows the same pixels as {duplicate_of}",
                "remove one of the two",
                other="duplicate_of",
            ),
            gxe.ExpectColumnValuesToBeNull(column="duplicate_of", row_condition=_readable("train")),
        ),
        (
            Rule(
                "no_near_duplicate",
                "warning",
                "No training image looks like another one",
                "{name} looks like {near_duplicate_of}",
                "if they show the same part, keep one of them: all are held out or learned together, and count as one",
                other="near_duplicate_of",
            ),
            gxe.ExpectColumnValuesToBeNull(column="near_duplicate_of", row_condition=_readable("train")),
        ),
    ]


def leak_rules() -> Suite:
    """What is tested was not learned: no test image is a training image, nor another shot of the same moment."""
    from great_expectations import expectations as gxe

    return [
        (
            Rule(
                "no_leak",
                "error",
                "No test image is also a training image",
                "{name} shows the same pixels as {leaked_from}",
                "remove the image from train or from test",
                other="leaked_from",
            ),
            gxe.ExpectColumnValuesToBeNull(column="leaked_from", row_condition=_readable("test")),
        ),
        (
            Rule(
                "no_near_leak",
                "warning",
                "No test image looks like a training image",
                "{name} looks like {near_leak}",
                "if both show the same part, keep one of them, or the figures flatter",
                other="near_leak",
            ),
            gxe.ExpectColumnValuesToBeNull(column="near_leak", row_condition=_readable("test")),
        ),
    ]


def label_rules() -> Suite:
    """Each test image counts once, as one kind."""
    from great_expectations import expectations as gxe

    return [
        (
            Rule(
                "one_label",
                "error",
                "No test image is there as two kinds",
                "{name} shows the same pixels as an image of the kind {labelled_as}",
                "decide which kind it is, and remove the other",
            ),
            gxe.ExpectColumnValuesToBeNull(column="labelled_as", row_condition=_readable("test")),
        ),
        (
            Rule(
                "no_test_duplicate",
                "warning",
                "No test image is there twice",
                "{name} shows the same pixels as {duplicate_of}",
                "remove one of the two",
                other="duplicate_of",
            ),
            gxe.ExpectColumnValuesToBeNull(column="duplicate_of", row_condition=_readable("test")),
        ),
    ]


def uniformity_rules(table: pd.DataFrame) -> Suite:
    """All images were taken alike."""
    from great_expectations import expectations as gxe

    common = {column: _most_common(table[column]) for column in ("size", "mode")}
    return [
        (
            Rule(
                "one_size",
                "warning",
                "All images have one size",
                f"{{name}} is {{size}}, most images are {common['size']}",
                "check that one camera at one setting took them",
            ),
            gxe.ExpectColumnValuesToBeInSet(column="size", value_set=[common["size"]]),
        ),
        (
            Rule(
                "one_mode",
                "warning",
                "All images have one pixel mode",
                f"{{name}} has mode {{mode}}, most images have {common['mode']}",
                "check that one camera at one setting took them",
            ),
            gxe.ExpectColumnValuesToBeInSet(column="mode", value_set=[common["mode"]]),
        ),
    ]


def mask_rules(table: pd.DataFrame) -> Suite:
    """What is expected of ground-truth masks, for the defect kinds that have any."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        (
            _mask_rule("mask_present", "Images of kinds with masks have one", "{name} has no mask in {mask_folder}"),
            gxe.ExpectColumnValuesToBeBetween(
                column="mask_count", min_value=1, row_condition=Column("mask_folder").is_not_null()
            ),
        ),
        (
            _mask_rule("mask_decodes", "Every mask can be decoded", "{mask_error}"),
            gxe.ExpectColumnValuesToBeNull(column="mask_error", row_condition=Column("mask_count") > 0),
        ),
        (
            _mask_rule(
                "mask_size", "Masks are as large as their images", "{mask} is {mask_size}, but its image is {size}"
            ),
            gxe.ExpectColumnPairValuesToBeEqual(
                column_A="mask_size", column_B="size", ignore_row_if="either_value_is_missing"
            ),
        ),
        (
            _mask_rule("mask_binary", "Masks have at most two values", "{mask} has {mask_levels:.0f} distinct values"),
            gxe.ExpectColumnValuesToBeBetween(column="mask_levels", max_value=2),
        ),
        (
            _mask_rule("mask_not_empty", "Masks mark something", "{mask} marks no pixel"),
            gxe.ExpectColumnValuesToBeBetween(column="mask_area", min_value=1),
        ),
        (
            _mask_rule("mask_one_frame", "Every mask file holds one mask", "{mask} holds {mask_frames:.0f} images"),
            gxe.ExpectColumnValuesToBeBetween(column="mask_frames", max_value=1),
        ),
        *(mask_sense_rules() if table["mask_area"].notna().any() else []),
    ]


def mask_sense_rules() -> Suite:
    """What is expected of masks that mean what they say: bright on the defect, and turned as their images are."""
    from great_expectations import expectations as gxe

    return [
        (
            Rule(
                "masks_not_inverted",
                "error",
                "Masks are bright on the defect",
                "{observed:.0%} of the masks mark more than half of their image and all around its border",
                "invert the masks: what is above 0 is the defect",
            ),
            gxe.ExpectColumnMeanToBeBetween(column="mask_inverted", max_value=0.5),
        ),
        (
            Rule(
                "mask_small",
                "warning",
                f"Masks mark at most {LARGE_MASK} % of their image",
                "{mask} marks {mask_percent:.0f} % of its image",
                "check that the mask is not inverted: what is above 0 is the defect",
                other="mask",
            ),
            gxe.ExpectColumnValuesToBeBetween(column="mask_percent", max_value=LARGE_MASK),
        ),
        (
            Rule(
                "mask_orientation",
                "warning",
                "Masks have the EXIF orientation of their images",
                "{name} has the EXIF orientation {orientation:.0f}, its mask {mask_orientation:.0f}",
                "look whether the mask marks the right place: both are turned as their EXIF orientation says",
                other="mask",
            ),
            gxe.ExpectColumnPairValuesToBeEqual(
                column_A="orientation", column_B="mask_orientation", ignore_row_if="either_value_is_missing"
            ),
        ),
    ]


def range_rules(table: pd.DataFrame, limits: ValidationParams) -> Suite:
    """What is expected of brightness, contrast, sharpness and colour, judged by the training images themselves."""
    wide = good_ranges(table, limits.max_deviations)
    return [
        range_rule(measure, wide[measure.name], limits.max_outlier_share)
        for measure in MEASURE_RULES
        if measure.name in wide
    ]


def shift_rules(table: pd.DataFrame, limits: ValidationParams) -> Suite:
    """Good test images are like the training images in the median; a few of them say nothing about that."""
    found = shift_ranges(table, limits)
    return [_shift_rule(measure, found[measure.name]) for measure in MEASURE_RULES if measure.name in found]


def shift_ranges(table: pd.DataFrame, limits: ValidationParams) -> dict[str, Range]:
    """Where the median of the good test images is expected to lie; none where they are too few.

    That is near the training images' median where the two differ by more than chance explains, and anywhere among the
    images else. Near-duplicates among the training images count as one, as they are there by more than chance.
    """
    near = good_ranges(table, limits.max_shift)
    level = limits.shift_level / len(MEASURE_RULES)
    found = {}
    for name, expected in near.items():
        tested = good_values(table, name, "test")
        if len(tested) < SHIFT_IMAGES:
            return {}
        learned = table[(table["split"] == "train") & table[name].notna()]
        differing = learned.groupby(learned["group"].fillna(learned["name"]))[name].median().to_numpy()
        if shift_p_value(differing, tested) > level:
            ends = [*expected, *differing, *tested]
            expected = Range(min(ends), expected.median, max(ends))
        found[name] = expected
    return found


def good_ranges(table: pd.DataFrame, deviations: float) -> dict[str, Range]:
    """Robust range of every measure over the good training images; none where no image can be decoded."""
    values = {measure: good_values(table, measure.name, "train") for measure in MEASURE_RULES}
    return {measure.name: robust_range(found, deviations, measure) for measure, found in values.items() if found.size}


def robust_range(values: np.ndarray, deviations: float, measure: Measure) -> Range:
    """Median of values (N,) ± deviations × their median absolute deviation, which is at least the measure's floor."""
    scaled = np.log1p(values) if measure.log else values
    median = np.median(scaled)
    reach = deviations * max(float(np.median(np.abs(scaled - median))), measure.floor)
    ends = np.array([median - reach, median, median + reach])
    return Range(*(np.expm1(ends) if measure.log else ends).tolist())


def run_suite(suite: Suite, table: pd.DataFrame, listed: int = LISTED) -> list[dict[str, Any]]:
    """Check the table against the suite; one JSON-able dict per rule, in the suite's order.

    listed: how many offending images each rule names at most.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # itself it says INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("images").add_dataframe_asset("table")
    whole = asset.add_batch_definition_whole_dataframe("all")
    batch = whole.get_batch({"dataframe": table.assign(row=range(len(table)))})
    for rule, expectation in suite:
        expectation.meta = {"rule": rule.name, "severity": rule.severity}
    result = batch.validate(
        gx.ExpectationSuite("category", expectations=[expectation for _, expectation in suite]),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
    )
    found = {_meta(one)["rule"]: one for one in result.results}
    return [_check(rule, found[rule.name], table, listed) for rule, _ in suite]


def _meta(result: Any) -> dict[str, str]:
    return dict(result.expectation_config.meta)


def _check(rule: Rule, result: Any, table: pd.DataFrame, listed: int) -> dict[str, Any]:
    if result.exception_info.get("raised_exception"):
        raise RuntimeError(f"rule {rule.name} could not be checked: {result.exception_info['exception_message']}")
    rows = sorted(int(place["row"]) for place in result.result.get("unexpected_index_list") or [])
    check = {key: getattr(rule, key) for key in ("suite", "severity", "demand", "remedy")}
    check |= {"rule": rule.name, "success": bool(result.success), "checked": _checked(result.result)}
    offending = [_offence(rule, table.iloc[row].to_dict()) for row in rows[:listed]]
    if not rows and not result.success:
        observed = result.result["observed_value"]
        check["problem"] = rule.problem.format(observed=observed)
    return check | {"failing": len(rows), "images": offending}


def _checked(result: dict[str, Any]) -> int | None:
    """How many images the rule applied to; None for a rule on the whole table."""
    count = result.get("element_count")
    return None if count is None else int(count) - int(result.get("missing_count") or 0)


def _offence(rule: Rule, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "problem": rule.problem.format_map(row),
        "other": row[rule.other] if rule.other and isinstance(row[rule.other], str) else None,
    }


def _said(check: dict[str, Any]) -> str:
    """A broken rule in a clause: the first offence and how many more there are."""
    more = f" (and {check['failing'] - 1} more)" if check["failing"] > 1 else ""
    return check.get("problem") or f"{check['images'][0]['problem']}{more}"


def _mask_rule(name: str, demand: str, problem: str) -> Rule:
    return Rule(name, "error", demand, problem, "mend or replace the mask", other="mask")


def range_rule(measure: Measure, expected: Range, outlier_share: float) -> tuple[Rule, "Expectation"]:
    """Good images' values of a measure are within a range, but for a share of them that may lie outside."""
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    rule = Rule(
        f"{measure.name}_range",
        "warning",
        f"The {measure.words} of good images is within {_span(expected)}",
        f"{{name}} has a {measure.words} of {{{measure.name}:.4g}}, outside {_span(expected)}",
        "look at these images: has the lamp, the lens or the part changed?",
    )
    return rule, gxe.ExpectColumnValuesToBeBetween(
        column=measure.name,
        min_value=expected.low,
        max_value=expected.high,
        mostly=1 - outlier_share,
        row_condition=Column("kind") == "good",
    )


def _shift_rule(measure: Measure, expected: Range) -> tuple[Rule, "Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    rule = Rule(
        f"{measure.name}_shift",
        "warning",
        f"The median {measure.words} of good test images is within {_span(expected)}",
        f"the median {measure.words} of good test images is {{observed:.4g}}, of training images {expected.median:.4g},"
        " which differ by more than chance explains",
        "take training and test images under the same light, or expect false alarms",
    )
    return rule, gxe.ExpectColumnMedianToBeBetween(
        column=measure.name,
        min_value=expected.low,
        max_value=expected.high,
        row_condition=(Column("kind") == "good") & _readable("test"),
    )


def _readable(split: str) -> "AndCondition":
    """The images of one split that can be decoded."""
    from great_expectations.expectations.row_conditions import Column

    return (Column("split") == split) & Column("pixels").is_not_null()


def _span(expected: Range) -> str:
    return f"{expected.low:.4g} … {expected.high:.4g}"


def _most_common(column: pd.Series) -> str:
    """The most frequent value, the first in order among equals; empty where there is none."""
    modes = column.dropna().mode()
    return str(modes.iloc[0]) if len(modes) else ""


if __name__ == "__main__":
    run_stage(main, READS)
