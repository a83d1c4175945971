"""The colour scale of maps: good images stay uncoloured, defects do not."""

import numpy as np
import pytest

from components.evaluation.map_range import map_range


def test_of_good_images_at_most_one_in_twenty_is_coloured_at_all() -> None:
    generator = np.random.default_rng(0)
    good = generator.normal(0, 1, (400, 16, 16))  # (N, H, W)
    low, high = map_range([good[:150], good[150:300]])
    coloured = (good[300:].max(axis=(1, 2)) > low).mean()
    assert coloured <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert high == pytest.approx(low + 2 * (low - np.median(good[:300])), rel=0.02)


def test_batches_do_not_matter() -> None:
    good = np.random.default_rng(1).normal(5, 2, (40, 8, 8))
    assert map_range([good]) == map_range([good[:7], good[7:]])


@pytest.mark.parametrize("maps", [[], [np.zeros((3, 4, 4))]], ids=["none", "flat"])
def test_there_is_always_a_scale(maps: list[np.ndarray]) -> None:
    assert map_range(maps) == (0.0, 1.0)
