"""Edit `params.yaml` from the command line: comments stay, and what is impossible is refused before it is written."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.files import held_lock, sha256_file, write_text
from components.foundation.params import PARAMS, Params, data_params, load_params, parse_params, read_preset
from components.foundation.yaml_text import flow_style, parse_yaml, read_utf8, yaml_editor
from flows.data.git import BusyError

OPTIONS = f"With these options {PARAMS}"
LOCK = Path(".flawline/locks/params.lock")
LOCK_SECONDS = 30.0
KEPT_BY_PRESETS = frozenset({"data", "demo", "fetch", "gate", "ingest", "limits", "seed", "threads"})


def edit_params(
    preset: str | None = None,
    settings: Sequence[str] = (),
    values: Mapping[str, Any] | Callable[[Params], Mapping[str, Any]] | None = None,
) -> Params:
    """Apply a preset, then dotted `values`, then settings "section.key=value", to params.yaml; returns the result.

    values: what to set, or how that follows from the parameters as they are. Only one process edits at a time.
    A preset replaces all that says how to compute, and leaves where the data is, the seed and the machine's threads.
    The file is written only if something changed. Raises UserError for what is unknown, impossible or malformed.
    """
    with held_lock(LOCK, LOCK_SECONDS, _busy):
        params = load_params(PARAMS)
        chosen = values(params) if callable(values) else dict(values or {})
        before = read_utf8(PARAMS)
        changes = {**chosen, **dict(map(_parse_setting, settings))}
        text = edited_text(before, {**_digest_of_weights(changes), **changes}, preset)
        params = parse_params(parse_yaml(text, OPTIONS), OPTIONS, "correct that: nothing was written")
        if (preset or chosen or settings) and text != before:
            write_text(PARAMS, text)
    return params


def edited_text(text: str, values: Mapping[str, Any], preset: str | None = None) -> str:
    """The text of a params.yaml with a preset, then dotted values put in; UserError where it cannot be read."""
    yaml = yaml_editor()
    content = parse_yaml(text, str(PARAMS), yaml)
    if preset is not None:
        _apply_preset(content, read_preset(preset))
    for key, value in values.items():
        _set_dotted(content, key, value)
    changed = io.StringIO()
    yaml.dump(content, changed)
    return changed.getvalue()


def data_values(params: Params) -> dict[str, Any]:
    """Where the data are, as dotted values."""
    return {"data.root": params.data.root, "data.categories": list(params.data.categories)}


def _busy() -> BusyError:
    return BusyError("Another process is editing params.yaml: run this again later.")


def _apply_preset(content: Any, preset: Mapping[str, Any]) -> None:
    """Set every key of every section that presets govern, to the preset's value or else to the default."""
    defaults = Params(data=data_params("data", ["any"])).model_dump(mode="json")
    for section, default in defaults.items():
        if section in KEPT_BY_PRESETS:
            continue
        _set_all(content, section, default, preset.get(section, default))


def _set_all(content: Any, key: str, default: Any, chosen: Any) -> None:
    """Set a value; of a section every value by itself, the default where none was chosen, so that its comments stay."""
    if not isinstance(default, dict) or not default:
        _set(content, key, chosen)
        return
    section = content.setdefault(key, {})
    for name, value in default.items():
        _set_all(section, name, value, chosen.get(name, value))


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
    _set(content, name, value)


def _set(content: Any, name: str, value: Any) -> None:
    """Set a value where it is not there yet; a list in one line. True is not 1 here."""
    if name not in content or content[name] != value or isinstance(content[name], bool) is not isinstance(value, bool):
        content[name] = flow_style(value)
