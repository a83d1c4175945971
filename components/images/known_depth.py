"""At which depth a category's images are read where no capsule says it: of arriving images, and to show them."""

from pathlib import Path

from components.foundation.files import read_json
from components.foundation.params import Params
from components.foundation.places import Places
from components.images.dataset import list_records
from components.images.depth import find_bits


def with_depth(params: Params, category: str) -> Params:
    """The same parameters with `limits.bits` as it holds for a category: as given, as validated, or else as found."""
    if params.limits.bits is not None:
        return params
    bits = _validated_bits(category) or _training_bits(params, category)
    return params.model_copy(update={"limits": params.limits.model_copy(update={"bits": bits})})


def _training_bits(params: Params, category: str) -> int:
    """`find_bits` of the training images that lie in a category's folder."""
    records = list_records(Path(params.data.root) / category)
    learned = [record.path for record in records if record.split == "train"]
    return find_bits(learned, params.limits.image_limits(), params.threads)


def _validated_bits(category: str) -> int | None:
    """What the last validation of a category found; None where there was none."""
    try:
        bits = read_json(Places(category).validation / "report.json").get("bits")
    except (OSError, ValueError, AttributeError):
        return None
    return bits if isinstance(bits, int) else None
