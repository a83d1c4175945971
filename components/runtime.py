"""How torch computes here: fixed threads and deterministic algorithms, so that equal inputs give equal bytes."""

import os

import torch


def use_threads(threads: int) -> None:
    """Fix torch's number of threads (sums depend on it) and, on a GPU, choose deterministic algorithms.

    What is used here of torch on the CPU is deterministic as it is, and asking for it costs seconds of imports.
    """
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
