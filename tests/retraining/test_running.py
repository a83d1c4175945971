"""One run at a time in a project; it computes, and DVC records, what params.yaml said when it began."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from components.foundation.errors import UserError
from components.foundation.files import read_json
from components.foundation.params import SETTLED, load_params
from components.stages.command import run_stage
from flows.retraining.running import RUNNING, frozen_params, running
from flows.retraining.stages import reproduce
from tests.project import REPOSITORY, Project, is_one_sentence

HOLD = """
import sys
from flows.retraining.running import running
with running("flawline run bolt", {wait}):
    print("runs", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (RUNNING, SETTLED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: Path, wait: int = 0) -> "subprocess.Popen[str]":
    """A process that runs, or waits to, until its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD.format(wait=wait)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    process = start(folder)
    assert first_line(process) == "runs"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_told_who_runs(holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(UserError, match=rf"flawline run bolt \(process {holder.pid}, since .* UTC\)"), running("me"):
        pytest.fail("two may run at once")


def test_the_right_to_run_ends_with_its_process(holder: "subprocess.Popen[str]") -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with running("me"), running("me, in a flow"):
        assert os.environ[RUNNING] == str(os.getpid())
    assert RUNNING not in os.environ


def test_who_may_wait_gets_the_right_when_the_other_ends(folder: Path, holder: "subprocess.Popen[str]") -> None:
    waiting = start(folder, wait=600)
    assert waiting.stderr is not None
    assert "This one waits for at most 10 minutes." in waiting.stderr.readline()
    holder.communicate()
    assert first_line(waiting) == "runs"
    waiting.communicate()
    assert waiting.returncode == 0


def test_why_a_flow_waits_is_said_in_its_own_log(holder: "subprocess.Popen[str]") -> None:
    log: list[str] = []
    with pytest.raises(UserError, match="flawline run bolt"), running("me", 0.1, log.append):
        pytest.fail("two may run at once")
    assert [line.endswith("This one waits for at most 0 minutes.") for line in log] == [True]


def test_a_run_that_cannot_begin_changes_nothing(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    process = start(copy.folder)
    assert first_line(process) == "runs"
    before = (copy.folder / "params.yaml").read_bytes()
    for command in (["run", "widget", "--set", "image.side=64"], ["demo"]):
        done = copy.flawline(*command)
        assert done.returncode == 1
        assert is_one_sentence(done.stderr), done.stderr
        assert f"process {process.pid}" in done.stderr
        assert "nothing was changed" in done.stderr
    process.communicate()
    assert (copy.folder / "params.yaml").read_bytes() == before


DVC_YAML = {
    "stages": {
        name: {
            "matrix": {"category": "${data.categories}"},
            "cmd": f"cat $FLAWLINE_PARAMS > {name}.out && sed -i 's/seed: {old}/seed: {old + 1}/' params.yaml",
            "deps": ["dep"],
            "params": ["seed"],
            "outs": [f"{name}.out"],
        }
        for old, name in ((1, "first"), (2, "second"))
    }
}


@pytest.mark.slow
def test_what_is_computed_and_recorded_is_what_the_file_said_when_the_run_began(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage edits params.yaml, as a person may while it runs."""
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    Path("dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    Path("dep").write_text("")
    Path("params.yaml").write_text("seed: 1\ndata: {root: x, categories: [bolt]}\n")
    with running("me"), frozen_params() as params:
        assert reproduce("first@bolt")
        Path("params.yaml").write_text("seed: 2\ndata: {root: x, categories: [nut]}\n")
        assert reproduce("second@bolt")
        assert load_params() == params
        assert not reproduce("second@bolt"), "it is up to date"
    assert "params.yaml was changed during this run" in capsys.readouterr().err
    assert load_params().seed == 3
    for name in ("first", "second"):
        assert yaml.safe_load(Path(f"{name}.out").read_text())["seed"] == 1
        locked = yaml.safe_load(Path("dvc.lock").read_text())["stages"][f"{name}@bolt"]
        assert locked["params"] == {"params.yaml": {"seed": 1}}


@pytest.mark.parametrize(("section", "fails"), [("seed: 2", True), ("ingest: {source: elsewhere}", False)])
def test_a_stage_fails_where_what_it_depends_on_was_changed_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, section: str, fails: bool
) -> None:
    """Without a flow nothing is settled, and DVC would record the changed file with a result of the other."""
    Path("params.yaml").write_text("data: {root: x, categories: [bolt]}\n")
    Path("infra").mkdir()
    Path("infra/libraries.json").write_bytes((REPOSITORY / "infra/libraries.json").read_bytes())
    monkeypatch.setattr(sys, "argv", ["components.stages.fit", "bolt"])

    def edit(*_: object) -> None:
        with Path("params.yaml").open("a") as file:
            file.write(section + "\n")

    if not fails:
        return run_stage(edit, ("seed", "fit"))
    with pytest.raises(SystemExit, match=r"params\.yaml was changed while this was computed with it \(seed\)"):
        run_stage(edit, ("seed", "fit"))
    return None


@pytest.mark.slow
def test_an_edit_during_a_run_is_for_the_next_run(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    copy.set_params({"method": "pretrained"})
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.commands.cli", "run", "widget"],
        cwd=copy.folder,
        env=dict(copy.environment),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "validate done" not in said:
        said += process.stderr.readline()
    copy.set_params({"image": {"side": 40}, "data": {"categories": ["gadget"]}, "threads": 2})
    said += process.stderr.read()
    assert process.wait() == 0, said
    assert "the change is for the next run" in said

    outputs = copy.folder / "artifacts" / "widget"
    card = read_json(outputs / "capsule" / "capsule.json")
    locked = yaml.safe_load((copy.folder / "dvc.lock").read_text())["stages"]["fit@widget"]["params"]["params.yaml"]
    assert card["size"] == card["provenance"]["params"]["image"]["side"] == locked["image"]["side"] == 32
    assert locked["threads"] == 1

    copy.set_params({"data": {"categories": ["widget"]}})
    status = copy.dvc("status", "--json", "synthesize@widget")
    (changed,) = json.loads(status.stdout)["synthesize@widget"]
    assert changed == {"changed deps": {"params.yaml": {"image": "modified"}}}


def test_a_scheduled_flow_that_finds_nothing_to_do_loads_no_library_of_those_that_compute() -> None:
    heavy = {"torch", "pandas", "scipy", "matplotlib", "sklearn", "skimage", "mlflow", "dvc"}
    code = f"import sys, flows.retraining.schedule; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "[]\n"
