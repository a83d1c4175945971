"""The patch-level network says of every place of an image what it says of the crop that lies there, in one pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.foundation.errors import UserError
from components.foundation.params import PatchLevelParams, parse_params
from components.learning.backbone import HEAD, Encoder, build_patch_encoder, load_encoder, save_encoder
from components.learning.patches import PatchNet, patch_net, patch_net_name

pytestmark = pytest.mark.usefixtures("one_thread")
GEOMETRIES = [(32, 4), (32, 8), (64, 8), (16, 2), (64, 16), (48, 4)]


def encoder(receptive_field: int = 32, stride: int = 4, width: int = 8, seed: int = 0) -> Encoder:
    return build_patch_encoder(PatchLevelParams(receptive_field=receptive_field, stride=stride, width=width), seed)


def used(made: Encoder) -> Encoder:
    """The same encoder after its batch-norm has seen images, so that it is not the identity."""
    made.train()
    with torch.no_grad():
        made(noise(96, count=4))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return made.eval()


def noise(side: int, count: int = 2) -> Tensor:
    """Random images (N, 3, S, S) uint8."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def dense_map(made: Encoder, images: Tensor) -> Tensor:
    """(N, width, g, g) of images (N, 3, S, S)."""
    level = made.levels[-2]
    with torch.inference_mode():
        return made.features(images, (level,))[level]


@pytest.mark.parametrize(("receptive_field", "stride"), GEOMETRIES)
def test_one_pass_gives_what_a_loop_over_crops_gives(receptive_field: int, stride: int) -> None:
    """The side is such that some pixels at the right and bottom belong to no patch."""
    made = used(encoder(receptive_field, stride))
    images = noise(receptive_field + 3 * stride + 1)
    found = dense_map(made, images)
    assert found.shape == (2, 8, 4, 4)
    for row in range(4):
        for column in range(4):
            top, left = row * stride, column * stride
            crop = images[:, :, top : top + receptive_field, left : left + receptive_field]
            with torch.inference_mode():
                alone = made(crop)
            torch.testing.assert_close(found[:, :, row, column], alone, rtol=1e-4, atol=1e-5)
    assert float(found.std()) > 1e-3


@pytest.mark.parametrize(("receptive_field", "stride"), GEOMETRIES)
def test_a_cell_depends_on_the_pixels_of_its_receptive_field_and_no_others(receptive_field: int, stride: int) -> None:
    """The first and the last row and column of the field count, the ones before and after do not."""
    side = receptive_field + 4 * stride
    body = PatchNet(receptive_field, stride, width=8).double().eval()
    images = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    body.blocks(images)[0, :, 1, 2].square().sum().backward()  # the second row, the third column
    assert images.grad is not None
    rows, columns = (images.grad[0].abs().amax(dim=axes) > 0 for axes in ((0, 2), (0, 1)))
    for touched, first in ((rows, stride), (columns, 2 * stride)):
        places = touched.nonzero()[:, 0]
        assert (int(places.min()), int(places.max())) == (first, first + receptive_field - 1)


def test_the_map_of_the_paper_has_57_places_a_side() -> None:
    assert PatchNet(32, 4, 8).grid(256) == 57
    assert PatchNet(32, 4, 8).grid(32) == PatchNet(32, 4, 8).grid(35) == 1


@pytest.mark.parametrize(("receptive_field", "stride"), GEOMETRIES)
@pytest.mark.parametrize("more", [0, 1, 7, 40])
def test_the_map_is_as_large_as_said(receptive_field: int, stride: int, more: int) -> None:
    made = encoder(receptive_field, stride)
    assert isinstance(made.body, PatchNet)
    side = receptive_field + more
    grid = made.body.grid(side)
    assert dense_map(made, noise(side, count=1)).shape == (1, 8, grid, grid)
    assert grid == len(range(0, side - receptive_field + 1, stride))


def test_a_patch_larger_than_the_image_is_refused_by_the_name_of_both_parameters() -> None:
    with pytest.raises(UserError, match=r"patch\.receptive_field smaller or image\.side larger"):
        PatchNet(64, 8, 8).grid(63)
    data = {"root": "data", "categories": ["bolt"]}
    sections = {"data": data, "image": {"side": 48}, "patch": {"receptive_field": 64}}
    parse_params(sections, "my.yaml")  # another method does not look at it
    with pytest.raises(UserError, match=r"patch\.receptive_field 64 is larger than image\.side 48"):
        parse_params({**sections, "method": "cutpaste-patch"}, "my.yaml")


@pytest.mark.parametrize(
    ("receptive_field", "stride", "named"),
    [
        (32, 3, r"patch\.stride must be a power of two .* not 3"),
        (32, 6, r"patch\.stride must be a power of two .* not 6"),
        (36, 8, r"patch\.receptive_field must be a multiple of 16 from 32 where patch\.stride is 8, not 36"),
        (33, 4, r"patch\.receptive_field must be .* not 33"),
        (16, 8, r"patch\.receptive_field must be .* not 16"),
        (32, 16, r"patch\.receptive_field must be .* not 32"),
    ],
)
def test_a_geometry_without_a_network_is_refused_by_the_name_of_its_parameter(
    receptive_field: int, stride: int, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        PatchNet(receptive_field, stride, 8)
    sections = {"data": {"root": "data", "categories": ["bolt"]}}
    with pytest.raises(UserError, match=named) as caught:
        parse_params({**sections, "patch": {"receptive_field": receptive_field, "stride": stride}}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")


def test_the_head_is_the_mean_over_all_places() -> None:
    made = used(encoder())
    images = noise(48)
    assert made.width == 8
    assert made.levels[-1] == HEAD
    with torch.inference_mode():
        torch.testing.assert_close(made(images), dense_map(made, images).mean(dim=(2, 3)))


def test_strides_are_pixels_from_cell_to_cell() -> None:
    """A shift of the image by a level's stride shifts the level's map by one cell."""
    made = used(encoder(32, 8))
    images = noise(96)
    with torch.inference_mode():
        for level, stride in made.strides.items():
            whole = made.features(images, (level,))[level]
            shifted = made.features(images[:, :, stride:], (level,))[level]
            torch.testing.assert_close(shifted[:, :, :3], whole[:, :, 1:4], rtol=1e-4, atol=1e-5)
    assert made.strides[made.levels[-2]] == 8


def test_the_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, same, other = encoder(seed=1), encoder(seed=1), encoder(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    images = noise(40)
    assert torch.equal(dense_map(one, images), dense_map(same, images))
    assert not torch.allclose(dense_map(one, images), dense_map(other, images))


def test_it_comes_back_from_disk_the_same(tmp_path: Path) -> None:
    made = used(encoder(32, 8, 16))
    save_encoder(made, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.spec == made.spec
    assert not loaded.training
    assert torch.equal(dense_map(loaded, noise(64)), dense_map(made, noise(64)))


def test_a_name_builds_its_network_and_no_other_name_does() -> None:
    net = patch_net(patch_net_name(64, 8, 24))
    assert (net.receptive_field, net.stride, net.width) == (64, 8, 24)
    for name in ("patches/", "patches/32-4", "patches/32-4-64-1", "patches/a-b-c", "patches/32-4-64 "):
        with pytest.raises(UserError, match="names no patch network"):
            patch_net(name)
    with pytest.raises(UserError, match=r"patch\.stride .* not 5"):
        patch_net("patches/40-5-8")
