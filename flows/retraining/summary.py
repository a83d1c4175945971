"""What a retraining came to, for those who look at it later: a table of its categories, and its own figures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.foundation.params import Params
from components.foundation.places import Places
from components.registry import versions as registry
from components.registry.evidence import list_evidence, standing
from components.registry.versions import Version, model_name
from components.tracking.connection import FIGURES, SUMMARY, experiment_page, shown_uri, tracking_uri
from components.tracking.fingerprint import data_version
from components.tracking.runs import VERDICT, DataVersion
from flows.common.figures import titles_of

_COLUMNS = titles_of("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate")
_MEANS = tuple(
    name for name in SUMMARY if name != "threshold"
)  # thresholds of different models are of different scales


def versions_made(numbers: Mapping[str, int | None]) -> dict[str, Version | None]:
    """The versions of these numbers by category; None for a category that failed."""
    return {name: registry.find_version(name, number) if number else None for name, number in numbers.items()}


def evidence_notes(made: Mapping[str, Version | None], limits: ImageLimits) -> list[str]:
    """A sentence for each version whose category has images on which people have overruled a model."""
    return [note for version in made.values() if version and (note := _evidence_note(version, limits))]


def _evidence_note(version: Version, limits: ImageLimits) -> str:
    try:
        kept = list_evidence(version.category)
        words = standing(version, kept, limits).words if kept else ""
    except UserError as error:
        return str(error)
    return f"Of what people kept as evidence, {version.category} version {version.number} {words}." if kept else ""


def as_markdown(made: Mapping[str, Version | None], notes: Sequence[str] = ()) -> str:
    """A table with one line per category, which leads to the run and to the version; `notes` as a list below it."""
    titles = ["category", *_COLUMNS.values(), "threshold", "data", "version", "verdict"]
    lines = [titles, ["---"] * len(titles), *(_cells(name, version) for name, version in made.items())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, *(["", *(f"- {note}" for note in notes)] if notes else [])])


def as_page(
    made: Mapping[str, Version | None], reasons: Mapping[str, str], run_id: str, notes: Sequence[str] = ()
) -> str:
    """The table for another page than MLflow's, with why categories failed, and where MLflow shows the rest.

    reasons: by category. run_id: of the retraining's own run in MLflow; empty for none.
    """
    page, uri = as_markdown(made, notes), shown_uri(tracking_uri())
    if uri.startswith("http"):
        page = page.replace("](#", f"]({uri}/#")
        where = f"[Retrainings in MLflow]({uri}{experiment_page()})" if run_id else ""
    else:
        page = re.sub(r"\[([^]]*)\]\(#[^)]*\)", r"\1", page)  # no server's pages to lead to
        where = f"MLflow run {run_id}" if run_id else ""
    failed = [f"- {name}: {reason}" for name, reason in reasons.items()]
    return "\n".join([page, "", *(["## Why categories failed", "", *failed, ""] if failed else []), where])


def mean_figures(made: Mapping[str, Version | None]) -> dict[str, float]:
    """The mean of each figure over the categories in which it was measured, by the names that MLflow shows."""
    found = {name: [v.metrics[name] for v in made.values() if v and name in v.metrics] for name in _MEANS}
    return {f"{FIGURES}/{name}": mean(values) for name, values in found.items() if values}


def verdict_tags(made: Mapping[str, Version | None]) -> dict[str, str]:
    """In words: how many categories have a model that serves, or waits, or that the gate has rejected."""
    models = [version for version in made.values() if version]
    champions, challengers = (
        sum(alias in version.aliases for version in models) for alias in (registry.CHAMPION, registry.CHALLENGER)
    )
    others = {"rejected": len(models) - champions - challengers, "failed": len(made) - len(models)}
    more = "".join(f", {name}: {count}" for name, count in others.items() if count)
    return {VERDICT: f"champions: {champions}, challengers: {challengers}{more}"}


def data_used(made: Mapping[str, Version | None], params: Params) -> list[DataVersion]:
    """The data of the categories that were validated at least."""
    return [data_version(name, params) for name in made if Path(Places(name).validation / "report.json").is_file()]


def _cells(name: str, version: Version | None) -> list[str]:
    if version is None:
        return [name, *["–"] * (len(_COLUMNS) + 3), "failed"]
    run = version.run_page.lstrip("/")
    figures = [f"{version.metrics[key]:.3f}" if key in version.metrics else "–" for key in _COLUMNS]
    link = f"[version {version.number}](#/models/{model_name(name)}/versions/{version.number})"
    shown = [f"{version.threshold:.4g}", version.data_version[:10] or "–", link, version.verdict.replace("|", "/")]
    return [f"[{name}]({run})" if run else name, *figures, *shown]
