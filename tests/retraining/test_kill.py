"""`kill -9` of a training: the same command again goes on from the last checkpoint, to the same bytes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from components.foundation.files import digest_tree
from tests.project import STEPS, Project

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HEAD_STEPS = 4
PATIENCE = 240.0  # seconds until a wait is given up; an idle machine needs less than ten
Found = TypeVar("Found")


def wait_for(look: Callable[[], Found | None], program: "subprocess.Popen[bytes]") -> Found:
    """What `look` finds, as soon as it finds something; fails when the program ends before, or after PATIENCE."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        assert program.poll() is None, f"it ended with {program.returncode} before it could be killed"
        time.sleep(0.01)
    raise AssertionError("nothing was found in time")


def training_process(project: Project) -> int | None:
    """The process that runs the training stage of this project."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, place = (folder / "cmdline").read_bytes(), os.readlink(folder / "cwd")
        except OSError:
            continue
        if b"components.stages.train\0" in command and place == str(project.folder.resolve()):
            return int(folder.name)
    return None


def checkpoint_step(project: Project) -> int | None:
    """The step of the checkpoint, once the second phase (with its own optimizer's momentum) has written one."""
    for facts in (project.folder / ".flawline" / "checkpoints" / "widget").glob("*/facts.json"):
        try:
            step = int(json.loads(facts.read_text())["step"])
        except FileNotFoundError:  # just being replaced by the next one
            continue
        if step > HEAD_STEPS and not facts.parent.name.endswith(".part"):
            return step
    return None


def attempts(project: Project) -> "list[Run]":
    """The MLflow runs of the category, the earliest first."""
    client = mlflow_client(project)
    experiment = client.get_experiment_by_name("flawline")
    assert experiment is not None
    wanted = "tags.`flawline.category` = 'widget'"
    return list(client.search_runs([experiment.experiment_id], wanted, order_by=["attributes.start_time"]))


def logged_steps(project: Project, since: float) -> list[int]:
    """Steps of the training loss which MLflow got from the latest attempt after a time (seconds since 1970)."""
    points = mlflow_client(project).get_metric_history(attempts(project)[-1].info.run_id, "train/loss")
    return sorted(point.step for point in points if point.timestamp >= 1000 * since)


def mlflow_client(project: Project) -> "MlflowClient":
    from components.tracking.connection import prepare_environment

    prepare_environment()
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project.folder}/.flawline/mlflow/mlflow.db")


@pytest.mark.slow
def test_a_killed_training_resumes_and_ends_with_the_same_bytes(ran: Project, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path / "project").cold()
    command = ["repro", "--force", "--single-item", "train@widget"]
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", *command],
        cwd=copy.folder,
        env=dict(copy.environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        victim = wait_for(lambda: training_process(copy), program)
        wait_for(lambda: checkpoint_step(copy), program)
        os.kill(victim, signal.SIGKILL)
        assert program.wait(timeout=PATIENCE) != 0
    reached = checkpoint_step(copy)
    assert reached is not None
    assert reached < STEPS
    assert not (copy.folder / "artifacts" / "widget" / "encoder").exists()

    begun = len(attempts(copy))
    restarted = time.time()
    done = copy.dvc(*command)

    assert done.returncode == 0, done.stderr
    assert len(attempts(copy)) == begun  # the killed attempt is continued
    assert logged_steps(copy, since=restarted) == list(range(reached + 1, STEPS + 1))
    with (copy.folder / "artifacts" / "widget" / "encoder" / "history.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, STEPS + 1))
    encoder = Path("artifacts") / "widget" / "encoder"
    assert digest_tree(copy.folder / encoder) == digest_tree(ran.folder / encoder)
    assert (copy.folder / "dvc.lock").read_bytes() == (ran.folder / "dvc.lock").read_bytes()
    assert not (copy.folder / ".flawline" / "checkpoints" / "widget").exists()
    assert copy.parts() == []
