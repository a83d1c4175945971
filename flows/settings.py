"""Edit `params.yaml` from the command line: comments stay, and what is impossible is refused before it is written."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml as yaml_1_1
from ruamel.yaml import YAML, RoundTripRepresenter, ScalarNode

from components.errors import UserError
from components.files import sha256_file, write_text
from components.params import PARAMS, Params, data_params, load_params, parse_params, read_preset
from components.yaml_text import parse_yaml, read_utf8

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
    yaml = _editor()
    load_params(PARAMS)
    before = read_utf8(PARAMS)
    content = parse_yaml(before, str(PARAMS), yaml)
    if preset is not None:
        _apply_preset(content, read_preset(preset))
    changes = {**(values or {}), **dict(map(_parse_setting, settings))}
    for key, value in {**_digest_of_weights(changes), **changes}.items():
        _set_dotted(content, key, value)
    text = io.StringIO()
    yaml.dump(content, text)
    params = parse_params(parse_yaml(text.getvalue(), OPTIONS), OPTIONS, "correct that: nothing was written")
    if (preset or values or settings) and text.getvalue() != before:
        write_text(PARAMS, text.getvalue())
    return params


class _Representer(RoundTripRepresenter):
    """Writes every text in quotes that a reader of YAML 1.1 (PyYAML) would take for something else, such as off."""

    def represent_str(self, data: Any) -> ScalarNode:
        resolver = yaml_1_1.resolver.Resolver()
        is_text = resolver.resolve(yaml_1_1.ScalarNode, data, (True, False)) == TEXT_TAG
        return self.represent_scalar(TEXT_TAG, data, None if is_text else "'")


_Representer.add_representer(str, _Representer.represent_str)


def _editor() -> YAML:
    """A reader and writer that keeps comments, order and quotes."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.Representer = _Representer
    return yaml


def _apply_preset(content: Any, preset: Mapping[str, Any]) -> None:
    """Set every key of every section that presets govern, to the preset's value or else to the default."""
    defaults = Params(data=data_params("data", ["any"])).model_dump(mode="json")
    for section, default in defaults.items():
        if section in KEPT_BY_PRESETS:
            continue
        chosen = preset.get(section, {} if isinstance(default, dict) else default)
        if not isinstance(default, dict):
            content[section] = chosen
            continue
        for key in {**default, **chosen}:
            content.setdefault(section, {})[key] = chosen.get(key, default.get(key))


def _digest_of_weights(changes: Mapping[str, Any]) -> dict[str, str]:
    """What backbone.sha256 becomes with new weights: the file's digest, or nothing where they are no file."""
    if "backbone.weights" not in changes:
        return {}
    path = Path(str(changes["backbone.weights"]))
    return {"backbone.sha256": sha256_file(path) if path.is_file() else ""}


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set takes SECTION.KEY=VALUE, such as training.steps=100, not {setting!r}.")
    return key, parse_yaml(text, f"The value in --set {setting!r}")


def _set_dotted(content: Any, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not hasattr(content, "setdefault"):
            raise UserError(f"'{section}' in '{key}' is no section of params.yaml: check the name.")
    if name not in content or content[name] != value or isinstance(content[name], bool) is not isinstance(value, bool):
        content[name] = value
