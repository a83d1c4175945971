"""Processes that take the first look at files: a file that makes a decoder crash ends one of them, not the ingest.

Also, decoding beside the threads that fetch would have all of them wait for the interpreter's lock.

An inspector (`python -m components.arrivals.inspection`) answers each line on its standard input with one on its
output, both JSON, and ends with its input: when this process ends, however it does, so do its inspectors.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any

from components.arrivals.admission import open_arrival
from components.arrivals.names import Refusal
from components.foundation.limits import ImageLimits
from components.images.measures import image_facts

PRIVATE = ("AWS_", "MLFLOW_", "PREFECT_")
TRIES = 2  # at a file in whose course an inspector ended: the first may have been ended by something else


@dataclass(frozen=True)
class Inspection:
    """What the first look at a file found: may it be admitted, and what is kept of its image to compare it by.

    It takes nothing but the file, so that some files can be looked at while others are still on their way.

    code, words: why it was not admitted, both empty where it was. sha256: of the file. facts:
    `components.images.measures.image_facts` of the image. The latter two are empty where it was not admitted.
    """

    code: str = ""
    words: str = ""
    sha256: str = ""
    facts: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON-able dict; `Inspection(**…)` is the inverse."""
        return asdict(self)


def inspect_file(path: Path, name: str, limits: ImageLimits) -> Inspection:
    """Look at the file at `path`, which messages call `name`. Whatever it holds, no exception comes of it."""
    opened = open_arrival(path.read_bytes(), name, limits)
    if isinstance(opened, Refusal):
        return Inspection(*opened)
    return Inspection(sha256=opened.sha256, facts=image_facts(opened.pixels, opened.mode))


CRASHED = Inspection("undecodable", "cannot be decoded: it ended the process that tried to")


class Inspectors:
    """Some inspectors, of which each call of `look` takes a free one; call it from as many threads at once as there
    are.

    A context manager: the processes start at its beginning and end with it.
    """

    def __init__(self, count: int) -> None:
        """Have `count` processes."""
        self._count = count
        self._free: Queue[_Inspector] = Queue()

    def __enter__(self) -> "Inspectors":
        for _ in range(self._count):
            self._free.put(_Inspector())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._free.empty():
            self._free.get().end()

    def look(self, path: Path, name: str, limits: ImageLimits) -> Inspection:
        """`inspect_file`, by a process of its own. A file that crashes it twice is refused as undecodable.

        Raises RuntimeError where the process ended otherwise, as then the file is not to blame.
        """
        request = json.dumps({"path": str(path), "name": name, "limits": asdict(limits)}).encode() + b"\n"
        for _ in range(TRIES):
            asked = free = self._free.get()
            try:
                answer = asked.ask(request)
                if not answer:
                    free = _Inspector()
            finally:
                self._free.put(free)  # even where none can be started: others wait for one
            if answer:
                return Inspection(**json.loads(answer))
            if (code := asked.end()) >= 0:
                raise RuntimeError(f"A process that looks at arriving files ended with exit code {code}.")
        return CRASHED


class _Inspector:
    """One process. It has one thread, as there are several; a Ctrl-C does not reach it, as its input ends it."""

    def __init__(self) -> None:
        folder = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-m", "components.arrivals.inspection"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_harmless(os.environ), "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(folder)},
            start_new_session=True,
        )
        assert process.stdin, "it was asked for"
        assert process.stdout, "it was asked for"
        self._process, self._requests, self._answers = process, process.stdin, process.stdout

    def ask(self, request: bytes) -> bytes:
        """The answer to a request, a line; empty where the process ended over it."""
        try:
            self._requests.write(request)
            self._requests.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            return b""
        return answer if answer.endswith(b"\n") else b""

    def end(self) -> int:
        """End it by ending its input; its exit code, negative for a signal."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        return self._process.wait()


def _harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment the process that opens strangers' files may know: no keys, no servers."""
    return {name: value for name, value in environment.items() if not name.startswith(PRIVATE)}


def serve() -> None:
    """Look at one file after the other until the input ends."""
    for line in sys.stdin.buffer:
        request: dict[str, Any] = json.loads(line)
        look = inspect_file(Path(request["path"]), request["name"], ImageLimits(**request["limits"]))
        sys.stdout.write(json.dumps(look.to_json()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
