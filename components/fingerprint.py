"""What an experiment of a category depends on: its data, its parameters, its code."""

from pathlib import Path
from typing import Any

from components.files import read_json
from components.params import Params
from components.places import Places
from components.tracking import DataVersion, Run, code_digest, open_run, run_identity


def relevant_params(params: Params) -> dict[str, Any]:
    """The parameters that can change a category's results: all but where data lies and what the demo set is."""
    return params.model_dump(mode="json", exclude={"data", "demo", "fetch", "limits"})


def validated_digest(category: str) -> str:
    """The identity of the images that were validated last."""
    return str(read_json(Places(category).validation / "report.json")["data_digest"])


def experiment_identity(category: str, params: Params) -> str:
    """The identity of the present experiment on `category`, from the data digest that its validation wrote."""
    return run_identity(validated_digest(category), relevant_params(params), code_digest(), category)


def open_category_run(category: str, params: Params, stage: str) -> Run:
    """The MLflow run of the present experiment on `category`, begun or continued by `stage`."""
    report = read_json(Places(category).validation / "report.json")
    data = DataVersion(category, report["data_digest"], Path(params.data.root) / category, report["counts"])
    return open_run(category, experiment_identity(category, params), relevant_params(params), data, stage)
