"""YAML as DVC reads it (1.2, by the same library), so that no two readers of a file disagree; errors name the place."""

import re
from pathlib import Path
from typing import Any

import yaml as yaml_1_1
from ruamel.yaml import YAML, RoundTripRepresenter, ScalarNode, YAMLError
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from components.foundation.errors import UserError, printable

TEXT_TAG = "tag:yaml.org,2002:str"
CONFLICT = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
_MOST_SIGNS = 200  # of the library's reason


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; UserError, with the file and the place in it, where it is no UTF-8 or no YAML."""
    return parse_yaml(read_utf8(path), str(path))


def read_utf8(path: Path) -> str:
    """The text of a file; UserError where it is missing or is not UTF-8."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}: run from the project's folder.") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        kind = "UTF-16, and not UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        line = data.count(b"\n", 0, error.start) + 1
        place = f"byte {data[error.start]:#04x} in line {line}"
        raise UserError(f"{path} is {kind} ({place}): save it as UTF-8, and run again.") from error


def parse_yaml(text: str, where: str, reader: YAML | None = None) -> Any:
    """What a YAML text holds; UserError, with `where` it is from and the line, where it is no YAML.

    reader: another than the plain one, such as one that keeps comments.
    """
    if conflict := CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        raise UserError(f"{where} holds git's marks of a merge conflict (line {line}): settle it, and run again.")
    try:
        return (reader or YAML(typ="safe")).load(text)
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:  # ValueError: a date that does not exist
        raise UserError(f"{where} is not valid YAML ({_reason(error)}): correct it, and run again.") from error


def parse_lock(content: bytes) -> Any:
    """What a lock file of DVC holds, by a reader in C, as it may have thousands of lines; yaml.YAMLError else."""
    return yaml_1_1.load(content, getattr(yaml_1_1, "CSafeLoader", yaml_1_1.SafeLoader))


def _reason(error: Exception) -> str:
    """Line and column, and the library's words, in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = getattr(error, "problem", None) or str(error)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + printable(" ".join(str(words).split()))[:_MOST_SIGNS].rstrip(".")


class _Representer(RoundTripRepresenter):
    """Writes every text in quotes that a reader of YAML 1.1 (PyYAML) would take for something else, such as off."""

    def represent_str(self, data: Any) -> ScalarNode:
        resolver = yaml_1_1.resolver.Resolver()
        is_text = resolver.resolve(yaml_1_1.ScalarNode, data, (True, False)) == TEXT_TAG
        return self.represent_scalar(TEXT_TAG, data, None if is_text else "'")


_Representer.add_representer(str, _Representer.represent_str)


def yaml_editor() -> YAML:
    """A reader and writer that keeps comments, order and quotes."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.Representer = _Representer
    return yaml


def flow_style(value: Any, depth: int = 5) -> Any:
    """The same value for `yaml_editor`, which writes a list or mapping of it in one line: [0.02, 0.15].

    depth: what lies deeper is left as it is; a list may hold itself.
    """
    flowing: CommentedMap | CommentedSeq
    if isinstance(value, dict) and depth:
        flowing = CommentedMap({key: flow_style(item, depth - 1) for key, item in value.items()})
    elif isinstance(value, list | tuple) and depth:
        flowing = CommentedSeq([flow_style(item, depth - 1) for item in value])
    else:  # the library writes an address in a flow without quotes, and cannot read it then
        return SingleQuotedScalarString(value) if isinstance(value, str) and ":" in value else value
    flowing.fa.set_flow_style()
    return flowing
