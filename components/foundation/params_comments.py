"""`python -m components.foundation.params_comments` writes the description of every key into `params.yaml`.

The keys come in the order of the fields of `Params`, those that are missing with their defaults. Values stay as they
are; comments of one's own do not.
"""

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from components.foundation.files import write_text
from components.foundation.params import PARAMS, Params, data_params, parse_params
from components.foundation.yaml_text import flow_style, parse_yaml, read_utf8, yaml_editor

TOP = "What is computed. `flawline run --preset NAME --set SECTION.KEY=VALUE` edits this file, as `git diff` shows."
HEADINGS = {"method": "What most people set", "validation": "The line, stage by stage", "seed": "For experts"}
UNWRITTEN = frozenset({"fetch"})  # the known data sets: written only where a publisher's new address is needed
WIDTH = 120
OUT_OF_REACH = 1e5  # an upper bound from here on is there to stop slips of the key, and not said
COLUMN = 24  # where comments begin, if the value leaves room
INDENT = 2


def main(path: Path = PARAMS) -> None:
    """Write the comments into a file; UserError where it is no possible params.yaml."""
    write_text(path, commented(read_utf8(path), str(path)))


def commented(text: str, where: str = str(PARAMS)) -> str:
    """The text of a params.yaml with all keys in order, each with its description as a comment."""
    content = parse_yaml(text, where, yaml_editor())
    parse_params(parse_yaml(text, where), where)
    defaults = Params(data=data_params("data", ["any"])).model_dump(mode="json", exclude=set(UNWRITTEN))
    return "\n".join([f"# {TOP}", *_lines(Params, content, defaults), ""])


def _lines(
    model: type[BaseModel], content: Mapping[str, Any], defaults: Mapping[str, Any], depth: int = 0
) -> Iterator[str]:
    """The lines of a section: of each key its value and comment, or of a section in it all of that."""
    for name, field in model.model_fields.items():
        if name not in content and name not in defaults:
            continue
        value = content.get(name, defaults.get(name))
        section = _section(field)
        if depth == 0 and (section or name in HEADINGS):
            yield ""
        if depth == 0 and name in HEADINGS:
            yield f"# --- {HEADINGS[name]} ---"
        yield from _with_comment(f"{name}:" if section else _entry(name, value), _comment(field, section), depth)
        if section:
            yield from _lines(section, value or {}, defaults.get(name, {}), depth + 1)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is a section; None for a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _entry(name: str, value: Any) -> str:
    """`name: value` in one line, as it is written when the file is edited."""
    text = io.StringIO()
    yaml = yaml_editor()
    yaml.width = 1_000_000
    yaml.dump({name: flow_style(value)}, text)
    return text.getvalue().rstrip("\n")


def _comment(field: FieldInfo, section: type[BaseModel] | None) -> str:
    """The description of a key with what may be chosen, or the first paragraph on a section."""
    if section and not field.description:
        return " ".join((section.__doc__ or "").split("\n\n")[0].split())
    possible = _choices(field.annotation) or _range(field.metadata)
    return (field.description or "") + (f" ({possible})" if possible else "")


def _choices(annotation: Any) -> str:
    """What a key may be, where that is one of a few words."""
    values = get_args(annotation) if get_origin(annotation) is Literal else ()
    return " | ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in values)


def _range(bounds: Iterable[Any]) -> str:
    """The numbers that a key may be, where that is not known anyhow."""
    least = most = ""
    for bound in bounds:
        match bound:
            case Ge(ge=value):
                least = f"≥ {value:g}"
            case Gt(gt=value):
                least = f"> {value:g}"
            case Le(le=value):
                most = f"≤ {value:g}" if float(str(value)) < OUT_OF_REACH else ""
            case Lt(lt=value):
                most = f"< {value:g}"
    if not most:
        return "" if least in ("≥ 0", "≥ 1", "> 0") else least
    inclusive = least.startswith("≥") and most.startswith("≤")
    return f"{least[2:]} … {most[2:]}" if inclusive else ", ".join(filter(None, (least, most)))


def _with_comment(entry: str, comment: str, depth: int) -> Iterator[str]:
    """An entry with its comment behind it, or above it where that line would be too long."""
    margin = " " * INDENT * depth
    behind = [f"{margin + entry:<{COLUMN}}  # {comment}", f"{margin + entry}  # {comment}"]
    if short := [line for line in behind if len(line) <= WIDTH]:
        yield short[0]
    else:
        parts = textwrap.wrap(comment, WIDTH - len(margin) - 2, break_on_hyphens=False)
        yield from (f"{margin}# {part}" for part in parts)
        yield margin + entry


if __name__ == "__main__":
    main()
