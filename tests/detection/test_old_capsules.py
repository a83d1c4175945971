"""Capsules that earlier releases wrote are still read, and score as they did."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from components.detection.capsule import load_capsule

# By release: the capsule's digest, and its scores of the two images of noise below, as that release's code gave them.
OLD = {"0.1.1": ("58319c281a2cbc676f75e66eaa873840993fff5ab40f6e63c1774007ead77d36", (106.966141, 92.151466))}


@pytest.mark.parametrize("release", OLD)
def test_a_capsule_of_an_earlier_release_is_loaded_and_scores_as_before(release: str, tmp_path: Path) -> None:
    digest, scores = OLD[release]
    with zipfile.ZipFile(Path(__file__).parent / "old" / f"capsule-{release}.zip") as archive:
        archive.extractall(tmp_path)
    capsule = load_capsule(tmp_path)
    assert (capsule.digest, capsule.category) == (digest, "bottle")
    side = capsule.detector.size
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)  # (N, H, W, 3)
    np.testing.assert_allclose(capsule.score(list(noise))[0], scores, rtol=1e-4)
