"""Every method on real categories: figures, seconds; the representation before any training beside the trained ones.

    python -m benchmarks.methods --data ../shared/data --out benchmarks/results/methods.json
    python -m benchmarks.methods … --methods nsa-logistic nsa-cutpaste --set network.keep=always

Rows that the file has already (same category, method, seed) are kept, so a run that was cut short goes on, and runs
side by side from the same folder may share the file. train_s and fit_s are wall time, train_cpu_s is that of all cores
together; settings are those that differ from the preset's.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.common import print_table, write_results
from components.detection.capsule import load_capsule
from components.foundation.errors import UserError
from components.foundation.files import held_lock, read_json
from components.foundation.params import Params, parse_params, read_preset
from components.foundation.places import Places
from components.stages import evaluate, fit, synthesize, train, validate
from components.synthesis.prepared import load_prepared

CATEGORIES = ("mvtec/bottle", "mvtec/screw", "magnetic_tile")
METHODS = (
    *("cutpaste-3way", "pretrained", "cutpaste-binary", "cutpaste-scar", "cutpaste-union", "cutpaste-patch"),
    *("cutpaste-ensemble", "rotation", "cutout", "confetti", "nsa-logistic", "nsa-binary", "nsa-continuous"),
    *("fpi", "pii", "nsa-gde", "nsa-cutpaste"),
)
LOCK = Path(".flawline/benchmarks.lock")
COLUMNS = ("category", "method", "seed", "default", "encoder", "image_auroc", "pixel_auroc", "aupro", "exam_mark",
           "train_s", "train_cpu_s", "fit_s", "score_ms", "settings")  # fmt: skip


def main() -> None:
    """Measure what is missing, one row at a time, and write the file after each."""
    arguments = parse_arguments()
    for category in arguments.categories:
        for method in arguments.methods:
            for seed in arguments.seeds:
                if has_row(arguments.out, Path(category).name, method, seed):
                    continue
                params = make_params(arguments, category, method, seed)
                row = measure(Path(category).name, params, arguments.work)
                usual = parse_params(usual_content(arguments, category, method, seed), arguments.preset)
                row["settings"] = " ".join(settings_of(params, usual))
                add_row(arguments.out, row, default=read_preset(arguments.preset)["method"])
    print_table(known_rows(arguments.out))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the categories")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; rows it has are kept")
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks"), help="folder for the runs")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="training steps instead of the preset's")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="other values of the preset")
    return parser.parse_args()


def known_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run; none where there is no file."""
    return list(json.loads(path.read_text())["rows"]) if path.is_file() else []


def has_row(path: Path, category: str, method: str, seed: int) -> bool:
    """Whether the file has this row already."""
    return any((row["category"], row["method"], row["seed"]) == (category, method, seed) for row in known_rows(path))


def add_row(path: Path, row: dict[str, Any], default: str) -> None:
    """Write the file with one more row; a run in the same folder that does so too waits its turn.

    default: the preset's method, whose rows are marked.
    """
    with held_lock(LOCK, 60, UserError(f"Another run keeps {LOCK}: end it, then run again.")):
        rows = [{**one, "default": one["method"] == default} for one in (*known_rows(path), row)]
        write_results(path, [{name: one.get(name) for name in COLUMNS} for one in rows])


def usual_content(arguments: argparse.Namespace, category: str, method: str, seed: int) -> dict[str, Any]:
    """`arguments.preset` with this method and seed, on this folder of `arguments.data`."""
    path = (arguments.data / category).resolve()
    return read_preset(arguments.preset) | {
        "method": method,
        "seed": seed,
        "data": {"root": str(path.parent), "categories": [path.name]},
    }


def make_params(arguments: argparse.Namespace, category: str, method: str, seed: int) -> Params:
    """Parameters of one row: the usual ones, with what the command line changes."""
    content = usual_content(arguments, category, method, seed)
    if arguments.steps is not None:
        content["training"] = content.get("training", {}) | {"steps": arguments.steps}
        content["network"] = content.get("network", {}) | {"steps": arguments.steps}
    for key, equals, value in (setting.partition("=") for setting in arguments.set):
        section, dot, name = key.partition(".")
        if equals and dot:
            content[section] = content.get(section, {}) | {name: yaml.safe_load(value)}
        else:
            content[key] = yaml.safe_load(value)
    return parse_params(content, f"preset {arguments.preset}")


def settings_of(params: Params, usual: Params) -> list[str]:
    """Where parameters differ from the usual ones, as `section.key=value`."""
    own, other = params.model_dump(mode="json"), usual.model_dump(mode="json")
    words = []
    for name, value in own.items():
        if isinstance(value, dict):
            words += [f"{name}.{key}={value[key]}" for key in value if value[key] != other[name][key]]
        elif value != other[name]:
            words.append(f"{name}={value}")
    return words


def measure(category: str, params: Params, work: Path) -> dict[str, Any]:
    """Run all stages of one row in a folder of its own, and take their times."""
    with working_in(work / f"{category}-{params.method}-{params.seed}"):
        for stage in (validate, synthesize):
            stage.main(category, params)
        used = time.process_time()
        train_s = seconds(lambda: train.main(category, params))
        train_cpu_s = time.process_time() - used
        fit_s = seconds(lambda: fit.main(category, params))
        evaluate.main(category, params)
        places = Places(category)
        metrics = read_json(places.figures)
        images = np.asarray(load_prepared(places.prepared).images[:16])
        score_ms = score_milliseconds(places.capsule, images)
    figures = {name: metrics[name] for name in ("image_auroc", "pixel_auroc", "aupro", "exam_mark", "encoder")}
    return {
        "category": category,
        "method": params.method,
        "seed": params.seed,
        **figures,
        "train_s": round(train_s, 1),
        "train_cpu_s": round(train_cpu_s, 1),
        "fit_s": round(fit_s, 1),
        "score_ms": round(score_ms, 1),
    }


def seconds(action: Any) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def score_milliseconds(capsule: Path, images: np.ndarray) -> float:
    """Median time per image of scoring a batch, in milliseconds."""
    loaded = load_capsule(capsule)
    return statistics.median(seconds(lambda: loaded.score(images)) for _ in range(3)) / len(images) * 1000


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make `folder` the current one for a while; the stages write below it."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    main()
