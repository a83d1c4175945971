"""Fetching archives, against a real HTTP server on the loopback and archives made to do harm."""

import hashlib
import io
import lzma
import os
import resource
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from components.data.fetch import fetch, fetch_dataset, unpack
from components.foundation.errors import UserError
from components.foundation.files import digest_tree
from components.foundation.params import ArchiveParams, FetchLimits, FetchParams

LIMITS = FetchLimits(backoff_seconds=0, attempts=3, timeout_seconds=10)
FILES = {"bottle/train/good/000.png": b"good" * 1000, "bottle/test/good/000.png": b"", "readme.txt": b"hello\n"}


def tar_bytes(files: dict[str, bytes], compression: str = "xz") -> bytes:
    """An honest archive, with folders and odd modes as the published ones have."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("bottle")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o500
        tar.addfile(folder)
        for name, content in files.items():
            add_file(tar, name, content, mode=0o4777)
    return out.getvalue()


def add_file(tar: tarfile.TarFile, name: str, content: bytes = b"x", mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def add_special(tar: tarfile.TarFile, kind: bytes, link: str = "") -> None:
    info = tarfile.TarInfo("special")
    info.type, info.linkname = kind, link
    tar.addfile(info)


def zip_bytes(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Site:
    """What the server serves, how it misbehaves, and what it was asked for.

    Attributes:
        content, etag: of the one file.
        ranges: whether Range is understood.
        cuts: for each coming answer, after how many bytes the connection is cut.
        statuses: answers given before anything else.
        redirect: where every request is sent on to.
        asked: (Range, If-Range) of each request.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = '"1"'
        self.ranges = True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.redirect: str | None = None
        self.asked: list[tuple[str | None, str | None]] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append((self.headers["Range"], self.headers["If-Range"]))
        if site.redirect or site.statuses:
            return self.answer_without_content()
        start = self.wanted_start()
        if start is not None and start >= len(site.content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(site.content)}"})
        if start is None:
            return self.answer(200, site.content, {})
        span = f"bytes {start}-{len(site.content) - 1}/{len(site.content)}"
        self.answer(206, site.content[start:], {"Content-Range": span})

    def wanted_start(self) -> int | None:
        wanted = self.headers["Range"]
        changed = self.headers["If-Range"] not in (None, self.site.etag)
        return int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.site.ranges and not changed else None

    def answer_without_content(self) -> None:
        if self.site.redirect:
            self.answer(302, b"", {"Location": self.site.redirect})
        else:
            self.answer(self.site.statuses.pop(0), b"", {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.site.etag:
            self.send_header("ETag", self.site.etag)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.site.cuts.pop(0) if self.site.cuts and body else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site(tar_bytes(FILES | {"noise.bin": np.random.default_rng(0).bytes(300_000)}))
    handler = type("SiteHandler", (Handler,), {"site": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}/set.tar.xz"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield served
        server.shutdown()


def fetch_from(site: Site, destination: Path, limits: FetchLimits = LIMITS) -> None:
    fetch(site.url, sha(site.content), destination, limits)


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_a_tar_arrives_whole_with_plain_modes_and_nothing_beside(site: Site, tmp_path: Path, compression: str) -> None:
    site.content = tar_bytes(FILES, compression)
    steps: list[tuple[str, int, int | None]] = []
    fetch(site.url, sha(site.content), tmp_path / "set", LIMITS, lambda *step: steps.append(step))
    assert contents(tmp_path / "set") == FILES
    assert sorted(os.listdir(tmp_path)) == ["set"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert all(mode & 0o7111 == 0 for mode in modes)
    assert os.access(tmp_path / "set" / "bottle", os.W_OK)
    assert ("download", len(site.content), len(site.content)) in steps
    assert steps[-1] == ("unpack", len(FILES) + 1, None)


def test_a_zip_arrives_whole(site: Site, tmp_path: Path) -> None:
    site.content = zip_bytes(FILES)
    fetch_from(site, tmp_path / "set")
    assert contents(tmp_path / "set") == FILES


def test_a_cut_connection_is_resumed_where_it_ended(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000, 50_000]
    fetch_from(site, tmp_path / "set")
    assert site.asked == [(None, None), ("bytes=100000-", '"1"'), ("bytes=150000-", '"1"')]
    assert contents(tmp_path / "set")["readme.txt"] == b"hello\n"


def test_a_second_call_resumes_what_the_first_left(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000] + [0] * LIMITS.attempts
    with pytest.raises(UserError, match="goes on from there"):
        fetch_from(site, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert (tmp_path / "set.part").stat().st_size == 100_000
    site.cuts, site.asked = [], []
    fetch_from(site, tmp_path / "set")
    assert site.asked == [("bytes=100000-", '"1"')]


def test_a_server_that_ignores_ranges_is_read_from_the_start(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cuts = False, [100_000]
    fetch_from(site, tmp_path / "set")
    assert len(site.asked) == 2
    assert "noise.bin" in contents(tmp_path / "set")


def test_a_server_without_validators_is_resumed_all_the_same(site: Site, tmp_path: Path) -> None:
    site.etag, site.cuts = None, [100_000]
    fetch_from(site, tmp_path / "set")
    assert site.asked[1] == ("bytes=100000-", None)


def test_a_changed_file_is_not_mixed_with_the_old_one(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000] + [0] * LIMITS.attempts
    with pytest.raises(UserError):
        fetch_from(site, tmp_path / "set")
    site.content, site.etag, site.cuts = tar_bytes({"new.bin": np.random.default_rng(1).bytes(300_000)}), '"2"', []
    fetch_from(site, tmp_path / "set")
    assert list(contents(tmp_path / "set")) == ["new.bin"]


def test_a_file_that_shrank_below_what_is_here_begins_anew(site: Site, tmp_path: Path) -> None:
    site.etag, site.cuts = None, [100_000] + [0] * LIMITS.attempts
    with pytest.raises(UserError):
        fetch_from(site, tmp_path / "set")
    site.content, site.cuts = tar_bytes(FILES), []
    fetch_from(site, tmp_path / "set")
    assert contents(tmp_path / "set") == FILES


def test_another_address_does_not_continue_the_partial_file(site: Site, tmp_path: Path) -> None:
    site.cuts = [100_000] + [0] * LIMITS.attempts
    with pytest.raises(UserError):
        fetch_from(site, tmp_path / "set")
    site.cuts, site.asked = [], []
    fetch(site.url + "?mirror", sha(site.content), tmp_path / "set", LIMITS)
    assert site.asked == [(None, None)]


def test_busy_answers_are_retried(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    fetch_from(site, tmp_path / "set")
    assert len(site.asked) == 3


def test_a_server_that_stays_away_ends_in_one_sentence(tmp_path: Path, site: Site) -> None:
    site.statuses = [500] * LIMITS.attempts
    with pytest.raises(UserError, match="answered 500"):
        fetch_from(site, tmp_path / "set")
    assert os.listdir(tmp_path) == []


def test_a_moved_archive_is_not_retried_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.statuses = [404]
    with pytest.raises(UserError, match=r"404.*fetch\.archives"):
        fetch_from(site, tmp_path / "set")
    assert len(site.asked) == 1
    assert os.listdir(tmp_path) == []


def test_a_wrong_digest_removes_the_download(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sha(site.content)):
        fetch(site.url, "0" * 64, tmp_path / "set", LIMITS)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists already"):
        fetch_from(site, tmp_path / "set")
    assert site.asked == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_away_from_http_is_refused(site: Site, tmp_path: Path, target: str) -> None:
    site.redirect = target
    with pytest.raises(UserError, match="not HTTP"):
        fetch_from(site, tmp_path / "set")
    assert os.listdir(tmp_path) == []


def test_an_endless_redirect_is_refused(site: Site, tmp_path: Path) -> None:
    site.redirect = "/again"
    with pytest.raises(UserError, match="without end"):
        fetch_from(site, tmp_path / "set")


def test_an_address_that_is_not_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an HTTP address"):
        fetch("file:///etc/passwd", "0" * 64, tmp_path / "set", LIMITS)


def test_an_archive_over_the_limit_is_not_even_received(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_archive_bytes"):
        fetch_from(site, tmp_path / "set", LIMITS.model_copy(update={"max_archive_bytes": 1000}))
    assert os.listdir(tmp_path) == []


def test_data_sets_are_fetched_by_name(site: Site, tmp_path: Path) -> None:
    archives = {"mine": ArchiveParams(url=site.url, sha256=sha(site.content))}
    fetch_dataset("mine", FetchParams(archives=archives, limits=LIMITS), tmp_path / "set")
    assert (tmp_path / "set" / "readme.txt").exists()
    with pytest.raises(UserError, match="choose one of mvtec"):
        fetch_dataset("unknown", FetchParams(), tmp_path / "other")


def test_a_second_fetch_into_the_same_folder_waits_its_turn(site: Site, tmp_path: Path) -> None:
    inner: list[str] = []

    def while_running(step: str, _done: int, _total: int | None) -> None:
        if step == "download" and not inner:
            with pytest.raises(UserError, match="Another fetch") as caught:
                fetch_from(site, tmp_path / "set")
            inner.append(str(caught.value))

    fetch(site.url, sha(site.content), tmp_path / "set", LIMITS, while_running)
    assert inner
    assert "noise.bin" in contents(tmp_path / "set")


def test_a_full_disk_leaves_no_folder_and_the_next_call_finishes(site: Site, tmp_path: Path) -> None:
    site.content = tar_bytes({"zeros.bin": bytes(2_000_000), "noise.bin": np.random.default_rng(0).bytes(10_000)})
    code = (
        "import sys; from pathlib import Path; from components.data.fetch import fetch; "
        "from components.foundation.params import FetchLimits; from components.stages.command import run_guarded; "
        "run_guarded(lambda: fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]), FetchLimits()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, site.url, sha(site.content), str(tmp_path / "set")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("flawline: ")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["set.part", "set.part.json"]
    fetch_from(site, tmp_path / "set")
    assert len(contents(tmp_path / "set")["zeros.bin"]) == 2_000_000


# --- archives made to do harm ---

EVIL_TARS: dict[str, Callable[[tarfile.TarFile], None]] = {
    "parent folder": lambda tar: add_file(tar, "../escaped"),
    "parent folder inside": lambda tar: add_file(tar, "a/../../escaped"),
    "absolute": lambda tar: add_file(tar, "/tmp/flawline-escaped"),
    "backslash": lambda tar: add_file(tar, "..\\escaped"),
    "symbolic link": lambda tar: add_special(tar, tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": lambda tar: add_special(tar, tarfile.LNKTYPE, "good.txt"),
    "character device": lambda tar: add_special(tar, tarfile.CHRTYPE),
    "block device": lambda tar: add_special(tar, tarfile.BLKTYPE),
    "named pipe": lambda tar: add_special(tar, tarfile.FIFOTYPE),
    "line break in the name": lambda tar: add_file(tar, "a\nb"),
    "escape sequence in the name": lambda tar: add_file(tar, "a\x1b[2Jb"),
    "right-to-left override in the name": lambda tar: add_file(tar, "a\u202egnp.exe"),
    "undecodable name": lambda tar: add_file(tar, "a\udcffb"),
    "name too long": lambda tar: add_file(tar, "a" * 300),
    "the same name twice": lambda tar: add_file(tar, "good.txt"),
    "a file as a folder": lambda tar: add_file(tar, "good.txt/inside"),
    "a file without a name": lambda tar: add_file(tar, "."),
}


@pytest.mark.parametrize("kind", EVIL_TARS)
def test_an_evil_tar_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        add_file(tar, "good.txt")
        EVIL_TARS[kind](tar)
    assert_refused(tmp_path / "evil.tar", LIMITS, "was not unpacked")


def assert_refused(archive: Path, limits: FetchLimits, why: str) -> None:
    before = sorted(os.listdir(archive.parent.parent))
    with pytest.raises(UserError, match=why) as caught:
        unpack(archive, archive.parent / "set", limits, lambda *_: None)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert os.listdir(archive.parent) == [archive.name]
    assert sorted(os.listdir(archive.parent.parent)) == before
    assert not Path("/tmp/flawline-escaped").exists()


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/flawline-escaped", "a/../../escaped", "a\nb", "nul\0name", "..\\x"]
)
def test_an_evil_zip_name_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        archive.writestr(info, b"x")
    assert_refused(tmp_path / "evil.zip", LIMITS, "not a plain relative name|no intact")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_zip_with_a_link_or_device_is_refused(tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, b"/etc/passwd")
    assert_refused(tmp_path / "evil.zip", LIMITS, "link, a device")


def test_bombs_are_stopped_by_their_ratio(tmp_path: Path) -> None:
    for folder, content in (
        ("tar", tar_bytes({"zeros": bytes(30_000_000)})),
        ("zip", zip_bytes({"z": bytes(30_000_000)})),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "bomb").write_bytes(content)
        assert_refused(tmp_path / folder / "bomb", LIMITS, "unpacks to more than|decompresses to more than")


def test_a_header_of_absurd_length_takes_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 8_000_000_000
    (tmp_path / "bomb.tar.xz").write_bytes(lzma.compress(header.tobuf() + bytes(1_000_000)))
    assert_refused(tmp_path / "bomb.tar.xz", LIMITS, "absurd length")


@pytest.mark.parametrize(("limit", "value"), [("max_files", 2), ("max_file_bytes", 100), ("max_bytes", 100)])
def test_limits_hold_for_both_kinds_of_archive(tmp_path: Path, limit: str, value: int) -> None:
    limits = LIMITS.model_copy(update={limit: value})
    for folder, content in (("tar", tar_bytes(FILES)), ("zip", zip_bytes(FILES))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "archive").write_bytes(content)
        assert_refused(tmp_path / folder / "archive", limits, limit)


@pytest.mark.parametrize("content", [b"", b"hello, this is no archive", bytes(10_240), zip_bytes({})])
def test_what_is_no_archive_or_empty_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)
    assert_refused(tmp_path / "archive", LIMITS, "was not unpacked")


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_tar_is_refused(tmp_path: Path, compression: str, share: float) -> None:
    content = tar_bytes({f"{i}.bin": np.random.default_rng(i).bytes(1000) for i in range(60)}, compression)
    (tmp_path / "archive").write_bytes(content[: int(share * len(content))])
    assert_refused(tmp_path / "archive", LIMITS, "was not unpacked")


def test_a_tar_that_ends_between_two_files_is_refused(tmp_path: Path) -> None:
    content = tar_bytes({"a": b"x" * 512, "b": b"y" * 512}, "")
    (tmp_path / "archive").write_bytes(content[: 512 * 3])  # the folder's header, a's header, a's content
    assert_refused(tmp_path / "archive", LIMITS, "end mark")


def test_damage_inside_a_zip_is_noticed(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a": np.random.default_rng(0).bytes(5000)}))
    content[2000] ^= 255
    (tmp_path / "archive").write_bytes(content)
    assert_refused(tmp_path / "archive", LIMITS, "no intact")


def test_a_failed_unpacking_keeps_the_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(tar_bytes(FILES))
    unpack(tmp_path / "archive", tmp_path / "set", LIMITS, lambda *_: None)
    before = digest_tree(tmp_path / "set")
    (tmp_path / "archive").write_bytes(tar_bytes({"../x": b""}))
    with pytest.raises(UserError):
        unpack(tmp_path / "archive", tmp_path / "set", LIMITS, lambda *_: None)
    assert digest_tree(tmp_path / "set") == before
