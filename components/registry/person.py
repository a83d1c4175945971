"""Who acts, as journal, versions and evidence name them."""

import getpass
import socket
from pathlib import Path

from components.tracking.git_tags import ask_git


def who_am_i() -> str:
    """The user of this process, git's user name, and the account at this machine."""
    try:
        account = f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        account = socket.gethostname()
    name = ask_git(Path(), "config", "user.name")
    return f"{name} ({account})" if name else account
