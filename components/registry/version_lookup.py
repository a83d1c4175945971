"""Which version of a model is meant, read from the project's own SQLite file: a hundredth of the time MLflow takes.

Nothing is written, and no stored place is used. Where the file is not as expected, MLflow itself is to be asked.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

_LIVE = "FROM model_versions WHERE current_stage <> 'Deleted_Internal'"


def known_models(database: Path) -> list[str] | None:
    """The names of the models that have a version, sorted; None where MLflow is to be asked."""
    rows = _rows(database, f"SELECT DISTINCT name {_LIVE} ORDER BY name", ())
    return None if rows is None else [str(name) for (name,) in rows]


def version_tag(database: Path, model: str, which: str | int, tag: str) -> tuple[int, str] | None:
    """Number and the value of a tag of a version, by alias or number; None where MLflow is to be asked."""
    number: Any = which
    if isinstance(which, str):
        found = _rows(
            database, "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", (model, which)
        )
        if not found or len(found) != 1:
            return None
        ((number,),) = found
    live = f"EXISTS (SELECT 1 {_LIVE} AND name = t.name AND version = t.version)"
    statement = f"SELECT version, value FROM model_version_tags t WHERE name = ? AND version = ? AND key = ? AND {live}"
    rows = _rows(database, statement, (model, number, tag))
    return (int(rows[0][0]), str(rows[0][1])) if rows and len(rows) == 1 else None


def _rows(database: Path, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]] | None:
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, values).fetchall()
    except (sqlite3.Error, OverflowError):
        return None
