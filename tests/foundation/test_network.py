"""Servers of this machine are reached whatever proxies the environment names; a dead server is named soon."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import requests

from components.arrivals.inbox import open_source
from components.data.version import good_images
from components.foundation import network
from components.foundation.errors import UserError
from components.foundation.network import reach_loopback_directly, why_unreachable
from components.registry import versions as registry
from components.tracking import runs as tracking
from flows.data.dvc_project import open_project
from flows.data.stores import set_remote
from flows.data.transfer import push
from flows.data.versions import commit_folder
from tests.project import Project, is_one_sentence, new_images
from tests.servers import free_port

ELSEWHERE = "http://plant.example/"


@contextmanager
def web_server() -> Iterator[tuple[str, list[str]]]:
    """A server that knows no page; its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is restored, whoever changes it
        monkeypatch.setenv(name.lower(), "")
        monkeypatch.delenv(name)
        monkeypatch.delenv(name.lower())


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_serves_all_hosts_but_this_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intern.example")
    with web_server() as (site, asked), web_server() as (proxy, passed_on):
        monkeypatch.setenv(name, proxy)
        reach_loopback_directly()
        answers = [client.get(f"{site}/page").status_code for client in (httpx, requests)]
        assert (answers, asked, passed_on) == ([404, 404], ["/page", "/page"], [])
        answers = [client.get(ELSEWHERE).status_code for client in (httpx, requests)]
        assert (answers, passed_on) == ([404, 404], [ELSEWHERE, ELSEWHERE])
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intern.example,127.0.0.1,localhost,::1"


def test_why_a_server_is_not_reached_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = f"127.0.0.1:{free_port()}"
    with web_server() as (site, _):
        assert why_unreachable(f"{site}/health") is None  # it answers, if only that there is no such page
    assert why_unreachable(f"http://{closed}/api/health") == "connection refused"
    assert why_unreachable(f"postgresql+psycopg2://user:secret@{closed}/mlflow") == "connection refused"
    assert why_unreachable("sqlite:////tmp/mlflow.db") is None
    assert "host" in (why_unreachable("http://no-such-host.invalid/") or "")
    monkeypatch.setenv("http_proxy", f"http://{closed}")
    assert why_unreachable(ELSEWHERE) == "its proxy: connection refused"


def test_a_server_that_never_answers_is_given_up_in_15_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.CONNECT_SECONDS + network.ANSWER_SECONDS < 15
    monkeypatch.setattr(network, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert why_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/") == "no answer in time"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_dead_mlflow_is_named_at_once(
    scheme: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://user:secret@{where}/")
    with pytest.raises(UserError, match=rf"{where}/ could not do this \(connection refused\).*MLFLOW_TRACKING_URI"):
        registry.list_status()
    tracking.start_parent_run("retrain", ["bottle"], {})  # goes on without
    assert f"{where}/ cannot be reached (connection refused)" in capsys.readouterr().err


ASK = "from flows.common.environment import enter_project; enter_project(); import flows.common.prefect_server as s; "
PROFILES = """
active = "plant"
[profiles.plant]
PREFECT_API_URL = "http://127.0.0.1:1234/api"
[profiles.bare]
PREFECT_LOGGING_LEVEL = "INFO"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "http://127.0.0.1:1234/api"),
        ({"PREFECT_API_URL": "http://127.0.0.1:5678/api"}, "http://127.0.0.1:5678/api"),
        ({"PREFECT_PROFILE": "bare"}, "None"),
        ({"HOME": "/nonexistent"}, "None"),
    ],
)
def test_the_server_is_the_one_that_prefect_itself_would_use(
    more: dict[str, str], expected: str, project: Project, tmp_path: Path
) -> None:
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(PROFILES)
    own = {name: value for name, value in project.alone().environment.items() if name != "PREFECT_PROFILES_PATH"}
    at_home = Project(project.folder, {**own, "HOME": str(tmp_path), **more})
    asked = at_home.run(
        "-c",
        ASK + "from prefect.settings import PREFECT_SERVER_EPHEMERAL_ENABLED as e; print(s.server_url(), e.value())",
    )
    assert asked.stdout.split() == [expected, "True"], asked.stderr


@pytest.mark.slow
def test_a_dead_prefect_server_is_one_sentence_and_a_new_version_stands(git_project: Project, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}/api"
    project = Project(git_project.folder, {**git_project.environment, "PREFECT_API_URL": dead})
    for command in (["run", "widget"], ["deploy"], ["worker"]):
        done = project.flawline(*command)
        assert done.returncode == 1
        assert is_one_sentence(done.stderr)
        assert f"{dead} does not answer (connection refused)" in done.stderr
        assert "PREFECT_API_URL" in done.stderr
    done = project.flawline("data", "add", "data/tiny/widget", "--category", "widget")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"was not announced. The Prefect server at {dead} does not answer (connection refused)" in done.stdout
    assert "data/tiny/widget.dvc" in project.git("show", "--name-only", "HEAD")


@pytest.mark.slow
def test_the_temporary_server_is_reached_whatever_the_proxies(git_project: Project, tmp_path: Path) -> None:
    commit_folder("widget")
    inbox = tmp_path / "inbox" / "widget"
    assert good_images(new_images(inbox, 1))
    git_project.set_params({"ingest": {"settle_seconds": 0}})
    dead = f"127.0.0.1:{free_port()}"
    proxies = {"HTTP_PROXY": f"http://{dead}", "HTTPS_PROXY": f"http://{dead}"}
    if find_spec("socksio"):  # in requirements.lock; an older environment may lack it
        proxies["ALL_PROXY"] = f"socks5://{dead}"
    project = Project(git_project.folder, {**git_project.alone().environment, **proxies})
    done = project.flawline("ingest", "--source", inbox.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 arrived, 1 accepted" in done.stdout
    assert "No Prefect server was told" in done.stdout


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that takes no more connections, as one behind a firewall does."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_an_s3_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, git_project: Project) -> None:
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with open_project() as repo:
        set_remote(repo, "s3://bucket/versions")
    with silent_server() as silent:
        for url, reason in {
            f"http://127.0.0.1:{free_port()}": "connection refused",
            silent: "no answer in time",
        }.items():
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            with pytest.raises(UserError, match=f"The S3 server 127.0.0.1 cannot be reached .{reason}"):
                open_source("s3://bucket/inbox")
            with pytest.raises(UserError, match=f"The S3 server 127.0.0.1 cannot be reached .{reason}"):
                push()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://plant.example")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"plant\.example cannot be reached \(its proxy: connection refused\)"):
        open_source("s3://bucket/inbox")
