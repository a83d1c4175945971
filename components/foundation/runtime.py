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


def has_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; a CPU without emulates it, ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
