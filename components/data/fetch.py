"""Fetch a published archive of images: download with resume, check its SHA-256, unpack it without trusting it."""

import fcntl
import functools
import gzip
import io
import lzma
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import requests
import urllib3

from components.foundation.errors import UserError
from components.foundation.files import new_directory, read_json, sha256_file, write_json
from components.foundation.params import FetchLimits, FetchParams

CHUNK = 1 << 20
RATIO_GRACE = 16 << 20  # bytes that may always be unpacked, so that a tiny archive of blank images is no bomb
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

BinaryStream = IO[bytes] | lzma.LZMAFile | gzip.GzipFile
Progress = Callable[[str, int, int | None], None]  # ("download" in bytes or "unpack" in files, done, total if known)


def fetch_dataset(name: str, params: FetchParams, destination: Path, progress: Progress | None = None) -> None:
    """Fetch the data set `name` of `params.archives` into the new folder `destination`; see `fetch`.

    Publishers move their archives: the address and the digest are parameters (`fetch.archives.NAME` in params.yaml).
    """
    archive = params.archives.get(name)
    if archive is None:
        raise UserError(f"There is no data set {name!r}: choose one of {', '.join(sorted(params.archives))}.")
    fetch(archive.url, archive.sha256, destination, params.limits, progress)


def fetch(url: str, sha256: str, destination: Path, limits: FetchLimits, progress: Progress | None = None) -> None:
    """Download the archive at `url` (.tar, .tar.gz, .tar.xz or .zip) and unpack it into the new folder `destination`.

    An interrupted download stays beside as `DESTINATION.part` and is resumed by the next call. `destination` appears
    whole or not at all. Raises UserError where the folder exists, the server refuses or stays away, the digest differs
    (the download is then removed), or the archive is damaged, dangerous, or larger than `limits`.
    """
    report = progress or _no_progress
    partial = destination.with_name(f"{destination.name}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(partial):
        _check_absent(destination)
        download(url, partial, limits, report)
        _check_digest(partial, sha256, url)
        unpack(partial, destination, limits, report)
        _remove_partial(partial)


def download(url: str, partial: Path, limits: FetchLimits, progress: Progress) -> None:
    """Bring `partial` to the full content of `url`, resuming what it holds; tries again while the server falters.

    Gives up after `limits.attempts` tries in a row which brought nothing; waits longer from one to the next.
    Raises UserError for an address that is not HTTP, a refusal (such as 404), or when giving up.
    """
    _check_scheme(url)
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            return _transfer(url, partial, limits, progress)
        except _RETRIABLE as error:
            failures = 1 if partial.stat().st_size > before else failures + 1
            if failures >= limits.attempts:
                raise UserError(
                    f"{url} could not be downloaded ({_brief(error)}): check the network and run again; "
                    "what has arrived is kept and the download goes on from there."
                ) from error
            time.sleep(min(60.0, limits.backoff_seconds * 2 ** (failures - 1)))


def unpack(archive: Path, destination: Path, limits: FetchLimits, progress: Progress) -> None:
    """Unpack `archive` into the new folder `destination`, which appears whole or not at all.

    Only folders and regular files are accepted, under plain relative names, with the mode that new files have here.
    Raises UserError for anything else, for a damaged archive, and beyond `limits`.
    """
    with _damage_as_user_error(archive), new_directory(destination) as root:
        budget = _Budget(limits, archive.stat().st_size)
        for entry in _entries(archive, budget):
            budget.count_entry()
            _unpack_entry(entry, root, budget)
            progress("unpack", budget.entries, None)
        if not any(root.iterdir()):
            raise _Refused("it holds no files")


class _Interrupted(Exception):
    """The server answered, but not with the whole content."""


_RETRIABLE = (
    _Interrupted,
    requests.ConnectionError,
    requests.Timeout,
    urllib3.exceptions.HTTPError,
)


def _transfer(url: str, partial: Path, limits: FetchLimits, progress: Progress) -> None:
    """One request: ask for what is missing, write what comes."""
    state = _read_state(partial, url)
    start = partial.stat().st_size if state and partial.exists() else 0
    if start and start == state.get("size"):
        return
    with _get(url, _range_headers(start, state), limits) as response:
        if response.status_code == 416:
            return _settle_complete(response, partial, start)
        _check_status(response, url)
        if response.status_code == 206:
            total = _checked_total(response, partial, start, state)
        else:
            start, total = 0, _content_length(response)
        _check_size(url, total, start, partial, limits)
        if start == 0:
            partial.write_bytes(b"")
            write_json(_state_path(partial), {"url": url, "validator": _validator(response), "size": total})
        _receive(response, partial, start, total, limits, progress)


def _get(url: str, headers: dict[str, str], limits: FetchLimits) -> requests.Response:
    try:
        return requests.get(url, headers=headers, stream=True, timeout=limits.timeout_seconds)
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise UserError(f"{url} leads to an address that is not HTTP ({error}): correct the address.") from error
    except requests.TooManyRedirects as error:
        raise UserError(f"{url} redirects without end: correct the address.") from error


def _range_headers(start: int, state: dict[str, Any]) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if state.get("validator"):
            headers["If-Range"] = state["validator"]
    return headers


def _check_status(response: requests.Response, url: str) -> None:
    if response.status_code in RETRIED:
        raise _Interrupted(f"the server answered {response.status_code}")
    if response.status_code not in (200, 206):
        raise UserError(
            f"{url} answered {response.status_code} {response.reason}: the address may have changed, "
            "look it up at the publisher's and set fetch.archives in params.yaml."
        )


def _checked_total(response: requests.Response, partial: Path, start: int, state: dict[str, Any]) -> int | None:
    """Total size said by a 206 answer; begins anew where the answer does not continue what is here."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, size = rest.partition("/")
    total = int(size) if size.isdecimal() else None
    if unit != "bytes" or span.partition("-")[0] != str(start) or (state.get("size") or total) != total:
        _forget(partial)
        raise _Interrupted("the server's partial answer does not fit what has arrived")
    return total


def _settle_complete(response: requests.Response, partial: Path, start: int) -> None:
    """416: nothing is missing if the content ends where the partial file ends; otherwise begin anew."""
    if response.headers.get("Content-Range") != f"bytes */{start}":
        _forget(partial)
        raise _Interrupted("the content has changed")


def _receive(
    response: requests.Response,
    partial: Path,
    start: int,
    total: int | None,
    limits: FetchLimits,
    progress: Progress,
) -> None:
    done = start
    with partial.open("ab") as file:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            done += len(chunk)
            if done > limits.max_archive_bytes:
                raise UserError(_too_large(response.url, limits))
            file.write(chunk)
            progress("download", done, total)
    if total is not None and done != total:
        raise _Interrupted(f"the connection ended after {done:,} of {total:,} bytes")


def _check_size(url: str, total: int | None, start: int, partial: Path, limits: FetchLimits) -> None:
    if total is None:
        return
    if total > limits.max_archive_bytes:
        raise UserError(_too_large(url, limits))
    free = shutil.disk_usage(partial.parent).free
    if total - start > free:
        raise UserError(
            f"{url} needs {total - start:,} more bytes, but {partial.parent} has {free:,}: free some space."
        )


def _too_large(url: str, limits: FetchLimits) -> str:
    return (
        f"{url} is larger than the limit of {limits.max_archive_bytes:,} bytes "
        "(fetch.limits.max_archive_bytes in params.yaml): check the address or raise the limit."
    )


def _content_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator(response: requests.Response) -> str | None:
    """What If-Range may carry (RFC 9110, section 13.1.5): a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _state_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _read_state(partial: Path, url: str) -> dict[str, Any]:
    """What is known of the partial file; nothing if it belongs to another address or cannot be read."""
    try:
        state = read_json(_state_path(partial))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("url") == url else {}


def _forget(partial: Path) -> None:
    """Make the next try begin anew."""
    partial.write_bytes(b"")
    _state_path(partial).unlink(missing_ok=True)


def _remove_partial(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _state_path(partial).unlink(missing_ok=True)


@contextmanager
def _exclusive(partial: Path) -> Iterator[None]:
    """Hold the partial file against a second fetch; an empty one is not left behind."""
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"Another fetch is writing {partial}: wait for it to end.") from error
        try:
            yield
        finally:
            if partial.exists() and partial.stat().st_size == 0:
                _remove_partial(partial)


def _check_absent(destination: Path) -> None:
    if destination.exists():
        raise UserError(f"{destination} exists already: remove it, or choose another folder.")


def _check_scheme(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url!r} is not an HTTP address: it must begin with http:// or https://.")


def _check_digest(partial: Path, expected: str, url: str) -> None:
    found = sha256_file(partial)
    if found != expected:
        _remove_partial(partial)
        raise UserError(
            f"{url} has the SHA-256 {found}, not the expected {expected}: the download was removed; "
            "run again, or check the digest in fetch.archives of params.yaml at the publisher's."
        )


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _no_progress(_step: str, _done: int, _total: int | None) -> None:
    """Report nothing."""


# --- unpacking ---


class _Refused(Exception):
    """Why an archive is not unpacked; becomes part of a UserError."""


@dataclass(frozen=True)
class _Entry:
    """One folder or regular file of an archive; `open` gives its content."""

    name: str
    is_folder: bool
    open: Callable[[], IO[bytes]]


class _Budget:
    """What may still be unpacked."""

    def __init__(self, limits: FetchLimits, archive_bytes: int) -> None:
        self.limits = limits
        self.entries = 0
        self.bytes = 0
        self.allowed = min(limits.max_bytes, max(RATIO_GRACE, int(limits.max_ratio * archive_bytes)))

    def count_entry(self) -> None:
        self.entries += 1
        if self.entries > self.limits.max_files:
            raise _Refused(f"it holds more than {self.limits.max_files:,} files (fetch.limits.max_files)")

    def count_bytes(self, file_bytes: int, added: int) -> None:
        self.bytes += added
        if file_bytes > self.limits.max_file_bytes:
            raise _Refused(f"a file is larger than {self.limits.max_file_bytes:,} bytes (fetch.limits.max_file_bytes)")
        if self.bytes > self.allowed:
            raise _Refused(f"it unpacks to more than {self.allowed:,} bytes (fetch.limits.max_bytes and max_ratio)")


class _ForwardReader:
    """A forward-only stream for tarfile, which bounds what is decompressed in all and what is read at once.

    tarfile reads extended headers whole, at the length that the archive claims; `LARGEST` stops that.
    """

    LARGEST = 1 << 20

    def __init__(self, stream: BinaryStream, most: int) -> None:
        self.stream = stream
        self.most = most
        self.position = 0
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.LARGEST:
            raise _Refused("a header claims an absurd length")
        self.last = self.stream.read(size)
        self.position += len(self.last)
        if self.position > self.most:
            raise _Refused(f"it decompresses to more than {self.most:,} bytes (fetch.limits.max_bytes and max_ratio)")
        return self.last

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise io.UnsupportedOperation("seeking backwards")
        while self.position < position and self.read(min(self.LARGEST, position - self.position)):
            pass


def _entries(archive: Path, budget: _Budget) -> Iterator[_Entry]:
    """The entries of a tar (plain, gzip, xz) or zip archive, told apart by their first bytes."""
    with archive.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        match magic:
            case b"\xfd7zXZ\x00":
                with lzma.open(file) as stream:
                    yield from _tar_entries(stream, budget)
            case _ if magic.startswith(b"\x1f\x8b"):
                with gzip.open(file) as stream:
                    yield from _tar_entries(stream, budget)
            case _ if magic.startswith(b"PK"):
                yield from _zip_entries(file, budget)
            case _:
                yield from _tar_entries(file, budget)


def _tar_entries(stream: BinaryStream, budget: _Budget) -> Iterator[_Entry]:
    reader = _ForwardReader(stream, budget.allowed + 4096 * budget.limits.max_files)
    with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            if not member.isdir() and (member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse()):
                raise _Refused(f"{member.name!r} is a link, a device or another special entry")
            yield _Entry(member.name, member.isdir(), functools.partial(_opened_member, tar, member))
            tar.members.clear()  # tarfile would keep every header in memory
    if reader.last != bytes(tarfile.BLOCKSIZE):
        raise _Refused("it ends before its end mark")


def _opened_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    if content is None:
        raise _Refused(f"{member.name!r} has no content")
    return content


def _zip_entries(file: IO[bytes], budget: _Budget) -> Iterator[_Entry]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Refused(f"{info.orig_filename!r} is a link, a device or another special entry")
            yield _Entry(info.orig_filename, info.is_dir(), functools.partial(archive.open, info))


def _unpack_entry(entry: _Entry, root: Path, budget: _Budget) -> None:
    target = root / _plain_name(entry)
    if entry.is_folder:
        return target.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as content, target.open("xb") as file:
        written = 0
        while chunk := content.read(CHUNK):
            written += len(chunk)
            budget.count_bytes(written, len(chunk))
            file.write(chunk)


def _plain_name(entry: _Entry) -> PurePosixPath:
    """The name as a relative path; refuses what could leave the folder or deceive who reads it."""
    path = PurePosixPath(entry.name)
    too_long = len(entry.name.encode(errors="replace")) > 1024 or any(len(part.encode()) > 200 for part in path.parts)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or not entry.name.isprintable() or too_long:
        raise _Refused(f"{entry.name[:100]!r} is not a plain relative name")
    if not path.parts and not entry.is_folder:
        raise _Refused("a file has no name")
    return path


@contextmanager
def _damage_as_user_error(archive: Path) -> Iterator[None]:
    try:
        yield
    except _Refused as error:
        raise UserError(f"{archive} was not unpacked: {error}.") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{archive} was not unpacked: two of its entries have the same name.") from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        gzip.BadGzipFile,
        zlib.error,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        io.UnsupportedOperation,
    ) as error:
        raise UserError(f"{archive} was not unpacked: it is no intact tar or zip archive ({_brief(error)}).") from error
