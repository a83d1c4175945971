"""Acts on versions in processes of their own, which are killed at a chosen step."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

PRELOADED = [
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store"),
    *("components.registry.promotion", "tests.acting"),
]
_CLIENT_STEPS = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "set_model_version_tag",
)


def process_of(target: Callable[..., None], *arguments: Any) -> Any:
    """A process that begins with nothing but the libraries, already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context.Process(target=target, args=arguments)


def act_and_be_killed(place: str, uri: str | None, act: str, category: str, number: int, step: int) -> None:
    """Do an act in a workspace, and die by SIGKILL before its write number `step` (from 0), if it has so many."""
    enter(place, uri)
    from components.registry import promotion

    _kill_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    _do(promotion, act, category, number)


def act_while_the_server_dies(place: str, uri: str, act: str, category: str, number: int, step: int, pid: int) -> None:
    """Do an act, during which the server's session is killed before the write number `step`; its error is none here."""
    enter(place, uri)
    from components.foundation.errors import ServerError
    from components.registry import promotion

    _kill_at(step, lambda: os.killpg(pid, signal.SIGKILL))
    try:
        _do(promotion, act, category, number)
    except ServerError:
        return


def act_in_turn(place: str, uri: str | None, category: str, numbers: list[int]) -> None:
    """Promote one version after the other."""
    enter(place, uri)
    from components.registry.promotion import promote

    for number in numbers:
        promote(category, number, "race")


def enter(place: str, uri: str | None) -> None:
    """Make `place` the current folder, and the server at `uri` MLflow's, if there is one."""
    os.chdir(place)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri


def _do(promotion: Any, act: str, category: str, number: int) -> None:
    match act:
        case "promote":
            promotion.promote(category, number, "better")
        case "reject":
            promotion.reject(category, number, "worse")
        case _:
            promotion.roll_back(category, "worse after all")


def _kill_at(step: int, kill: Callable[[], None]) -> None:
    """Call `kill` before the write number `step`: those of the journal are cut short, those at MLflow not begun."""
    from mlflow import MlflowClient

    from components.registry import promotion

    counter = iter(range(10_000))
    for name in _CLIENT_STEPS:
        setattr(MlflowClient, name, _counted(getattr(MlflowClient, name), counter, step, kill))
    promotion.append_move = _torn(promotion.append_move, counter, step, kill)


def _counted(real: Any, counter: Iterator[int], step: int, kill: Callable[[], None]) -> Any:
    def write(*arguments: Any, **named: Any) -> Any:
        if next(counter) == step:
            kill()
        return real(*arguments, **named)

    return write


def _torn(real: Any, counter: Iterator[int], step: int, kill: Callable[[], None]) -> Any:
    """The journal's `append_move`, which at the step writes half of the line before the kill."""

    def append(path: Any, move: Any) -> Any:
        if next(counter) == step:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(b'{"before": "')
            kill()
        return real(path, move)

    return append
