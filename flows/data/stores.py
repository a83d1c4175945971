"""DVC's cache and its remote as stores of objects, and the setting of the remote."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from components.data.integrity import Store, transfer
from components.foundation.dvc_digests import md5_bytes, md5_file
from components.foundation.errors import UserError
from components.foundation.files import write_bytes
from components.foundation.network import check_s3
from flows.data.dvc_project import innermost

CACHE, REMOTE = "cache", "remote"
REMOTE_NAME = "storage"


class DvcStore:
    """Objects of one of DVC's object databases, read and written without its own bookkeeping of what is intact."""

    def __init__(self, name: str, database: Any) -> None:
        self.name = name
        self.database = database

    def open(self, oid: str) -> BinaryIO:
        """A stream of the object's bytes; FileNotFoundError where it is not there, UserError where nothing answers."""
        with self.errors_said():
            return cast(BinaryIO, self.database.fs.open(self.database.oid_to_path(oid), "rb"))

    def put(self, oid: str, source: Path) -> None:
        """Store a file's content as this object; in a folder by rename, in S3 by one upload."""
        path = self.database.oid_to_path(oid)
        with self.errors_said():
            self.database.makedirs(self.database.fs.parent(path))
            self.database.fs.put_file(os.fspath(source), path)
            self.database.protect(path)

    def remove(self, oid: str) -> bool:
        """Remove an object; whether it was there."""
        path = self.database.oid_to_path(oid)
        with self.errors_said():
            if not self.database.fs.exists(path):
                return False
            self.database.fs.rm_file(path)
            return True

    @contextmanager
    def errors_said(self) -> Iterator[None]:
        """Turn what the storage's library raises, each its own, into one sentence; a missing file stays what it is."""
        from dvc.exceptions import DvcException

        try:
            yield
        except (FileNotFoundError, UserError, DvcException):
            raise
        except Exception as error:
            where = self.database.fs.unstrip_protocol(self.database.path)
            raise UserError(
                f"The {self.name} at {where} cannot be used ({innermost(error)[:200].rstrip('.')}): check that it is "
                "there and that you may read and write it."
            ) from error


def cache_store(repo: Any) -> DvcStore:
    """DVC's cache on this machine."""
    return DvcStore(CACHE, repo.cache.local)


def remote_store(repo: Any) -> DvcStore | None:
    """The default remote; None where none is set, UserError where its server is named and cannot be reached."""
    name = repo.config["core"].get("remote")
    if not name:
        return None
    remote = repo.config["remote"].get(name, {})
    named = remote.get("endpointurl") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if named and str(remote.get("url", "")).startswith("s3://"):
        check_s3(named)
    return DvcStore(REMOTE, repo.cloud.get_remote_odb(command="data verify"))


def read_object(repo: Any, oid: str) -> bytes | None:
    """An object's bytes from the cache, or else fetched from the remote into it; None where neither has it whole."""
    path = Path(repo.cache.local.oid_to_path(oid))
    if not path.is_file() or md5_bytes(path.read_bytes()) != oid[:32]:
        remote: Store | None = remote_store(repo)
        if remote is None or not transfer(remote, cache_store(repo), oid):
            return None
    return path.read_bytes()


def whole_object(repo: Any, oid: str) -> bytes:
    """`read_object`; UserError where neither store has it whole."""
    data = read_object(repo, oid)
    if data is None:
        raise UserError(
            f"Neither the cache nor the remote holds the object {oid} whole: `flawline data verify --repair` says what "
            "can be mended."
        )
    return data


def mend_cache(repo: Any, files: Mapping[str, str]) -> tuple[str, ...]:
    """Look at these files' objects (name to digest), and mend those of the cache that do not have their bytes.

    Edited in place, a file that was a hard link into the cache took the object with it, and DVC believes the object.
    It is fetched again, or else removed where its bytes are another object's too. Returns the names of what is lost.
    """
    lost = []
    for name, oid in files.items():
        path = Path(repo.cache.local.oid_to_path(oid))
        found = md5_file(path) if path.is_file() else oid
        if found != oid and read_object(repo, oid) is None:
            lost.append(name)
            if Path(repo.cache.local.oid_to_path(found)).is_file():
                path.unlink()
    return tuple(lost)


def separate_files(repo: Any, folder: Path) -> None:
    """Make copies of the files in `folder` that are hard links into DVC's cache, so that they can be edited.

    Links are left where `cache.type` asks for them.
    """
    if {"hardlink", "symlink"} & set(repo.cache.local.cache_types):
        return
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            write_bytes(path, path.read_bytes())


def set_remote(repo: Any, url: str) -> None:
    """Write the default remote, an `s3://BUCKET/PREFIX` or a folder, into .dvc/config; what is fetched is verified.

    Raises UserError for another kind of address, and for one that holds keys: they would be committed.
    """
    parts = urlsplit(url)
    if "://" in url and parts.scheme != "s3":
        raise UserError(f"The remote {parts.scheme}://… is neither s3://BUCKET/PREFIX nor a folder: give one of these.")
    if parts.scheme == "s3" and ("@" in parts.netloc or parts.query or not re.fullmatch(r"[\w.-]+", parts.netloc)):
        raise UserError(
            "Give the remote as s3://BUCKET/PREFIX alone: keys belong in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY) or in ~/.aws, and the endpoint in AWS_ENDPOINT_URL."
        )
    with repo.config.edit("repo") as config:
        config["remote"][REMOTE_NAME] = {"url": url, "verify": True}
        config["core"]["remote"] = REMOTE_NAME
