"""What the gate's default policy makes of models that are as good as the champion, and of models that lost something.

    python -m benchmarks.gate --out benchmarks/results/gate.json
    python -m benchmarks.gate --data ../shared/data --out benchmarks/results/gate.json   # degraded real models too

By simulation: image scores of two models are normal, with known AUROC and correlation; the challenger's AUROC is lower
by `lost_points` hundredths; half of `images` are good. Each has the threshold that its own good scores exceed in 2 of
100. Rows of images (test_images of either class), lost_points, auroc and correlation with the shares of so many pairs
of test sets that are promoted, rejected, and held for a person. Degraded real models learn a share of the good images
of screw, or have noise in their density, and are judged against the one that learned all of them; each is one verdict.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import print_table, write_results
from benchmarks.methods import working_in
from components.detection.capsule import load_capsule, save_capsule
from components.detection.detector import Detector
from components.foundation.files import sha256_file
from components.foundation.params import GateParams, Params, parse_params, read_preset
from components.foundation.places import Places
from components.images.dataset import ImageRecord, list_category
from components.registry.gate.comparison import Case, Model, judge
from components.registry.gate.decision import Compared, Cost, Evidence, Rates, count_comparisons, decide
from components.registry.gate.statistics import Levels, Rate, auroc_difference, more_often, resamples
from components.stages import fit, synthesize, train, validate

IMAGES = (20, 50, 100, 200)  # of either class
LOST = (0, 1, 3, 5, 10)  # hundredths of AUROC
SETTINGS = ((0.85, 0.5), (0.9, 0.7), (0.97, 0.9))  # the champion's AUROC, and how the models' scores correlate
KINDS = 3  # of defects, equally many of each
FALSE_ALARMS = 0.02
SHARES = (0.1, 0.3, 0.6)  # of the good images that a degraded model learns
NOISE = (0.02, 0.1, 0.3)  # in a density, as a share of the spread of its whitening matrix


def main() -> None:
    """Simulate, then judge real models where there are data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=400, help="pairs of test sets for each row")
    parser.add_argument("--resamples", type=int, default=500, help="bootstrap samples of each")
    parser.add_argument("--data", type=Path, help="folder with mvtec/screw, for degraded real models")
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks/gate"), help="folder for the runs")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    gate = GateParams(resamples=arguments.resamples)
    for images in IMAGES:
        for auroc, correlation in SETTINGS:
            for lost in LOST:
                rows.append(simulated(images, auroc, correlation, lost, arguments.trials, gate))
        write_results(arguments.out, rows)
    if arguments.data:
        rows += degraded((arguments.data / "mvtec" / "screw").resolve(), arguments.work)
    print_table(rows)
    write_results(arguments.out, rows)


def simulated(
    images: int, auroc: float, correlation: float, lost: int, trials: int, gate: GateParams
) -> dict[str, Any]:
    """One row: the shares of verdicts over so many pairs of test sets."""
    words = Counter(
        decide(evidence_of(images, (auroc, auroc - lost / 100), correlation, seed, gate), gate).word
        for seed in range(trials)
    )
    return {
        "test_images": images,
        "auroc": auroc,
        "correlation": correlation,
        "lost_points": lost,
        "promoted_share": words["promote"] / trials,
        "rejected_share": words["reject"] / trials,
        "held_share": words["hold"] / trials,
        "trials": trials,
    }


def evidence_of(images: int, aurocs: tuple[float, float], correlation: float, seed: int, gate: GateParams) -> Evidence:
    """The evidence on two models of these AUROCs that have scored the same test images."""
    generator = np.random.default_rng([seed, images])
    mixed = np.linalg.cholesky(np.array([[1, correlation], [correlation, 1]])).T
    labels, kinds = np.repeat([False, True], images), np.arange(2 * images) % KINDS
    scores = generator.normal(size=(2 * images, 2)) @ mixed  # (N, 2)
    scores += labels[:, None] * np.sqrt(2) * stats.norm.ppf(aurocs)  # binormal: AUROC = Φ(shift / √2)
    levels, drawn = Levels.of(gate.confidence, count_comparisons(KINDS)), resamples(labels, gate.resamples, seed)
    figures = []
    for kind in (None, *range(KINDS)):
        (rows,) = np.nonzero(~labels | (kind is None) | (kinds == kind))
        one = auroc_difference(labels[rows], scores[rows, 0], scores[rows, 1], drawn[:, rows], levels)
        assert one is not None
        name = "image_auroc" if kind is None else str(kind)
        figures.append(Compared(name, one, images, int(labels[rows].sum()), is_kind=kind is not None))
    alarms = scores > stats.norm.ppf(1 - FALSE_ALARMS)
    return Evidence(
        figures,
        "test",
        rates_of(alarms[~labels], gate),
        rates_of(~alarms[labels], gate),
        None,
        (Cost(), Cost()),
        (),
        1000 * FALSE_ALARMS,
        None,
    )


def rates_of(happened: np.ndarray, gate: GateParams) -> Rates:
    """How often something happened to champion and challenger: (N, 2) bool."""
    old, new = happened.T
    rates = [Rate.of(mask, gate.confidence) for mask in (old, new)]
    return Rates(rates[0], rates[1], more_often(old, new), more_often(new, old))


def degraded(root: Path, work: Path) -> list[dict[str, Any]]:
    """Verdicts on degraded models of a category, against the one of all its good images, whole and with few images."""
    made = {"all": capsule_of(root, 1.0, work)}
    made |= {f"{share:.0%} of the images": capsule_of(root, share, work) for share in SHARES}
    made |= {f"noise {noise:g}": noisy(made["all"], noise, work) for noise in NOISE}
    known = {sha256_file(record.path): record for record in list_category(root).test}
    params = settings(root)
    return [
        verdict_on(name, made["all"], capsule, subset, params)
        for subset in (known, dict(list(known.items())[::4]))
        for name, capsule in made.items()
    ]


def settings(root: Path) -> Params:
    """Little images and one composition, so that a model takes a minute."""
    content = read_preset("cpu") | {
        "method": "pretrained",
        "image": {"side": 128},
        "data": {"root": str(root.parent), "categories": [root.name]},
        "synthesis": {"exam_images": 20},
        "fit": {"levels": ["b4"], "layout": "shared", "covariance": "ledoit-wolf", "copies": "none"},
    }
    return parse_params(content, "the benchmark's settings")


def capsule_of(root: Path, share: float, work: Path) -> Path:
    """The capsule of a model that has learned a share of the good images."""
    place = (work / f"{root.name}-{share:g}").resolve()
    data = place / "data" / root.name
    for record in chosen(list_category(root).train, share):
        path = data / record.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(record.path)
    capsule = place / Places(root.name).capsule
    if not capsule.is_dir():
        params = settings(data)
        with working_in(place):
            for stage in (validate, synthesize, train, fit):
                stage.main(root.name, params)
    return capsule


def chosen(records: list[ImageRecord], share: float) -> Iterator[ImageRecord]:
    """Evenly spread ones."""
    for place in np.unique(np.linspace(0, len(records) - 1, max(12, round(share * len(records)))).round().astype(int)):
        yield records[place]


def noisy(capsule: Path, noise: float, work: Path) -> Path:
    """A copy of a capsule with noise in the whitening matrices of its densities; its golden scores are its own."""
    loaded, folder = load_capsule(capsule), (work / f"noise-{noise:g}").resolve()
    generator = np.random.default_rng(0)
    parts = []
    for part in loaded.detector.parts:
        arrays = dict(part.scorer.arrays())
        whitening = arrays["whitening"]
        arrays["whitening"] = whitening + noise * whitening.std() * generator.normal(size=whitening.shape).astype("f4")
        parts.append(replace(part, scorer=part.composition.stored_scorer(arrays)))
    old = loaded.detector
    detector = Detector(old.encoders, parts, old.size, old.sigma, old.heads, old.networks)
    golden = np.random.default_rng(0).integers(0, 256, (4, old.size, old.size, 3), dtype=np.uint8)
    save_capsule(replace(loaded, detector=detector, digest=""), golden, folder)
    return folder


def verdict_on(
    name: str, champion: Path, challenger: Path, known: dict[str, ImageRecord], params: Params
) -> dict[str, Any]:
    """One row: the verdict on a degraded model."""
    models = [Model(number, "", "pretrained", "", folder) for number, folder in enumerate((champion, challenger), 1)]
    case = Case(params.data.categories[0], models[0], models[1], known)
    with tempfile.TemporaryDirectory() as folder:
        judged = judge(case, params, Path(folder))
    good = sum(record.is_good for record in known.values())
    figures = {one.name: one.difference for one in judged.compared}
    return {
        "test_images": f"{good} good, {len(known) - good} defective",
        "model": f"screw, {name}",
        "lost_points": round(-100 * figures["image_auroc"].estimate, 1),
        "promoted_share": float(judged.verdict.word == "promote"),
        "rejected_share": float(judged.verdict.word == "reject"),
        "held_share": float(judged.verdict.word == "hold"),
        "why": judged.verdict.summary,
    }


if __name__ == "__main__":
    main()
