"""Files are looked at by processes of their own, which may crash, and which end with the one that started them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from components.arrivals.first_look import Look, first_look
from components.arrivals.readers import CRASHED, Lookers
from components.foundation.limits import ImageLimits
from tests.project import REPOSITORY

LIMITS = ImageLimits(max_pixels=1000)
PATIENCE = 120.0
HOLD = """
import os, signal
from components.arrivals.readers import Lookers
with Lookers(2):
    print(os.getpid(), flush=True)
    signal.pause()
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image."""
    path = tmp_path / "image.png"
    Image.new("RGB", (20, 10), (1, 2, 3)).save(path)
    return path


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until


def own_lookers(process: int | None = None) -> list[psutil.Process]:
    """The lookers that a process, this one if None, has running."""
    return [one for one in psutil.Process(process).children() if is_looker(one)]


def is_looker(process: psutil.Process) -> bool:
    try:
        return "components.arrivals.readers" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def test_a_looker_sees_what_a_first_look_sees(image: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image\n\x00")
    large = tmp_path / "large.png"
    Image.new("RGB", (100, 100)).save(large)
    with Lookers(2) as lookers:
        for path in (image, text, large):
            assert lookers.look(path, path.name, LIMITS) == first_look(path, path.name, LIMITS)
    assert first_look(large, "large.png", LIMITS).code == "too-many-pixels"
    assert not own_lookers()


def test_a_file_that_crashes_its_looker_twice_is_refused_and_the_others_are_looked_at(
    image: Path, tmp_path: Path
) -> None:
    """A file that never ends stands for one over which a decoder crashes: the process is ended by a signal."""
    endless = tmp_path / "endless.png"
    os.mkfifo(endless)
    found: list[Look] = []
    with Lookers(1) as lookers, endless.open("r+b", buffering=0):  # as long as it is open its end does not come
        caller = threading.Thread(target=lambda: found.append(lookers.look(endless, "endless.png", LIMITS)))
        caller.start()
        crashed: set[int] = set()
        for _ in range(2):
            wait_for(lambda: {one.pid for one in own_lookers()} - crashed)
            (looker,) = (one for one in own_lookers() if one.pid not in crashed)
            looker.send_signal(signal.SIGSEGV)
            crashed.add(looker.pid)
        caller.join(PATIENCE)
        assert found == [CRASHED]
        assert lookers.look(image, "image.png", LIMITS).facts


def test_a_looker_is_told_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Lookers(1):
        wait_for(own_lookers)
        (looker,) = own_lookers()
        assert "secret" not in looker.environ().values()
        assert looker.environ()["PATH"] == os.environ["PATH"]


def test_an_error_that_is_no_files_fault_refuses_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Lookers(1) as lookers, pytest.raises(RuntimeError, match="ended with exit code 1"):
        lookers.look(tmp_path / "missing.png", "missing.png", LIMITS)
    assert "FileNotFoundError" in capfd.readouterr().err


def test_lookers_end_when_the_process_that_has_them_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], cwd=REPOSITORY, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert int(holder.stdout.readline()) == holder.pid
        lookers = own_lookers(holder.pid)
        assert len(lookers) == 2
        holder.kill()
    gone, alive = psutil.wait_procs(lookers, PATIENCE)
    assert (len(gone), alive) == (2, [])
