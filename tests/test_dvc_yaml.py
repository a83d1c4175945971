"""dvc.yaml says all that each stage depends on: the code it imports, the parameters that code reads."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.foundation import libraries
from components.foundation.files import read_json
from components.foundation.params import DataParams, Params
from tests.project import REPOSITORY

STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
# `data` is read for the folder's path, which is a dependency itself; `threads` where only the speed depends on it, as
# it alone does on `cache`.
NOT_DECLARED = {
    name: {"cache", "data"} | ({"threads"} if name in ("validate", "synthesize") else set()) for name in STAGES
}


def imported_modules(path: Path) -> set[str]:
    """The modules of `components`, as ROOM/NAME, that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("components."):
            continue
        room, *module = (node.module or "").split(".")[1:]
        found |= {f"{room}/{module[0]}"} if module else {f"{room}/{alias.name}" for alias in node.names}
    return found


@cache
def closure(name: str) -> frozenset[str]:
    """A module of `components` and all modules of it that are imported from there on."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imported_modules(module_file(module))
    return frozenset(seen)


def module_file(module: str) -> Path:
    return REPOSITORY / "components" / f"{module}.py"


def code_of(stage: dict[str, Any]) -> set[str]:
    return {dep for dep in stage["deps"] if dep.startswith("components/")}


def used_by(name: str) -> set[str]:
    """What a stage's code lies in: whole rooms, but of the stages only the files that are its own."""
    modules = closure(f"stages/{name}")
    own = {f"components/{module}.py" for module in modules if module.startswith("stages/")}
    return own | {f"components/{module.split('/')[0]}" for module in modules if not module.startswith("stages/")}


def sections_read(module: str) -> set[str]:
    """Names of Params' own fields that a file's functions read from their arguments of that type."""
    found = set()
    for function in ast.walk(ast.parse(module_file(module).read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        whole = {
            argument.arg
            for argument in (*function.args.args, *function.args.kwonlyargs)
            if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Params"
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
                found.add(node.attr)
    return found & set(Params.model_fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_rooms_it_imports_from(name: str) -> None:
    assert code_of(STAGES[name]) == used_by(name)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_own_module(name: str) -> None:
    assert STAGES[name]["cmd"].split()[:2] == ["infra/stage", name]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_the_parameters_that_its_code_reads(name: str) -> None:
    read = {section for module in closure(f"stages/{name}") for section in sections_read(module)}
    assert read, "no parameter found at all: does this test still understand the code?"
    assert read - set(STAGES[name]["params"]) - NOT_DECLARED[name] == set()


@pytest.mark.parametrize("name", STAGES)
def test_declared_parameters_exist(name: str) -> None:
    written = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    assert set(STAGES[name]["params"]) <= set(written)
    assert set(written) <= set(Params.model_fields)


def test_the_file_of_parameters_and_every_preset_are_valid() -> None:
    from components.foundation.params import load_params, parse_params, preset_names, read_preset

    assert load_params(REPOSITORY / "params.yaml").data.categories
    data = DataParams(root="data", categories=("any",)).model_dump()
    assert {parse_params({"data": data, **read_preset(name)}, name).method for name in preset_names()}


def test_no_two_stages_write_the_same_place_and_every_place_is_known() -> None:
    from components.foundation.places import Places

    category = "${item.category}"
    outputs = [out for stage in STAGES.values() for out in stage["outs"]]
    plots = {str(Path(next(iter(plot))).parent) for stage in STAGES.values() for plot in stage.get("plots", [])}
    assert len(set(outputs)) == len(outputs)
    root = Path("artifacts") / category
    known = Places("widget")
    places = (known.validation, known.prepared, known.encoder, known.capsule, known.evaluation)
    assert plots == {str(root / known.plots.name)}
    assert sorted(outputs) == sorted(str(root / place.name) for place in places)


def test_metrics_are_kept_in_git() -> None:
    assert STAGES["evaluate"]["metrics"] == [{"metrics/${item.category}.json": {"cache": False}}]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_knows_its_own_parameters(name: str) -> None:
    """By which it sees that params.yaml was changed while it ran."""
    assert sorted(import_module(f"components.stages.{name}").READS) == sorted(STAGES[name]["params"])


def test_every_stage_depends_on_the_versions_of_the_libraries_and_these_are_locked() -> None:
    assert all(libraries.FILE.as_posix() in stage["deps"] for stage in STAGES.values())
    declared = read_json(REPOSITORY / libraries.FILE)
    assert set(declared) == {"python", *libraries.LIBRARIES}
    locked = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert {f"{name}=={declared[name]}" for name in libraries.LIBRARIES} <= {line.split()[0] for line in locked if line}


def test_dvc_knows_of_no_stage_but_those_of_the_users_categories() -> None:
    """What a project has no data for, as the demo's, would make `dvc pull` and `dvc checkout` fail in it."""
    assert [*REPOSITORY.glob("*/dvc.yaml"), *REPOSITORY.glob("*/dvc.lock")] == []
    assert all(stage["matrix"] == {"category": "${data.categories}"} for stage in STAGES.values())
