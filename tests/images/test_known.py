"""What is known of image files is what would be found out again, and nothing of a file that has changed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.foundation.byte_cache import ByteCache
from components.foundation.limits import ImageLimits
from components.foundation.params import parse_params
from components.images import table as image_tables
from components.images.dataset import list_category
from components.images.decode import Decoded, read_with_header
from components.images.table import image_table
from components.stages.synthesize import write_images
from tests.project import TINY, write_category

ROOM = 50_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_category(tmp_path / "data" / "widget", seed=0, defects=2)
    (tmp_path / "data" / "widget" / "train" / "good" / "broken.png").write_bytes(b"no image")
    return tmp_path / "data" / "widget"


def test_a_table_of_known_images_is_the_same_and_decodes_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    category, limits = list_category(root), ImageLimits()
    without = image_table(category, limits)
    path = tmp_path / "known.db"
    pd.testing.assert_frame_equal(image_table(category, limits, store=ByteCache(path, ROOM)), without)
    seen: list[str] = []

    def counted(path: Path, limits: ImageLimits) -> Decoded:
        seen.append(path.name)
        return read_with_header(path, limits)

    monkeypatch.setattr(image_tables, "read_with_header", counted)
    pd.testing.assert_frame_equal(image_table(category, limits, 2, store=ByteCache(path, ROOM)), without)
    assert seen == ["broken.png"]
    pd.testing.assert_frame_equal(
        image_table(category, limits.at_depth(12), store=ByteCache(path, ROOM)),
        image_table(category, limits.at_depth(12)),
    )
    assert len(seen) > 2 * len(without)  # another depth is another question


def test_known_pixels_are_those_of_the_files(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = sorted(path for path in (root / "train" / "good").iterdir() if path.name != "broken.png")
    paths = {f"{number:064x}": path for number, path in enumerate(good)}
    made = []
    for name, bytes_kept in (("none", 0), ("first", ROOM), ("again", ROOM)):
        folder = tmp_path / name
        folder.mkdir()
        params = parse_params({**TINY, "cache": {"max_bytes": bytes_kept}}, "tiny")
        made.append(np.array(write_images(folder, paths, params)))
        if name == "again":
            break
        some = list(paths)[::2]
        made.append(np.array(write_images(folder, {one: paths[one] for one in some}, params)))
        np.testing.assert_array_equal(made.pop(), made[-1][::2])
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
