"""Where new images arrive and where they go: the same few acts on a folder or on an S3 prefix.

An inbox INBOX holds INBOX/CATEGORY/…; what became of an image lies beside it, in accepted/, held/ and quarantine/.
A place is a path in the folder (or prefix) that holds all of these, such as "held/bottle/BATCH/00003-a.png".
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from components.arrivals.entries import OUTCOMES, Entry, GoneError, Kind, Move
from components.foundation.errors import UserError
from components.foundation.files import write_bytes
from components.images.layout import is_hidden


class Source(Protocol):
    """An inbox with the places beside it. Every act may be cut short and repeated."""

    @property
    def url(self) -> str:
        """What `open_source` made it from."""

    def categories(self) -> list[str]:
        """The folders of the inbox, sorted."""

    def strays(self) -> list[str]:
        """Files and links beside the categories' folders, by name, sorted, without hidden ones."""

    def entries(self, category: str) -> list[Entry]:
        """All files of a category's inbox, sorted by key."""

    def fetch(self, category: str, entry: Entry, path: Path) -> None:
        """Copy a file to the new file `path`, verified, or raise GoneError. The caller sees to it that it lasts."""

    def acknowledge(self, category: str, moves: Sequence[Move]) -> None:
        """Move files to their places. A file that changed since it was listed stays, and its copy goes to the place."""

    def write(self, place: str, data: bytes) -> None:
        """Write a small file."""

    def read(self, place: str) -> bytes:
        """Content of a small file; GoneError where there is none."""

    def places(self, prefix: str) -> list[str]:
        """All files whose place is in the folder `prefix`, sorted."""

    def relocate(self, old: str, new: str) -> None:
        """Move a file from one place to another; no effect where only the new one is there."""

    def shown(self, place: str) -> str:
        """A place as a person finds it: a path or an S3 address."""


def open_source(url: str) -> Source:
    """The inbox at a folder or at s3://BUCKET/PREFIX; UserError for what is neither."""
    if url.startswith("s3://"):
        from components.arrivals.inbox_s3 import S3Inbox  # boto3 takes half a second to import

        return S3Inbox(url)
    if "://" in url:
        raise UserError(f"{url} is no inbox: give a folder or s3://BUCKET/PREFIX.")
    return FolderInbox(Path(url))


def are_at_rest(entries: Iterable[Entry], now: float, seconds: float) -> bool:
    """Whether none of the files changed within so many seconds before `now`."""
    return all(entry.changed <= now - seconds for entry in entries)


def at_rest(before: Sequence[Entry], after: Sequence[Entry]) -> list[Entry]:
    """The files of the second look that were there, with the same size and revision, at the first."""
    looks = {entry.key: (entry.size, entry.revision) for entry in before}
    return [entry for entry in after if looks.get(entry.key) == (entry.size, entry.revision)]


class FolderInbox:
    """An inbox in a local folder. Links are listed and never followed, whether they are files or folders."""

    def __init__(self, folder: Path) -> None:
        """Take the inbox at `folder`, which need not exist yet."""
        self.folder = folder
        self.root = folder.absolute().parent
        if self.folder.name in OUTCOMES:
            raise UserError(f"{folder} is where outcomes go: give another folder as the inbox.")

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.folder)

    def categories(self) -> list[str]:
        """The folders of the inbox, sorted, without hidden ones and a system's own."""
        if not self.folder.is_dir():
            return []
        items = [item for item in os.scandir(self.folder) if not is_hidden(item.name)]
        return sorted(item.name for item in items if item.is_dir(follow_symlinks=False))

    def strays(self) -> list[str]:
        """Files and links beside the categories' folders, by name, sorted, without hidden ones."""
        items = os.scandir(self.folder) if self.folder.is_dir() else ()
        return sorted(
            item.name for item in items if not item.is_dir(follow_symlinks=False) and not is_hidden(item.name)
        )

    def entries(self, category: str) -> list[Entry]:
        """All files of a category's inbox, sorted by key."""
        top = self.folder / category
        if top.is_symlink() or not top.is_dir():
            return []
        return sorted(_walk(top, ""), key=lambda entry: entry.key)

    def fetch(self, category: str, entry: Entry, path: Path) -> None:
        """Copy a file to `path`, verified, or raise GoneError."""
        descriptor = _open_inside(self.folder / category, entry.key)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or _revision(os.fstat(descriptor)) != entry.revision:
                raise GoneError(entry.key)
            data = file.read(entry.size + 1)
            if len(data) != entry.size or _revision(os.fstat(descriptor)) != entry.revision:
                raise GoneError(entry.key)
        path.write_bytes(data)

    def acknowledge(self, category: str, moves: Sequence[Move]) -> None:
        """Move files to their places. A file that changed since it was listed stays, and its copy goes to the place."""
        for move in moves:
            self._acknowledge(self.folder / category / move.entry.key, move)

    def write(self, place: str, data: bytes) -> None:
        """Write a small file."""
        write_bytes(self.root / place, data)

    def read(self, place: str) -> bytes:
        """Content of a small file; GoneError where there is none."""
        try:
            return (self.root / place).read_bytes()
        except FileNotFoundError as error:
            raise GoneError(place) from error

    def places(self, prefix: str) -> list[str]:
        """All files whose place is in the folder `prefix`, sorted."""
        found = (path for path in (self.root / prefix).rglob("*") if path.is_file() and not path.name.endswith(".part"))
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def relocate(self, old: str, new: str) -> None:
        """Move a file from one place to another; no effect where only the new one is there."""
        if (self.root / old).exists():
            _rename(self.root / old, self.root / new)

    def shown(self, place: str) -> str:
        """A place as a person finds it."""
        return os.path.relpath(self.root / place)

    def _acknowledge(self, path: Path, move: Move) -> None:
        place = self.root / move.place
        if not _is_still(path, move.entry):
            if move.copy is not None and not place.exists():
                write_bytes(place, move.copy.read_bytes())
        elif move.entry.kind == "link":
            path.unlink()  # its target, which is all there is to a link, is in the reason beside the place
        else:
            _rename(path, place, move.copy)


def _walk(folder: Path, prefix: str) -> Iterable[Entry]:
    for item in os.scandir(folder):
        key = f"{prefix}{item.name}"
        if item.is_dir(follow_symlinks=False):
            yield from _walk(Path(item.path), f"{key}/")
            continue
        with suppress(FileNotFoundError):  # taken away since the folder was read
            status = item.stat(follow_symlinks=False)
            link = stat.S_ISLNK(status.st_mode)
            kind: Kind = "link" if link else "file" if stat.S_ISREG(status.st_mode) else "other"
            changed = max(status.st_mtime, status.st_ctime)  # copiers set the one, no one can set the other
            yield Entry(key, kind, status.st_size, _revision(status), changed, os.readlink(item.path) if link else "")


def _revision(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _is_still(path: Path, entry: Entry) -> bool:
    try:
        return _revision(path.lstat()) == entry.revision
    except (FileNotFoundError, NotADirectoryError):
        return False


def _open_inside(folder: Path, key: str) -> int:
    """Open a file for reading without following a link anywhere below `folder`, and without waiting for a pipe."""
    *parents, name = PurePosixPath(key).parts
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder, flags | os.O_DIRECTORY)
    try:
        for parent in parents:
            below = os.open(parent, flags | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return os.open(name, flags | os.O_NONBLOCK, dir_fd=descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GoneError(key) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise GoneError(key) from error
        raise
    finally:
        os.close(descriptor)


def _rename(path: Path, place: Path, copy: Path | None = None) -> None:
    """Move a file; onto another file system by way of a copy that is whole before the file goes."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        write_bytes(place, (copy or path).read_bytes())
        path.unlink()
