"""An image that must go leaves the data, and with `erase` all that keeps its bytes; a record without it says so."""

import json
from hashlib import md5, sha256
from pathlib import Path

import pytest

from components.data.version import good_images
from components.foundation.errors import UserError
from components.registry.forgotten import list_forgotten
from flows.data import forgetting
from flows.data.evidence import keep
from flows.data.forgetting import forget
from flows.data.history import verify
from flows.data.transfer import push
from flows.data.versions import commit_folder, commit_images, digest_at
from tests.project import Project, new_images

FOLDER, RECORD = Path("data/tiny/widget"), Path("data/tiny/widget.forgotten.json")
GONE = "train/good/003.png"


def object_named(digest: str) -> Path:
    return Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]


def object_of(data: bytes, store: str = ".dvc/cache") -> Path:
    name = md5(data, usedforsecurity=False).hexdigest()
    return Path(store) / "files/md5" / name[:2] / name[2:]


def test_a_forgotten_image_leaves_the_data_and_a_record_without_it_stays(git_project: Project) -> None:
    commit_folder("widget")
    data = (FOLDER / GONE).read_bytes()
    (FOLDER / "train/good/copy.png").write_bytes(data)  # the same bytes are the same image
    commit_folder("widget")
    done = forget("widget", [GONE], "a scratch at the rim")
    assert done.files == (GONE, "train/good/copy.png")
    assert not any((FOLDER / name).exists() for name in done.files)
    assert git_project.git("rev-parse", "HEAD") == done.commit
    assert done.message == "Data of widget: -2 good images; 13 good and 8 test images in all"
    digest = sha256(data).hexdigest()
    assert git_project.git("log", "-1", "--format=%b") == f"Forgotten: {digest} (a scratch at the rim)"
    changed = git_project.git("show", "--format=", "--name-only", "HEAD").split()
    assert changed == ["data/tiny/widget.dvc", RECORD.as_posix()]
    (entry,) = json.loads(git_project.git("show", f"HEAD:{RECORD}"))
    assert (entry["digest"], entry["reason"], entry["erased"]) == (digest, "a scratch at the rim", [])
    assert GONE.rpartition("/")[2] not in RECORD.read_text()
    assert object_of(data).read_bytes() == data  # the versions before keep it
    assert "up to date" in git_project.dvc("status", "data/tiny/widget.dvc").stdout


def test_what_is_left_is_what_would_be_there_had_it_never_come(git_project: Project, tmp_path: Path) -> None:
    """The same version of the data, from which the same stages make the same bytes."""
    first = commit_folder("widget")
    more = commit_images("widget", good_images(new_images(tmp_path / "in", 2)))
    forget("widget", more.difference.added, "not good")
    assert digest_at("HEAD", Path("data/tiny/widget.dvc")) == first.digest != more.digest


def test_it_may_be_named_by_path_or_digest_and_takes_its_masks_along(git_project: Project) -> None:
    commit_folder("widget")
    forget("widget", [(FOLDER / "test/blob/000.png").resolve()], "wrong")
    assert not (FOLDER / "ground_truth/blob/000_mask.png").exists()
    digest = sha256((FOLDER / GONE).read_bytes()).hexdigest()
    assert forget("widget", [digest[:10].upper()], "wrong").files == (GONE,)
    with pytest.raises(UserError, match="is no image of widget"):
        forget("widget", [GONE], "wrong")
    assert set(list_forgotten(RECORD)) >= {digest}


def test_it_cannot_come_back(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    data = (FOLDER / GONE).read_bytes()
    forget("widget", [GONE], "a scratch")
    again = tmp_path / "again.png"
    again.write_bytes(data)
    with pytest.raises(UserError, match=r"was forgotten on .*a scratch"):
        commit_images("widget", good_images([again]))
    (FOLDER / "train/good/again.png").write_bytes(data)
    with pytest.raises(UserError, match=r"was forgotten on .*a scratch"):
        commit_folder("widget")


def test_changes_that_are_in_no_version_are_not_committed_along(git_project: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no version yet"):
        forget("widget", [GONE], "wrong")
    commit_folder("widget")
    new_images(FOLDER / "train/good", 1)
    with pytest.raises(UserError, match="changes that are in no version"):
        forget("widget", [GONE], "wrong")
    assert (FOLDER / GONE).exists()
    assert not RECORD.exists()


def test_erased_bytes_are_nowhere_in_cache_remote_and_evidence(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    data, other = (FOLDER / GONE).read_bytes(), (FOLDER / "train/good/004.png").read_bytes()
    for image in ("000", "001"):
        keep("widget", FOLDER / f"test/good/{image}.png", None, kind="good", note="", verdict={})
    shown = (FOLDER / "test/good/000.png").read_bytes()
    git_project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    push("widget")
    assert object_of(data, str(tmp_path / "store")).is_file()
    done = forget("widget", [GONE, "test/good/000.png"], "a person is in it", erase=True)
    for bytes_ in (data, shown):
        assert not object_of(bytes_).exists()
        assert not object_of(bytes_, str(tmp_path / "store")).exists()
    assert object_of(other).is_file()
    assert done.erased == 6  # two images and a record of evidence, in two stores
    assert len(list(Path("evidence/widget").glob("*.png"))) == 1
    push("widget")
    assert not verify("widget").findings


def test_bytes_that_another_file_needs_are_kept(git_project: Project) -> None:
    data = (FOLDER / GONE).read_bytes()
    Path("data/tiny/gadget/train/good/same.png").write_bytes(data)
    commit_folder("gadget")
    commit_folder("widget")
    done = forget("widget", [GONE], "wrong", erase=True)
    assert (done.erased, done.kept) == (0, (GONE,))
    assert object_of(data).is_file()


def test_nothing_is_erased_where_it_is_not_known_what_others_need(git_project: Project) -> None:
    """As in a clone that has fetched one category only."""
    data = (FOLDER / GONE).read_bytes()
    Path("data/tiny/gadget/train/good/same.png").write_bytes(data)
    listed = object_named(commit_folder("gadget").digest)
    commit_folder("widget")
    listed.rename("aside")
    with pytest.raises(UserError, match="Neither the cache nor the remote holds the object"):
        forget("widget", [GONE], "wrong", erase=True)
    assert object_of(data).read_bytes() == data
    Path("aside").rename(listed)
    done = forget("widget", [], "")  # what was begun is ended
    assert (done.erased, done.kept) == (0, (GONE,))


def test_evidence_of_which_the_list_is_nowhere_is_not_passed_over(git_project: Project) -> None:
    commit_folder("widget")
    keep("widget", FOLDER / "test/good/000.png", None, kind="good", note="", verdict={})
    digest = digest_at("HEAD", Path("evidence/widget.dvc"))
    assert digest
    object_named(digest).unlink()
    with pytest.raises(UserError, match="Neither the cache nor the remote holds the object"):
        forget("widget", ["test/good/000.png"], "a person is in it", erase=True)
    assert (FOLDER / "test/good/000.png").is_file()


@pytest.mark.parametrize("at", ["commit_present", "_erase"])
def test_what_was_cut_short_is_ended_by_the_next_call(
    git_project: Project, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    commit_folder("widget")
    data = (FOLDER / GONE).read_bytes()
    before = int(git_project.git("rev-list", "--count", "HEAD"))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, at, killed)
        with pytest.raises(KeyboardInterrupt):
            forget("widget", [GONE], "wrong", erase=True)
    done = forget("widget", [GONE], "wrong", erase=True)
    assert done.files == (GONE,)
    assert int(git_project.git("rev-list", "--count", "HEAD")) == before + 1
    assert not object_of(data).exists()
    assert len(list_forgotten(RECORD)) == 1
    assert not list(Path(".flawline/forgetting").iterdir())
