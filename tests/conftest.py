"""What several test files need: a workspace with its own MLflow database, and a small real capsule."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.project import FOREIGN, SERVER, Project, make_project
from tests.servers import S3Server, prefect_database, prefect_server, s3_server
from tests.shared import made_once

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("patient")
os.environ["PREFECT_PROFILES_PATH"] = os.devnull  # whoever tests may have a server
MakeCapsule = Callable[..., Path]
_MLFLOW_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "FLAWLINE_PARENT_RUN",
)


LIBRARIES = (  # which programs use besides stages; not Prefect's, which reads its settings as it is imported
    *("dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc.commands.status", "dvc.commands.data_sync", "dvc.scm"),
    *("mlflow.store.model_registry.sqlalchemy_store", "typer", "rich.table", "pandas", "scipy.stats", "jinja2"),
    *("httpx", "jsonschema", "griffe", "pydantic_settings", "anyio", "boto3"),
)
LONGEST = (  # take minutes each: begun first, so that no process waits for another at the end
    *("retraining/test_update.py", "retraining/test_prefect_server.py", "registry/test_promotion.py"),
    *("retraining/test_mission.py", "arrivals/test_ingest_line.py", "commands/test_errors.py"),
    *("stages/test_promise_kept.py", "retraining/test_lifetime.py", "retraining/test_line.py"),
    *("arrivals/test_ingest_kill.py", "data/test_old_version.py", "arrivals/test_ingest.py"),
    *("retraining/test_asking.py", "stages/test_fit.py", "tracking/test_outbox.py", "stages/test_validate.py"),
    *("retraining/test_schedule.py", "registry/test_versions.py", "images/test_shift.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    tests = Path(__file__).parent
    order = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test puts into this process's environment ends with it, also what MLflow's functions put there."""
    before = dict(os.environ)
    yield
    for name in (os.environ.keys() | before.keys()) - {"PYTEST_CURRENT_TEST"}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


def made_in_session(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], None]) -> Path:
    """A copy, of this process, of a folder that one of the session's processes makes."""
    own = factory.getbasetemp()
    common = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    return made_once(common, own / f"own-{name}", make)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow SQLite database with its tables: making them costs seconds, a copy costs none."""
    from components.tracking.connection import prepare_environment

    prepare_environment()

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_in_session("mlflow", tmp_path_factory, make) / "mlflow.db"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: networks this small are slower with more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def workspace(mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder whose MLflow database is ready."""
    for name in _MLFLOW_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "workspace"
    (folder / ".flawline" / "mlflow").mkdir(parents=True)
    shutil.copy(mlflow_database, folder / ".flawline" / "mlflow" / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    return folder


@pytest.fixture(scope="session")
def make_capsule() -> MakeCapsule:
    """`make_capsule(folder, threshold=…, category=…, bits=…)` writes a real capsule of a tiny random network.

    learned: the good images (N, 32, 32, 3) uint8 that it knows, eight of noise if not given.
    """
    from dataclasses import replace

    import numpy as np

    from components.detection.capsule import Capsule, save_capsule
    from components.detection.detector import Composition, Detector, Part, arrange
    from components.detection.promise import promise
    from components.detection.scale import Scale
    from components.foundation.params import BackboneParams
    from components.images.tensors import as_tensor
    from components.learning.backbone import build_encoder

    encoder = build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)
    good = np.random.default_rng(0).integers(90, 110, (8, 32, 32, 3), dtype=np.uint8)  # (N, H, W, 3)
    composition = Composition("pretrained", ("b1",), "shared", grid=4)

    def detector_of(images: np.ndarray) -> Detector:
        features = arrange(encoder.features(as_tensor(images), ("b1",)), composition)
        scorer = composition.density().fit(features).scorer()
        return Detector({"pretrained": encoder}, [Part(composition, scorer, Scale(0, 1), Scale(0, 1))], 32, 2.0)

    usual = detector_of(good)

    def make(
        folder: Path,
        threshold: float = 5.0,
        category: str = "bottle",
        selection: Mapping[str, Any] | None = None,
        bits: int = 16,
        learned: np.ndarray | None = None,
    ) -> Path:
        provenance = {"data_digest": "d" * 64}
        detector = usual if learned is None else detector_of(learned)
        calibration = np.sort(detector.score(good if learned is None else learned)[0])
        promised = replace(promise(calibration, 0.5, 0.95), value=threshold)
        said = {"promise": promised.to_json(), "missed": {}, "set_by": []}
        made = (detector, threshold, calibration, {**said, **(selection or {})}, provenance)
        capsule = Capsule(category, "pretrained", *made, bits=bits)
        save_capsule(capsule, good[:2], folder)
        return folder

    return make


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Path:
    """What a project's first run writes into `.flawline`: databases of MLflow and Prefect with empty tables."""

    def make(folder: Path) -> None:
        (folder / "mlflow").mkdir()
        shutil.copy(mlflow_database, folder / "mlflow" / "mlflow.db")
        shutil.copytree(prefect_database(), folder / "prefect")

    return made_in_session("databases", tmp_path_factory, make)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, databases: Path) -> Iterator[Project]:
    """A tiny project with two categories in which nothing has run yet; to be copied, not changed.

    Its programs and stages are forked from one process that has imported the libraries (`Project.cold` has none), and
    its flows talk to one Prefect server (`Project.alone` has none): a temporary one costs each of them ten seconds.
    """
    from flows.retraining.warm_stages import ADDRESS, warm_process

    made = make_project(tmp_path_factory.mktemp("line") / "fresh")
    shutil.copytree(databases, made.folder / ".flawline")
    server = prefect_server(made.folder.parent / "server", "--no-services")
    with warm_process({"OMP_NUM_THREADS": "1"}, LIBRARIES) as address, server as url:
        yield Project(made.folder, {**made.environment, ADDRESS: address, SERVER: url})


@pytest.fixture
def git_project(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the project, committed to git with an identity of its own; this process is in it, as its programs are.

    The images are not under DVC yet, and nothing has run.
    """
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    copy = project.copy(tmp_path / "project")
    copy = Project(copy.folder, {**copy.environment, **own, "DVC_SITE_CACHE_DIR": str(tmp_path / "site")})
    for name in [name for name in os.environ if name.startswith(FOREIGN) and name != "PREFECT_PROFILES_PATH"]:
        monkeypatch.delenv(name)
    for name in (*own, "DVC_SITE_CACHE_DIR", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, copy.environment[name])
    monkeypatch.chdir(copy.folder)
    copy.git("config", "user.name", "Tester")
    copy.git("config", "user.email", "tester@localhost")
    copy.git("add", ".gitignore", ".dvcignore", ".dvc", "dvc.yaml", "params.yaml")
    copy.git("commit", "-qm", "Begin")
    return copy


@pytest.fixture(scope="session")
def first_run(
    project: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """A copy of the project after one `flawline run`, and what that said; tests leave its outputs as they are."""

    def make(folder: Path) -> None:
        done = project.copy(folder / "project").alone().cold().flawline("run")  # as a person's first
        (folder / "said.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))

    folder = made_in_session("ran", tmp_path_factory, make)
    return Project(folder / "project", project.environment), subprocess.CompletedProcess(
        "flawline run", *json.loads((folder / "said.json").read_text())
    )


@pytest.fixture(scope="session")
def ran(first_run: tuple[Project, subprocess.CompletedProcess[str]]) -> Project:
    """The project after its first run."""
    return first_run[0]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with the bucket "bucket"; tests that write to it use prefixes of their own."""
    with s3_server(tmp_path_factory.mktemp("s3") / "buckets", "bucket") as server:
        yield server
