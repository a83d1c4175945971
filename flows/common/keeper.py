"""Wait for a process to end, and then end all that it left behind: keeper.py PID-STARTTIME

What a process has started, at any remove, carries its id and start time in the environment variable FLAWLINE_OWNER.
Needs nothing but Python's own library, so that it costs little.
"""

import os
import select
import signal
import sys
import time
from contextlib import suppress

MARK = "FLAWLINE_OWNER"
PATIENCE = 15.0  # seconds between the request to end and the kill


def can_watch() -> bool:
    """Whether this system tells of a process's end and environment; macOS and a Linux before 5.3 do not."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return os.path.exists("/proc/self/environ")


def main(mark: str) -> None:
    """Return when the process is gone and nothing that carries its mark is left."""
    pid, _, started = mark.partition("-")
    wait_for(int(pid), started)
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + PATIENCE
        while (left := carriers(mark)) and time.monotonic() < until:
            for one in left:
                with suppress(OSError):  # it is gone, or became another user's
                    os.kill(one, number)
            wait_for_any(left, until - time.monotonic())


def wait_for(pid: int, started: str) -> None:
    """Return when this process is gone; at once where another has its id."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        if start_time(pid) == started:
            select.select([process], [], [])


def wait_for_any(pids: list[int], seconds: float) -> None:
    """Return when one of these processes is gone, or after that time."""
    processes = []
    for pid in pids:
        with suppress(ProcessLookupError):
            processes.append(os.pidfd_open(pid))
    if len(processes) == len(pids):
        select.select(processes, [], [], max(0.0, seconds))
    for process in processes:
        os.close(process)


def carriers(mark: str) -> list[int]:
    """The processes of this user whose environment holds the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                if wanted in environment.read().split(b"\0"):
                    found.append(int(name))
    return found


def start_time(pid: int) -> str:
    """When a process began, in the kernel's ticks, which tells it from a later one with its id; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
