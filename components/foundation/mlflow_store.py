"""MLflow's SQLite file in the project's own state, and how it follows a folder that is moved, copied or restored.

MLflow writes the absolute place of every artifact into its database. So the database itself says where it was when it
was last used: where that is not where it lies now, its places are rewritten, all in one transaction, before anything
is read from it or written to it. A copy of a project so has its own artifacts, and never those of the original.
"""

import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.foundation.errors import UserError

STORE = Path(".flawline/mlflow")
_WAIT_SECONDS = 60.0
_UNFIT = {"?": "the address of a database (MLflow's, Prefect's)", "{": "DVC", "}": "DVC"}
_ESCAPE = re.compile("%[0-9a-fA-F]{2}")
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


def check_place(project: Path) -> None:
    """Raise UserError where the project's path has something in it with which a library cannot work."""
    path = str(project)
    for unfit, whose in _UNFIT.items():
        if unfit in path:
            raise UserError(
                f"The project's folder {path!r} has {unfit!r} in its path, which {whose} cannot work with: move the "
                "project to a path without it."
            )
    if any("\udc80" <= letter <= "\udcff" for letter in path):
        raise UserError(f"The path of the project's folder {path!r} is not UTF-8: move the project to one that is.")
    escape = _ESCAPE.search(path)
    if escape and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"The project's folder {path!r} has {escape[0]!r} in its path, from which MLflow cannot load models: move "
            "the project to a path without it, or set MLFLOW_TRACKING_URI to a server."
        )


def database_of(project: Path) -> Path:
    """The database file of the project in this folder."""
    return project.absolute() / STORE / "mlflow.db"


def database_uri(project: Path) -> str:
    """What MLflow and SQLAlchemy call that file: the path as it is, in which a percent sign escapes nothing."""
    return f"sqlite:///{database_of(project)}"


def artifact_location(project: Path) -> str:
    """The folder of the artifacts beside the database, as a URI; in a bare path MLflow would unquote percent signs."""
    return (project.absolute() / STORE / "artifacts").as_uri()


def follow_move(project: Path, store: Path = STORE) -> None:
    """Rewrite the places in a database of the project, in its folder `store`, where they are those of another project.

    What lay in the project's old folder is expected at the same place in the new one; what lay elsewhere, such as
    images outside of the project, stays. No effect where there is no database yet.
    """
    database = project.absolute() / store / "mlflow.db"
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=_WAIT_SECONDS, isolation_level=None)) as connection:
        if not _foreign_roots(connection, project, store):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            for root in _foreign_roots(connection, project, store):  # another process may have been quicker
                _rewrite(connection, root, project.absolute())
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _foreign_roots(connection: sqlite3.Connection, project: Path, store: Path) -> list[str]:
    """The other projects' folders, as the database spells them, under which it has artifacts: usually none, or one."""
    if not _has(connection, "experiments", "artifact_location"):
        return []
    rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    end = f"/{store.as_posix()}/artifacts"
    roots = [place.removesuffix(end) for (place,) in rows if place and place.endswith(end)]
    return [root for root in roots if _path_of(root) not in (None, str(project.absolute()))]


def _path_of(place: str) -> str | None:
    """The local folder that MLflow makes of a place; None for one that is elsewhere, such as in S3."""
    scheme = urlsplit(place).scheme
    if scheme not in ("", "file"):
        return None
    return unquote(urlsplit(place).path if scheme else place)


def _rewrite(connection: sqlite3.Connection, root: str, project: Path) -> None:
    for table, column in _PLACES:
        if _has(connection, table, column):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (project.as_uri(), len(root) + 1, len(root) + 1, root + "/"),
            )
    if _has(connection, "datasets", "dataset_source"):
        _rewrite_datasets(connection, str(_path_of(root)), str(project))


def _rewrite_datasets(connection: sqlite3.Connection, old: str, new: str) -> None:
    """The folders that runs have learned from."""
    local = "SELECT dataset_uuid, dataset_source FROM datasets WHERE dataset_source_type = 'local'"
    for key, text in connection.execute(local).fetchall():
        source = json.loads(text)
        place = str(source.get("uri", ""))
        if place.startswith(old + "/"):
            moved = json.dumps({**source, "uri": new + place.removeprefix(old)})
            connection.execute("UPDATE datasets SET dataset_source = ? WHERE dataset_uuid = ?", (moved, key))


def _has(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))
