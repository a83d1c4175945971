"""How servers are reached: those of this machine without a proxy, and none that is away is waited for in vain."""

import os
import socket
from urllib.parse import SplitResult, urlsplit

from components.foundation.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 9.0  # together less than the 15 within which a dead server is named
_WEB_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def reach_loopback_directly() -> None:
    """Name this machine in NO_PROXY, for this process and what it starts; proxies for all other hosts stay."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in (os.environ.get(name) or given).split(",") if host.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])


def why_unreachable(url: str) -> str | None:
    """Why nothing answers at the address of a server, in a few words; None if something does, whatever it says.

    url: http(s), asked as the environment's proxies say, or that of a database, whose port is tried.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return _why_no_answer(url)
    return _why_no_connection(parts, _DATABASE_PORTS.get(parts.scheme.partition("+")[0]))


def check_s3(url: str) -> None:
    """Raise UserError where no connection to an S3 server can be made, or to the proxy that stands before it.

    The libraries that ask it try for minutes. url: http(s).
    """
    from requests.utils import get_environ_proxies, select_proxy

    parts = urlsplit(url)
    first = urlsplit(select_proxy(url, get_environ_proxies(url)) or url)
    if reason := _why_no_connection(first, _WEB_PORTS.get(first.scheme, 443)):
        through = "" if first == parts else "its proxy: "
        raise UserError(
            f"The S3 server {parts.hostname or url} cannot be reached ({through}{reason}): check AWS_ENDPOINT_URL and "
            "that the server is up, then run again."
        )


def _why_no_connection(parts: SplitResult, port: int | None) -> str | None:
    """Why none can be made to that host, at its port or else this one; None where no host or port is known."""
    if parts.hostname is None or port is None:
        return None
    try:
        socket.create_connection((parts.hostname, parts.port or port), CONNECT_SECONDS).close()
    except OSError as error:
        return _in_words(error)
    return None


def _why_no_answer(url: str) -> str | None:
    import requests

    try:
        requests.get(url, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), allow_redirects=False, stream=True).close()
    except requests.exceptions.SSLError:  # a certificate is the client's to judge
        return None
    except requests.exceptions.ProxyError as error:
        return f"its proxy: {_in_words(error)}"
    except (requests.RequestException, OSError) as error:
        return _in_words(error)
    return None


def _in_words(error: BaseException) -> str:
    """What the operating system says, at the bottom of what the libraries made of it."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return "no such host is known"
        if isinstance(cause, TimeoutError) or "timed out" in str(cause).lower():
            return "no answer in time"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    return " ".join(str(causes[0]).split())[:200].rstrip(".")


def _causes(error: BaseException) -> list[BaseException]:
    """The exception, and those that it was made from, the innermost first; urllib3 hides some in `reason`."""
    found = [error]
    while True:
        last = found[-1]
        inner = getattr(last, "reason", None) or last.__cause__ or last.__context__
        inner = (
            inner
            if isinstance(inner, BaseException)
            else next((a for a in last.args if isinstance(a, BaseException)), None)
        )
        if inner is None or inner in found:
            return found[::-1]
        found.append(inner)
