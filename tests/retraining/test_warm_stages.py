"""A stage that is forked from the warm process runs as in an interpreter of its own, and ends with its client."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flows.retraining.warm_stages import ADDRESS, warm_stages
from tests.project import REPOSITORY

PATIENCE = 120.0
TELL = """
import json, os, sys
loaded = "torch" in sys.modules
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("WORD"), sys.stdin.read(), __name__, loaded]))
"""
REFUSE = 'import sys\nprint("out", flush=True)\nsys.exit("flawline: this cannot be")\n'
FAIL = 'raise LookupError("nothing")\n'
WAIT = "import os, signal\nprint(os.getpid(), flush=True)\nsignal.pause()\n"
LATE = """
import atexit, threading
atexit.register(print, "when it ends")
threading.Timer(0.1, print, ["in a thread"]).start()
print("first")
"""
DIE = "import os\nos.kill(os.getpid(), 9)\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stages that say how they run."""
    folder = tmp_path_factory.mktemp("warm")
    shutil.copytree(REPOSITORY / "infra", folder / "infra", ignore=shutil.ignore_patterns("pictures"))
    stages = folder / "components" / "stages"
    stages.mkdir(parents=True)
    for name, code in {"tell": TELL, "refuse": REFUSE, "fail": FAIL, "wait": WAIT, "late": LATE, "die": DIE}.items():
        (stages / f"{name}.py").write_text(code)
    for package in (stages, stages.parent):
        (package / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def warm(folder: Path) -> Iterator[Mapping[str, str]]:
    """The environment of stages while a process is kept warm."""
    with warm_stages({}):
        yield dict(os.environ)


def run(folder: Path, environment: Mapping[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `infra/stage WORDS` with an input, in an environment with a word in it."""
    return subprocess.run(
        ["infra/stage", *words],
        cwd=folder,
        env={**environment, "FLAWLINE_PYTHON": sys.executable, "WORD": "given"},
        input="input",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def told(done: "subprocess.CompletedProcess[str]") -> list[object]:
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.slow
def test_arguments_folder_environment_and_streams_are_the_clients(folder: Path, warm: Mapping[str, str]) -> None:
    expected = [["bolt", "2"], str(folder.resolve()), "given", "input", "__main__"]
    assert told(run(folder, warm, "tell", "bolt", "2")) == [*expected, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "code", "out", "said"),
    [
        ("refuse", 1, "out\n", "flawline: this cannot be\n"),
        ("fail", 1, "", "LookupError: nothing\n"),
        ("late", 0, "first\nin a thread\nwhen it ends\n", ""),
        ("missing", 1, "", "No module named components.stages.missing\n"),
        ("die", 137, "", ""),
    ],
)
def test_it_ends_as_the_stage_ends(
    folder: Path, warm: Mapping[str, str], stage: str, code: int, out: str, said: str
) -> None:
    done = run(folder, warm, stage)
    assert (done.returncode, done.stdout) == (code, out)
    assert done.stderr.endswith(said)


@pytest.mark.parametrize("address", [None, "gone", "nobody listens"])
def test_without_the_process_a_stage_starts_by_itself(folder: Path, tmp_path: Path, address: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
    if address:
        environment[ADDRESS] = str(tmp_path / "stages")
    if address == "nobody listens":
        code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, environment[ADDRESS]], check=True)
    assert told(run(folder, environment, "tell"))[-1] is False


def test_a_stage_is_killed_with_its_client(folder: Path, warm: Mapping[str, str]) -> None:
    environment = {**warm, "FLAWLINE_PYTHON": sys.executable}
    with subprocess.Popen(["infra/stage", "wait"], cwd=folder, env=environment, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        stage = int(client.stdout.readline())
        assert is_running(stage)
        client.send_signal(signal.SIGINT)
        assert client.wait(PATIENCE) == -signal.SIGINT
    until = time.monotonic() + PATIENCE
    while is_running(stage):
        assert time.monotonic() < until, "the stage goes on without its client"


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_one_process_serves_nested_blocks_and_ends_with_the_outer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    with warm_stages({}):
        address = os.environ[ADDRESS]
        with warm_stages({}):
            assert os.environ[ADDRESS] == address
        assert Path(address).parent.is_dir()
    assert ADDRESS not in os.environ
    assert not Path(address).parent.exists()
