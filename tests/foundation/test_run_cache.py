"""DVC's run cache tells every change of a parameter: it leaves keys of some names out, so none may be called so."""

import copy
import json
import operator
import os
import shutil
import subprocess
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from components.foundation.errors import UserError
from components.foundation.files import digest_tree, read_json, write_json
from components.foundation.params import UNSEEN_BY_DVC, Params, parse_params, preset_names, read_preset
from tests.project import REPOSITORY, Project, is_one_sentence


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


STAGES = [f"dvc.yaml:{name}@bolt" for name in ("validate", "synthesize", "train", "fit", "evaluate")]
# No result depends on them, but for the folder of the images.
NO_STAGES = {"cache", "data", "demo", "fetch", "gate", "ingest", "retrain"}


def leaves(values: Mapping[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the value of every key that holds no further keys."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, *path, name)
        else:
            yield (*path, name), value


def another(value: Any) -> Any:
    """A value that differs."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case list():
            return [*value, 1]
    return {"bolt": 1}


def keys_by_dvc(stages: Sequence[Any]) -> dict[str, str]:
    """DVC's own run-cache key of each stage, for the params.yaml that there is."""
    from dvc.dependency import ParamsDependency
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    for stage in stages:
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                dep.save()
    return {stage.name: _get_cache_hash(to_single_stage_lockfile(stage), key=True) for stage in stages}


@pytest.mark.slow
def test_every_key_of_the_parameters_changes_the_key_of_the_stages_that_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", ".dvc/config"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, name)
    subprocess.run(["git", "init", "-q"], check=True)
    full = parse_params({"data": {"root": "x", "categories": ["bolt"]}}, "test").model_dump(mode="json")
    Path("params.yaml").write_text(json.dumps(full))
    from dvc.repo import Repo

    with Repo(os.fspath(tmp_path)) as repo:
        stages = [repo.stage.load_one(*target.split(":")) for target in STAGES]
        sections = {stage.name: {name for dep in stage.deps for name in getattr(dep, "params", [])} for stage in stages}
        assert set().union(*sections.values()) == set(full) - NO_STAGES
        before = keys_by_dvc(stages)
        for path, value in leaves(full):
            changed = copy.deepcopy(full)
            reduce(operator.getitem, path[:-1], changed)[path[-1]] = another(value)
            Path("params.yaml").write_text(json.dumps(changed))
            dependent = {name for name in before if path[0] in sections[name]}
            concerned = [stage for stage in stages if stage.name in dependent]
            assert {name for name, key in keys_by_dvc(concerned).items() if key != before[name]} == dependent, path


@pytest.mark.slow
def test_what_the_run_cache_brings_back_is_what_would_be_computed(ran: Project, tmp_path: Path) -> None:
    project = ran.copy(tmp_path / "project")
    names = ("validation", "prepared", "encoder", "capsule", "evaluation")
    outputs = [project.folder / "artifacts" / "widget" / name for name in names]
    computed = [digest_tree(output) for output in outputs]
    (project.folder / "dvc.lock").unlink()
    for output in outputs:
        shutil.rmtree(output)
    brought = project.dvc("repro", "evaluate@widget")
    assert brought.returncode == 0, brought.stderr
    assert brought.stdout.count("is cached - skipping run") == 5
    assert [digest_tree(output) for output in outputs] == computed

    versions = read_json(project.folder / "infra/libraries.json")
    write_json(project.folder / "infra/libraries.json", versions | {"torch": "0.1"})
    other = project.dvc("repro", "evaluate@widget")
    assert other.returncode != 0
    assert "is cached" not in other.stdout, "results of other libraries are others"
    assert "is installed, but infra/libraries.json, by which DVC tells results apart, says 0.1" in other.stderr


@pytest.mark.slow
def test_a_stage_refuses_what_was_made_with_other_parameters_or_images(ran: Project, tmp_path: Path) -> None:
    project = ran.copy(tmp_path / "project")
    project.set_params({"image": {"side": 40}})
    for stage, what in (("train", "prepared"), ("fit", "prepared"), ("evaluate", "capsule")):
        done = project.stage(stage, "widget")
        assert (done.returncode, is_one_sentence(done.stderr)) == (1, True), done.stderr
        assert f"artifacts/widget/{what} was made with other parameters (image.side: 32 then, 40 now)" in done.stderr
    project.set_params({"image": {"side": 32}, "training": {"steps": 19}})
    assert "artifacts/widget/encoder was made with other parameters (training.steps: 20" in (
        project.stage("fit", "widget").stderr
    )
    project.set_params({"training": {"steps": 20}})
    learned = project.folder / "artifacts/widget/validation/learned.json"
    content = read_json(learned) | {"data_digest": "0" * 64}
    learned.unlink()
    write_json(learned, content)
    for stage in ("train", "evaluate"):
        done = project.stage(stage, "widget")
        assert (done.returncode, is_one_sentence(done.stderr)) == (1, True), done.stderr
        assert "was made from other images" in done.stderr
