"""An inbox in S3. What is read is verified; what is moved is copied within S3, and deleted when the copy is there.

The endpoint, the region and the keys come from the environment, as boto3 reads it (AWS_ENDPOINT_URL, …). S3 has no
lock that would keep two workspaces from ingesting one prefix: run the ingest of a category in one workspace.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from components.errors import UserError
from components.files import sha256_file
from components.inbox import OUTCOMES, Entry, GoneError, Move

ATTEMPTS = 6  # of one object, on top of botocore's own of one request, which do not cover a body cut short
BACKOFF_SECONDS = 0.2  # doubled from one attempt to the next
PARALLEL = 8  # requests under way at once
DELETED_AT_ONCE = 1000  # S3's limit
LARGE = 64 << 20  # bytes from which an object is read in parts
COPIED_AT_ONCE = 5 << 30  # bytes that S3 copies in one request
CONFIG = {"connect_timeout": 10, "read_timeout": 20, "max_pool_connections": 2 * PARALLEL}
Result = TypeVar("Result")


class S3Inbox:
    """The inbox s3://BUCKET/PREFIX, with outcomes in s3://BUCKET/(PREFIX's parent)/accepted and so on."""

    def __init__(self, url: str) -> None:
        """Take the inbox at `url`; UserError where it names no bucket or no prefix."""
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not self.bucket or not prefix or prefix.split("/")[-1] in OUTCOMES:
            raise UserError(f"{url} is no inbox: give s3://BUCKET/PREFIX, such as s3://camera/incoming.")
        self._url = f"s3://{self.bucket}/{prefix}"
        self._inbox = f"{prefix}/"
        self._root = prefix.rpartition("/")[0] + "/" if "/" in prefix else ""
        with _explained(self._url):
            self._client = _client(tuple(item for item in os.environ.items() if item[0].startswith("AWS_")))

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return self._url

    def categories(self) -> list[str]:
        """The folders of the inbox, sorted."""
        with _explained(self._url):
            pages = self._pages(self._inbox, Delimiter="/")
            found = [common["Prefix"] for page in pages for common in page.get("CommonPrefixes", [])]
        return sorted(prefix.removeprefix(self._inbox).rstrip("/") for prefix in found)

    def entries(self, category: str) -> list[Entry]:
        """All objects of a category's inbox, sorted by key, without the empty ones that stand for folders."""
        prefix = f"{self._inbox}{category}/"
        with _explained(self._url):
            return [
                Entry(key.removeprefix(prefix), "file", found["Size"], found["ETag"], 0.0)
                for key, found in sorted(self._objects(prefix).items())
                if not (key.endswith("/") and found["Size"] == 0)
            ]

    def fetch(self, category: str, entry: Entry, path: Path) -> None:
        """Copy an object to `path`, verified, or raise GoneError.

        Verified are its length, its ETag where that is an MD5, the SHA-256 in its metadata where the sender put one
        there, and what checksum S3 itself keeps (botocore does).
        """
        key = f"{self._inbox}{category}/{entry.key}"
        with _explained(self._url):
            _persistently(lambda: self._fetch(key, entry, path))

    def acknowledge(self, category: str, moves: Sequence[Move]) -> None:
        """Move objects to their places. One that changed since it was listed stays, and its copy goes to the place.

        Between the last listing and the deletion lies one request: an object that is replaced in that moment is lost.
        """
        prefix = f"{self._inbox}{category}/"
        with _explained(self._url), ThreadPoolExecutor(PARALLEL) as pool:
            there = self._objects(prefix)
            placed = self._placed(moves)
            todo = [move for move in moves if move.place not in placed]
            list(pool.map(lambda move: self._place(prefix, move, _is_still(there, prefix, move)), todo))
            there = self._objects(prefix)
            done = [f"{prefix}{move.entry.key}" for move in moves if _is_still(there, prefix, move)]
            for start in range(0, len(done), DELETED_AT_ONCE):
                self._delete(done[start : start + DELETED_AT_ONCE])

    def write(self, place: str, data: bytes) -> None:
        """Write a small object."""
        with _explained(self._url):
            self._client.put_object(Bucket=self.bucket, Key=self._root + place, Body=data)

    def read(self, place: str) -> bytes:
        """Content of a small object; GoneError where there is none."""
        with _explained(self._url):
            return _persistently(lambda: self._read(self._root + place))

    def places(self, prefix: str) -> list[str]:
        """All objects whose place is in the folder `prefix`, sorted."""
        with _explained(self._url):
            return sorted(key.removeprefix(self._root) for key in self._objects(f"{self._root}{prefix}/"))

    def relocate(self, old: str, new: str) -> None:
        """Move an object from one place to another; no effect where only the new one is there."""
        with _explained(self._url):
            found = self._objects(self._root + old).get(self._root + old)
            if found is not None:
                self._copy(self._root + old, new, found["Size"], found["ETag"])
                self._delete([self._root + old])

    def shown(self, place: str) -> str:
        """The address of a place."""
        return f"s3://{self.bucket}/{self._root}{place}"

    def _pages(self, prefix: str, **options: str) -> Any:
        paginator = self._client.get_paginator("list_objects_v2")
        return paginator.paginate(Bucket=self.bucket, Prefix=prefix, **options)

    def _objects(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Size and ETag of all objects under a prefix, by key."""
        return {
            found["Key"]: {"Size": found["Size"], "ETag": _bare(found["ETag"])}
            for page in self._pages(prefix)
            for found in page.get("Contents", [])
        }

    def _fetch(self, key: str, entry: Entry, path: Path) -> None:
        if entry.size >= LARGE:
            self._fetch_large(key, entry, path)
            return
        answer = self._get(key, IfMatch=f'"{entry.mark}"')
        data = answer["Body"].read()
        _verify(key, entry, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), answer)
        _verify_sha256(key, lambda: hashlib.sha256(data).hexdigest(), answer)
        path.write_bytes(data)

    def _fetch_large(self, key: str, entry: Entry, path: Path) -> None:
        """Read an object in ranges, several at once, into a file of its whole length."""
        try:
            head = self._client.head_object(Bucket=self.bucket, Key=key, IfMatch=f'"{entry.mark}"')
            self._client.download_file(self.bucket, key, str(path))
        except ClientError as error:
            raise _gone_or(error, key) from error
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        _verify(key, entry, path.stat().st_size, md5, head)
        _verify_sha256(key, lambda: sha256_file(path), head)

    def _read(self, key: str) -> bytes:
        return bytes(self._get(key)["Body"].read())

    def _get(self, key: str, **conditions: str) -> Any:
        try:
            return self._client.get_object(Bucket=self.bucket, Key=key, **conditions)
        except ClientError as error:
            raise _gone_or(error, key) from error

    def _placed(self, moves: Sequence[Move]) -> set[str]:
        """Which places have their object already, from an acknowledgement that was cut short."""
        folders = {move.place.rpartition("/")[0] for move in moves}
        found = {
            key: facts["Size"] for folder in folders for key, facts in self._objects(f"{self._root}{folder}/").items()
        }
        return {move.place for move in moves if found.get(self._root + move.place) == move.entry.size}

    def _place(self, prefix: str, move: Move, is_there: bool) -> None:
        if is_there:
            try:
                self._copy(f"{prefix}{move.entry.key}", move.place, move.entry.size, move.entry.mark)
                return
            except GoneError:
                pass
        if move.copy is not None:
            self._client.upload_file(str(move.copy), self.bucket, self._root + move.place)

    def _copy(self, key: str, place: str, size: int, mark: str) -> None:
        source = {"Bucket": self.bucket, "Key": key}
        try:
            if size > COPIED_AT_ONCE:
                self._client.copy(source, self.bucket, self._root + place)
            else:
                self._client.copy_object(
                    CopySource=source, Bucket=self.bucket, Key=self._root + place, CopySourceIfMatch=f'"{mark}"'
                )
        except ClientError as error:
            raise _gone_or(error, key) from error

    def _delete(self, keys: list[str]) -> None:
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self._client.delete_objects(Bucket=self.bucket, Delete=objects)
        if errors := answer.get("Errors"):
            raise UserError(
                f"S3 did not delete {len(errors)} objects of {self._url}, such as {errors[0]['Key']} "
                f"({errors[0].get('Code')}): check the permissions, and run again."
            )


@lru_cache(maxsize=4)
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    """A client for these keys and this endpoint, which boto3 reads itself; making one takes tenths of a second."""
    del environment
    retries: Any = {"mode": "standard", "total_max_attempts": 5}
    config = Config(retries=retries, signature_version="s3v4", **CONFIG)
    return boto3.Session().client("s3", config=config)  # the default session would keep the first keys that it saw


class _CutShortError(Exception):
    """An object came otherwise than S3 says it is."""


def _verify(key: str, entry: Entry, length: int, md5: str, answer: Any) -> None:
    if _bare(answer.get("ETag", entry.mark)) != entry.mark:  # not every S3 server heeds IfMatch
        raise GoneError(key)
    if length != entry.size:
        raise _CutShortError(f"{key} came with {length:,} of {entry.size:,} bytes")
    is_md5 = len(entry.mark) == 32 and not str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
    if is_md5 and entry.mark != md5 and "SSECustomerAlgorithm" not in answer:
        raise _CutShortError(f"{key} came with another MD5 than its ETag")


def _verify_sha256(key: str, sha256: Callable[[], str], answer: Any) -> None:
    metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    if "sha256" in metadata and metadata["sha256"].lower() != sha256():
        raise _CutShortError(f"{key} came with another SHA-256 than its metadata says")


def _bare(etag: str) -> str:
    """An ETag without its quotation marks, which some servers leave out in listings."""
    return etag.strip('"')


def _is_still(there: dict[str, dict[str, Any]], prefix: str, move: Move) -> bool:
    found = there.get(f"{prefix}{move.entry.key}")
    return found is not None and found["ETag"] == move.entry.mark


def _gone_or(error: ClientError, key: str) -> Exception:
    code, status = str(error.response["Error"]["Code"]), error.response["ResponseMetadata"].get("HTTPStatusCode")
    return GoneError(key) if code in ("NoSuchKey", "PreconditionFailed") or status in (404, 412) else error


def _persistently(action: Callable[[], Result]) -> Result:
    """The action's result, tried again with growing waits when an object was cut short on its way."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (_CutShortError, HTTPClientError, HTTPError, Boto3Error, ConnectionError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(BACKOFF_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"].get("Code", "error")
        raise UserError(
            f"S3 refuses {error.operation_name} at {url} ({code}): check the address, the keys and their permissions; "
            "nothing was lost, run again."
        ) from error
    except (_CutShortError, BotoCoreError, Boto3Error, HTTPError, ConnectionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"S3 at {url} does not answer as it should ({reason}): check AWS_ENDPOINT_URL and the network; nothing was "
            "lost, run again."
        ) from error
