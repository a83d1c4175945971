"""Nothing outlives its owner: real processes, real signals."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.project import REPOSITORY, Project
from tests.retraining.test_kill import mlflow_client, training_process, wait_for

PATIENCE = 120.0
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
OWNER = f"""
import subprocess, sys, time
from flows.common.lifetime import end_children_with_me
end_children_with_me()
end_children_with_me()
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
time.sleep(600)
"""
IN_ORDER = """
import sys, time
from flows.common.lifetime import end_in_order, ended_first
end_in_order()
try:
    with ended_first(lambda: print("first", flush=True)):
        print("ready", flush=True)
        time.sleep(600)
finally:
    print("last", flush=True)
"""
WAIT = f"from components.foundation.owner import end_with_owner\nend_with_owner()\n{SLEEPER}\n"
CALLER = "import subprocess; subprocess.run('infra/stage wait; true', shell=True)"


def start(code: str, folder: Path = REPOSITORY, **options: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(folder), "FLAWLINE_PYTHON": sys.executable}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, **options
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def is_ended(process: int) -> bool:
    """Whether a process, by its file descriptor, is gone within PATIENCE."""
    return bool(select.select([process], [], [], PATIENCE)[0])


def test_what_a_killed_command_has_started_ends_with_it() -> None:
    with start(OWNER) as owner:
        sleeper = os.pidfd_open(int(line_of(owner)))
        owner.kill()
    assert is_ended(sleeper)


def test_a_stage_ends_with_the_program_whose_shell_called_it(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "infra", tmp_path / "infra", ignore=shutil.ignore_patterns("pictures"))
    for room in (rooms := [tmp_path / "components" / name for name in ("", "foundation", "stages")]):
        room.mkdir()
        (room / "__init__.py").touch()
    shutil.copy(REPOSITORY / "components" / "foundation" / "owner.py", rooms[1])
    (rooms[2] / "wait.py").write_text(WAIT)
    with start(CALLER, tmp_path) as caller:
        stage = os.pidfd_open(int(line_of(caller)))
        caller.kill()
        assert is_ended(stage)  # before the pipe is closed, which the stage would not notice


@pytest.mark.parametrize("lack", ["del os.pidfd_open", "os.pidfd_open = missing"], ids=["python", "kernel"])
def test_without_pidfd_all_goes_on_unwatched(lack: str) -> None:
    code = f"""
import errno, os
from components.foundation.owner import end_with_owner
def missing(pid): raise OSError(errno.ENOSYS, "Function not implemented")
{lack}
from flows.common.lifetime import end_children_with_me
from flows.retraining.warm_stages import ADDRESS, warm_stages
end_with_owner()
end_children_with_me()
with warm_stages({{}}):
    print("FLAWLINE_OWNER" in os.environ, ADDRESS in os.environ)
"""
    with start(code, stderr=subprocess.PIPE) as process:
        assert process.communicate() == ("False False\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_what_runs_in_order(number: signal.Signals) -> None:
    with start(IN_ORDER, preexec_fn=usual_signals) as process:
        assert line_of(process) == "ready"
        process.send_signal(number)
        assert process.stdout
        assert process.stdout.read().split() == ["first", "last"]
    assert process.returncode == 128 + number


def test_a_closed_terminal_does_not_end_what_was_started_with_nohup() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with start(IN_ORDER, preexec_fn=ignore) as process:
        assert line_of(process) == "ready"
        process.send_signal(signal.SIGHUP)
        process.terminate()
        process.wait(PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM


def left_in(project: Project) -> dict[int, str]:
    """The processes that stand in the project's folder, with their commands."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "cwd") == str(project.folder.resolve()):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def nothing_is_left_in(project: Project) -> bool:
    until = time.monotonic() + PATIENCE
    while (left := left_in(project)) and time.monotonic() < until:
        time.sleep(0.05)
    return not left


def parents(project: Project) -> list[str]:
    """The states of the retrainings' MLflow runs, the latest first."""
    client = mlflow_client(project)
    experiment = client.get_experiment_by_name("flawline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    return [run.info.status for run in runs if "flawline.category" not in run.data.tags]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_of_a_run_that_is_ended_nothing_goes_on(ran: Project, tmp_path: Path, number: signal.Signals) -> None:
    """SIGKILL to the command alone, the others to its process group, as a terminal and `timeout` send them."""
    copy = ran.copy(tmp_path / "project")
    copy.set_params({"training": {"steps": 5000}})
    temporary, said = tmp_path / "temporary", tmp_path / "said"
    temporary.mkdir()
    command = [sys.executable, "-m", "flows.commands.cli", "run", "widget"]
    environment = {**copy.cold().alone().environment, "TMPDIR": str(temporary)}
    with (
        said.open("wb") as stderr,
        subprocess.Popen(
            command, cwd=copy.folder, env=environment, stderr=stderr, start_new_session=True, preexec_fn=usual_signals
        ) as program,
    ):
        wait_for(lambda: training_process(copy), program)
        if number == signal.SIGKILL:
            program.kill()
        else:
            os.killpg(program.pid, number)
        assert abs(program.wait(PATIENCE)) in (number, 128 + number)
    assert "Prefect" not in said.read_text()
    assert nothing_is_left_in(copy)
    assert not list(temporary.glob("flawline-*"))
    if number != signal.SIGKILL:
        assert parents(copy)[0] == "KILLED"
    copy.set_params({"training": {"steps": 20}})
    assert copy.flawline("run", "widget").returncode == 0
    assert parents(copy)[:2] == ["FINISHED", "KILLED"]
    assert "RUNNING" not in parents(copy)


def usual_signals() -> None:
    """As in a terminal: a test runner in the background may ignore some."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
