"""params.yaml explains itself: every key has its field's description as a comment, in the words of the field itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from components.foundation.errors import UserError
from components.foundation.params import Params, load_params, parse_params, read_preset
from components.foundation.params_comments import commented, main
from components.foundation.yaml_text import parse_yaml
from flows.data.settings import edited_text

FILE = Path(__file__).parents[2] / "params.yaml"
TOO_LONG = 240
COMMAND = "run `python -m components.foundation.params_comments`"


def keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key and the description of every value, in sections of any depth."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            assert field.description or kind.__doc__, before + name
            yield from keys(kind, f"{before}{name}.")
        else:
            yield before + name, field.description or ""


DESCRIPTIONS = dict(keys(Params))


@pytest.mark.parametrize("key", DESCRIPTIONS)
def test_every_key_has_a_short_description(key: str) -> None:
    description = DESCRIPTIONS[key]
    assert 0 < len(description) <= TOO_LONG, f"give {key} a description in components/foundation/params.py"
    assert description.isprintable()
    assert not description.endswith(".")


def test_the_projects_file_says_what_the_descriptions_say() -> None:
    text = FILE.read_text()
    assert commented(text) == text, COMMAND
    for key, description in DESCRIPTIONS.items():
        words = " ".join(line.partition("#")[2].strip() for line in text.splitlines())
        assert key.startswith("fetch.") or description in words, COMMAND


def test_a_comment_says_what_may_be_chosen() -> None:
    lines = [line.strip() for line in FILE.read_text().splitlines()]
    said = {
        "side:": "(32 … 1024)",
        "false_alarm_rate:": "(> 0, < 1)",
        "drift_min:": "(≥ 2)",
        "optimizer:": "(sgd | adam)",
        "flip:": "(false | left-right | upside-down)",
        "max_files:": "waits for the next",  # nothing but what everybody takes for granted
    }
    for key, end in said.items():
        assert next(line for line in lines if line.startswith(key)).endswith(end)


def test_what_most_people_set_stands_in_the_first_40_lines() -> None:
    content = parse_yaml("\n".join(FILE.read_text().splitlines()[:40]), "its beginning")
    assert content["method"]
    assert content["data"]["categories"]
    assert content["image"]["side"]
    assert content["threshold"]["false_alarm_rate"]
    assert content["ingest"]["source"]


def test_no_line_is_long_and_no_list_takes_several() -> None:
    lines = FILE.read_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert not [line for line in lines if line.lstrip().startswith("- ")]


def test_values_stay_and_what_is_missing_comes_with_its_default(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "fit:\n  best: 3   # mine\ndata:\n  categories:\n  - 'off'\n  - bolt\n  root: x\n"
        "training: {weight_decay: 3e-5}\nnetwork:\n  epochs_of: {bolt: 7}\n"
    )
    before = load_params(path)
    main(path)
    text = path.read_text()
    assert load_params(path) == before
    assert before.network.epochs_of == {"bolt": 7}
    assert parse_yaml(text, "it")["image"] == {"side": 256}
    assert "  categories: ['off', bolt]" in text
    assert text.index("data:") < text.index("fit:")  # in the order of the fields
    assert commented(text) == text


def test_what_is_no_params_file_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("data: 3\n")
    with pytest.raises(UserError, match="'data' is impossible"):
        main(path)
    assert path.read_text() == "data: 3\n"


def keys_with_comments(text: str) -> list[tuple[str, str]]:
    """Of each line with a key or a comment, both, without the value."""
    parts = [line.partition("#") for line in text.splitlines() if line]
    return [(entry.partition(":")[0].strip(), comment.strip()) for entry, _, comment in parts]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu", "paper-nsa", "paper-cutpaste"])
def test_an_edit_keeps_every_comment_at_its_key_and_lists_in_one_line(preset: str) -> None:
    """A preset sets lists and values in sections of sections."""
    before = FILE.read_text()
    values = {"data.categories": ["a", "b", "c"], "threshold.false_alarm_rate": 0.01, "network.epochs_of": {"a": 3}}
    edited = edited_text(before, values, preset)
    if "epochs_of" not in read_preset(preset).get("network", {}):
        assert "  epochs_of: {a: 3}" in edited
    assert keys_with_comments(edited) == keys_with_comments(before)
    params = parse_params(parse_yaml(edited, "it"), "it")
    expected = parse_params({**read_preset(preset), "data": {"root": "x", "categories": ["a"]}}, "preset")
    assert params.data.categories == ("a", "b", "c")
    assert (params.training, params.network.object_view) == (expected.training, expected.network.object_view)
