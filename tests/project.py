"""A tiny Flawline project in a folder of its own, in which the real programs run: flawline, dvc, the stages."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from flows.retraining.warm_stages import ADDRESS

REPOSITORY = Path(__file__).parents[1]
CATEGORIES = ("widget", "gadget")  # the second has no defective image and no mask
STEPS = 24  # of training: 4 of the head, 20 of all layers
SIDE = 48
SERVER = "PREFECT_API_URL"
FOREIGN = ("PREFECT_", "MLFLOW_", "FLAWLINE_", "DVC_", "GIT_")  # variables that reach other projects' state or services
TINY: dict[str, Any] = {
    "method": "cutpaste-3way",
    "threads": 1,
    "data": {"root": "data/tiny", "categories": list(CATEGORIES)},
    "image": {"side": 32},
    "validation": {"min_good": 10},
    "gate": {"first": {"held_out": 1, "mark": 0.0}},  # so few images
    "synthesis": {"exam_images": 8},
    "backbone": {"name": "lcnet_035", "weights": "none"},
    "training": {
        **{"head_steps": 4, "head_rate": 0.03, "steps": 20, "rate": 0.03, "optimizer": "sgd", "batch": 4},
        **{"freeze_batch_norm": False, "projection": [32], "checkpoint_steps": 2, "exam_steps": 20, "device": "cpu"},
    },
    "fit": {"folds": 2, "layout": "auto"},
    "threshold": {"false_alarm_rate": 0.3},
    "evaluation": {"bootstrap": 50},
}


@dataclass(frozen=True)
class Project:
    """The project's folder, and the environment in which its programs run."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *command: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of Python to its end; `before` is called in its process first."""
        return self._run([sys.executable, *command], before)

    def _run(
        self, command: Sequence[str], before: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
            preexec_fn=before,
        )

    def flawline(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`flawline ARGUMENTS`."""
        return self._program("flows.commands.cli", *map(str, arguments))

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`dvc ARGUMENTS`."""
        return self._program("dvc", *arguments)

    def _program(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a module, forked where there is one from the process that has imported the libraries already."""
        if ADDRESS not in self.environment:
            return self.run("-m", module, *arguments)
        return self.run("-S", str(REPOSITORY / "infra/warm_stage.py"), module, *arguments)

    def git(self, *arguments: str) -> str:
        """What `git ARGUMENTS` prints, without the last newline; an error if it fails."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, env=dict(self.environment), capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def stage(
        self, name: str, category: str, before: Callable[[], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One stage of one category; with `before`, in an interpreter of its own."""
        if before is None:
            return self._run(["infra/stage", name, category])
        return self.run("-m", f"components.stages.{name}", category, before=before)

    def cold(self) -> "Project":
        """The same, but programs start as a person's do, and each flow makes ready its own process for its stages."""
        return self._without(ADDRESS)

    def alone(self) -> "Project":
        """The same, but no Prefect server is named: each flow starts a temporary one."""
        return self._without(SERVER)

    def _without(self, variable: str) -> "Project":
        return Project(self.folder, {name: value for name, value in self.environment.items() if name != variable})

    def copy(self, folder: Path) -> "Project":
        """The same project, with all that it has computed, in another folder."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("tmp"))
        return Project(folder, self.environment)

    def set_params(self, values: Mapping[str, Any]) -> None:
        """Merge nested values into params.yaml."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        for name, value in values.items():
            content[name] = {**content[name], **value} if isinstance(value, Mapping) else value
        path.write_text(yaml.safe_dump(content))

    def parts(self) -> list[Path]:
        """Whatever was left half-made."""
        return [path for path in self.folder.rglob("*.part") if ".dvc" not in path.parts]


def make_project(folder: Path) -> Project:
    """Write a project with this repository's code, and two generated categories of 48 × 48 pixels."""
    for name in ("components", "flows", "infra"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.part"))
    for name in (
        "dvc.yaml",
        "params.yaml",
        "prefect.yaml",
        ".dvcignore",
        ".gitignore",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    project = Project(folder, _environment(folder))
    project.set_params(TINY)
    write_category(folder / "data" / "tiny" / "widget", seed=0, defects=4)
    write_category(folder / "data" / "tiny" / "gadget", seed=1, defects=0)
    return project


def write_category(root: Path, *, seed: int, defects: int, train: int = 14) -> None:
    """A waved surface with noise; a defect is a bright square, with its mask."""
    generator = np.random.default_rng(seed)
    for number in range(train):
        write_image(root / "train" / "good" / f"{number:03}.png", surface(generator))
    for number in range(4):
        write_image(root / "test" / "good" / f"{number:03}.png", surface(generator))
    for number in range(defects):
        image, mask = surface(generator), np.zeros((SIDE, SIDE), np.uint8)
        row, column = generator.integers(8, SIDE - 16, 2)
        mask[row : row + 8, column : column + 8] = 255
        image[mask > 0] = 235
        write_image(root / "test" / "blob" / f"{number:03}.png", image)
        write_image(root / "ground_truth" / "blob" / f"{number:03}_mask.png", mask)


def surface(generator: np.random.Generator) -> np.ndarray:
    """One good image, uint8 (48, 48, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = 128 + 30 * np.sin(x / 3) * np.cos(y / 4)
    return np.clip(waves[..., None] + generator.normal(0, 6, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write pixels to a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def new_images(folder: Path, count: int, seed: int = 5) -> list[Path]:
    """Write so many new good images, new-0.png and so on."""
    generator = np.random.default_rng(seed)
    paths = [folder / f"new-{number}.png" for number in range(count)]
    for path in paths:
        write_image(path, surface(generator))
    return paths


def is_one_sentence(stderr: str) -> bool:
    """Whether a program has said one thing only, in one line of prose that ends with a full stop."""
    lines = stderr.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("flawline: ") and lines[0].endswith(".")


def _environment(folder: Path) -> dict[str, str]:
    """This process's environment, without what would reach other projects' state or services."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name != "PYTHONPATH"}
    own = {"FLAWLINE_PYTHON": sys.executable, "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc"), "OMP_NUM_THREADS": "1"}
    if sys.dont_write_bytecode:  # else each of many processes would compile thousands of files anew
        del kept["PYTHONDONTWRITEBYTECODE"]
        own["PYTHONPYCACHEPREFIX"] = str(folder.parent / "bytecode")
    own["PREFECT_PROFILES_PATH"] = str(folder.parent / "no-profiles.toml")  # whoever tests may have a server
    return kept | own | {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
