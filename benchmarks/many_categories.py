"""What DVC itself costs a stage, by how many categories a project has: by DVC as it is, and as the flows use it.

    python -m benchmarks.many_categories --out benchmarks/results/many_categories.json

A project with a chain of five stages for each category. Each copies a file, and depends on all parameters, as those of
the line nearly do. Columns: categories; dvc, "as it is" or "as the flows use it"; lines of dvc.lock; look, CPU seconds
of this process for a stage that has nothing to do; run, for one that runs, without the stage itself. The ways are
measured in turn; each figure is the median of five, in a process that has parsed the file before.
"""

import argparse
import logging
import os
import subprocess
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.common import print_table, write_results
from components.foundation.yaml_text import read_yaml
from flows.data.dvc_project import repo_at, silent_stdout, whole_files
from flows.data.quick_lock import quick_lockfile
from flows.retraining.stages import STAGES

COUNTS = (2, 15)
REPEATS = 5


def main() -> None:
    """Measure all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--categories", type=int, nargs="+", default=COUNTS, help="numbers of categories")
    arguments = parser.parse_args()
    logging.getLogger("dvc").setLevel(logging.ERROR)
    out, params = arguments.out.resolve(), Path("params.yaml").resolve()
    rows = []
    for count in arguments.categories:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            make_project(count, read_yaml(params))
            rows += measure(count)
    print_table(rows)
    write_results(out, rows)


def make_project(count: int, params: dict[str, Any]) -> None:
    """Write a pipeline of so many categories into the current folder, and run it."""
    os.environ["DVC_SITE_CACHE_DIR"] = os.fspath(Path("site").resolve())
    subprocess.run(["git", "init", "-q"], check=True)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path("params.yaml").write_text(yaml.safe_dump(params))
    names = [f"category{number:02}" for number in range(count)]
    Path("first").write_text("first")
    stages, before = {}, "first"
    for stage in STAGES:
        made = f"{stage}.${{item}}"
        do = {"cmd": f"cp {before} {made}", "deps": [before], "outs": [made], "params": list(params)}
        stages[stage], before = {"foreach": names, "do": do}, made
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with repo_at(Path.cwd(), whole_files()()) as repo, silent_stdout():
        repo.reproduce()


def measure(count: int) -> list[dict[str, Any]]:
    """The rows of the project in the current folder."""
    seconds: dict[tuple[bool, bool], list[float]] = {}
    for _ in range(REPEATS):
        for quick in (False, True):
            for force in (False, True):
                seconds.setdefault((quick, force), []).append(reproduce(f"fit@category{count - 1:02}", quick, force))
    return [
        {
            "categories": count,
            "dvc": "as the flows use it" if quick else "as it is",
            "lines": len(Path("dvc.lock").read_text().splitlines()),
            "look": round(median(seconds[quick, False]), 3),
            "run": round(median(seconds[quick, True]), 3),
        }
        for quick in (False, True)
    ]


def reproduce(target: str, quick: bool, force: bool) -> float:
    """CPU seconds of this process for one stage."""
    from dvc import dvcfile
    from dvc.repo import Repo

    if not quick:
        dvcfile.Lockfile = quick_lockfile().__base__
    begun = time.process_time()
    with repo_at(Path.cwd(), whole_files()()) if quick else Repo(os.getcwd()) as repo, silent_stdout():
        repo.reproduce([target], single_item=True, force=force)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
