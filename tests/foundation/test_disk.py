"""A disk without room is said, whatever the libraries make of it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.foundation.disk import check_room, full_disk_said
from components.foundation.errors import UserError


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without room."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system of limited size can only be mounted by root on Linux")
    (tmp_path / "fill").write_bytes(bytes(3 << 19))
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_what_a_library_says_of_a_full_disk_becomes_the_reason(full: Path) -> None:
    with pytest.raises(UserError, match=f"The disk is full at {full}"), full_disk_said(full / "not yet there"):
        raise RuntimeError("the server does not answer")
    with pytest.raises(UserError, match="0 MiB are free, 32 MiB are needed"):
        check_room(full)


def test_with_room_a_failure_stays_what_it_is(tmp_path: Path) -> None:
    check_room(tmp_path)
    with pytest.raises(RuntimeError, match="the server"), full_disk_said(tmp_path):
        raise RuntimeError("the server does not answer")
