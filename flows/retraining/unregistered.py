"""Which categories have a model that is computed and not registered, as MLflow was away, or the run was cut short."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.foundation.errors import ServerError, UserError
from components.foundation.files import read_json, write_json
from components.foundation.places import Places
from flows.retraining.stages import StageFailedError

FOLDER = Path(".flawline/unregistered")


def note(category: str) -> None:
    """Remember that the category's present capsule is to be registered."""
    write_json(_path(category), {"capsule_digest": _digest(category)})


@contextmanager
def noted(category: str) -> Iterator[None]:
    """What evaluates, registers and judges the present capsule; it stays noted where that is cut short.

    No other look would find it: once it is evaluated, its data are not new any more.
    """
    note(category)
    try:
        yield
    except ServerError:
        raise
    except (StageFailedError, UserError):  # which is said, and for a person to mend
        forget(category)
        raise
    forget(category)


def forget(category: str) -> None:
    """The category's capsule is registered."""
    _path(category).unlink(missing_ok=True)


def categories() -> list[str]:
    """All that are to be registered, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def is_current(category: str) -> bool:
    """Whether the capsule that is to be registered is still the one that lies there; another one is nobody's wish."""
    with suppress(FileNotFoundError, ValueError, LookupError, TypeError):  # a damaged one is no one's either
        wanted = read_json(_path(category))["capsule_digest"]
        if wanted == read_json(Places(category).figures)["capsule_digest"] == _digest(category):
            return True
    forget(category)
    return False


def _digest(category: str) -> object:
    """Of the present capsule, by its own word; opening it would take torch."""
    return read_json(Places(category).capsule / "capsule.json")["digest"]


def _path(category: str) -> Path:
    return FOLDER / f"{category}.json"
