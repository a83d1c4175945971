"""Views of MLflow's list of runs, which its menu "Views" offers: without one it shows no figure at all.

A view is a tag of the experiment, in the form in which MLflow's own page saves one (since 3.15): its name, and its
state as JSON, deflated, in base64.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

MODELS, RETRAININGS = "flawline-models", "flawline-retrainings"
_PREFIX = "mlflow.sharedViewState."
_MADE = 1_764_547_200_000  # ms since 1970; the page wants a time, and the same view is to be the same tag


def view_tags(figures: Sequence[str], is_model: str) -> dict[str, str]:
    """Tags of the two views: all models, those of a category together, and retrainings with their models inside.

    figures: names of the metrics to show, in order. is_model: a filter that only the runs of models pass.
    """
    columns = {
        **{f"metrics.`{name}`": 18 + 7 * len(name) for name in figures},  # column -> width in pixels
        "params.`method`": 105,
        "tags.`data_version`": 95,
        "tags.`verdict`": 180,
        "attributes.`Models`": 150,
        "attributes.`Dataset`": 200,
        "attributes.`Source`": 110,
    }
    state = {"selectedColumns": list(columns), "columnOrder": list(columns), "columnWidths": columns}
    flat = {"searchFilter": is_model, "orderByKey": "tags.`mlflow.runName`", "orderByAsc": True}
    return {  # in any other order than by time, the runs of models are not hidden in their parents
        _PREFIX + MODELS: _saved("Models, by category", {**state, **flat}),
        _PREFIX + RETRAININGS: _saved("Retrainings, by time", state),
    }


def view_page(experiment: str, view: str) -> str:
    """The page of a view, to be put after the address of an MLflow server."""
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={view}"


def _saved(name: str, state: dict[str, Any]) -> str:
    deflated = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    return json.dumps({"name": name, "createdAt": _MADE, "state": f"deflate;{base64.b64encode(deflated).decode()}"})
