"""How deep grey values, of 9 to 16 bits in files of 16, become 8 bits: by one rule for all images of a category.

A camera of 12 bits fills 4096 of the 65536 values of its files; read as 16 bits, 16 of 256 grey levels would be left.
The rule is the number of bits in use: `limits.bits`, or where that is "auto" the fewest of `DEPTHS` that hold all good
training images. The stage validate finds it, the capsule keeps it, and whatever reads an image for the capsule goes by
that, one image as well as a thousand. Where no training image is deep, it is 16.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.images.decode import highest_value

DEPTHS = (8, 10, 12, 14, 16)


def find_bits(paths: Iterable[Path], limits: ImageLimits, threads: int = 1) -> int:
    """The fewest bits of `DEPTHS` that hold every grey value of the deep images among some; 16 where none is deep.

    Of an image that is not deep only the header is read; what cannot be read says nothing.
    """
    with ThreadPoolExecutor(threads) as pool:
        found = [value for value in pool.map(lambda path: _highest(path, limits), paths) if value is not None]
    return next(bits for bits in DEPTHS if max(found) < 1 << bits) if found else 16


def _highest(path: Path, limits: ImageLimits) -> int | None:
    try:
        return highest_value(path, limits)
    except UserError:
        return None
