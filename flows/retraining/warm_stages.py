"""Stages forked from one process that has imported the big libraries already, so that none of them waits for imports.

Importing torch, MLflow and Great Expectations takes most of a short stage's time. While a flow runs, `infra/stage`
hands its command to the process of this module (`python -m flows.retraining.warm_stages`), which forks; without it, or
when it cannot be reached, the stage starts an interpreter of its own. The code of the project itself is never
preloaded.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from flows.common.keeper import can_watch
from flows.common.lifetime import ended_first

ADDRESS = "FLAWLINE_WARM_STAGES"
PRELOADED = (
    *("great_expectations", "torch", "timm", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "safetensors.torch"),
    *("matplotlib.figure", "scipy.ndimage", "skimage.transform"),
)
MOST_BYTES = 1 << 20


@contextlib.contextmanager
def warm_stages(variables: Mapping[str, str]) -> Iterator[None]:
    """Let the stages that are run inside fork from a process that is kept ready, unless there is one.

    Where the system does not tell of a process's end there is none, and each stage starts an interpreter of its own.

    variables: what its environment has besides ours; numerical libraries read their threads when they are imported.
    """
    if ADDRESS in os.environ or not can_watch():
        yield
        return
    with warm_process(variables) as address:
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]


@contextlib.contextmanager
def warm_process(variables: Mapping[str, str], also: Sequence[str] = ()) -> Iterator[str]:
    """Keep a process ready from which stages are forked; it ends with the block, or with us. Yields its address.

    also: libraries to import besides those of the stages.
    """
    with tempfile.TemporaryDirectory(prefix="flawline-") as folder, socket.socket(socket.AF_UNIX) as listener:
        address = os.path.join(folder, "stages")
        listener.bind(address)
        listener.listen()  # stages that come too early wait here
        with _started(listener, address, variables, also) as process, ended_first(partial(_let_go, process)):
            try:
                yield address
            finally:
                process.kill()  # it may still be importing


def _started(
    listener: socket.socket, address: str, variables: Mapping[str, str], also: Sequence[str]
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flows.retraining.warm_stages", str(listener.fileno()), address, *also]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        env={**os.environ, **variables},
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )


def _let_go(process: "subprocess.Popen[bytes]") -> None:
    """Tell the process that the flow ends, which waits for a stage meanwhile."""
    if process.stdin:
        process.stdin.close()


def main(number: str, address: str, *also: str) -> None:
    """Import the libraries, and fork for each stage that a socket is asked for, until standard input is closed.

    number: of the inherited file of the listening socket. address: the socket's own file. also: more libraries.
    When standard input is closed, whatever else is going on, all is killed that was forked, as a stage must not go on
    beside its flow's next try, and the socket's folder is removed, as who made it may have been killed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the flow
    threading.Thread(target=_end_with_our_owner, args=(os.path.dirname(address),), daemon=True).start()
    for name in (*PRELOADED, *also):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a stage that looks for garbage need not copy all libraries' memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what serves a stage
    with socket.socket(fileno=int(number)) as listener:
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                serve(connection)
                return
            connection.close()


def _end_with_our_owner(folder: str) -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever sent
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def serve(connection: socket.socket) -> None:
    """Run the stage that a client asks for in a fork of this process, and tell the client its exit code.

    The stage is killed when the client is gone.
    """
    message, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
    if len(files) != 3:
        return
    stage = os.fork()
    if stage == 0:
        connection.close()
        become(json.loads(message), files)
        return
    ended = os.pidfd_open(stage)
    if connection.fileno() in select.select([connection.fileno(), ended], [], [])[0]:
        os.kill(stage, signal.SIGKILL)
    status = os.waitpid(stage, 0)[1]
    with contextlib.suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Run a stage's module as `python -m` would, with the client's streams, folder and environment."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("components", "flows")]:
        del sys.modules[name]  # they may be of another folder than the client's
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv, sys.path[0] = request["arguments"], request["folder"]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        _leave(ended.code)
    except Exception:
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _leave(code: object) -> NoReturn:
    """End as `sys.exit(code)` does, but leave the memory to the system: to tidy up all libraries takes seconds."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter's own end does
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody may read any more
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(bool(code)))


if __name__ == "__main__":
    main(*sys.argv[1:])
