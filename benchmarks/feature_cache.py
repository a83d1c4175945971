"""Size and memory of the cache of features as a category grows beyond it: both must stay as they are set.

`python -m benchmarks.feature_cache --out FILE.json`: rows of pass, images, bound_mib, file_mib (the largest that the
file ever was), stored (images whose features were there in the end), peak_mib (resident memory of the process, with its
libraries) and seconds. Two passes write made-up features of the size that 256 px have; the second has other images, as
after a retraining with another encoder, so that what the first left makes room.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import print_table, write_results
from components.foundation.byte_cache import ByteCache

BYTES = 400_000  # of an image's features at 256 px: the levels of EfficientNet-Lite0 on a grid of 16 × 16, float32
BATCH = 16
MIB = 2**20


def main() -> None:
    """Measure both passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="not used: the features are made up")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--max-bytes", type=int, default=400_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.db"
        rows = [one_pass(path, number, arguments.images, arguments.max_bytes) for number in (1, 2)]
    print_table(rows)
    write_results(arguments.out, rows)


def one_pass(path: Path, number: int, images: int, max_bytes: int) -> dict[str, Any]:
    """Ask for the features of all images, a batch at a time, and store those that are not there."""
    cache, generator = ByteCache(path, max_bytes), np.random.default_rng(number)
    content = generator.bytes(BYTES)
    largest, begun = 0, time.monotonic()
    for start in range(0, images, BATCH):
        keys = [f"{number} {image}" for image in range(start, min(start + BATCH, images))]
        known = cache.read(keys)
        cache.write({key: (key, content) for key in keys if key not in known})
        largest = max(largest, path.stat().st_size)
    every = [f"{number} {image}" for image in range(images)]
    stored = sum(len(cache.read(every[start : start + BATCH])) for start in range(0, images, BATCH))
    cache.close()
    return {
        "pass": number,
        "images": images,
        "bound_mib": round(max_bytes / MIB, 1),
        "file_mib": round(largest / MIB, 1),
        "stored": stored,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    main()
