"""The decoder gives a map of the image's size on any backbone, aligned with the image, and comes back from its file."""

from pathlib import Path

import pytest
import torch

from components.foundation.errors import UserError
from components.foundation.params import BackboneParams, NetworkParams
from components.learning.backbone import build_encoder
from components.learning.decoder import Decoder, DecoderSpec, MapNetwork, build_decoder, load_network, save_network

PAPER = NetworkParams()


def network(name: str, strides: tuple[int, ...], widths: tuple[int, ...], seed: int = 0) -> MapNetwork:
    encoder = build_encoder(BackboneParams(name=name, weights="none"), seed)
    return MapNetwork(encoder, build_decoder(encoder, strides, (24, 16), widths, seed)).eval()


def images(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_papers_network_has_its_layers() -> None:
    """ResNet-18's 512 channels to 256 and 128 by 1×1 convolutions, then five doublings from stride 32 to 1."""
    encoder = build_encoder(BackboneParams(name="resnet18", weights="none"), 0)
    decoder = build_decoder(encoder, PAPER.strides, PAPER.reduction, PAPER.widths, 0)
    ones = [m for m in decoder.reduction.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(m.weight.shape) for m in ones] == [(256, 512, 1, 1), (128, 256, 1, 1)]
    doublings = [m for m in decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.stride for m in doublings] == [(2, 2)] * 5
    assert not decoder.skips
    assert MapNetwork(encoder, decoder).eval()(images(64, 64)).shape == (2, 64, 64)


@pytest.mark.parametrize("side", [(64, 64), (56, 72), (50, 61)])
@pytest.mark.parametrize(
    ("strides", "widths"), [((32,), (16,) * 5), ((32,), (16, 8)), ((16, 8, 4), (16, 8, 8)), ((32, 4), (16,) * 4)]
)
def test_the_map_has_the_images_size(side: tuple[int, int], strides: tuple[int, ...], widths: tuple[int, ...]) -> None:
    with torch.no_grad():
        found = network("lcnet_035", strides, widths)(images(*side))
    assert found.shape == (2, *side)
    assert found.dtype == torch.float32


def test_before_training_few_pixels_are_anomalous() -> None:
    with torch.no_grad():
        odds = torch.sigmoid(network("lcnet_035", (16, 8), (16, 8))(images(64, 64)))
    assert 0.005 < odds.mean() < 0.3


def test_a_cell_stands_where_its_pixels_are() -> None:
    """A decoder that only passes its input on puts the one hot cell of stride 8 at its own 8 × 8 pixels."""
    decoder = Decoder(DecoderSpec(("b0",), (1,), (8,), (), ())).eval()
    with torch.no_grad():
        decoder.to_map.weight.fill_(1.0)
        decoder.to_map.get_parameter("bias").zero_()
        feature = torch.zeros(1, 1, 5, 5)
        feature[0, 0, 1, 3] = 1.0
        found = decoder([feature], (37, 40))[0]
    rows, columns = torch.where(found > 0.5)
    assert (int(rows.min()), int(rows.max())) == (8, 15)
    assert (int(columns.min()), int(columns.max())) == (24, 31)


def test_levels_of_the_asked_strides_are_read_the_last_of_each() -> None:
    encoder = build_encoder(BackboneParams(name="lcnet_035", weights="none"), 0)
    spec = build_decoder(encoder, (32, 16, 4), (8,), (8, 8, 8), 0).spec
    levels = list(encoder.strides)
    for level, stride in zip(spec.levels, (32, 16, 4), strict=True):
        assert encoder.strides[level] == stride
        assert all(encoder.strides[later] != stride for later in levels[levels.index(level) + 1 :])


def test_a_stride_that_the_backbone_does_not_have_is_named() -> None:
    encoder = build_encoder(BackboneParams(name="lcnet_035", weights="none"), 0)
    with pytest.raises(UserError, match=r"no level of stride 64.*network\.strides"):
        build_decoder(encoder, (64,), (8,), (8,), 0)


def test_a_saved_network_gives_the_same_maps(tmp_path: Path) -> None:
    made = network("lcnet_035", (16, 8), (16, 8))
    save_network(made, tmp_path / "network")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "network")(images(64, 64)), made(images(64, 64)))


def test_weights_come_from_the_seed() -> None:
    one, same, other = (network("lcnet_035", (16,), (8,), seed).decoder.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_frozen_blocks_get_no_gradient_and_the_rest_does() -> None:
    made = network("lcnet_035", (16, 8), (16, 8))
    made.encoder.freeze_first(2)
    made(images(64, 64)).sum().backward()
    moved = {name for name, value in made.encoder.body.named_parameters() if value.grad is not None}
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1")) for name in moved)
    assert any(name.startswith("blocks.2") for name in moved)
    with pytest.raises(UserError, match="cannot be frozen"):
        made.encoder.freeze_first(99)
