"""Edit `params.yaml` from the command line: comments stay, and what is impossible is refused before it is written."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml as yaml_1_1
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from components.errors import UserError
from components.files import write_text
from components.params import Params, data_params, load_params, parse_params, read_preset
from components.yaml_text import parse_yaml, read_utf8

PARAMS = Path("params.yaml")
OPTIONS = f"With these options {PARAMS}"
TEXT_TAG = "tag:yaml.org,2002:str"
KEPT_BY_PRESETS = frozenset({"data", "demo", "fetch", "gate", "ingest", "limits", "seed", "threads"})


def edit_params(
    preset: str | None = None, settings: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Params:
    """Apply a preset, then dotted `values`, then settings "section.key=value", to params.yaml; returns the result.

    A preset replaces all that says how to compute, and leaves where the data is, the seed and the machine's threads.
    The file is written only if something changed. Raises UserError for what is unknown, impossible or malformed.
    """
    yaml = YAML()
    yaml.width = 120
    load_params(PARAMS)
    before = read_utf8(PARAMS)
    content = parse_yaml(before, str(PARAMS), yaml)
    if preset is not None:
        _apply_preset(content, read_preset(preset))
    for key, value in {**(values or {}), **dict(map(_parse_setting, settings))}.items():
        _set_dotted(content, key, value)
    text = io.StringIO()
    yaml.dump(content, text)
    params = parse_params(parse_yaml(text.getvalue(), OPTIONS), OPTIONS, "correct that: nothing was written")
    if (preset or values or settings) and text.getvalue() != before:
        write_text(PARAMS, text.getvalue())
    return params


def _apply_preset(content: Any, preset: Mapping[str, Any]) -> None:
    """Set every key of every section that presets govern, to the preset's value or else to the default."""
    defaults = Params(data=data_params("data", ["any"])).model_dump(mode="json")
    for section, default in defaults.items():
        if section in KEPT_BY_PRESETS:
            continue
        chosen = preset.get(section, {} if isinstance(default, dict) else default)
        if not isinstance(default, dict):
            content[section] = quoted(chosen)
            continue
        for key in {**default, **chosen}:
            content.setdefault(section, {})[key] = quoted(chosen.get(key, default.get(key)))


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set takes SECTION.KEY=VALUE, such as training.steps=100, not {setting!r}.")
    try:
        return key, YAML(typ="safe").load(text)
    except YAMLError as error:
        raise UserError(f"The value in --set {setting!r} is not valid YAML: quote or correct it.") from error


def _set_dotted(content: Any, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not hasattr(content, "setdefault"):
            raise UserError(f"'{section}' in '{key}' is no section of params.yaml: check the name.")
    if name not in content or content[name] != value or type(content[name]) is not type(value):
        content[name] = quoted(value)


def quoted(value: Any) -> Any:
    """The value, with each text in quotes that a reader of YAML 1.1 would take for something else, such as off."""
    match value:
        case str():
            tag = yaml_1_1.resolver.Resolver().resolve(yaml_1_1.ScalarNode, value, (True, False))
            return value if tag == TEXT_TAG else SingleQuotedScalarString(value)
        case Mapping():
            return {quoted(key): quoted(one) for key, one in value.items()}
        case Sequence():
            return [quoted(one) for one in value]
        case _:
            return value
