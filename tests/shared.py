"""What is dear to make is made by one of a test run's processes; the others take a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def made_once(common: Path, own: Path, make: Callable[[Path], None]) -> Path:
    """A copy, in the new folder `own`, of the folder `common`, which the first that asks makes and others wait for."""
    with FileLock(common.with_suffix(".lock")):
        if not common.exists():
            part = common.with_suffix(".part")
            part.mkdir()
            make(part)
            part.rename(common)
        return Path(shutil.copytree(common, own))
