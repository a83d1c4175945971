"""What more steps would bring NSA's network: exam AUROC against steps, steps per second, and the paper's schedule.

    python -m benchmarks.nsa_curve --data ../shared/data --out benchmarks/results/nsa_curve.json

A row is a mark of the training: the mean of image and pixel AUROC on held-out images, of the kinds of synthetic
defects that the network was not trained on. Test images are not looked at. Categories that the file has already are
kept, and a training that was cut short goes on from its last checkpoint.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import print_table, write_results
from benchmarks.methods import CATEGORIES, known_rows, usual_content, working_in
from components.foundation.params import NetworkParams, Params, parse_params, read_preset
from components.foundation.places import Places
from components.foundation.runtime import use_threads
from components.stages import synthesize, train, validate
from components.synthesis.prepared import Prepared, load_prepared


def main() -> None:
    """Train on each category that the file does not have, and write the file after each."""
    arguments = parse_arguments()
    rows = known_rows(arguments.out)
    for category in arguments.categories:
        name = Path(category).name
        if any((row["category"], row["method"]) == (name, arguments.method) for row in rows):
            continue
        params = make_params(arguments, category)
        with working_in(arguments.work.resolve() / f"{name}-{arguments.method}-{arguments.steps}"):
            rows += measure(name, params)
        write_results(arguments.out, rows)
    print_table(rows)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the categories")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; categories it has are kept")
    parser.add_argument("--work", type=Path, default=Path(".flawline/benchmarks/nsa-curve"), help="folder for the runs")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--method", default="nsa-logistic")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--marks", type=int, default=6, help="how often the exam is sat")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_params(arguments: argparse.Namespace, category: str) -> Params:
    """The preset with this method and so many steps, and a mark after every part of them."""
    content = usual_content(arguments, category, arguments.method, seed=0)
    schedule = {"steps": arguments.steps, "epochs": 0, "exam_steps": max(1, arguments.steps // arguments.marks)}
    content |= {"threads": arguments.threads, "network": content.get("network", {}) | schedule}
    return parse_params(content, f"preset {arguments.preset}")


def measure(category: str, params: Params) -> list[dict[str, Any]]:
    """Train in the current folder; one row a mark."""
    use_threads(params.threads)
    places = Places(category)
    if not places.prepared.exists():
        for stage in (validate, synthesize):
            stage.main(category, params)
    prepared = load_prepared(places.prepared)
    learner = train.network_learner(prepared, params, places.checkpoint)
    clock = Clock()

    def listen(step: int, values: dict[str, float]) -> None:
        if "exam" in values:
            clock.pause()
        else:
            clock.tick()

    learner.run(listen)
    paper_steps, paper_samples = paper_schedule(category, prepared)
    return [
        {
            "category": category,
            "method": params.method,
            "step": step,
            "samples": step * params.network.batch,
            "exam_mark": round(mark, 4),
            "steps_per_s": round(clock.rate, 3),
            "samples_per_s": round(clock.rate * params.network.batch, 1),
            "paper_steps": paper_steps,
            "paper_samples": paper_samples,
        }
        for step, mark in sorted(learner.progress.marks.items())
    ]


class Clock:
    """Steps per second, without the exams between them; of the median step, so that pauses do not count."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = time.perf_counter()

    def tick(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now

    def pause(self) -> None:
        """Something else has ended that does not count."""
        self.last = time.perf_counter()

    @property
    def rate(self) -> float:
        """Steps per second so far; 0 where none was done."""
        return 1 / statistics.median(self.seconds) if self.seconds else 0.0


def paper_schedule(category: str, prepared: Prepared) -> tuple[int, int]:
    """Steps and samples of the paper's training on all good images of the category: its epochs, batches of 64."""
    network = NetworkParams.model_validate(read_preset("paper-nsa")["network"])
    steps = network.steps_of(category, len(prepared.images))
    return steps, network.epochs_of.get(category, network.epochs) * len(prepared.images)


if __name__ == "__main__":
    main()
