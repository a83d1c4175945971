"""Values that were computed before, by the digest of all that they depend on: a bounded file, which may go at any time.

What is read has the digest it was stored with, or counts as not there; a damaged file is begun anew; where the file
cannot be read or written, nothing is there and nothing is stored. So a result never depends on it. Many processes may
use it at once, and any of them may be killed.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

PAGE = 8192
BUSY_SECONDS = 10.0
AT_ONCE = 500  # keys in one question
_KEPT_FREE = 16  # pages, for the tables' own
_TABLES = """
CREATE TABLE IF NOT EXISTS entries(id INTEGER PRIMARY KEY, key TEXT UNIQUE, owner TEXT, bytes INTEGER, used REAL);
CREATE INDEX IF NOT EXISTS by_use ON entries(used);
CREATE TABLE IF NOT EXISTS contents(id INTEGER PRIMARY KEY, digest BLOB, value BLOB);
"""
_OWNED = "SELECT id FROM entries WHERE instr(' ' || owner || ' ', ' ' || ? || ' ')"
_Answer = TypeVar("_Answer")


class ByteCache:
    """A bounded file of values by key; those that were used longest ago make room.

    What was used since this object was made is never dropped for its own new values: a pass over more images than
    there is room for keeps the first of them, and does not drop each before it is asked for again.

    Attributes:
        path: of the file, made when there is something to store.
        max_bytes: that it may have; 0 for nothing kept.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._began = time.time()
        self._open: sqlite3.Connection | None = None

    def read(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those keys that are there and undamaged."""
        return self._tried(lambda file: self._read(file, keys), {}, makes=False) if keys else {}

    def write(self, values: Mapping[str, tuple[str, bytes]]) -> None:
        """Store values by key, each with its owner, or owners with a space in between, as far as there is room."""
        if values:
            self._tried(lambda file: self._write(file, values), None, makes=True)

    def forget(self, owners: Iterable[str]) -> None:
        """Drop all that belongs to these owners, from the file too; all there is where the file is of no use now."""

        def drop(file: sqlite3.Connection) -> bool:
            for owner in owners:
                self._drop(file, [row for (row,) in file.execute(_OWNED, (owner,))])
            return True

        if not self._tried(drop, False, makes=False):
            self.close()
            self._remove()

    def close(self) -> None:
        """Let the file go; it is opened again when it is needed."""
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
        self._open = None

    def _tried(self, action: Callable[[sqlite3.Connection], _Answer], otherwise: _Answer, *, makes: bool) -> _Answer:
        """What `action` answers, in one transaction; `otherwise` where the file is not there, or of no use."""
        if not self.max_bytes or not (makes or self.path.is_file()):
            return otherwise
        try:
            file = self._connection()
            with file:
                file.execute("BEGIN IMMEDIATE")
                return action(file)
        except sqlite3.OperationalError:  # busy, full, not to be written: as if nothing were there
            self.close()
        except sqlite3.DatabaseError:  # damaged
            self.close()
            with suppress(OSError):
                self._remove()
        except OSError:
            self.close()
        return otherwise

    def _remove(self) -> None:
        """The file, and beside it what a killed process has left of a change that was not whole."""
        for path in (self.path, self.path.with_name(f"{self.path.name}-journal")):
            path.unlink(missing_ok=True)

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            self._open = file
            file.execute(f"PRAGMA page_size = {PAGE}")
            file.execute("PRAGMA secure_delete = ON")  # what is to be forgotten does not stay in free pages
            file.execute("PRAGMA synchronous = OFF")  # a power cut may damage it, which is noticed when it is read
            file.execute("PRAGMA journal_mode = TRUNCATE")
            if self._pages(file) > self._most_pages:  # the bound is lower now
                self._begin_anew(file)
            file.executescript(_TABLES)
            file.execute(f"PRAGMA max_page_count = {self._most_pages}")
        return self._open

    def _begin_anew(self, file: sqlite3.Connection) -> None:
        file.executescript("DROP TABLE IF EXISTS entries; DROP TABLE IF EXISTS contents; VACUUM;")

    @property
    def _most_pages(self) -> int:
        return max(1, self.max_bytes // PAGE)

    def _read(self, file: sqlite3.Connection, keys: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = list(keys[start : start + AT_ONCE])
            marks = ", ".join("?" * len(some))
            rows = file.execute(
                "SELECT entries.id, key, digest, value FROM entries JOIN contents ON contents.id = entries.id "
                f"WHERE key IN ({marks})",
                some,
            ).fetchall()
            damaged = {row for row, _, digest, value in rows if not _has_digest(value, digest)}
            self._drop(file, sorted(damaged))
            found |= {key: value for row, key, _, value in rows if row not in damaged}
            now = [(self._began, row, self._began) for row, _, _, _ in rows]
            file.executemany("UPDATE entries SET used = ? WHERE id = ? AND used < ?", now)
        return found

    def _write(self, file: sqlite3.Connection, values: Mapping[str, tuple[str, bytes]]) -> None:
        for key, (owner, value) in values.items():
            if file.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone():
                continue
            if not self._make_room(file, len(value)):
                return
            row = file.execute(
                "INSERT INTO entries(key, owner, bytes, used) VALUES (?, ?, ?, ?)",
                (key, owner, len(value), self._began),
            ).lastrowid
            file.execute("INSERT INTO contents VALUES (?, ?, ?)", (row, hashlib.sha256(value).digest(), value))

    def _make_room(self, file: sqlite3.Connection, size: int) -> bool:
        """Drop what was used longest ago until there is room for `size` bytes; whether there is."""
        needed = _pages_of(size) + _KEPT_FREE
        while (lacking := needed - self._free_pages(file)) > 0:
            oldest = file.execute(
                "SELECT id, bytes FROM entries WHERE used < ? ORDER BY used LIMIT 64", (self._began,)
            ).fetchall()
            if not oldest:
                return False
            enough = next((n for n in range(1, 64) if sum(_pages_of(b) for _, b in oldest[:n]) >= lacking), 64)
            self._drop(file, [row for row, _ in oldest[:enough]])
        return True

    def _free_pages(self, file: sqlite3.Connection) -> int:
        (unused,) = file.execute("PRAGMA freelist_count").fetchone()
        return self._most_pages - self._pages(file) + int(unused)

    def _pages(self, file: sqlite3.Connection) -> int:
        return int(file.execute("PRAGMA page_count").fetchone()[0])

    def _drop(self, file: sqlite3.Connection, rows: Sequence[int]) -> None:
        for table in ("contents", "entries"):
            file.executemany(f"DELETE FROM {table} WHERE id = ?", [(row,) for row in rows])


def _has_digest(value: object, digest: object) -> bool:
    return isinstance(value, bytes) and hashlib.sha256(value).digest() == digest


def _pages_of(size: int) -> int:
    """How many pages a value of so many bytes takes, at most."""
    return size // (PAGE - 16) + 2
