"""A real `mlflow models serve`, started as README says, asked by many clients at once and by some that are wrong."""

import base64
import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import MakeCapsule
from tests.servers import free_port, running
from tests.serving import sizes, text

CLIENTS, ROUNDS = 8, 6
Ask = Callable[[dict[str, Any] | bytes], tuple[int, bytes]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, make_capsule: MakeCapsule) -> Iterator[Ask]:
    """Ask the champion of "bottle", served from the project's own database: status and body of the answer."""
    from components.registry.promotion import promote
    from components.registry.versions import register

    folder = tmp_path_factory.mktemp("served")
    (folder / ".flawline" / "mlflow").mkdir(parents=True)
    (folder / ".flawline" / "mlflow" / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/flawline-bottle@champion"]
    command += ["--env-manager", "local", "--port", str(port)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))  # for uvicorn
        capsule = make_capsule(Path("capsule"), threshold=10.0)
        promote("bottle", register("bottle", capsule, "", {}, "pretrained").number, "test")
        own = {"MLFLOW_TRACKING_URI": "sqlite:///.flawline/mlflow/mlflow.db", "OMP_NUM_THREADS": "1"}
        with running(command, port, folder / "serve.log", {**os.environ, **own}):
            yield lambda body: _post(port, body)


def _post(port: int, body: dict[str, Any] | bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/invocations", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def request(*images: str, column: str = "image") -> dict[str, Any]:
    return {"dataframe_split": {"columns": [column], "data": [[image] for image in images]}}


@pytest.mark.slow
def test_each_of_many_clients_gets_the_answer_that_it_gets_alone(server: Ask) -> None:
    bodies = [{**request(text(image)), "params": {"return_map": True}} for image in sizes(CLIENTS)]
    alone = [server(body) for body in bodies]
    assert [status for status, _ in alone] == [200] * CLIENTS, alone
    assert len({body for _, body in alone}) == CLIENTS
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(server, bodies * ROUNDS))
    assert [answer == expected for answer, expected in zip(found, alone * ROUNDS, strict=True)] == [True] * len(found)


@pytest.mark.slow
def test_the_answer_leads_to_the_version_that_scored(server: Ask) -> None:
    import mlflow

    from components.foundation.mlflow_store import database_uri

    _, body = server(request(text(sizes(1)[0])))
    (row,) = json.loads(body)["predictions"]
    assert row["category"] == "bottle"
    client = mlflow.MlflowClient(database_uri(Path.cwd()))  # the fixture's folder is current while its server runs
    condition = f"name = 'flawline-bottle' and tags.capsule_digest = '{row['capsule_digest']}'"
    assert [found.version for found in client.search_model_versions(condition)] == [1]


PICTURE = text(np.zeros((40, 40, 3), np.uint8))
SECRET = "secret serial number"
WRONG = {
    "no base64": (request(f"{SECRET} {PICTURE}"), "row 0 is not base64 text"),
    "no image": (request(base64.b64encode(f"{SECRET} {PICTURE}".encode()).decode()), "row 0 is not a PNG, JPEG"),
    "second row": (request(PICTURE, PICTURE[:80]), "row 1 cannot be decoded"),
    "other column": (request(PICTURE, column="picture"), "no column 'image'"),
    "number": ({"dataframe_split": {"columns": ["image"], "data": [[3]]}}, "row 0 is neither bytes nor text"),
    "instances": ({"instances": [{"picture": PICTURE}]}, "no column 'image'"),
    "inputs": ({"inputs": {"image": [f"{SECRET} {PICTURE}"]}}, "row 0 is neither bytes nor text"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_request_is_refused_in_a_sentence_without_its_image(server: Ask, kind: str) -> None:
    body, words = WRONG[kind]
    status, answer = server(body)
    assert status == 400
    assert words in json.loads(answer)["message"]
    for sent in (PICTURE, SECRET, base64.b64encode(SECRET.encode()).decode()):
        assert sent[:12].encode() not in answer
