"""What an experiment of a category depends on: its data, its parameters, its code."""

from pathlib import Path
from typing import Any

import yaml

from components.foundation.files import read_json
from components.foundation.params import Params
from components.foundation.pin import read_pin
from components.foundation.places import Places
from components.synthesis.methods import sections_used
from components.tracking.lineage import lineage_of
from components.tracking.runs import DataVersion, Run, code_digest, open_run, run_identity

SHOWN_ALWAYS = {"method", "seed", "image.side", "backbone.name", "threshold.false_alarm_rate"}


def relevant_params(params: Params) -> dict[str, Any]:
    """The parameters that can change a category's results: all but those of what comes before and after the stages."""
    outside = dict.fromkeys(("cache", "data", "demo", "fetch", "gate", "ingest", "retrain"), True)
    return params.model_dump(mode="json", exclude=outside | {"limits": {"max_pixels", "max_bytes"}})


def validated_digest(category: str) -> str:
    """The identity of the images that were validated last."""
    return str(read_json(Places(category).validation / "report.json")["data_digest"])


def learned_digest(category: str) -> str:
    """The identity of those of them that are learned from: the training images."""
    return str(read_json(Places(category).validation / "learned.json")["data_digest"])


def shown_params(params: Params) -> dict[str, Any]:
    """The few parameters that tell runs apart: of what the method uses, those that differ from their defaults.

    The method, seed, image size, backbone and wished false-alarm rate are always among them. Keys are "section.key".
    """
    own = params.model_dump(mode="json")
    usual = Params(data=params.data).model_dump(mode="json")
    shown = {"method": params.method, "seed": params.seed}
    for section in own:
        if section not in sections_used(params.method):
            continue
        for key, value in own[section].items():
            name = f"{section}.{key}"
            if name in SHOWN_ALWAYS or value != usual[section][key]:
                shown[name] = value
    return shown


def written_params(params: Params) -> str:
    """All parameters of a run as YAML."""
    return yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False)


def experiment_identity(category: str, params: Params) -> str:
    """The identity of the present experiment on `category`, from the data digest that its validation wrote."""
    pin = read_pin(category)
    kept = {"base": pin.capsule} if pin else {}
    return run_identity(validated_digest(category), relevant_params(params) | kept, code_digest(), category)


def data_version(category: str, params: Params) -> DataVersion:
    """The data that were validated last, under the name that `flawline data versions` gives them."""
    report, root = read_json(Places(category).validation / "report.json"), Path(params.data.root)
    lineage = lineage_of(root, category)
    digest, counts = report["data_digest"], report["counts"]
    return DataVersion(category, digest, root / category, counts, report["data_version"], lineage.commit)


def open_category_run(category: str, params: Params, stage: str) -> Run:
    """The MLflow run of the present experiment on `category`, begun or continued by `stage`."""
    identity, data = experiment_identity(category, params), data_version(category, params)
    return open_run(category, identity, shown_params(params), data, stage, everything=written_params(params))
