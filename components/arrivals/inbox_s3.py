"""An inbox in S3. What is read is verified; what is moved is copied within S3, and deleted when the copy is there.

The endpoint, the region and the keys come from the environment, as boto3 reads it (AWS_ENDPOINT_URL, …). S3 has no
lock that would keep two workspaces from ingesting one prefix: run the ingest of a category in one workspace.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from urllib3.exceptions import HTTPError

from components.arrivals.entries import OUTCOMES, Entry, GoneError, Move
from components.arrivals.s3_quick import QuickS3
from components.foundation.errors import UserError
from components.foundation.files import sha256_file
from components.foundation.network import check_s3
from components.images.layout import is_hidden

ATTEMPTS = 6  # of one object, on top of botocore's own of one request, which do not cover a body cut short
BACKOFF_SECONDS = 0.2  # doubled from one attempt to the next
PARALLEL = 8  # requests under way at once
DELETED_AT_ONCE = 1000  # S3's limit
LARGE = 64 << 20  # bytes from which an object is read in parts
COPIED_AT_ONCE = 5 << 30  # bytes that S3 copies in one request
CHUNK = 1 << 20
CONFIG: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 20, "max_pool_connections": 2 * PARALLEL}
# Of a small object botocore takes longer to handle the request than the image takes to decode. What it does for each
# request and is not needed here is left out: checks of parameters that this module makes, a long name of the sender.
LEAN: dict[str, Any] = {"parameter_validation": False, "user_agent": "flawline"}
ETAG = re.compile("[0-9a-f]{32}(-[0-9]{1,5})?")  # an MD5, or one of parts' MD5s and their number
NOT_IN_XML = re.compile("[\x00-\x1f\ufffe\uffff]")  # which the list of keys to delete would be written in
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
            self._client, credentials = _client(
                tuple(item for item in os.environ.items() if item[0].startswith("AWS_"))
            )
            check_s3(self._client.meta.endpoint_url)
            self._quick = QuickS3(self._client, credentials, self.bucket, 2 * PARALLEL)

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return self._url

    def categories(self) -> list[str]:
        """The folders of the inbox, sorted, without hidden ones and a system's own."""
        with _explained(self._url):
            pages = self._pages(self._inbox, Delimiter="/")
            found = [common["Prefix"] for page in pages for common in page.get("CommonPrefixes", [])]
        names = (prefix.removeprefix(self._inbox).rstrip("/") for prefix in found)
        return sorted(name for name in names if not is_hidden(name))

    def strays(self) -> list[str]:
        """Names of the objects in the inbox that are in no category's folder, sorted, without hidden ones."""
        with _explained(self._url):
            found = [
                item["Key"] for page in self._pages(self._inbox, Delimiter="/") for item in page.get("Contents", [])
            ]
        names = (key.removeprefix(self._inbox) for key in found)
        return sorted(name for name in names if name and not is_hidden(name))

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

        Verified are its length, its ETag where that is an MD5 or made of the MD5s of parts, the SHA-256 in its metadata
        where the sender put one there, and what checksum S3 itself keeps (botocore does).
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
            placed = self._placed(moves)
            list(pool.map(lambda move: self._place(prefix, move), [one for one in moves if one.place not in placed]))
            there = self._objects(prefix)
            self._delete([f"{prefix}{move.entry.key}" for move in moves if _is_still(there, prefix, move)])

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
        if (quick := self._quick.get(key, entry.revision)) and len(quick[0]) == entry.size:
            data, headers = quick
            _verify_sha256(key, lambda: hashlib.sha256(data).hexdigest(), headers.get("x-amz-meta-sha256"))
            path.write_bytes(data)
            return
        answer = self._get(key, IfMatch=f'"{entry.revision}"')
        data = answer["Body"].read()
        _verify_length(key, entry, len(data), answer)
        _verify_etag(key, entry, lambda: _etag_of(BytesIO(data), entry.revision, self._parts(key, entry)), answer)
        _verify_sha256(key, lambda: hashlib.sha256(data).hexdigest(), _told_sha256(answer))
        path.write_bytes(data)

    def _fetch_large(self, key: str, entry: Entry, path: Path) -> None:
        """Read an object in ranges, several at once, into a file of its whole length."""
        head = self._head(key, IfMatch=f'"{entry.revision}"')
        try:
            self._client.download_file(self.bucket, key, str(path))
        except ClientError as error:
            raise _gone_or(error, key) from error
        _verify_length(key, entry, path.stat().st_size, head)
        with path.open("rb") as file:
            _verify_etag(key, entry, lambda: _etag_of(file, entry.revision, self._parts(key, entry)), head)
        _verify_sha256(key, lambda: sha256_file(path), _told_sha256(head))

    def _parts(self, key: str, entry: Entry) -> list[int]:
        """Bytes of each part that an object was uploaded in, as its ETag counts them; none where S3 does not tell."""
        count = _parts_count(entry.revision)
        if count is None:
            return [entry.size]
        sizes = []
        for number in range(1, count + 1):
            part = self._head(key, PartNumber=number, IfMatch=f'"{entry.revision}"')
            if part.get("PartsCount") != count:
                return []
            sizes.append(int(part["ContentLength"]))
        return sizes

    def _head(self, key: str, **conditions: Any) -> Any:
        try:
            return self._client.head_object(Bucket=self.bucket, Key=key, **conditions)
        except ClientError as error:
            raise _gone_or(error, key) from error

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

    def _place(self, prefix: str, move: Move) -> None:
        """Bring an object to its place: by a copy within S3, or from what was read of it where it was replaced."""
        key = f"{prefix}{move.entry.key}"
        if self._quick.copy(key, self._root + move.place, move.entry.revision):
            return
        try:
            copied = self._copy(key, move.place, move.entry.size, move.entry.revision)
            # Not every S3 server heeds CopySourceIfMatch, and parts or encryption may give the copy another ETag.
            if copied == move.entry.revision or _bare(self._head(key)["ETag"]) == move.entry.revision:
                return
            self._delete([self._root + move.place])
        except GoneError:
            pass
        if move.copy is not None:
            self._client.upload_file(str(move.copy), self.bucket, self._root + move.place)

    def _copy(self, key: str, place: str, size: int, revision: str) -> str:
        """Copy an object within S3; the copy's ETag, empty where S3 does not say it."""
        source = {"Bucket": self.bucket, "Key": key}
        try:
            if size > COPIED_AT_ONCE:
                self._client.copy(source, self.bucket, self._root + place)
                return ""
            answer = self._client.copy_object(
                CopySource=source, Bucket=self.bucket, Key=self._root + place, CopySourceIfMatch=f'"{revision}"'
            )
            return _bare(answer.get("CopyObjectResult", {}).get("ETag", ""))
        except ClientError as error:
            raise _gone_or(error, key) from error

    def _delete(self, keys: Sequence[str]) -> None:
        """Delete objects, many at once where their keys can be listed in XML."""
        plain = [key for key in keys if not NOT_IN_XML.search(key)]
        for key in keys:
            if NOT_IN_XML.search(key):
                self._client.delete_object(Bucket=self.bucket, Key=key)
        for start in range(0, len(plain), DELETED_AT_ONCE):
            self._delete_together(plain[start : start + DELETED_AT_ONCE])

    def _delete_together(self, keys: Sequence[str]) -> None:
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self._client.delete_objects(Bucket=self.bucket, Delete=objects)
        if errors := answer.get("Errors"):
            raise UserError(
                f"S3 did not delete {len(errors)} objects of {self._url}, such as {errors[0]['Key']} "
                f"({errors[0].get('Code')}): check the permissions, and run again."
            )


@lru_cache(maxsize=4)
def _client(environment: tuple[tuple[str, str], ...]) -> tuple[Any, Any]:
    """A client for these keys and this endpoint, which boto3 reads itself, and the keys; it takes a while to make."""
    del environment
    retries: Any = {"mode": "standard", "total_max_attempts": 5}
    config = Config(retries=retries, signature_version="s3v4", **CONFIG, **LEAN)
    core = botocore.session.get_session()  # a new one: boto3's default session would keep the first keys that it saw
    times = core.get_component("response_parser_factory")
    times.set_parser_defaults(timestamp_parser=str)  # each would take longer to read than all else of an answer
    session = boto3.Session(botocore_session=core)
    return session.client("s3", config=config), session.get_credentials()


class _CutShortError(Exception):
    """An object came otherwise than S3 says it is."""


def _verify_length(key: str, entry: Entry, length: int, answer: Any) -> None:
    if _bare(answer.get("ETag", entry.revision)) != entry.revision:  # not every S3 server heeds IfMatch
        raise GoneError(key)
    if length != entry.size:
        raise _CutShortError(f"{key} came with {length:,} of {entry.size:,} bytes")


def _verify_etag(key: str, entry: Entry, computed: Callable[[], str], answer: Any) -> None:
    """Compare the ETag with the content's, where S3 makes it of MD5s: not of what it encrypts with other keys."""
    encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    if ETAG.fullmatch(entry.revision) and not encrypted and computed() not in ("", entry.revision):
        raise _CutShortError(f"{key} came with another MD5 than its ETag")


def _parts_count(etag: str) -> int | None:
    """Of how many parts an ETag is made; None for an object that came in one piece."""
    count = etag.partition("-")[2]
    return int(count) if count else None


def _etag_of(stream: BinaryIO, etag: str, parts: Sequence[int]) -> str:
    """The ETag of such a form that S3 gives to content uploaded in parts of so many bytes; empty without parts.

    Of content in one piece it is the MD5, of several the MD5 of their MD5s with their number.
    """
    digests = [_md5_of(stream, size) for size in parts]
    if not digests:
        return ""
    count = _parts_count(etag)
    if count is None:
        return digests[0].hex()
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{count}"


def _md5_of(stream: BinaryIO, size: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    while size > 0 and (chunk := stream.read(min(size, CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


def _verify_sha256(key: str, sha256: Callable[[], str], told: str | None) -> None:
    if told is not None and told.lower() != sha256():
        raise _CutShortError(f"{key} came with another SHA-256 than its metadata says")


def _told_sha256(answer: Any) -> str | None:
    """The SHA-256 that the sender put into an object's metadata, if any."""
    return {name.lower(): str(value) for name, value in answer.get("Metadata", {}).items()}.get("sha256")


def _bare(etag: str) -> str:
    """An ETag without its quotation marks, which some servers leave out in listings."""
    return etag.strip('"')


def _is_still(there: dict[str, dict[str, Any]], prefix: str, move: Move) -> bool:
    found = there.get(f"{prefix}{move.entry.key}")
    return found is not None and found["ETag"] == move.entry.revision


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
