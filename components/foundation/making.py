"""What an output was made with: each says it itself, and the stage that reads it checks that it runs with the same.

DVC sees to that as long as it runs the stages; a stage that is run by hand, a `params.yaml` that is edited between two
stages, and files that were copied from elsewhere would otherwise be mixed up without a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.foundation.errors import UserError
from components.foundation.files import read_json, write_json
from components.foundation.libraries import library_versions
from components.foundation.params import Params, load_params

FILE = "made_with.json"
REMEDY = "make it anew with `dvc repro` or `flawline run`"


def making(params: Params, sections: Sequence[str], data_digest: str) -> dict[str, Any]:
    """The digest of the images, these sections of the parameters, and the versions of the libraries."""
    values = params.model_dump(mode="json", include=set(sections))
    return {"data_digest": data_digest, "params": values, "libraries": library_versions()}


def write_making(folder: Path, params: Params, sections: Sequence[str], data_digest: str) -> None:
    """Write `made_with.json` beside what was made."""
    write_json(folder / FILE, making(params, sections, data_digest))


def check_made_in(folder: Path, params: Params, data_digest: str) -> None:
    """`check_making` of what lies in a folder, by its `made_with.json`."""
    try:
        made = read_json(folder / FILE)
    except FileNotFoundError as error:
        raise UserError(f"{folder} does not say what it was made with: {REMEDY}.") from error
    check_making(str(folder), made, params, data_digest)


def check_making(what: str, made: Mapping[str, Any], params: Params, data_digest: str) -> None:
    """Raise UserError where `what` was made with other parameters or from other images than these.

    made: what `making` returned then; only the sections in it are compared.
    """
    found = differences(made["params"], params.model_dump(mode="json", include=set(made["params"])))
    if different := [f"{key}: {then} then, {now} now" for key, then, now in found]:
        raise UserError(f"{what} was made with other parameters ({_brief(different)}): {REMEDY}.")
    if made["data_digest"] != data_digest:
        raise UserError(
            f"{what} was made from other images ({made['data_digest'][:10]}) than were validated last "
            f"({data_digest[:10]}): {REMEDY}."
        )


def check_unchanged(params: Params, sections: Sequence[str]) -> None:
    """Raise UserError where params.yaml says in these sections something else than what was computed with.

    DVC reads the file again when a stage has ended, and would record the new values with the old ones' results.
    """
    then, now = (one.model_dump(mode="json", include=set(sections)) for one in (params, load_params()))
    if different := [key for key, _, _ in differences(then, now)]:
        raise UserError(
            f"params.yaml was changed while this was computed with it ({_brief(different)}): run it again, or use "
            "`flawline run`, which settles on its parameters when it begins."
        )


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys for which two nested mappings have different values (None for none), with both."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            yield key, old, new
        return
    for name in {**old, **new}:
        yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)


def _brief(words: Sequence[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
