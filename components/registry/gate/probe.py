"""A capsule in a process of its own: whether it loads and scores its golden inputs as it must, and what it costs.

`python -m components.registry.gate.probe CAPSULE THREADS` prints {"milliseconds", "megabytes"} as JSON.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 900  # until a capsule that does not answer is given up
IMAGES = 8  # scored one by one, after one that is not counted


@dataclass(frozen=True)
class Cost:
    """What a model costs in a process of its own, or why it does not run there.

    milliseconds: of one image, the median. megabytes: of memory at most.
    """

    milliseconds: float = 0.0
    megabytes: float = 0.0
    error: str = ""


def probe(capsule: Path, threads: int) -> Cost:
    """What a stored capsule costs in a fresh process; `error` says why it does not run there."""
    command = [sys.executable, "-m", "components.registry.gate.probe", str(capsule), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Cost(error=f"it did not answer within {SECONDS} s")
    try:
        return Cost(**json.loads(done.stdout))
    except (ValueError, TypeError):
        said = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        return Cost(error=said[-1].removeprefix("components.foundation.errors.UserError: "))


def main() -> None:
    """Load, score, print."""
    from safetensors.numpy import load_file

    from components.detection.capsule import load_capsule
    from components.foundation.runtime import use_threads

    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    use_threads(threads)
    capsule = load_capsule(folder)  # checks every digest and the golden scores
    golden = load_file(folder / "golden" / "golden.safetensors")["images"]
    times = []
    for number in range(IMAGES + 1):
        begun = time.perf_counter()
        capsule.score(golden[number % len(golden)][None])
        times.append(1000 * (time.perf_counter() - begun))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"milliseconds": sorted(times[1:])[IMAGES // 2], "megabytes": peak}))


if __name__ == "__main__":
    main()
