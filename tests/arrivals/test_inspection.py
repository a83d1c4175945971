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

from components.arrivals.inspection import CRASHED, Inspection, Inspectors, inspect_file
from components.foundation.limits import ImageLimits
from tests.project import REPOSITORY

LIMITS = ImageLimits(max_pixels=1000)
PATIENCE = 120.0
HOLD = """
import os, signal
from components.arrivals.inspection import Inspectors
with Inspectors(2):
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


def own_inspectors(process: int | None = None) -> list[psutil.Process]:
    """The inspectors that a process, this one if None, has running."""
    return [one for one in psutil.Process(process).children() if is_inspector(one)]


def is_inspector(process: psutil.Process) -> bool:
    try:
        return "components.arrivals.inspection" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def test_an_inspector_sees_what_inspect_file_sees(image: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image\n\x00")
    large = tmp_path / "large.png"
    Image.new("RGB", (100, 100)).save(large)
    with Inspectors(2) as inspectors:
        for path in (image, text, large):
            assert inspectors.look(path, path.name, LIMITS) == inspect_file(path, path.name, LIMITS)
    assert inspect_file(large, "large.png", LIMITS).code == "too-many-pixels"
    assert not own_inspectors()


def test_a_file_that_crashes_its_inspector_twice_is_refused_and_the_others_are_looked_at(
    image: Path, tmp_path: Path
) -> None:
    """A file that never ends stands for one over which a decoder crashes: the process is ended by a signal."""
    endless = tmp_path / "endless.png"
    os.mkfifo(endless)
    found: list[Inspection] = []
    with Inspectors(1) as inspectors, endless.open("r+b", buffering=0):  # as long as it is open its end does not come
        caller = threading.Thread(target=lambda: found.append(inspectors.look(endless, "endless.png", LIMITS)))
        caller.start()
        crashed: set[int] = set()
        for _ in range(2):
            wait_for(lambda: {one.pid for one in own_inspectors()} - crashed)
            (inspector,) = (one for one in own_inspectors() if one.pid not in crashed)
            inspector.send_signal(signal.SIGSEGV)
            crashed.add(inspector.pid)
        caller.join(PATIENCE)
        assert found == [CRASHED]
        assert inspectors.look(image, "image.png", LIMITS).facts


def test_an_inspector_is_told_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Inspectors(1):
        wait_for(own_inspectors)
        (inspector,) = own_inspectors()
        assert "secret" not in inspector.environ().values()
        assert inspector.environ()["PATH"] == os.environ["PATH"]


def test_an_error_that_is_no_files_fault_refuses_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Inspectors(1) as inspectors, pytest.raises(RuntimeError, match="ended with exit code 1"):
        inspectors.look(tmp_path / "missing.png", "missing.png", LIMITS)
    assert "FileNotFoundError" in capfd.readouterr().err


@pytest.mark.slow
def test_inspectors_end_when_the_process_that_has_them_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], cwd=REPOSITORY, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert int(holder.stdout.readline()) == holder.pid
            wait_for(lambda: len(own_inspectors(holder.pid)) == 2)  # one that begins has no command line for a moment
            inspectors = own_inspectors(holder.pid)
        finally:
            holder.kill()
    gone, alive = psutil.wait_procs(inspectors, PATIENCE)
    assert (len(gone), alive) == (2, [])
