"""A name from a disk, a command line, a file or a server is text: nothing in it is run, followed or expanded."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.version import good_images
from components.evaluation.figures import score_histogram
from components.evaluation.sheets import contact_sheet
from components.foundation.errors import UserError, printable
from components.foundation.names import check_category_name, check_category_names, check_data_root
from components.foundation.params import data_params, parse_params
from components.images.dataset import find_categories, list_category
from components.registry import versions as registry
from components.tracking.connection import connect
from components.tracking.runs import find_run
from flows.commands.tables import print_table
from flows.data.history import list_versions
from flows.data.settings import edit_params
from flows.data.transfer import pull
from flows.data.versions import commit_images
from flows.retraining.pending import find_pending
from flows.retraining.stages import StageFailedError, reproduce, target_of
from tests.project import Project, is_one_sentence, new_images, write_category

HOSTILE = [
    "a;touch PWNED;b",
    "$(touch PWNED)",
    "`touch PWNED`",
    "a\ntouch PWNED\nb",
    "a && touch PWNED",
    "a|b",
    "-rf",
    "--force",
    "..",
    ".",
    ".hidden",
    "a/b",
    "../x",
    "/x",
    "${seed}",
    "{{ event }}",
    "a@b",
    "a'b",
    'a"b',
    "a*",
    "a b",
    " a",
    "a\0b",
    "a\x1b[31m",
    "größe",
    "\u0430",  # Cyrillic
    "٣",
    "a.lock",
    "a:b",
    "s3://a",
    "",
    "a" * 101,
    "\udcff",
]
FIT = ["brick", "007", "off", "1e3", "A-b_c", "a" * 100, "x-"]
HOSTILE_ROOTS = [
    "",
    "/",
    "//",
    "/tmp/..",
    "$(touch PWNED)",
    "`x`",
    "${seed}",
    "data\ntouch PWNED",
    "data\0",
    " data",
    "data ",
    "-data",
    ":(exclude)data",
    "~/data",
    "data/*",
    "data\\x",
    "s3://bucket/data",
    "http://host/data",
    ".git/x",
    "./.dvc",
    "artifacts",
    "artifacts/brick",
    "data/../metrics",
    ".flawline",
    "data\udcff",
]
FIT_ROOTS = ["data", "data/line 1", "../images", "/mnt/Müller's R&D (2024) [x]", ".", "..", "data/artifacts", "a:b"]


def said_by(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 400
    return sentence


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_name_a_category_is_refused_in_one_line(name: str) -> None:
    assert "cannot name a category" in said_by(lambda: check_category_name(name))


@pytest.mark.parametrize("name", FIT)
def test_what_can_name_a_category_passes(name: str) -> None:
    check_category_name(name)


@given(st.text(max_size=12) | st.text("abc-_.;$`'\"\n @/{}~*0", max_size=6))
def test_a_name_that_passes_is_the_same_to_a_shell_git_and_a_file_system(name: str) -> None:
    try:
        check_category_name(name)
    except UserError:
        return
    assert shlex.split(name) == [name] == [shlex.quote(name)]
    assert Path("x", name).parts == ("x", name)
    assert name.isascii()
    assert not name.startswith("-")
    ref = f"refs/flawline/{name}/7"
    assert subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0


@pytest.mark.parametrize("names", [["a", "a"], ["bolt", "Bolt"]])
def test_one_name_twice_is_refused_even_if_capital_letters_differ(names: list[str]) -> None:
    assert "name each category once" in said_by(lambda: check_category_names(names))


@pytest.mark.parametrize("root", HOSTILE_ROOTS)
def test_what_cannot_be_the_folder_of_the_data_is_refused(root: str) -> None:
    said_by(lambda: check_data_root(root))


@pytest.mark.parametrize("root", FIT_ROOTS)
def test_what_can_be_the_folder_of_the_data_passes(root: str) -> None:
    check_data_root(root)


def content(**data: Any) -> dict[str, Any]:
    return {"data": {"root": "data", "categories": ["bolt"], **data}}


ENTRIES: dict[str, Callable[[str], Any]] = {
    "params.yaml": lambda name: parse_params(content(categories=["bolt", name]), "params.yaml"),
    "epochs of a category": lambda name: parse_params(content() | {"network": {"epochs_of": {name: 3}}}, "params.yaml"),
    "turned categories": lambda name: parse_params(content() | {"network": {"rotated": [name]}}, "params.yaml"),
    "an archive": lambda name: parse_params(
        content() | {"fetch": {"archives": {name: {"url": "https://x", "sha256": "0" * 64}}}}, "params.yaml"
    ),
    "a new category": lambda name: data_params("data", [name]),
    "a folder": lambda name: list_category(Path("data") / name),
    "a stage": lambda name: target_of("train", name),
    "a model": registry.model_name,
    "a champion": registry.download_capsule,
    "a journal": registry.journal,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", ["a;touch PWNED;b", "-rf", "a\nb", "${seed}", "a'b", "größe", "a" * 101])
def test_a_name_is_checked_at_every_entry(entry: str, name: str, workspace: Path) -> None:
    assert "cannot name a category" in said_by(lambda: ENTRIES[entry](name))
    assert [path.name for path in workspace.iterdir()] == [".flawline"]


def test_folders_with_names_of_no_category_are_refused_before_anything_is_written(project: Project) -> None:
    root = project.folder.parent / "foreign"
    write_category(root / "a;touch PWNED;b", seed=1, defects=0, train=1)
    before = (project.folder / "params.yaml").read_bytes()
    done = project.flawline("run", "--data", root)
    assert done.returncode == 1
    assert is_one_sentence(done.stderr)
    assert "a;touch PWNED;b" in done.stderr
    assert (project.folder / "params.yaml").read_bytes() == before
    assert not (project.folder / "PWNED").exists()
    assert not (project.folder / "artifacts").exists()


def test_hidden_folders_are_no_categories(tmp_path: Path) -> None:
    for name in ("bolt", ".bolt.part", ".ipynb_checkpoints"):
        (tmp_path / name / "train" / "good").mkdir(parents=True)
    assert find_categories(tmp_path) == ["bolt"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "$(touch PWNED)"),
        ("ingest", "$(touch PWNED)"),
        ("data", "add", "new", "--category", "$(touch PWNED)"),
        ("data", "versions", "$(touch PWNED)"),
        ("data", "diff", "HEAD", "--category", "$(touch PWNED)"),
        ("data", "diff", "--", "--output=PWNED"),
        ("data", "verify", "$(touch PWNED)"),
        ("data", "pull", "$(touch PWNED)"),
        ("data", "push", "$(touch PWNED)"),
        ("data", "fetch", "$(touch PWNED)"),
        ("score", "data/tiny/widget/test/good/000.png", "--category", "$(touch PWNED)"),
    ],
    ids=" ".join,
)
def test_a_command_that_gets_such_a_name_says_one_sentence_and_does_nothing(
    arguments: tuple[str, ...], git_project: Project
) -> None:
    (git_project.folder / "new").mkdir()
    before = git_project.git("status", "--porcelain")
    done = git_project.flawline(*arguments)
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert git_project.git("status", "--porcelain") == before
    assert not (git_project.folder / "PWNED").exists()


@pytest.mark.slow
def test_dvc_alone_runs_nothing_of_a_name_and_one_sentence_says_so(project: Project, tmp_path: Path) -> None:
    """A params.yaml that was edited by hand, and `dvc repro` without flawline."""
    own = project.copy(tmp_path / "own")
    names = ["a;touch PWNED;$(touch PWNED)", "a\ntouch PWNED\nb", "-rf"]
    for name in names:
        write_category(own.folder / "data" / "tiny" / name, seed=1, defects=0, train=1)
    own.set_params({"data": {"categories": names}})
    done = own.dvc("repro", "--keep-going")
    assert done.returncode != 0
    assert done.stderr.count("cannot name a category") == len(names), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(own.folder.rglob("PWNED"))


def test_a_model_of_others_does_not_stop_the_status(workspace: Path) -> None:
    client, _ = connect()
    for name in ("flawline-a b", "flawline-", "Flawline-x", "flawline-b'c"):
        client.create_registered_model(name)
    assert registry.list_status() == []


@pytest.mark.parametrize("digest", ["../../elsewhere", "", "a' OR name LIKE '%", "a" * 63])
def test_a_digest_from_elsewhere_is_no_path_and_no_query(digest: str, workspace: Path) -> None:
    """Whoever may write to MLflow may set a version's tags."""
    client, _ = connect()
    client.create_registered_model("flawline-bolt")
    run = client.create_run("0").info
    client.create_model_version("flawline-bolt", run.artifact_uri, run.run_id, {"capsule_digest": digest})
    assert "name no capsule" in said_by(lambda: registry.download_capsule("bolt", 1))
    assert "no version 10" in said_by(lambda: registry.download_capsule("bolt", 10**30))
    assert find_run(digest) == ""
    assert [path.name for path in workspace.iterdir()] == [".flawline"]


def test_the_folder_of_the_data_is_no_pattern_to_git(git_project: Project) -> None:
    """In git's own language [12] means 1 or 2: the versions of the one are not those of the other."""
    for root, seed in (("data/line[12]", 1), ("data/line1", 2)):
        commit_images("bolt", good_images(new_images(git_project.folder / f"new{seed}", 3, seed)), root=root)
    edit_params(values={"data.root": "data/line[12]"})
    (version,) = list_versions("bolt")
    assert version.images == 3


def test_a_fit_name_is_a_targets_and_nothing_is_pending_for_another(git_project: Project) -> None:
    assert target_of("fit", "007") == "fit@007"
    said_by(lambda: find_pending(["$(x)"]))
    said_by(lambda: pull("a b"))


@pytest.mark.parametrize("name", ["[/].png", "[red]x[/red]", "a\x1b[31mb", "a\nb", "\udcff", "[link=http://x]y[/link]"])
def test_a_table_shows_a_name_as_it_is(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    print_table([{"image": name, "score": 1.5}], {"image": "image", "score": name})
    lines = capfd.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert sum(printable(name) in line for line in lines) == 2


@pytest.mark.parametrize("kind", [r"$\frac$", "a$b$c", "\udcff", "a\nb", "[/]"])
def test_a_kind_of_defect_is_drawn_whatever_its_folder_is_called(kind: str, tmp_path: Path) -> None:
    score_histogram([1.0, 2.0], {kind: [3.0]}, 2.5, tmp_path / "scores.png")
    contact_sheet([np.zeros((32, 32, 3), np.uint8)], [kind], tmp_path / "sheet.png", title=kind)
    assert len(list(tmp_path.glob("*.png"))) == 2


CONFLICT = "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '3.0'\n>>>>>>> other\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONFLICT, "dvc.lock holds git's marks of a merge conflict (line 1): settle it"),
        ("a: 1\na: 2\n", 'dvc.lock is not valid YAML (line 2, column 1: found duplicate key "a"'),
        ("a: [\n", "dvc.lock is not valid YAML"),
    ],
)
def test_a_file_of_dvc_that_cannot_be_read_is_named(content: str, said: str, git_project: Project) -> None:
    (git_project.folder / "dvc.lock").write_text(content)
    with pytest.raises(StageFailedError) as caught:
        reproduce("validate@widget")
    assert said in str(caught.value)
    assert said in said_by(find_pending)


def test_a_version_with_a_merge_conflict_is_named(git_project: Project) -> None:
    edit_params(values={"data.root": "data/line"})
    commit_images("bolt", good_images(new_images(git_project.folder / "new", 3)))
    Path("data/line/bolt.dvc").write_text(CONFLICT)
    said = said_by(lambda: commit_images("bolt", good_images(new_images(git_project.folder / "more", 3, 9))))
    assert "data/line/bolt.dvc holds git's marks of a merge conflict (line 1)" in said
