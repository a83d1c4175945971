"""The digests by which DVC names files and folders, so that a version of the data has one name everywhere."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.foundation.files import digest_of

IGNORED = "__pycache__"  # and *.part, as .dvcignore says


def md5_bytes(data: bytes) -> str:
    """MD5 of bytes, as 32 hex digits."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_file(path: Path) -> str:
    """MD5 of a file's content, as 32 hex digits: the name under which DVC keeps it. Memory is bounded by a chunk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_files(paths: Sequence[Path], threads: int) -> list[str]:
    """`md5_file` of each."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(md5_file, paths))


def folder_digest(files: Mapping[str, str]) -> str:
    """DVC's digest of a folder with these files (name to MD5): MD5 of the list that it would keep, ending in ".dir".

    >>> folder_digest({"train/good/1.png": "0" * 32})
    'efe4432173faa9b01587270cbea98f9f.dir'
    """
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return f"{md5_bytes(json.dumps(entries, sort_keys=True).encode())}.dir"


def digest_of_folder(root: Path, threads: int = 1) -> str:
    """DVC's digest of a folder as it lies on disk."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and not _is_ignored(path.relative_to(root))]
    names = [path.relative_to(root).as_posix() for path in paths]
    return folder_digest(dict(zip(names, md5_files(paths, threads), strict=True)))


def digest_of_images(md5s: Iterable[str]) -> str:
    """The name of a set of images, whatever they are called and in whatever order: SHA-256 of their MD5s, hex."""
    return digest_of(sorted(set(md5s)))


def _is_ignored(path: Path) -> bool:
    return any(part == IGNORED or part.endswith(".part") for part in path.parts)
