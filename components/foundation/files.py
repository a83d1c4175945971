"""Files that are either whole or not there: write beside, fsync, rename; and digests of what was written."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FICLONE = 0x40049409  # Linux: let a file share another one's blocks (Btrfs, XFS)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON: sorted keys, two spaces, a final newline; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes the place of `path` at the end, whole, or not at all.

    What was at `path` before stays until the new folder is complete, and stays for good if the body raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    beside.mkdir()
    try:
        yield beside
        _sync_tree(beside)
        _swap_directory(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits; memory is bounded by a chunk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_digest(text: Any) -> bool:
    """Whether a value from elsewhere is a SHA-256 in hex, which may be part of a path or a query."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def digest_tree(root: Path) -> str:
    """One digest for a folder: of the sorted list of (relative path, SHA-256) of its files."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return digest_of([[path.relative_to(root).as_posix(), sha256_file(path)] for path in files])


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content to a new one, so that it lasts; both share it until one changes, where that is possible."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
        os.fsync(new.fileno())


@contextmanager
def held_lock(path: Path, seconds: float, busy: Exception | Callable[[], Exception]) -> Iterator[None]:
    """Hold a lock file among all processes and threads; `busy` is raised where another holder keeps it for longer.

    seconds: to wait; 0 for not at all. The system frees the lock when its holder dies.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise (busy if isinstance(busy, Exception) else busy()) from error
    try:
        yield
    finally:
        lock.release()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def _swap_directory(new: Path, path: Path) -> None:
    old = _beside(path)
    had_old = path.exists()
    if had_old:
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if had_old:
            old.rename(path)
        raise
    _sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            sync_file(path)
        else:
            _sync_directory(path)
    _sync_directory(root)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
