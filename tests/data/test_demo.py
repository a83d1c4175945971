"""The demo data set: MVTec AD layout, exact masks, disjoint parts of real photographs, the same bytes every time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.util import view_as_windows

from components.data.demo import (
    DEFECTS,
    PHOTOGRAPHS,
    cut_tiles,
    main,
    read_photograph,
    split_photograph,
    take_picture,
    write_category,
)
from components.foundation.files import digest_tree
from components.foundation.limits import ImageLimits
from components.foundation.params import DataParams, DemoParams, Params
from components.foundation.places import DEMO
from components.images.dataset import Category, find_categories, list_category
from components.images.decode import mask_values, read_image, read_mask
from tests.project import REPOSITORY

LIMITS = ImageLimits()
SMALL = DemoParams(train=8, test_good=3, per_kind=2)
PARAMS = Params(data=DataParams(root="data/demo", categories=("brick",)), demo=SMALL)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo set in a folder of its own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        main(PARAMS)
    return home / DEMO


@pytest.fixture(params=list(PHOTOGRAPHS))
def category(demo: Path, request: pytest.FixtureRequest) -> Category:
    return list_category(demo / request.param)


def test_all_categories_have_the_layout_and_the_numbers_asked_for(demo: Path) -> None:
    assert find_categories(demo) == sorted(PHOTOGRAPHS)
    expected = {"train/good": 8, "test/good": 3} | {f"test/{kind}": 2 for kind in DEFECTS}
    for name in PHOTOGRAPHS:
        assert list_category(demo / name).counts() == expected
    assert sorted(os.listdir(demo.parent)) == ["demo"]


def test_every_defect_has_a_binary_mask_of_the_images_size_and_good_images_have_none(category: Category) -> None:
    for record in category.test:
        if record.is_good:
            assert record.masks == ()
            continue
        (mask,) = record.masks
        assert mask_values(mask, LIMITS).tolist() == [0, 255]
        assert read_mask(mask, LIMITS).shape == read_image(record.path, LIMITS).shape[:2] == (128, 128)
        assert 0.001 < read_mask(mask, LIMITS).mean() < 0.25


def test_no_two_images_are_alike(category: Category) -> None:
    images = [read_image(record.path, LIMITS).tobytes() for record in category.records]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("tile", [64, 128, 240])
def test_training_and_test_parts_share_no_pixel(name: str, tile: int) -> None:
    numbered = np.arange(512 * 512).reshape(512, 512)
    train, test = split_photograph(numbered, tile, PHOTOGRAPHS[name])
    train_columns = set(np.unique(cut_tiles(train, 10, tile, _rng()) % 512).tolist())
    test_columns = set(np.unique(cut_tiles(test, 10, tile, _rng()) % 512).tolist())
    assert min(abs(a - b) for a in train_columns for b in test_columns) > 16


def test_tiles_are_pieces_of_the_photograph_spread_over_all_of_it() -> None:
    part, _ = split_photograph(read_photograph("gravel"), 128, "right")
    tiles = cut_tiles(part, 40, 128, _rng())
    corners = []
    for tile in tiles:
        found = np.argwhere((view_as_windows(part, (128, 128))[:, :, ::127, ::127] == tile[::127, ::127]).all((2, 3)))
        corners += [corner for corner in found if (part[corner[0] :, corner[1] :][:128, :128] == tile).all()]
    assert len(corners) == 40
    assert np.ptp(corners, axis=0).min() > 0.8 * (np.array(part.shape) - 128).min()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("kind", DEFECTS)
def test_the_mask_is_exactly_what_the_defect_changes(name: str, kind: str) -> None:
    _, part = split_photograph(read_photograph(name), 128, PHOTOGRAPHS[name])
    for seed in range(3):
        tile = cut_tiles(part, 1, 128, _rng(seed))[0]
        good, nothing = take_picture(tile, None, _rng(seed))
        bad, mask = take_picture(tile, DEFECTS[kind], _rng(seed))  # the same lamp, mirroring and noise
        assert not nothing.any()
        assert (good[~mask] == bad[~mask]).all()
        change = np.abs(good.astype(int) - bad)
        assert (change[mask] >= 4).mean() > 0.75
        assert change[mask].mean() > 20


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_scale_with_the_tile(kind: str) -> None:
    shares = []
    for side in (64, 192):
        tile = np.full((side, side), 128, np.uint8)
        shares.append(np.mean([take_picture(tile, DEFECTS[kind], _rng(seed))[1].mean() for seed in range(8)]))
    assert 0.5 < shares[0] / shares[1] < 2


def test_a_hole_is_dark_and_lit_on_the_side_away_from_the_light() -> None:
    tile = np.full((128, 128), 140, np.uint8)
    for seed in range(5):
        layer = DEFECTS["hole"](tile.astype(float), _rng(seed))
        picture = layer.over(tile.astype(float))
        top, bottom = ndimage.center_of_mass(layer.alpha)[0] - 4, ndimage.center_of_mass(layer.alpha)[0] + 4
        rows = np.arange(128)[:, None]
        inside = layer.alpha == 1
        assert picture[inside].mean() < 70
        assert picture[inside & (rows > bottom)].mean() > picture[inside & (rows < top)].mean()


def test_good_images_vary_as_a_camera_does_and_no_more() -> None:
    tile = cut_tiles(read_photograph("brick"), 1, 128, _rng())[0]
    pictures = [take_picture(tile, None, _rng(seed))[0] for seed in range(30)]
    means = [picture.mean() / tile.mean() for picture in pictures]
    assert 0.92 < min(means) < 0.98
    assert 1.02 < max(means) < 1.08
    mirrored = sum(np.abs(picture[:, ::-1] - tile.astype(float)).mean() < 12 for picture in pictures)
    assert 5 < mirrored < 25


def test_equal_parameters_give_equal_bytes_and_another_seed_others(demo: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        parts = split_photograph(read_photograph("grass"), 128, PHOTOGRAPHS["grass"])
        write_category(tmp_path / name / "grass", *parts, SMALL.model_copy(update={"seed": seed}))
    assert digest_tree(tmp_path / "again" / "grass") == digest_tree(demo / "grass")
    assert digest_tree(tmp_path / "other" / "grass") != digest_tree(demo / "grass")


def test_more_images_do_not_change_the_training_images_that_were_there(demo: Path, tmp_path: Path) -> None:
    parts = split_photograph(read_photograph("grass"), 128, PHOTOGRAPHS["grass"])
    write_category(tmp_path / "grass", *parts, SMALL.model_copy(update={"train": 10}))
    for path in sorted((demo / "grass" / "train" / "good").iterdir()):
        assert path.read_bytes() == (tmp_path / "grass" / "train" / "good" / path.name).read_bytes()


def test_the_command_writes_the_set_and_replaces_an_old_one_without_torch(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "data: {root: data/demo, categories: [brick]}\ndemo: {train: 8, test_good: 1, per_kind: 1}\n"
    )
    (tmp_path / "infra").mkdir()
    shutil.copy(REPOSITORY / "infra" / "libraries.json", tmp_path / "infra")
    (tmp_path / DEMO).mkdir(parents=True)
    (tmp_path / DEMO / "stale.txt").write_text("old")
    code = (
        "import runpy, sys; runpy.run_module('components.data.demo', run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert sorted(os.listdir(tmp_path / DEMO)) == sorted(PHOTOGRAPHS)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
