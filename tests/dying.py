"""Processes that are killed at a definite step, as by `kill -9`: just before they do what is named.

What a process does is what Python tells of it to audit hooks, in words: "os.remove data/widget/train/good/003.png",
"os.rename OLD NEW", "open FILE" (to write), "subprocess.Popen git commit …".
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tests.project import REPOSITORY, Project

_CHANGES = ("os.remove", "os.rename", "subprocess.Popen")
_FLAWLINE = f"""
import sys
sys.path.append({str(REPOSITORY)!r})  # behind the project's own code
from tests.dying import die_before
die_before(*sys.argv.pop(1).split("|"))
from flows.commands.cli import main
main()
"""


def die_before(*steps: str) -> None:
    """Let this process and its children, a process group of its own, be killed before the last of these steps.

    steps: regular expressions; each is looked for once the one before it was found.
    """
    left = list(steps)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if left and re.search(left[0], _words(event, arguments)):
            del left[0]
            if not left:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


def note_changes(note: Callable[[str], object]) -> None:
    """Tell of whatever this process changes, or starts; by which a step is found."""
    sys.addaudithook(lambda event, arguments: (words := _words(event, arguments)) and note(words))


def kill_flawline(project: Project, before: Sequence[str], *arguments: str) -> None:
    """`flawline ARGUMENTS`, which is killed with all that it has started before the last of these steps."""
    done = project.run("-c", _FLAWLINE, "|".join(before), *arguments)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def _words(event: str, arguments: tuple[Any, ...]) -> str:
    """What is about to be done; nothing where it changes nothing."""
    if event == "open":
        path, mode, flags = arguments
        is_written = flags & (os.O_WRONLY | os.O_RDWR) or set(str(mode)) & set("wax+")
        return f"open {path}" if is_written else ""
    if event not in _CHANGES:
        return ""
    parts = arguments[1] if event == "subprocess.Popen" else arguments[:2]
    return " ".join([event, *map(_text, parts if isinstance(parts, (list, tuple)) else [parts])])


def _text(part: Any) -> str:
    return os.fsdecode(part) if isinstance(part, (str, bytes, os.PathLike)) else ""
