"""The inbox, as a folder and as an S3 prefix: listing, fetching, acknowledging, with faults of all kinds."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.arrivals import inbox_s3
from components.arrivals.entries import Entry, GoneError, Move
from components.arrivals.inbox import FolderInbox, Source, are_at_rest, at_rest, open_source
from components.foundation.errors import UserError
from tests.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.servers import S3Server

CONTENT = {f"shot-{number}.png": bytes([number]) * (1000 + number) for number in range(5)}


@pytest.fixture(params=["folder", "s3"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Both kinds of inbox, with the same five files for the category "widget"."""
    if request.param == "folder":
        (tmp_path / "inbox" / "widget" / "line 1").mkdir(parents=True)
        for name, data in CONTENT.items():
            (tmp_path / "inbox" / "widget" / "line 1" / name).write_bytes(data)
        return FolderInbox(tmp_path / "inbox")
    put(s3, tmp_path.name, {f"line 1/{name}": data for name, data in CONTENT.items()})
    return s3_inbox(s3, monkeypatch, tmp_path.name)


def put(s3: S3Server, prefix: str, files: Mapping[str, bytes]) -> None:
    """Put objects into the inbox of the category "widget"."""
    client = s3.client()
    for name, data in files.items():
        client.put_object(Bucket="bucket", Key=f"{prefix}/incoming/widget/{name}", Body=data)


def s3_inbox(s3: S3Server, monkeypatch: pytest.MonkeyPatch, prefix: str, url: str | None = None) -> inbox_s3.S3Inbox:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    if url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    return inbox_s3.S3Inbox(f"s3://bucket/{prefix}/incoming")


def moves_of(inbox: Source, copies: Path) -> list[Move]:
    """Fetch all, and say where each goes."""
    moves = []
    copies.mkdir()
    for entry in inbox.entries("widget"):
        copy = copies / entry.key.replace("/", "-")
        inbox.fetch("widget", entry, copy)
        moves.append(Move(entry, f"accepted/widget/b1/{copy.name}", copy))
    return moves


def test_what_is_listed_is_fetched_and_moved(inbox: Source, tmp_path: Path) -> None:
    assert inbox.categories() == ["widget"]
    assert [(entry.key, entry.kind, entry.size) for entry in inbox.entries("widget")] == [
        (f"line 1/{name}", "file", len(data)) for name, data in CONTENT.items()
    ]
    moves = moves_of(inbox, tmp_path / "copies")
    assert [move.copy.read_bytes() for move in moves if move.copy] == list(CONTENT.values())
    inbox.acknowledge("widget", moves)
    assert inbox.entries("widget") == []
    assert inbox.places("accepted/widget") == [move.place for move in moves]
    assert [inbox.read(move.place) for move in moves] == list(CONTENT.values())


def test_what_is_in_no_categorys_folder_is_told(inbox: Source, s3: S3Server, tmp_path: Path) -> None:
    assert inbox.strays() == []
    if isinstance(inbox, FolderInbox):
        for name in ("loose.png", ".hidden", "Thumbs.db"):
            (inbox.folder / name).write_bytes(b"1")
        for name in (".ipynb_checkpoints", "@eaDir"):
            (inbox.folder / name).mkdir()
        (inbox.folder / "link").symlink_to(tmp_path)
    else:
        for name in ("loose.png", ".hidden", "link", "Thumbs.db", ".ipynb_checkpoints/0.png", "@eaDir/0.png"):
            s3.client().put_object(Bucket="bucket", Key=f"{tmp_path.name}/incoming/{name}", Body=b"")
    assert inbox.strays() == ["link", "loose.png"]
    assert inbox.categories() == ["widget"]


def test_acknowledging_again_changes_nothing(inbox: Source, tmp_path: Path) -> None:
    moves = moves_of(inbox, tmp_path / "copies")
    inbox.acknowledge("widget", moves[:2])
    for _ in range(2):
        inbox.acknowledge("widget", moves)
        assert inbox.places("accepted") == [move.place for move in moves]
        assert [inbox.read(move.place) for move in moves] == list(CONTENT.values())
        assert inbox.entries("widget") == []


def test_a_file_that_was_replaced_stays_and_its_copy_is_kept(inbox: Source, tmp_path: Path) -> None:
    moves = moves_of(inbox, tmp_path / "copies")
    replace_first(inbox, b"a newer shot")
    inbox.acknowledge("widget", moves)
    assert [(entry.key, entry.size) for entry in inbox.entries("widget")] == [("line 1/shot-0.png", 12)]
    assert inbox.read(moves[0].place) == CONTENT["shot-0.png"]


def test_a_file_that_changed_since_it_was_listed_is_not_fetched(inbox: Source, tmp_path: Path) -> None:
    entries = inbox.entries("widget")
    replace_first(inbox, b"a newer shot")
    with pytest.raises(GoneError):
        inbox.fetch("widget", entries[0], tmp_path / "copy")
    inbox.fetch("widget", entries[1], tmp_path / "copy")


def test_a_file_that_has_gone_is_not_fetched(inbox: Source, tmp_path: Path) -> None:
    entry = inbox.entries("widget")[0]
    inbox.acknowledge("widget", [Move(entry, "accepted/widget/b0/x.png", None)])
    with pytest.raises(GoneError):
        inbox.fetch("widget", entry, tmp_path / "copy")


def test_small_files_are_written_read_and_relocated(inbox: Source) -> None:
    inbox.write("held/widget/b1/a.png.json", b"{}")
    inbox.relocate("held/widget/b1/a.png.json", "quarantine/widget/b1/a.png.json")
    inbox.relocate("held/widget/b1/a.png.json", "quarantine/widget/b1/a.png.json")
    assert inbox.places("held") == []
    assert inbox.read("quarantine/widget/b1/a.png.json") == b"{}"
    with pytest.raises(GoneError):
        inbox.read("held/widget/b1/a.png.json")


def test_an_empty_inbox(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for inbox in (FolderInbox(tmp_path / "none"), s3_inbox(s3, monkeypatch, "nothing-here")):
        assert inbox.categories() == []
        assert inbox.entries("widget") == []
        assert inbox.places("held/widget") == []
        inbox.acknowledge("widget", [])


@pytest.mark.parametrize("url", ["http://host/inbox", "s3://", "s3://bucket", "s3://bucket/held", "a/accepted"])
def test_an_address_that_is_no_inbox_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        open_source(url)


# A folder's own dangers


def test_links_are_listed_and_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.png").write_bytes(b"private")
    top = tmp_path / "inbox" / "widget"
    top.mkdir(parents=True)
    (top / "file.png").symlink_to(secret / "key.png")
    (top / "folder").symlink_to(secret)
    os.mkfifo(top / "pipe.png")
    inbox = FolderInbox(tmp_path / "inbox")
    entries = inbox.entries("widget")
    assert [(entry.key, entry.kind) for entry in entries] == [
        ("file.png", "link"),
        ("folder", "link"),
        ("pipe.png", "other"),
    ]
    assert entries[0].target == str(secret / "key.png")
    for entry in entries[:2]:
        with pytest.raises((GoneError, OSError)):
            inbox.fetch("widget", entry, tmp_path / "copy")
    moves = [Move(entry, f"quarantine/widget/b/{number}.bin", None) for number, entry in enumerate(entries)]
    inbox.acknowledge("widget", moves)
    assert inbox.entries("widget") == []
    assert (secret / "key.png").read_bytes() == b"private"
    assert [path.name for path in (tmp_path / "quarantine" / "widget" / "b").iterdir()] == ["2.bin"]


def test_a_folder_that_becomes_a_link_is_not_entered(tmp_path: Path) -> None:
    top = tmp_path / "inbox" / "widget"
    for folder in (top / "line", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"12345")
    inbox = FolderInbox(tmp_path / "inbox")
    entry = inbox.entries("widget")[0]
    shutil.rmtree(top / "line")
    (top / "line").symlink_to(tmp_path / "other")
    with pytest.raises(GoneError):
        inbox.fetch("widget", entry, tmp_path / "copy")


def test_a_file_that_is_still_written_is_not_settled() -> None:
    old, growing = Entry("a", "file", 5, "m1", 100.0), Entry("b", "file", 5, "m1", 199.0)
    assert are_at_rest([old], now=200.0, seconds=10)
    assert not are_at_rest([old, growing], now=200.0, seconds=10)
    grown = Entry("b", "file", 9, "m2", 203.0)
    fresh = Entry("c", "file", 1, "m1", 203.0)
    assert at_rest([old, growing], [old, grown, fresh]) == [old]
    assert at_rest([old, growing], [old, growing]) == [old, growing]


# S3's own dangers


@pytest.fixture
def faulty(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FaultyProxy, inbox_s3.S3Inbox]]:
    """An S3 inbox with three images behind a proxy that can fail; no time is lost between attempts."""
    monkeypatch.setattr(inbox_s3, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    put(s3, tmp_path.name, {f"{number}.png": os.urandom(4000) for number in range(3)})
    with faulty_proxy(s3.url) as (proxy, url):
        yield proxy, s3_inbox(s3, monkeypatch, tmp_path.name, url)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "slow"])
def test_a_fault_that_passes_is_outlived(
    faulty: tuple[FaultyProxy, inbox_s3.S3Inbox], tmp_path: Path, fault: Fault, method: str
) -> None:
    """GET are listings and downloads, PUT copies and reasons, POST deletions."""
    proxy, inbox = faulty
    proxy.fail(fault, method, times=2)
    moves = moves_of(inbox, tmp_path / "copies")
    contents = [move.copy.read_bytes() for move in moves if move.copy]
    inbox.acknowledge("widget", moves)
    inbox.write("held/widget/b/a.json", b"{}")
    assert proxy.faults[fault] >= 1
    proxy.fail(None)
    assert [inbox.read(move.place) for move in moves] == contents
    assert inbox.entries("widget") == []
    assert inbox.read("held/widget/b/a.json") == b"{}"


def test_a_byte_that_was_garbled_on_its_way_is_noticed(
    faulty: tuple[FaultyProxy, inbox_s3.S3Inbox], s3: S3Server, tmp_path: Path
) -> None:
    proxy, inbox = faulty
    entry = inbox.entries("widget")[0]
    proxy.fail("garbled", "GET", times=3)
    inbox.fetch("widget", entry, tmp_path / "copy")
    source = s3.root / "bucket" / tmp_path.name / "incoming" / "widget" / "0.png"
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert proxy.faults["garbled"] == 3


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut"])
def test_a_fault_that_stays_is_said_in_one_sentence_and_loses_nothing(
    faulty: tuple[FaultyProxy, inbox_s3.S3Inbox], tmp_path: Path, fault: Fault
) -> None:
    proxy, inbox = faulty
    entries = inbox.entries("widget")
    proxy.fail(fault, "GET", times=1000)
    with pytest.raises(UserError, match="run again"):
        inbox.fetch("widget", entries[0], tmp_path / "copy")
    proxy.fail(None)
    assert inbox.entries("widget") == entries


@pytest.mark.slow
def test_a_sha256_in_the_metadata_is_checked(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_s3, "BACKOFF_SECONDS", 0.0)
    inbox = s3_inbox(s3, monkeypatch, tmp_path.name)
    for name, told in (("good.png", hashlib.sha256(b"pixels").hexdigest()), ("other.png", "0" * 64)):
        key = f"{tmp_path.name}/incoming/widget/{name}"
        s3.client().put_object(Bucket="bucket", Key=key, Body=b"pixels", Metadata={"sha256": told})
    good, other = inbox.entries("widget")
    inbox.fetch("widget", good, tmp_path / "copy")
    with pytest.raises(UserError, match="SHA-256"):
        inbox.fetch("widget", other, tmp_path / "copy2")


def test_a_large_object_comes_in_parts(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_s3, "LARGE", 1 << 20)
    inbox = s3_inbox(s3, monkeypatch, tmp_path.name)
    data = os.urandom(17 << 20)  # above boto3's 8 MiB parts
    put(s3, tmp_path.name, {"large.tif": data})
    (entry,) = inbox.entries("widget")
    inbox.fetch("widget", entry, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    inbox.acknowledge("widget", [Move(entry, "accepted/widget/b/large.tif", tmp_path / "copy")])
    assert (s3.root / "bucket" / tmp_path.name / "accepted" / "widget" / "b" / "large.tif").read_bytes() == data
    assert inbox.entries("widget") == []


@pytest.mark.parametrize("large", [False, True], ids=["in one request", "in ranges"])
@pytest.mark.parametrize("sizes", [[5000, 5000, 1234], [6000, 5234], [11234]], ids=["three", "two, uneven", "one"])
def test_an_object_uploaded_in_parts_is_verified_by_their_md5s(
    faulty: tuple[FaultyProxy, inbox_s3.S3Inbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool,
    sizes: list[int],
) -> None:  # fmt: skip
    proxy, inbox = faulty
    monkeypatch.setattr(inbox_s3, "LARGE", 1000 if large else 1 << 30)
    data = os.urandom(sum(sizes))
    path = f"/bucket/{tmp_path.name}/incoming/widget/parts.tif"
    inbox._client.put_object(Bucket="bucket", Key=path.removeprefix("/bucket/"), Body=data)
    ends = np.cumsum([0, *sizes])
    md5s = [hashlib.md5(data[start:end]).digest() for start, end in pairwise(ends)]
    etag = f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(sizes)}"  # as S3 makes it
    proxy.show_in_parts(path, etag, sizes)
    entry = Entry("parts.tif", "file", len(data), etag, 0.0)
    inbox.fetch("widget", entry, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data

    proxy.fail("garbled", "GET", times=1000)
    with pytest.raises(UserError, match="another MD5 than its ETag"):
        inbox.fetch("widget", entry, tmp_path / "copy2")


def test_where_s3_does_not_tell_the_parts_their_etag_says_nothing(
    faulty: tuple[FaultyProxy, inbox_s3.S3Inbox], tmp_path: Path
) -> None:
    proxy, inbox = faulty
    entry = inbox.entries("widget")[0]
    etag = f"{'0' * 32}-2"
    proxy.show_in_parts(f"/bucket/{tmp_path.name}/incoming/widget/{entry.key}", etag, [4000])
    inbox.fetch("widget", replace(entry, revision=etag), tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == 4000


def test_objects_with_any_name_can_be_moved(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "a\x01b.png",
        "a\nb.png",
        "a\rb.png",
        'a<b>&".png',
        "a%2fb.png",
        "a b+c.png",
        "=cmd().png",
        "\u202egnp.png",
    ]
    put(s3, tmp_path.name, dict.fromkeys(names, b"12345"))
    inbox = s3_inbox(s3, monkeypatch, tmp_path.name)
    entries = inbox.entries("widget")
    assert {entry.key for entry in entries} == set(names)
    inbox.acknowledge("widget", [Move(one, f"quarantine/widget/b/{n}.bin", None) for n, one in enumerate(entries)])
    assert inbox.entries("widget") == []
    assert len(inbox.places("quarantine/widget")) == len(names)


def test_a_refused_object_that_was_replaced_stays_and_nothing_is_placed(inbox: Source, tmp_path: Path) -> None:
    (entry, *_) = inbox.entries("widget")
    replace_first(inbox, b"a newer shot")
    inbox.acknowledge("widget", [Move(entry, "quarantine/widget/b/0.bin", None)])
    assert inbox.places("quarantine") == []
    assert inbox.entries("widget")[0].size == 12


@pytest.mark.slow
def test_more_than_a_thousand_objects_come_in_pages(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, tmp_path.name, {f"{number:04}.png": b"1" for number in range(1045)})
    inbox = s3_inbox(s3, monkeypatch, tmp_path.name)
    moves = [Move(entry, f"held/widget/b/{entry.key}", None) for entry in inbox.entries("widget")]
    assert [move.entry.key for move in moves] == [f"{number:04}.png" for number in range(1045)]
    inbox.acknowledge("widget", moves)
    assert inbox.places("held/widget") == [move.place for move in moves]
    assert inbox.entries("widget") == []


@pytest.mark.slow
def test_wrong_keys_are_said(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_inbox(s3, monkeypatch, "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="check the address, the keys"):
        inbox_s3.S3Inbox("s3://bucket/any/incoming").entries("widget")


def replace_first(inbox: Any, data: bytes) -> None:
    """Put another content where the first file is."""
    if isinstance(inbox, FolderInbox):
        (inbox.folder / "widget" / "line 1" / "shot-0.png").write_bytes(data)
    else:
        inbox._client.put_object(Bucket=inbox.bucket, Key=f"{inbox._inbox}widget/line 1/shot-0.png", Body=data)
