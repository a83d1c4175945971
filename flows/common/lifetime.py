"""Nothing outlives its owner: what a command starts ends with it, whatever ends it.

Every process that a command starts, at any remove, carries the command's mark in its environment. A keeper, which no
signal to the command reaches, waits for the command's end and ends what still carries the mark then: stages, their
workers, Prefect's temporary server. A command that is told to end (SIGTERM, SIGHUP) ends in order, as by Ctrl-C.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from flows.common.keeper import MARK, can_watch, start_time

PATIENCE = 8.0  # seconds from a signal to the end at the latest; `docker stop` waits for ten
KEEPER = Path(__file__).with_name("keeper.py")

_received: list[int] = []  # signals that end this process
_first: list[Callable[[], None]] = []  # done before a signal ends this process


def end_children_with_me() -> None:
    """Let whatever this process starts from now on end with it; once is enough. No effect where none can watch."""
    if not can_watch():
        return
    mark = f"{os.getpid()}-{start_time(os.getpid())}"
    if os.environ.get(MARK) == mark:
        return
    outside = {name: value for name, value in os.environ.items() if name != MARK}
    command = [sys.executable, "-S", str(KEEPER), mark]
    subprocess.Popen(command, env=outside, stdin=subprocess.DEVNULL, start_new_session=True)
    os.environ[MARK] = mark


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP (a closed terminal) end what runs, and then this process as an exception does.

    Prefect's engine puts handlers of its own over these, so a flow asks for it again.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # which alone may set handlers
    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN and not isinstance(before, _Handler):  # nohup ignores SIGHUP
            signal.signal(number, _Handler(before))


def end_signal() -> int | None:
    """The signal by which this process is told to end; None where there was none."""
    return _received[0] if _received else None


@contextmanager
def ended_first(act: Callable[[], None]) -> Iterator[None]:
    """Within it, a signal that ends this process does `act` first: else it may wait for what it should end."""
    _first.append(act)
    try:
        yield
    finally:
        _first.remove(act)


class _Handler:
    """Ends what is to be ended first, once, and then does what the handler before it does, or raises SystemExit."""

    def __init__(self, before: object) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not _received:
            _received.append(number)
            _end_first(128 + number)
        if callable(self.before):
            self.before(number, frame)
        raise SystemExit(128 + number)


def _end_first(code: int) -> None:
    last = threading.Timer(PATIENCE, os._exit, (code,))
    last.daemon = True
    last.start()
    logging.disable()  # whatever misses what has ended already, such as Prefect its temporary server
    for act in _first:
        with suppress(Exception):
            act()
