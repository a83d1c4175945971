"""DVC's run cache tells every change of a parameter: it leaves keys of some names out, so none may be called so."""

import typing
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from components.errors import UserError
from components.params import UNSEEN_BY_DVC, Params, parse_params, preset_names, read_preset
from tests.project import REPOSITORY


def keys_of(value: Any) -> Iterator[str]:
    """The names of all keys of nested mappings and lists."""
    for name, below in value.items() if isinstance(value, dict) else []:
        yield name
        yield from keys_of(below)
    for below in value if isinstance(value, list | tuple) else []:
        yield from keys_of(below)


def fields_of(model: Any) -> Iterator[str]:
    """The names of all fields of a model, and of the models in the types of its fields."""
    for argument in typing.get_args(model):
        yield from fields_of(argument)
    for name, field in model.model_fields.items() if isinstance(model, type) and issubclass(model, BaseModel) else []:
        yield name
        yield from fields_of(field.annotation)


def test_dvc_leaves_out_the_keys_that_no_parameter_may_be_called() -> None:
    from dvc.stage.cache import _get_cache_hash

    for name in UNSEEN_BY_DVC:
        assert _get_cache_hash({"params": {name: 1}}) == _get_cache_hash({"params": {name: 2}})


def test_no_key_at_any_depth_has_a_name_that_dvc_leaves_out() -> None:
    fields = set(fields_of(Params))
    assert {"side", "rate", "archives", "sha256", "crop"} <= fields
    written = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    presets = [read_preset(name) for name in preset_names()]
    assert not (fields | set(keys_of([written, *presets]))) & set(UNSEEN_BY_DVC)


@pytest.mark.parametrize("name", UNSEEN_BY_DVC)
def test_a_mapping_by_category_refuses_these_names(name: str) -> None:
    content = {"data": {"root": "data", "categories": [name]}, "network": {"epochs_of": {name: 3}}}
    with pytest.raises(UserError, match="run cache does not see its value"):
        parse_params(content, "params.yaml")
