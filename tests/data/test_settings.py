"""`flawline run --preset … --set …` edits params.yaml as a careful person would, or not at all."""

import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from components.foundation.errors import UserError
from components.foundation.params import Params, load_params, parse_params, preset_names, read_preset
from flows.data.settings import edit_params

PROJECT = Path(__file__).parents[2]
TEXT = """\
# At the top.
method: pretrained   # no training
seed: 7              # ours
threads: 1

# Where it is.
data:
  root: elsewhere    # a disk
  categories: [bolt, nut]
limits:
  max_pixels: 1000000
training:
  steps: 5           # few
  projection: [16]
# At the end.
"""
COMMENTS = [line.split("#")[1] for line in TEXT.splitlines() if "#" in line]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TEXT)
    return tmp_path / "params.yaml"


def test_without_an_edit_nothing_is_written(path: Path) -> None:
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert edit_params() == load_params(path)
    assert path.read_text() == TEXT
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_the_demo_preset_changes_nothing_in_the_projects_own_file(path: Path) -> None:
    """The file in the project is the demo's, so a first `flawline run --preset demo` leaves it as it is in git."""
    shutil.copy(PROJECT / "params.yaml", path)
    before = path.read_text()
    edit_params("demo")
    assert path.read_text() == before


def test_a_set_value_is_there_and_nothing_else_changed(path: Path) -> None:
    params = edit_params(settings=["training.steps=9"])
    assert path.read_text() == TEXT.replace("steps: 5 ", "steps: 9 ")
    assert params == load_params(path)
    assert params.training.steps == 9


def test_a_section_and_a_key_that_were_not_there_are_added(path: Path) -> None:
    edit_params(settings=["fit.best=3", "training.rate=1e-4", "seed=8"])
    found = load_params(path)
    assert (found.fit.best, found.training.rate, found.seed) == (3, 1e-4, 8)
    assert all(comment in path.read_text() for comment in COMMENTS)


def test_values_have_the_types_of_yaml(path: Path) -> None:
    settings = [
        "training.projection=[512, 256]",
        "training.freeze_batch_norm=false",
        "backbone.weights=/a folder/w=1.pth",
        "data.categories=[screw]",
    ]
    params = edit_params(settings=settings)
    assert params == load_params(path)
    assert params.training.projection == (512, 256)
    assert params.training.freeze_batch_norm is False
    assert params.backbone.weights == "/a folder/w=1.pth"
    assert params.data.categories == ("screw",)


def test_values_are_applied_before_settings(path: Path) -> None:
    params = edit_params(settings=["data.root=last"], values={"data.root": "first", "data.categories": ["a"]})
    assert (params.data.root, params.data.categories) == ("last", ("a",))
    assert load_params(path) == params


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_how_and_leaves_where(path: Path, name: str) -> None:
    """The result is the preset over the defaults, whatever the file said before, but for data, limits and machine."""
    params = edit_params(name)
    kept = load_params(path)
    assert params == kept
    own = {"data": {"root": "elsewhere", "categories": ["bolt", "nut"]}, "limits": {"max_pixels": 1_000_000}}
    expected: Params = parse_params({**read_preset(name), **own, "seed": 7, "threads": 1}, name)
    assert params == expected
    assert all(comment in path.read_text() for comment in COMMENTS)


def test_a_preset_twice_is_the_preset_once(path: Path) -> None:
    edit_params("cpu")
    once = path.read_text()
    edit_params("cpu")
    assert path.read_text() == once


def test_settings_win_over_the_preset(path: Path) -> None:
    assert edit_params("demo", ["image.side=64"]).image.side == 64
    assert load_params(path).image.side == 64


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.epochs=3", "training.epochs"),
        ("trainnig.steps=3", "trainnig"),
        ("training.steps=-1", "training.steps"),
        ("training.steps=many", "training.steps"),
        ("training=3", "training"),
        ("training.steps.more=3", "steps"),
        ("seed.x=3", "seed"),
        ("training.steps", "SECTION.KEY=VALUE"),
        ("=3", "SECTION.KEY=VALUE"),
        ("training.projection=[1", "training.projection"),
        ("data.root={", "data.root"),
        (".=1", "."),
        ("threads=true", "threads"),
        ("threads=10000", "threads"),
        ("threads=2.5", "threads"),
        ("seed=100000000000000000000", "seed"),
        ("seed=false", "seed"),
        ("seed=null", "seed"),
        ("training.rate=inf", "training.rate"),
        ("training.rate=.inf", "training.rate"),
        ("training.rate=.nan", "training.rate"),
        ("training.rate='0.1'", "training.rate"),
        ("training.projection=[0]", "training.projection"),
        ("training.projection=[true]", "training.projection"),
        ("training.projection=512", "training.projection"),
        ("training.freeze_batch_norm=1", "training.freeze_batch_norm"),
        ("training.freeze_batch_norm=yes", "training.freeze_batch_norm"),
        ("training.batch=1e9", "training.batch"),
        ("network.strides=[3, 3]", "strides"),
        ("network.widths=[-1]", "network.widths"),
        ("network.epochs_of={'../x': 3}", "network.epochs_of"),
        ("network.rotated=[a, a]", "network.rotated"),
        ("fit.folds=1000", "fit.folds"),
        ("fit.levels=[b1, b1]", "fit.levels"),
        ("fit.levels=[b1; rm]", "fit.levels"),
        ("fit.gradcam_level=../x", "fit.gradcam_level"),
        ("ingest.retrain_hours=1e12", "ingest.retrain_hours"),
        ("ingest.source=''", "ingest.source"),
        ("ingest.source=https://x/y", "ingest.source"),
        ("backbone.weights=''", "backbone.weights"),
        ("backbone.name=''", "backbone.name"),
        ("fetch.archives={'../x': {url: 'https://x', sha256: 0}}", "fetch.archives"),
        ("fetch.archives.x={url: 'file:///etc/passwd', sha256: " + 64 * "a" + "}", "fetch.archives.x.url"),
        ("data.root=/", "data.root"),
        ("data.root=", "data.root"),
        ("data.root=$(touch PWNED)", "data.root"),
        ("data.root='${seed}'", "data.root"),
        ("data.root=artifacts", "data.root"),
        ("data.root=s3://bucket/data", "data.root"),
        ("data.categories=[../x]", "data.categories"),
        ("data.categories=[a, a]", "data.categories"),
        ("data.categories=[]", "data.categories"),
        ("data.categories=bolt", "data.categories"),
        ("data.categories=[a;b]", "data.categories"),
        ("data.categories=[007]", "data.categories"),
        ("data.categories=[{a: 1}]", "data.categories"),
        ("data={root: data, categories: [-rf]}", "data.categories"),
        ("training.rate=!!python/name:os.system", "training.rate"),
        ("training.steps=2024-13-45", "training.steps"),
        ("training.steps=&a [*a]", "training.steps"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_is_written(path: Path, setting: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        edit_params("cpu", ["image.side=64", setting])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == TEXT
    written = [each.relative_to(path.parent).as_posix() for each in path.parent.rglob("*") if each.is_file()]
    assert sorted(written) == [".flawline/locks/params.lock", "params.yaml"]


def test_an_unknown_preset_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="no preset 'nope'"):
        edit_params("nope")
    assert path.read_text() == TEXT


def test_a_broken_file_is_left_as_it_is(path: Path) -> None:
    path.write_text("data: [")
    with pytest.raises(UserError, match="not valid YAML"):
        edit_params("demo")
    assert path.read_text() == "data: ["


def test_a_missing_file_is_said(path: Path) -> None:
    path.unlink()
    with pytest.raises(UserError, match=r"There is no params\.yaml"):
        edit_params("demo")
    assert not path.exists()


@pytest.mark.parametrize(
    "name",
    ["off", "On", "yes", "NO", "null", "Null", "true", "1e3", "0x1", "007", "1_000", "2024-01-01", "12", "0b1", "y"],
)
def test_a_category_with_the_name_of_something_else_stays_a_text_to_every_reader(path: Path, name: str) -> None:
    """YAML 1.1 and 1.2 disagree about off and 1e3; PyYAML reads the one, DVC and this project the other."""
    edit_params(values={"data.categories": [name, "bolt"]})
    assert yaml.safe_load(path.read_text())["data"]["categories"] == [name, "bolt"]
    assert load_yaml(str(path))["data"]["categories"] == [name, "bolt"]
    assert load_params(path).data.categories == (name, "bolt")
    edit_params(settings=["training.steps=6", f"network.epochs_of={{'{name}': 3}}"])
    assert yaml.safe_load(path.read_text())["data"]["categories"] == [name, "bolt"]
    assert yaml.safe_load(path.read_text())["network"]["epochs_of"] == {name: 3}
    assert load_params(path).network.epochs_of == {name: 3}


def test_a_folder_with_the_name_of_something_else_stays_a_text(path: Path) -> None:
    for root in ("1:30", "off", "12"):
        edit_params(values={"data.root": root})
        assert yaml.safe_load(path.read_text())["data"]["root"] == root == load_params(path).data.root


def test_a_mark_at_the_beginning_of_the_file_stays(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    edit_params(settings=["training.steps=9"])
    assert load_params(path).training.steps == 9


def test_what_is_refused_on_the_command_line_is_not_said_to_be_in_the_file(path: Path) -> None:
    with pytest.raises(
        UserError, match=r"With these options params\.yaml: 'threads' is impossible .*nothing was written"
    ):
        edit_params(settings=["threads=0"])


def test_new_weights_come_with_the_digest_of_their_file(path: Path) -> None:
    Path("weights.pth").write_bytes(b"abc")
    assert edit_params(None, ["backbone.weights=weights.pth"]).backbone.sha256.startswith("ba7816bf")
    assert load_params(path).backbone.sha256.endswith("f20015ad")
    assert edit_params(None, ["backbone.weights=none"]).backbone.sha256 == ""
    assert load_params(path).backbone.sha256 == ""
