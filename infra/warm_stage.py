"""Hand a stage to the process that keeps stages warm, and end as it ends: warm_stage.py MODULE ARGUMENTS…

Where that process cannot be reached, the stage is started in an interpreter of its own.
"""

import json
import os
import signal
import socket
import sys


def main(module: str, *arguments: str) -> int:
    """The exit code of the stage."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ["FLAWLINE_WARM_STAGES"])
        except OSError:
            os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
        request = {
            "module": module,
            "arguments": [module, *arguments],
            "folder": os.getcwd(),
            "environment": dict(os.environ),
        }
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        answer = connection.recv(16)
    if not answer:
        print(f"flawline: the process of {module} was lost: run this again.", file=sys.stderr)
        return 1
    return as_shells_do(int(answer))


def as_shells_do(code: int) -> int:
    """The exit code that a shell would give; a process that was killed has a negative one."""
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main(*sys.argv[1:]))
