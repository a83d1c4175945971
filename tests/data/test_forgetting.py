"""An image that must go leaves the data, and with `erase` all that keeps its bytes; a record without it says so."""

import json
import shutil
from hashlib import md5, sha256
from pathlib import Path

import pytest

from components.arrivals.delivery import facts_cache
from components.data.version import good_images
from components.foundation.byte_cache import ByteCache
from components.foundation.errors import UserError
from components.foundation.files import write_json
from components.foundation.params import load_params
from components.foundation.places import KNOWN
from components.registry import kept_scores
from components.registry.forgotten import list_forgotten
from flows.data import forgetting
from flows.data.evidence import keep
from flows.data.forgetting import forget
from flows.data.history import verify
from flows.data.transfer import push
from flows.data.versions import commit_folder, commit_images, digest_at
from flows.retraining.running import running
from tests.arriving import ended, started
from tests.dying import die_before, kill_flawline
from tests.project import Project, is_one_sentence, new_images

FOLDER, RECORD = Path("data/tiny/widget"), Path("data/tiny/widget.forgotten.json")
GONE = "train/good/003.png"


def object_named(digest: str) -> Path:
    return Path(".dvc/cache/files/md5") / digest[:2] / digest[2:]


def object_of(data: bytes, store: str = ".dvc/cache") -> Path:
    name = md5(data, usedforsecurity=False).hexdigest()
    return Path(store) / "files/md5" / name[:2] / name[2:]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_bytes_that_another_file_needs_are_kept(git_project: Project) -> None:
    data = (FOLDER / GONE).read_bytes()
    Path("data/tiny/gadget/train/good/same.png").write_bytes(data)
    commit_folder("gadget")
    commit_folder("widget")
    done = forget("widget", [GONE], "wrong", erase=True)
    assert (done.erased, done.kept) == (0, (GONE,))
    assert object_of(data).is_file()


@pytest.mark.slow
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


COMMITTED = r"Popen git .* commit .*Data of widget"
STEPS = (  # in their order; each is reached by who ends what was killed before the step above
    (r"os\.rename .*forgetting/widget\.json",),
    (r"os\.rename .*widget\.forgotten\.json",),
    (rf"os\.remove .*{GONE}",),
    (r"os\.remove .*copy\.png",),
    (r"os\.remove .*copy\.png", r"open .*widget\.dvc"),
    (COMMITTED,),
    (COMMITTED, "Popen git"),
    (r"Popen git .* commit .*Evidence of widget",),
    (r"os\.remove .*cache/files/md5/",),
    (r"os\.remove .*store/files/md5/",),
    (r"os\.remove .*facts\.json",),
    (r"os\.rename .*scores/",),
    (r"os\.remove .*forgetting/widget\.json",),
)


def make_erasable(project: Project) -> list[bytes]:
    """A version with an image twice, which is also in the remote, the evidence and the caches; what tells of it."""
    shutil.copy(FOLDER / GONE, FOLDER / "train/good/copy.png")
    commit_folder("widget")
    data, seen = (FOLDER / GONE).read_bytes(), b"what was seen of it " * 9
    keep("widget", FOLDER / GONE, None, kind="good", note="a person is in it", verdict={})
    project.dvc("remote", "add", "--default", "store", "store")
    push("widget")
    digest = sha256(data).hexdigest()
    known = ByteCache(KNOWN, load_params().cache.max_bytes)
    known.write({"of the image": (digest, seen), "of another": ("0" * 64, b"what was seen of another")})
    known.close()
    write_json(facts_cache("widget"), {digest: {}})
    write_json(kept_scores.FOLDER / f"{'1' * 64}.json", {digest: 0.123456789, "0" * 64: 1.0})
    return [data, seen, b"0.123456789"]


def holding(folder: Path, content: bytes) -> list[Path]:
    """The files in a folder, hidden ones too, that hold these bytes."""
    return [path for path in folder.rglob("*") if path.is_file() and content in path.read_bytes()]


@pytest.mark.slow
def test_killed_before_every_step_and_within_git_it_is_ended_by_the_last_call(git_project: Project) -> None:
    tells = make_erasable(git_project)
    others = {path: path.read_bytes() for path in FOLDER.rglob("*.png") if path.read_bytes() != tells[0]}
    command = ("forget", "widget", f"{FOLDER}/{GONE}", "--reason", "a person is in it", "--erase")
    for step in STEPS:
        if step == (COMMITTED,):
            kill_within_git(git_project, *command)
        assert ended(started(git_project, forget_in_person, die_before, *step)) == -9
    done = git_project.flawline(*command)
    assert done.returncode == 0, done.stderr
    assert [holding(git_project.folder, content) for content in tells] == [[], [], []]
    assert holding(git_project.folder, b"what was seen of another") == [KNOWN.absolute()]
    assert {path: path.read_bytes() for path in FOLDER.rglob("*.png")} == others
    assert git_project.git("log", "--format=%s").splitlines() == [
        "Evidence of widget: without what was forgotten",
        "Data of widget: -2 good images; 13 good and 8 test images in all",
        "Evidence of widget: a false alarm",
        "Data of widget: +15 good images, +8 test images, +4 masks; 15 good and 8 test images in all",
        "Begin",
    ]
    (entry,) = list_forgotten(RECORD).values()
    assert (entry.digest, len(entry.erased)) == (sha256(tells[0]).hexdigest(), 2)  # the image, and what was judged
    assert git_project.git("status", "--porcelain", "--untracked-files=no") == "M .dvc/config"
    assert not Path(".flawline/forgetting/widget.json").exists()
    push("widget")
    assert not verify("widget").findings


def forget_in_person() -> None:
    forget("widget", [GONE], "a person is in it", erase=True)


def kill_within_git(project: Project, *command: str) -> None:
    """kill -9 while `git commit` is at work; what git leaves locked is said, and for a person to unlock."""
    hook = project.folder / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nkill -9 0\n")
    hook.chmod(0o755)
    kill_flawline(project, ["what is not done"], *command)
    hook.unlink()
    said = project.flawline(*command).stderr
    assert is_one_sentence(said)
    assert ".git/index.lock" in said
    (project.folder / ".git/index.lock").unlink()


def test_what_was_begun_without_erasing_is_erased_where_the_next_call_asks_for_it(
    git_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_folder("widget")
    data, other = (FOLDER / GONE).read_bytes(), (FOLDER / "train/good/004.png").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "commit_present", cut_short)
        with pytest.raises(KeyboardInterrupt):
            forget("widget", [GONE, "train/good/004.png"], "wrong")
    done = forget("widget", [FOLDER / GONE], "a person is in it", erase=True)
    assert (len(done.files), done.erased) == (2, 1)
    assert not object_of(data).exists()
    assert object_of(other).exists()
    assert sorted(len(one.erased) for one in list_forgotten(RECORD).values()) == [0, 1]


@pytest.mark.slow
def test_what_was_forgotten_can_be_erased_later_by_its_digest(git_project: Project) -> None:
    name, mask = "test/blob/000.png", "ground_truth/blob/000_mask.png"
    commit_folder("widget")
    gone = [(FOLDER / one).read_bytes() for one in (name, mask)]
    digest = sha256(gone[0]).hexdigest()
    forget("widget", [name], "wrong")
    new_images(FOLDER / "test/blob", 1)[0].rename(FOLDER / name)  # another image by that name
    commit_folder("widget")
    done = forget("widget", [digest[:12]], "a person is in it", erase=True)
    assert (done.erased, done.message) == (2, "Data of widget: what was forgotten")
    assert not any(object_of(data).exists() for data in gone)
    assert (FOLDER / name).is_file()
    (entry,) = list_forgotten(RECORD).values()
    assert (entry.digest, entry.reason, len(entry.erased)) == (digest, "a person is in it", 2)
    assert not verify("widget").findings
    with pytest.raises(UserError, match="is no image of widget"):
        forget("widget", [digest[:12]], "again", erase=True)


def cut_short(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_bytes_that_a_category_in_another_folder_needs_are_kept(git_project: Project) -> None:
    data = (FOLDER / GONE).read_bytes()
    shutil.copytree(FOLDER, "data/other/part")
    commit_folder("part", root="data/other")
    git_project.set_params({"data": {"root": "data/tiny", "categories": ["widget"]}})
    commit_folder("widget")
    assert forget("widget", [GONE], "wrong", erase=True).kept == (GONE,)
    assert object_of(data).is_file()


def test_nothing_is_erased_while_a_run_would_keep_anew_what_it_has_read(git_project: Project) -> None:
    commit_folder("widget")
    with running("a retraining"):
        done = git_project.flawline("forget", "widget", GONE, "--reason", "a person is in it", "--erase")
    assert is_one_sentence(done.stderr)
    assert "Another run is at work" in done.stderr
    assert (FOLDER / GONE).is_file()
