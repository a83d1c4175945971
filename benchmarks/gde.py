"""Fit of one Gaussian to many patch features, against the least work there is: one matrix product.

`python -m benchmarks.gde --data DIR --out FILE.json`: rows of name, threads, n, d, fit_s, reference_s (one float64
`X.T @ X` of the same features, already converted), ratio, peak_mib. The features are drawn from a seed; DIR is not
read. Peak memory is that of a process of its own which fits a stream of chunks, above what it used before.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import print_table, write_results
from components.density.gaussian import GaussianDensity

SAMPLES, DIMENSIONS, CHUNK = 100_000, 512, 4096
MEMORY_SAMPLES = (50_000, 100_000, 200_000)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="not used: the features are drawn from a seed")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7, help="the fastest of these is reported")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_of_fit(arguments.peak))
        return
    rows = [time_row(threads, arguments.repeats) for threads in (1, 2)] + [memory_row(n) for n in MEMORY_SAMPLES]
    print_table(rows)
    write_results(arguments.out, rows)


def feature_chunks(n: int) -> Iterator[np.ndarray]:
    """Float32 features in chunks of at most (CHUNK, DIMENSIONS)."""
    rng = np.random.default_rng(0)
    for start in range(0, n, CHUNK):
        yield rng.standard_normal((min(CHUNK, n - start), DIMENSIONS), dtype=np.float32) + 1


def time_row(threads: int, repeats: int) -> dict[str, Any]:
    """Time fit and reference in turns, so that both meet the same machine."""
    x = np.concatenate(list(feature_chunks(SAMPLES)))
    x64 = x.astype(np.float64)
    fits, references = [], []
    with threadpool_limits(threads):
        for _ in range(repeats):
            references.append(seconds(lambda: x64.T @ x64))
            fits.append(seconds(lambda: GaussianDensity("image").fit(x)))
    row = {"name": "fit", "threads": threads, "n": SAMPLES, "d": DIMENSIONS}
    times = {"fit_s": round(min(fits), 3), "reference_s": round(min(references), 3)}
    return row | times | {"ratio": round(min(fits) / min(references), 3), "peak_mib": None}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory_row(n: int) -> dict[str, Any]:
    """Peak memory of a streamed fit, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gde", "--out", "-", "--peak", str(n)]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    row = {"name": "streamed fit", "threads": 1, "n": n, "d": DIMENSIONS, "fit_s": None, "reference_s": None}
    return row | {"ratio": None, "peak_mib": round(peak, 1)}


def peak_of_fit(n: int) -> float:
    """MiB of resident memory that a streamed fit adds at its peak to what this process held before (Linux)."""
    with threadpool_limits(1):
        before = resident_kib("VmRSS")
        GaussianDensity("image").fit(feature_chunks(n))
        return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; unlike ru_maxrss, the peak starts anew with the process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
