"""What an update costs beside a full run, and that it gives the scores of a fit from scratch.

    python -m benchmarks.update --data ../shared/data/mvtec/bottle --out benchmarks/results/update.json

A model is made of all good images of a category but 14 (the version that is updated). Then, each with the cache as that
run left it: "full cold" learns everything anew from all images, without any cache; "full warm" the same with it;
"update" keeps encoder and compositions; "forget" updates that version to the images of the first. Rows of method, case,
seconds of all stages and of each, and greatest_score_difference on the test images: of "full warm" from "full cold", of
the others from a fit of the same compositions to the same images without update or cache. Seconds are those of the
stages' work in one process: no imports, no registry.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import print_table, write_results
from benchmarks.methods import working_in
from components.detection.calibration import Plan, learns_held_out
from components.detection.capsule import load_capsule
from components.detection.choice import make_banks
from components.detection.detector import Detector
from components.detection.keeping import keep, load_kept
from components.foundation.files import sha256_file
from components.foundation.params import CacheParams, Params, parse_params, read_preset
from components.foundation.pin import Pin, write_pin
from components.foundation.places import KNOWN, Places
from components.foundation.runtime import use_threads
from components.images.dataset import list_category
from components.images.decode import read_image
from components.stages import evaluate, fit, synthesize, train, validate
from components.synthesis.prepared import load_prepared

NEW = 14
STAGES = {"validate": validate, "synthesize": synthesize, "train": train, "fit": fit, "evaluate": evaluate}
Scores = np.ndarray


def main() -> None:
    """Measure one category."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the category")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks/update"), help="folder for the runs")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--methods", nargs="+", help="the preset's if not given")
    arguments = parser.parse_args()
    source, out, preset = arguments.data.resolve(), arguments.out.resolve(), read_preset(arguments.preset)
    shutil.rmtree(arguments.work, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for method in arguments.methods or [preset["method"]]:
        own = {"method": method, "data": {"root": "data", "categories": [source.name]}}
        with working_in(arguments.work / method):
            rows += [{"method": method} | row for row in measure(source, parse_params(preset | own, arguments.preset))]
    print_table(rows)
    write_results(out, rows)


def measure(source: Path, params: Params) -> list[dict[str, Any]]:
    """The rows, in the current folder."""
    use_threads(params.threads)
    category = source.name
    shutil.copytree(source, Path("data") / category)
    new = sorted((Path("data") / category / "train/good").iterdir(), key=sha256_file)[:NEW]
    set_aside(new)
    run("first", category, params)
    first, after_first = kept_capsule(category, 1), stored("first")

    bring_back(new)
    rows = []
    KNOWN.unlink()
    rows.append(run("full cold", category, params))
    cold = scores(category, load_capsule(Places(category).capsule).detector, params)
    restore(after_first)
    rows.append(run("full warm", category, params))
    warm = scores(category, load_capsule(Places(category).capsule).detector, params)
    rows[-1]["greatest_score_difference"] = float(np.abs(warm - cold).max())

    restore(after_first)
    write_pin(category, first)
    rows.append(run("update", category, params) | difference(category, first, params))
    second = kept_capsule(category, 2)
    set_aside(new)
    write_pin(category, second)
    rows.append(run("forget", category, params) | difference(category, second, params))
    return rows


def run(case: str, category: str, params: Params) -> dict[str, Any]:
    """All stages, one after the other: the row with their seconds."""
    seconds = {}
    for name, stage in STAGES.items():
        begun = time.monotonic()
        stage.main(category, params)
        seconds[name] = round(time.monotonic() - begun, 1)
        print(f"{case}: {name} {seconds[name]} s", flush=True)
    return {"case": case, "seconds": round(sum(seconds.values()), 1), "greatest_score_difference": None, **seconds}


def difference(category: str, pin: Pin, params: Params) -> dict[str, float]:
    """How far the capsule's scores of the test images are from those of a fit from scratch, without any cache."""
    folder = Path("scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    keep(pin, category, params, folder)
    kept, prepared = load_kept(folder), load_prepared(Places(category).prepared)
    assert kept is not None
    banks = make_banks(kept.encoders, prepared, params.model_copy(update={"cache": CacheParams(max_bytes=0)}))
    plan = Plan.of(prepared, params, taught=kept.is_taught, refit=learns_held_out(prepared, params))
    scratch = fit.fit_detector(kept, banks, prepared, params, kept.heads, plan).detector
    updated = load_capsule(Places(category).capsule).detector
    worst = np.abs(scores(category, updated, params) - scores(category, scratch, params)).max()
    return {"greatest_score_difference": float(worst)}


def scores(category: str, detector: Detector, params: Params) -> Scores:
    """Image scores (n,) of the test images."""
    limits = params.limits.image_limits()
    images = [read_image(record.path, limits) for record in list_category(Path("data") / category).test]
    return detector.score(images)[0]


def kept_capsule(category: str, version: int) -> Pin:
    """Put the capsule that was just made where updates find it."""
    capsule = load_capsule(Places(category).capsule)
    pin = Pin(version, capsule.digest)
    shutil.copytree(Places(category).capsule, pin.folder)
    return pin


def stored(name: str) -> Path:
    """A copy of the cache as it is."""
    copy = Path(f"{name}.db")
    shutil.copy(KNOWN, copy)
    return copy


def restore(copy: Path) -> None:
    shutil.copy(copy, KNOWN)


def set_aside(paths: list[Path]) -> None:
    """Take images out of the category."""
    Path("aside").mkdir(exist_ok=True)
    for path in paths:
        path.rename(Path("aside") / path.name)


def bring_back(paths: list[Path]) -> None:
    for path in paths:
        (Path("aside") / path.name).rename(path)


if __name__ == "__main__":
    main()
