"""The one colour scale of a category's anomaly maps, fixed by its held-out good images: a good image looks good.

A scale that each picture finds for itself makes the highest value of any image glow, a good one's too.
"""

from collections.abc import Iterable

import numpy as np

QUIET = 0.95  # share of the held-out good images in which nothing is coloured
SPAN = 2.0  # from the low end to the high one, in distances of the low end from a usual pixel


def map_range(batches: Iterable[np.ndarray]) -> tuple[float, float]:
    """The (low, high) of the colours, from maps (n, H, W) of held-out good images that had no part in the fit.

    low: what the highest pixel of 19 in 20 of them does not exceed. high: as far above it, twice, as it lies above
    their median pixel. (0, 1) where there is no map.
    """
    highest, usual = [], []
    for maps in batches:
        highest.append(maps.max(axis=(1, 2)))  # (n,)
        usual.append(np.median(maps, axis=(1, 2)))
    if not highest:
        return 0.0, 1.0
    low = float(np.quantile(np.concatenate(highest), QUIET, method="higher"))
    room = low - float(np.median(np.concatenate(usual)))
    return low, low + SPAN * room if room > 0 else low + 1.0
