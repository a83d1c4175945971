"""params.yaml is parsed once, and whatever is unknown, impossible or missing in it is named in one sentence."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ruamel.yaml import YAML

from components.foundation.errors import UserError
from components.foundation.params import Params, load_params, parse_params, preset_names, read_preset

PROJECT = Path(__file__).parents[2]
DATA = {"root": "data", "categories": ["bolt"]}


def refusal(**sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_params({"data": DATA, **sections}, "my.yaml")
    sentence = str(caught.value)
    assert sentence.startswith("my.yaml: ")
    assert "\n" not in sentence
    return sentence


def test_all_but_the_data_has_a_default() -> None:
    params = parse_params({"data": DATA}, "my.yaml")
    assert params == Params(data=params.data)
    assert params.data.categories == ("bolt",)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"trainnig": {}}, "trainnig"),
        ({"training": {"epochs": 3}}, "training.epochs"),
        ({"fetch": {"archives": {"x": {"url": "u", "sha256": "0" * 64, "size": 1}}}}, "fetch.archives.x.size"),
    ],
)
def test_an_unknown_key_is_named(sections: dict[str, Any], key: str) -> None:
    assert f"the key '{key}' is unknown" in refusal(**sections)


def test_a_key_that_was_renamed_is_refused_with_its_new_name() -> None:
    assert "the key 'image.size' is called 'image.side' now, so rename it;" in refusal(image={"size": 64})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("image", "side", 8),
        ("image", "side", "big"),
        ("training", "rate", 0),
        ("training", "rate", -1e-3),
        ("training", "optimizer", "lion"),
        ("training", "precision", "fp8"),
        ("fit", "folds", 1),
        ("threshold", "false_alarm_rate", 1.5),
        ("synthesis", "held_out", 0),
        ("synthesis", "area", ["small", 0.1]),
        ("evaluation", "aupro_fpr_limit", 2),
        ("limits", "max_pixels", 10**12),
        ("nsa", "settings", "official"),
        ("nsa", "background", 300),
        ("nsa", "tolerance", "wide"),
        ("nsa", "width", [0.1, "wide"]),
        ("nsa", "max_patches", 0),
        ("nsa", "min_overlap", 1),
        ("nsa", "k", -1),
    ],
)
def test_an_impossible_value_is_named(section: str, key: str, value: Any) -> None:
    assert f"'{section}.{key}" in refusal(**{section: {key: value}})
    assert "is impossible" in refusal(**{section: {key: value}})


@pytest.mark.parametrize("name", ["area", "aspect", "scar_width", "scar_length"])
@pytest.mark.parametrize("value", [[0.2, 0.1], [0, 0.1], [-1, 1]])
def test_an_interval_out_of_order_is_named(name: str, value: list[float]) -> None:
    assert f"{name} must be two positive numbers in ascending order" in refusal(synthesis={name: value})


@pytest.mark.parametrize("name", ["height", "width", "resize"])
def test_bounds_out_of_order_are_named(name: str) -> None:
    assert f"{name} must be two numbers in ascending order" in refusal(nsa={name: [0.4, 0.1]})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask": "none", "background": 20}, "mask is 'none'"),
        ({"settings": "paper", "object": "texture"}, "settings is 'paper'"),
        ({"settings": "paper", "aligned": False}, "settings is 'paper'"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], said: str) -> None:
    assert said in refusal(nsa=values)


def test_auto_stands_for_a_value_to_be_found_and_is_written_back_as_auto() -> None:
    section = parse_params({"data": DATA, "nsa": {"background": "auto", "width": [0.1, 0.2]}}, "my.yaml").nsa
    assert (section.background, section.width) == (None, (0.1, 0.2))
    written = section.model_dump(mode="json")
    assert (written["background"], written["width"], written["k"]) == ("auto", [0.1, 0.2], "auto")
    assert parse_params({"data": DATA, "nsa": written}, "my.yaml").nsa == section


def test_an_unknown_method_and_an_empty_list_of_categories_are_named() -> None:
    assert "'method'" in refusal(method="magic")
    assert "'data.categories' is impossible (it must have one" in refusal(data={"root": "data", "categories": []})
    assert "item" not in refusal(data={"root": "data", "categories": ["a b"]})  # nor is what is wrong said twice


def test_missing_keys_are_named() -> None:
    assert "the key 'data.categories' is missing" in refusal(data={"root": "data"})
    with pytest.raises(UserError, match="the key 'data' is missing"):
        parse_params({}, "my.yaml")


def test_many_problems_are_said_in_one_sentence() -> None:
    sentence = refusal(image={"side": 1}, fit={"folds": 0, "best": 0}, seed=-1, threads=0)
    assert sentence.count("is impossible") == 3
    assert "(and 2 more)" in sentence


def test_parameters_do_not_change() -> None:
    params = parse_params({"data": DATA}, "my.yaml")
    with pytest.raises(ValidationError):
        params.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        params.training.rate = 1.0  # type: ignore[misc]


def test_the_limits_are_those_of_the_image_reader() -> None:
    limits = parse_params({"data": DATA, "limits": {"max_pixels": 10, "max_bytes": 20}}, "my.yaml").limits
    assert (limits.image_limits().max_pixels, limits.image_limits().max_bytes) == (10, 20)


@pytest.mark.parametrize("content", ["", "3", "- a", "data: ["])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no"):
        load_params(tmp_path / "params.yaml")


def test_scientific_notation_is_a_number_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for text in ("3e-5", "3.0e-5", "3e-05", "0.00003"):
        path.write_text(yaml.safe_dump({"data": DATA}) + f"training:\n  weight_decay: {text}\n")
        assert load_params(path).training.weight_decay == 3e-5


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_possible(name: str) -> None:
    preset = read_preset(name)
    assert not {"data", "seed", "threads"} & preset.keys()
    parse_params({"data": DATA, **preset}, name)


def test_the_presets_that_the_manual_names_are_there() -> None:
    assert {"demo", "cpu", "paper-cutpaste"} <= set(preset_names())


@pytest.mark.parametrize("name", ["nope", "../presets/demo", ""])
def test_an_unknown_preset_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match="demo"):
        read_preset(name)


def test_the_projects_own_file_is_possible() -> None:
    assert load_params(PROJECT / "params.yaml").data.categories


def numbers(schema: dict[str, Any], node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(path, node, a function that builds the smallest content with a value there) of every number of the file."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    if node.get("type") in ("integer", "number"):
        yield ".".join(path), node, None
    for name, child in node.get("properties", {}).items():
        yield from numbers(schema, child, (*path, name))
    for child in node.get("anyOf", ()):
        yield from numbers(schema, child, path)
    if node.get("type") == "array":
        for child in node.get("prefixItems", [node["items"]] if "items" in node else []):
            yield from numbers(schema, child, (*path, "[]"))
    if isinstance(node.get("additionalProperties"), dict):
        yield from numbers(schema, node["additionalProperties"], (*path, "{}"))


SCHEMA = Params.model_json_schema()
NUMBERS = {path: node for path, node, _ in numbers(SCHEMA, SCHEMA)}
PAIRS = {path for path in NUMBERS if path.startswith(("synthesis.", "nsa.")) and path.endswith("[]")}  # low and high


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The smallest content that has a value at a path such as "training.projection.[]"."""
    for part in reversed(path.split(".")):
        value = [value, value] if part == "[]" and path in PAIRS else [value] if part == "[]" else value
        value = value if part == "[]" else {"lamp" if part == "{}" else part: value}
    return {"data": DATA} | value


def refused(path: str, value: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_params(with_value(path, value), "my.yaml")
    return str(caught.value)


def test_every_number_of_the_file_is_found() -> None:
    assert len(NUMBERS) > 80
    assert {"seed", "threads", "training.projection.[]", "network.epochs_of.{}", "nsa.k", "fetch.limits.max_ratio"} <= (
        NUMBERS.keys()
    )


@pytest.mark.parametrize("path", NUMBERS)
def test_no_number_is_a_truth_value_a_text_infinite_or_without_bounds(path: str) -> None:
    """What is refused names its key; the bounds are those that the schema tells, and they hold to the last digit."""
    node, key = NUMBERS[path], path.split(".[]")[0].split(".{}")[0]
    whole = node["type"] == "integer"
    for value in (True, False, "3", "many", math.inf, -math.inf, math.nan, [1], 10**20, -(10**20)):
        assert f"'{key}" in refused(path, value) or (path in PAIRS and value == -(10**20))
    assert not whole or "integer" in refused(path, 2.5)
    for bound, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0), ("exclusiveMaximum", 0)):
        if bound in node:
            beyond = node[bound] + step if whole or step == 0 else math.nextafter(node[bound], step * math.inf)
            assert f"'{key}" in refused(path, beyond)
    assert {"minimum", "exclusiveMinimum"} & node.keys() or path in PAIRS  # of these the order is checked, and above 0
    assert {"maximum", "exclusiveMaximum"} & node.keys()


def sentence_for(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


GOOD = "seed: 1\ndata:\n  root: data\n  categories: [bolt]\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD.encode("utf-16"), "is UTF-16, and not UTF-8 (byte 0xff in line 1): save it as UTF-8"),
        (GOOD.encode() + "# für\n".encode("latin-1"), "is not UTF-8 (byte 0xfc in line 5): save it as UTF-8"),
        (GOOD.encode() + b"seed: 2\n", 'line 5, column 1: found duplicate key "seed"'),
        (GOOD.encode() + b"fit: {best: 1, best: 2}\n", 'line 5, column 16: found duplicate key "best"'),
        (GOOD.encode() + b"fit:\n\tbest: 1\n", "line 6, column 1: found character"),
        (b"", "must hold a mapping"),
        (b"# nothing\n", "must hold a mapping"),
        (b"<<<<<<< HEAD\n" + GOOD.encode() + b"=======\nseed: 2\n>>>>>>> b\n", "merge conflict (line 1): settle it"),
        (GOOD.encode() + b"fit: 2024-13-45\n", "is not valid YAML"),
        (GOOD.encode() + b"---\nseed: 2\n", "line 5, column 1"),
        (GOOD.encode() + b"fit: !!python/object/apply:os.system [id]\n", "line 5, column 6"),
        (GOOD.encode() + b"fit: \x00\n", "is not valid YAML"),
        (GOOD.encode() + b"fit: *nothing\n", "line 5, column 6: found undefined alias"),
        (b"data: &a [*a]\n", "'data' is impossible"),
        (b"a: " + b"[" * 5000, "is not valid YAML"),
        (GOOD.replace("[bolt]", "[007]").encode(), "'data.categories.0' is impossible (without quotes 7 is no text"),
        (GOOD.replace("[bolt]", "[2024-01-01]").encode(), "put it in quotes"),
        (GOOD.replace("[bolt]", "[true]").encode(), "put it in quotes"),
        (GOOD.replace("[bolt]", "[null]").encode(), "'data.categories.0' is impossible"),
        (GOOD.replace("[bolt]", "bolt").encode(), "'data.categories' is impossible"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_place(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    sentence = sentence_for(path)
    assert str(path) in sentence
    assert said in sentence


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_mark_at_the_beginning_and_windows_line_ends_do_no_harm(tmp_path: Path, mark: bytes, end: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(mark + GOOD.replace("\n", end).encode())
    assert (load_params(path).seed, load_params(path).data.categories) == (1, ("bolt",))


@pytest.mark.parametrize("name", ["off", "on", "yes", "NO", "y", "null", "true", "1e3", "0x1", "007", "1_000", "bolt"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_params_are_read_as_dvc_reads_them(tmp_path: Path, name: str, quote: str) -> None:
    """What is a text to DVC is one here, and the same; what is none there is refused here."""
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace("bolt", f"{quote}{name}{quote}"))
    (dvcs,) = load_yaml(str(path))["data"]["categories"]
    if isinstance(dvcs, str):
        assert load_params(path).data.categories == (dvcs,) == (name,)
    else:
        assert "data.categories.0" in sentence_for(path)


def test_the_preset_files_mean_the_same_in_old_and_new_yaml() -> None:
    for name in preset_names():
        text = (PROJECT / "components" / "presets" / f"{name}.yaml").read_text()
        assert yaml.safe_load(text) == YAML(typ="safe").load(text)
