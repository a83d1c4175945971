"""An HTTP proxy before a real server that fails as networks and servers do, as often as it is told to.

It can also answer for an object as S3 does for one that was uploaded in parts, which the server behind it does not.
"""

import contextlib
import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

Fault = Literal["500", "503", "reset", "cut", "slow", "garbled"]
SLOW_CHUNKS = 4
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>on purpose</Message></Error>"


class FaultyProxy:
    """Passes requests on, and counts them; the first `times` requests of a method for a path get the fault instead."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.requests: Counter[str] = Counter()  # by method
        self.faults: Counter[str] = Counter()  # that were dealt out
        self._plan: tuple[Fault | None, str, int] = (None, "", 0)
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[str, list[int]]] = {}  # by path: ETag and bytes of each part

    def show_in_parts(self, path: str, etag: str, sizes: list[int]) -> None:
        """From now on the object at this path has this ETag and parts of so many bytes."""
        self._parts[path] = etag, sizes

    def dressed(self, url: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The headers of an answer, for an object in parts with its ETag and what a question for one part is told."""
        parts = urlsplit(url)
        etag, sizes = self._parts.get(parts.path, ("", []))
        if not etag:
            return headers
        own = {"ETag": f'"{etag}"'}
        if number := parse_qs(parts.query).get("partNumber"):
            own |= {"Content-Length": str(sizes[int(number[0]) - 1]), "x-amz-mp-parts-count": str(len(sizes))}
        replaced = {name.lower() for name in own}
        return [(name, value) for name, value in headers if name.lower() not in replaced] + list(own.items())

    def fail(self, fault: Fault | None, method: str = "GET", times: int = 1) -> None:
        """From now on each path fails `times` times for a method; None ends it."""
        self._plan, self._seen = (fault, method, times), Counter()

    def fault_of(self, method: str, path: str) -> Fault | None:
        """What is to happen to this request; counts it."""
        fault, failing, times = self._plan
        with self._lock:
            self.requests[method] += 1
            key = f"{method} {path}"
            self._seen[key] += 1
            if fault is None or method != failing or self._seen[key] > times:
                return None
            self.faults[fault] += 1
            return fault


@contextlib.contextmanager
def faulty_proxy(target: str) -> Iterator[tuple[FaultyProxy, str]]:
    """A proxy before the server at the URL `target`, and its own URL, until the block ends."""
    proxy = FaultyProxy(target)

    class Handler(_Handler):
        plan = proxy

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan: FaultyProxy

    def _handle(self) -> None:
        body = self._body()
        fault = self.plan.fault_of(self.command, self.path)
        if fault in ("500", "503"):
            code = b"InternalError" if fault == "500" else b"SlowDown"
            self._answer(int(fault), [("Content-Type", "application/xml")], ERROR % code)
        elif fault == "reset":
            self._reset()
        else:
            self._pass_on(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection(self.plan.target, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        connection.request(self.command, self.path, body or None, kept)
        answer = connection.getresponse()
        data = answer.read()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        connection.close()
        self._answer(answer.status, self.plan.dressed(self.path, headers), data, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(data, fault)

    def _write(self, data: bytes, fault: Fault | None) -> None:
        match fault:
            case "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            case "garbled":
                self.wfile.write(data[:-1] + bytes([data[-1] ^ 1]) if data else data)
            case "slow":
                for start in range(0, len(data), max(1, len(data) // SLOW_CHUNKS)):
                    self.wfile.write(data[start : start + max(1, len(data) // SLOW_CHUNKS)])
                    self.wfile.flush()
                    threading.Event().wait(0.05)
            case _:
                self.wfile.write(data)

    def _reset(self) -> None:
        """Close so that the other side sees "connection reset by peer"."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
