"""What computes here, in words: sums of another processor or graphics card differ in their last digits."""

import platform
from contextlib import suppress
from pathlib import Path

CPU = Path("/proc/cpuinfo")
GPUS = Path("/proc/driver/nvidia/gpus")
# By which the libraries choose their kernels.
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def processor(cpu: Path = CPU, gpus: Path = GPUS) -> str:
    """Name of the processor, its vector extensions and the graphics cards: "AMD EPYC 7B13 (avx2), NVIDIA L4"."""
    facts = _facts(cpu)
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    flags = f"{facts.get('flags', '')} {facts.get('Features', '')}".split()
    extensions = " ".join(flag for flag in EXTENSIONS if flag in flags)
    cards = sorted({_facts(path).get("Model", "") for path in gpus.glob("*/information")} - {""})
    return ", ".join([f"{name} ({extensions})" if extensions else name, *cards])


def _facts(path: Path) -> dict[str, str]:
    """The first of each "name : value" of a file of the system; none where there is no such file."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), " ".join(value.split()))
    return found
