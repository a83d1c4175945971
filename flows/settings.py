"""Edit `params.yaml` from the command line: comments stay, and what is impossible is refused before it is written."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from components.errors import UserError
from components.files import write_text
from components.params import DataParams, Params, load_params, parse_params, read_preset

PARAMS = Path("params.yaml")
KEPT_BY_PRESETS = frozenset({"data", "demo", "fetch", "ingest", "limits", "seed", "threads"})


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
    before = PARAMS.read_text(encoding="utf-8")
    content = yaml.load(before)
    if preset is not None:
        _apply_preset(content, read_preset(preset))
    for key, value in {**(values or {}), **dict(map(_parse_setting, settings))}.items():
        _set_dotted(content, key, value)
    text = io.StringIO()
    yaml.dump(content, text)
    params = parse_params(YAML(typ="safe").load(text.getvalue()), str(PARAMS))
    if (preset or values or settings) and text.getvalue() != before:
        write_text(PARAMS, text.getvalue())
    return params


def _apply_preset(content: Any, preset: Mapping[str, Any]) -> None:
    """Set every key of every section that presets govern, to the preset's value or else to the default."""
    defaults = Params(data=DataParams(root="data", categories=("any",))).model_dump(mode="json")
    for section, default in defaults.items():
        if section in KEPT_BY_PRESETS:
            continue
        chosen = preset.get(section, {} if isinstance(default, dict) else default)
        if not isinstance(default, dict):
            content[section] = chosen
            continue
        for key in {**default, **chosen}:
            content.setdefault(section, {})[key] = chosen.get(key, default.get(key))


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
    if name not in content or content[name] != value:
        content[name] = value
