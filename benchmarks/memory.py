"""Peak memory of reading, synthesis and scoring as a category grows: it must not. And that of fit on a real category.

`python -m benchmarks.memory --out FILE.json [--data ../shared/data/mvtec/bottle]`: rows of stage, images, peak_mib,
ratio (to the smallest category's). A category is generated in a temporary folder: a few pictures, in as many files as
it needs, of bytes of their own. Each stage runs in a process of its own, whose anonymous resident memory is watched
(pages of mapped files are not the process's own: the system drops them when it needs the room): "reading" is the image
table of stage validate, "synthesis" is stage synthesize, "scoring" is the scoring of all images by a capsule's detector
in batches. "fit" is stage fit with the preset cpu on the category of --data: of its first good images, and of all.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import print_table, write_results
from components.foundation.files import sha256_file, write_json
from components.foundation.params import Params, parse_params, read_preset
from components.foundation.places import Places

CATEGORY, SIDE, DISTINCT = "generated", 64, 50
SIZES = (300, 3000, 30000)
FEW = 90  # images of a real category


def main() -> None:
    """Measure every stage on every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the category for fit; without it fit is not measured")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for count in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            params = generate(Path(folder), count)
            for name, stage in STAGES.items():
                peak = peak_mib(Path(folder), stage, params)
                first = next((row["peak_mib"] for row in rows if row["stage"] == name), peak)
                rows.append({"stage": name, "images": count, "peak_mib": round(peak), "ratio": round(peak / first, 2)})
    rows += fit_rows(arguments.data.resolve()) if arguments.data else []
    print_table(rows)
    write_results(arguments.out, rows)


def fit_rows(source: Path) -> list[dict[str, Any]]:
    """Stage fit on FEW good images of a category, and on all; the ratio is to the first."""
    peaks = {}
    good = sorted((source / "train" / "good").iterdir(), key=sha256_file)
    for count in (min(FEW, len(good)), len(good)):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "data" / source.name
            shutil.copytree(source, copy)
            for path in good[count:]:
                (copy / "train" / "good" / path.name).unlink()
            content = read_preset("cpu") | {"data": {"root": "data", "categories": [source.name]}}
            params = parse_params(content, "preset cpu")
            peak_mib(Path(folder), learn, params)
            peaks[count] = peak_mib(Path(folder), fit, params)
    first = next(iter(peaks.values()))
    return [
        {"stage": "fit", "images": count, "peak_mib": round(peak), "ratio": round(peak / first, 2)}
        for count, peak in peaks.items()
    ]


def generate(folder: Path, count: int) -> Params:
    """A category of `count` good images, of which DISTINCT differ, and the parameters that name it."""
    good = folder / "data" / CATEGORY / "train" / "good"
    good.mkdir(parents=True)
    generator = np.random.default_rng(0)
    base = generator.normal(128, 20, (SIDE, SIDE, 3))
    for number in range(count):
        path = good / f"{number:06d}.png"
        if number < DISTINCT:
            pixels = np.clip(base + generator.normal(0, 5, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        else:
            distinct = (good / f"{number % DISTINCT:06d}.png").read_bytes()
            path.write_bytes(distinct + number.to_bytes(4))  # the same picture; an image is its bytes
    content = {
        "data": {"root": str(folder / "data"), "categories": [CATEGORY]},
        "image": {"side": SIDE},
        "backbone": {"name": "lcnet_035", "weights": "none"},
    }
    return parse_params(content, "the benchmark")


def peak_mib(folder: Path, stage: Callable[[Params], None], params: Params) -> float:
    """Peak anonymous memory of a fresh process that runs a stage in `folder`, in MiB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(folder, stage, params, sender))
    process.start()
    sender.close()
    peak = float(receiver.recv())
    process.join()
    return peak


def _measured(folder: Path, stage: Callable[[Params], None], params: Params, sender: Any) -> None:
    os.chdir(folder)
    done, seen = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    stage(params)
    done.set()
    watcher.join()
    sender.send(max(seen))


def anonymous_mib() -> float:
    """Resident memory of this process that no file stands behind, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def read(params: Params) -> None:
    """Make the table of all images."""
    from components.images.dataset import list_category
    from components.images.table import image_table

    image_table(list_category(Path(params.data.root) / CATEGORY), params.limits.image_limits())


def learn(params: Params) -> None:
    """All stages before fit."""
    from components.foundation.runtime import use_threads
    from components.stages import synthesize, train, validate

    use_threads(params.threads)
    for stage in (validate, synthesize, train):
        stage.main(params.data.categories[0], params)


def fit(params: Params) -> None:
    """Stage fit."""
    from components.stages import fit

    fit.main(params.data.categories[0], params)


def validated(root: Path) -> dict[str, Any]:
    """What validation would write of the images, but for near-duplicates."""
    images = {path.name: sha256_file(path) for path in (root / "train" / "good").iterdir()}
    return {"images": images, "data_digest": "", "near_duplicates": [], "bits": 16}


def synthesize(params: Params) -> None:
    """Stage synthesize, as if validation had passed."""
    from components.stages.synthesize import main as run

    places = Places(CATEGORY)
    places.validation.mkdir(parents=True, exist_ok=True)
    write_json(places.validation / "learned.json", validated(Path(params.data.root) / CATEGORY))
    run(CATEGORY, params)


def score(params: Params) -> None:
    """Score every prepared image with a detector that was fitted to the first of them."""
    from components.detection.compositions import candidates
    from components.detection.detector import BATCH, Detector, Part, arrange
    from components.detection.feature_bank import FeatureBank
    from components.detection.scale import Scale
    from components.learning.backbone import build_encoder
    from components.synthesis.prepared import batches, load_prepared

    prepared = load_prepared(Places(CATEGORY).prepared)
    images = prepared.images
    encoder = build_encoder(params.backbone, params.seed)
    composition = candidates("pretrained", encoder, SIDE, len(images))[0]
    features = FeatureBank("pretrained", encoder, prepared, [composition]).of(np.arange(DISTINCT))
    part = Part(composition, composition.scorer_of(arrange(features, composition)), Scale(0, 1), Scale(0, 1))
    detector = Detector({"pretrained": encoder}, [part], SIDE, 1.0)
    for rows in batches(np.arange(len(images)), BATCH):
        detector.score(images[rows])


STAGES: dict[str, Callable[[Params], None]] = {"reading": read, "synthesis": synthesize, "scoring": score}


if __name__ == "__main__":
    main()
