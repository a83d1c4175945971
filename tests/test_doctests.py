"""The examples in the docstrings of densities, figures of merit and thresholds are there, and true."""

import doctest
import importlib
import inspect
from types import ModuleType

import pytest

MODULES = [
    "components.density.arrays",
    "components.density.gaussian",
    "components.density.kernel",
    "components.density.levelwise",
    "components.density.moments",
    "components.density.shrinkage",
    "components.density.whitening",
    "components.detection.beyond_chance",
    "components.detection.conformal",
    "components.detection.promise",
    "components.evaluation.metrics",
    "components.registry.gate.statistics",
]
CLASSES = {"GaussianDensity", "KernelDensity", "LevelwiseDensity"}


def public(module: ModuleType) -> list[str]:
    """Names of the module's own public functions, and of its densities."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    functions = [name for name, value in own.items() if inspect.isfunction(value) and not name.startswith("_")]
    return functions + sorted(CLASSES & own.keys())


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example_that_runs(name: str) -> None:
    module = importlib.import_module(name)
    without = [one for one in public(module) if ">>>" not in (getattr(module, one).__doc__ or "")]
    assert not without, f"{name}: give {', '.join(without)} an example"
    results = doctest.testmod(module)
    assert results.failed == 0, f"run `python -m doctest {(module.__file__ or name)}`"
    assert results.attempted >= len(public(module))
