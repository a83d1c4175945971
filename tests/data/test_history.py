"""Versions listed, compared, sent, fetched, and re-hashed, with a folder and with a real S3 server as the remote."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.foundation.dvc_digests import digest_of_folder
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.images.dataset import list_category
from components.images.table import image_table, learned_images
from flows.commands.data import SHEET
from flows.data.dvc_project import open_project
from flows.data.history import diff_versions, list_versions, verify
from flows.data.stores import set_remote
from flows.data.transfer import pull, push
from flows.data.versions import Committed, commit_folder, digest_at
from tests.project import Project, is_one_sentence, surface, write_image
from tests.servers import S3Server

FOLDER = Path("data/tiny/widget")
FILE = Path("data/tiny/widget.dvc")
CACHE = Path(".dvc/cache/files/md5")


@pytest.fixture
def two_versions(git_project: Project, tmp_path: Path) -> tuple[Committed, Committed]:
    """Two versions of one category: the second adds two images, drops one and changes another."""
    first = commit_folder("widget")
    generator = np.random.default_rng(5)
    (FOLDER / "train/good/000.png").unlink()
    (FOLDER / "train/good/001.png").unlink()  # it may be a link to the cache
    for name in ("001.png", "x.png", "y.png"):
        write_image(FOLDER / "train/good" / name, surface(generator))
    return first, commit_folder("widget")


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Remote":
    """The project's remote: a folder, or a prefix of its own on an S3 server."""
    if request.param == "folder":
        url, made = str(tmp_path / "store"), Remote(tmp_path / "store", None, "")
    else:
        server: S3Server = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url, made = f"s3://bucket/{tmp_path.name}", Remote(server.root, server.client(), tmp_path.name)
    with open_project() as repo:
        set_remote(repo, url)
    return made


class Remote:
    """Damages what the remote holds, as a fault of the storage would."""

    def __init__(self, root: Path, client: Any, prefix: str) -> None:
        self.root, self.client, self.prefix = root, client, prefix

    def write(self, oid: str, content: bytes) -> None:
        if self.client is None:
            path = self.root / self._key(oid)
            path.chmod(0o644)
            path.write_bytes(content)
        else:
            self.client.put_object(Bucket="bucket", Key=f"{self.prefix}/{self._key(oid)}", Body=content)

    def delete(self, oid: str) -> None:
        if self.client is None:
            (self.root / self._key(oid)).unlink()
        else:
            self.client.delete_object(Bucket="bucket", Key=f"{self.prefix}/{self._key(oid)}")

    def _key(self, oid: str) -> str:
        return f"files/md5/{oid[:2]}/{oid[2:]}"


def cached(oid: str) -> Path:
    return CACHE / oid[:2] / oid[2:]


def manifest(version: Committed) -> dict[str, str]:
    return {entry["relpath"]: entry["md5"] for entry in json.loads(cached(version.digest).read_bytes())}


def damage(path: Path) -> None:
    """Change one bit in place, as a failing disk does: the time of the file stays as it was."""
    status = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_versions_are_listed_newest_first_with_their_counts(two_versions: tuple[Committed, Committed]) -> None:
    first, second = two_versions
    listed = list_versions("widget")
    assert [(one.commit, one.digest, one.good, one.images) for one in listed] == [
        (second.commit, second.digest, 15, 23),
        (first.commit, first.digest, 14, 22),
    ]
    assert [one.message for one in listed] == [second.message, first.message]
    assert [one.is_current for one in listed] == [True, False]


def test_an_old_version_that_is_checked_out_is_the_current_one(
    git_project: Project, two_versions: tuple[Committed, Committed]
) -> None:
    git_project.git("checkout", "-q", two_versions[0].commit)
    assert [one.is_current for one in list_versions()] == [False, True]


def test_a_category_without_a_version_is_said(git_project: Project) -> None:
    assert list_versions() == []
    with pytest.raises(UserError, match="nothing has no version yet"):
        list_versions("nothing")


def test_a_difference_lists_and_shows_what_changed(two_versions: tuple[Committed, Committed], tmp_path: Path) -> None:
    first, second = two_versions
    sheet = tmp_path / "sheet.png"
    ((category, difference, path),) = diff_versions(first.commit, second.commit, "widget", sheet)
    assert (category, path) == ("widget", sheet)
    assert difference.added == ("train/good/x.png", "train/good/y.png")
    assert difference.removed == ("train/good/000.png",)
    assert difference.changed == ("train/good/001.png",)
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.width > 5 * 48
    assert diff_versions(second.commit, "HEAD", "widget", sheet) == []
    with pytest.raises(UserError, match="no version 'v9'"):
        diff_versions("v9", "HEAD", "widget")


@pytest.mark.slow
def test_what_was_pushed_comes_back_byte_for_byte_in_another_place(
    git_project: Project, two_versions: tuple[Committed, Committed], remote: Remote, tmp_path: Path
) -> None:
    wanted = {path.name: path.read_bytes() for path in (FOLDER / "train/good").iterdir()}
    objects = {oid for version in two_versions for oid in (version.digest, *manifest(version).values())}
    assert push().objects == len(objects)
    assert push().objects == 0
    shutil.rmtree(CACHE)
    shutil.rmtree(FOLDER)
    first, second = two_versions
    ((_, difference, _),) = diff_versions(first.commit, second.commit, "widget", tmp_path / "sheet.png")
    assert len(difference.added) == 2  # the lists and the pictures came from the remote
    assert not FOLDER.exists()
    assert pull("widget").objects > 0
    assert {path.name: path.read_bytes() for path in (FOLDER / "train/good").iterdir()} == wanted


@pytest.mark.slow
def test_damage_on_either_side_is_found_named_and_repaired_from_the_other(
    git_project: Project, two_versions: tuple[Committed, Committed], remote: Remote
) -> None:
    push()
    first, second = two_versions
    old, new = manifest(first), manifest(second)
    assert verify().findings == ()
    damage(cached(new["train/good/x.png"]))
    cached(old["train/good/000.png"]).unlink()  # only the old version has it
    remote.write(new["test/blob/002.png"], b"not what it was")
    remote.delete(second.digest)
    found = verify()
    assert {(one.store, found.names[one.oid], one.state) for one in found.findings} == {
        ("cache", "widget/train/good/x.png", "corrupt"),
        ("cache", "widget/train/good/000.png", "missing"),
        ("remote", "widget/test/blob/002.png", "corrupt"),
        ("remote", "widget (list of files)", "missing"),
    }
    assert len(verify(current_only=True).findings) == 3
    assert len(found.unrepaired) == 4
    assert verify(repair=True).unrepaired == []
    assert verify().findings == ()
    assert "up to date" in git_project.dvc("status", FILE.as_posix()).stdout


def test_without_a_remote_the_cache_alone_is_looked_at(two_versions: tuple[Committed, Committed]) -> None:
    damage(cached(manifest(two_versions[1])["train/good/y.png"]))
    found = verify(repair=True)
    assert list(found.checked) == ["cache"]
    assert [found.names[one.oid] for one in found.unrepaired] == ["widget/train/good/y.png"]


def test_a_file_of_the_project_that_is_a_hard_link_is_repaired_with_the_cache(
    git_project: Project, tmp_path: Path
) -> None:
    with open_project() as repo, repo.config.edit("repo") as config:
        config["cache"]["type"] = ["hardlink"]
    with open_project() as repo:
        set_remote(repo, str(tmp_path / "store"))
    version = commit_folder("widget")
    push()
    path = FOLDER / "train/good/002.png"
    whole = path.read_bytes()
    assert path.samefile(cached(manifest(version)["train/good/002.png"]))
    damage(path)
    assert verify(repair=True).unrepaired == []
    assert path.read_bytes() == whole
    assert "up to date" in git_project.dvc("status", FILE.as_posix()).stdout


def test_a_message_that_is_no_utf8_is_listed(git_project: Project) -> None:
    commit_folder("widget")
    commit = git_project.git("cat-file", "commit", "HEAD").encode().replace(b"Data of", "geprüft:".encode("latin-1"))
    write = ["git", "hash-object", "-t", "commit", "-w", "--stdin"]  # `git commit` itself mends it
    made = subprocess.run(write, input=commit + b"\n", capture_output=True, check=True)
    git_project.git("update-ref", "HEAD", made.stdout.decode().strip())
    (version,) = list_versions("widget")
    assert version.message.startswith("gepr\ufffdft: widget: +14")


@pytest.mark.slow
def test_a_remote_that_does_not_answer_is_one_sentence(git_project: Project) -> None:
    commit_folder("widget")
    with pytest.raises(UserError, match="No remote is set"):
        push()
    with open_project() as repo:
        set_remote(repo, "s3://bucket/there")
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hidden"}
    away = Project(git_project.folder, {**git_project.environment, **nowhere, "AWS_MAX_ATTEMPTS": "1"})
    done = away.flawline("data", "push")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert "hidden" not in done.stderr


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/a", "gs://bucket", "s3://"])
def test_keys_are_never_written_and_only_known_addresses_taken(git_project: Project, url: str) -> None:
    before = Path(".dvc/config").read_bytes()
    with pytest.raises(UserError) as raised, open_project() as repo:
        set_remote(repo, url)
    assert "secret" not in str(raised.value).replace("AWS_SECRET_ACCESS_KEY", "")
    assert Path(".dvc/config").read_bytes() == before


@pytest.mark.slow
def test_the_commands_tell_the_story(git_project: Project, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "in" / name, surface(generator))
    (tmp_path / "in" / "note.txt").write_text("no image")
    shutil.copy(FOLDER / "train/good/003.png", tmp_path / "in" / "again.png")
    assert git_project.flawline("data", "add", "data/tiny/widget", "--category", "widget").returncode == 0
    added = git_project.flawline("data", "add", tmp_path / "in", "--category", "widget")
    assert "Data of widget: +2 good images; 16 good and 8 test images in all" in added.stdout, added.stderr
    assert "already there, skipped: again.png (as train/good/003.png)" in added.stdout
    assert "note.txt" in added.stdout
    rows = json.loads(git_project.flawline("data", "versions", "widget", "--json").stdout)
    assert [row["good"] for row in rows] == [16, 14]
    assert rows[0]["digest"] == digest_at("HEAD", FILE)
    (changed,) = json.loads(git_project.flawline("data", "diff", "HEAD~1", "--json").stdout)
    assert changed["added"] == ["train/good/a.png", "train/good/b.png"]
    assert (git_project.folder / SHEET.with_stem("data-diff-widget")).is_file()
    damage(next(path for path in CACHE.rglob("*") if path.is_file() and path.suffix != ".dir"))
    verified = git_project.flawline("data", "verify")
    assert verified.returncode == 1
    assert "is corrupt" in verified.stdout
    assert "1 objects are missing or corrupt" in verified.stderr


@pytest.mark.slow
def test_a_capsules_name_for_what_it_learned_is_that_of_the_version_that_holds_it(git_project: Project) -> None:
    """Whatever lies in the folder besides training images, and whatever these are called."""
    folder = Path("data/tiny/widget")
    shutil.copy(folder / "train/good/000.png", folder / "train/good/again.png")
    (folder / "validation/good").mkdir(parents=True)
    write_image(folder / "validation/good/new.png", surface(np.random.default_rng(9)))
    (folder / "train/good/notes.part").write_text("ignored by DVC")
    (folder / "licence.txt").write_text("free")
    commit_folder("widget")
    (version,) = list_versions("widget")
    table = image_table(list_category(folder), ImageLimits())
    assert learned_images(table)["data_digest"] == version.learned
    assert digest_of_folder(folder) == version.digest
    (folder / "test/good/000.png").unlink()
    (folder / "train/good/000.png").rename(folder / "train/good/renamed.png")
    commit_folder("widget")
    latest = list_versions("widget")[0]
    assert latest.digest != version.digest
    assert latest.learned == version.learned
