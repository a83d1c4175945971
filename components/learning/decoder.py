"""The network of the end-to-end methods: an encoder, and a decoder that turns its features into an anomaly map.

Source: Schlüter et al., "Natural Synthetic Anomalies" (arXiv 2109.15222), section 4: ResNet-18 from scratch, 1×1
convolutions 512→256→128, transposed convolutions up to a map of the image's size, a sigmoid. Here the encoder may be
any backbone, and the decoder may read shallower levels on its way up, which spares a pretrained encoder most steps.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from components.foundation.errors import UserError
from components.foundation.files import read_json, write_bytes, write_json
from components.learning.backbone import Encoder, load_encoder, save_encoder

SKIP_WIDTH = 32
PRIOR_LOGIT = -3.0  # before anything is learned, one pixel in twenty is anomalous
MOST_LOGIT = 30.0


@dataclass(frozen=True)
class DecoderSpec:
    """What is needed to build a decoder again, besides its weights.

    Attributes:
        levels: of the encoder, that are read: the deepest first.
        channels, strides: of each of these levels.
        reduction: channels after each 1×1 convolution of the deepest level.
        widths: channels after each doubling of the map's side; where they end before the image's size, or before the
            deepest stride is undone, linear interpolation goes the rest of the way.
    """

    levels: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    reduction: tuple[int, ...]
    widths: tuple[int, ...]


class Decoder(nn.Module):
    """The features of an encoder's levels to the log-odds of a map of the image's size."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        width, stride = spec.channels[0], spec.strides[0]
        shallower = dict(zip(spec.strides[1:], spec.channels[1:], strict=True))
        reduction = []
        for narrower in spec.reduction:
            reduction.append(_unit(nn.Conv2d(width, narrower, 1, bias=False)))
            width = narrower
        self.reduction = nn.Sequential(*reduction)
        self.doublings, self.skips, self.merges = nn.ModuleList(), nn.ModuleDict(), nn.ModuleDict()
        for out in spec.widths[: stride.bit_length() - 1]:
            self.doublings.append(_unit(nn.ConvTranspose2d(width, out, 4, 2, 1, bias=False)))
            width, stride = out, stride // 2
            if stride in shallower:
                self.skips[str(stride)] = nn.Conv2d(shallower[stride], SKIP_WIDTH, 1, bias=False)
                self.merges[str(stride)] = _unit(nn.Conv2d(width + SKIP_WIDTH, width, 3, padding=1, bias=False))
        self.to_map = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.to_map.bias, PRIOR_LOGIT)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Log-odds (N, H, W) float32 from the levels' features, (N, C, h, w) each, of images of `size` (H, W)."""
        deepest, *others = features
        read = dict(zip(self.spec.strides[1:], others, strict=True))
        stride, x = self.spec.strides[0], self.reduction(deepest)
        for doubling in self.doublings:
            x, stride = doubling(x), stride // 2
            if stride in read:
                skip = self.skips[str(stride)](read[stride])
                x = x[..., : skip.shape[2], : skip.shape[3]]  # a level of odd side was rounded up below
                x = self.merges[str(stride)](torch.cat([x, skip], dim=1))
        return _to_size(self.to_map(x).float(), stride, size)[:, 0]


class MapNetwork(nn.Module):
    """An encoder with a decoder: images to anomaly maps."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Tensor) -> Tensor:
        """Log-odds (N, H, W) float32 that each pixel of uint8 images (N, 3, H, W) is anomalous."""
        return decode(self.encoder, self.decoder, images)


def decode(encoder: Encoder, decoder: Decoder, images: Tensor) -> Tensor:
    """Log-odds (N, H, W) float32 of uint8 images (N, 3, H, W)."""
    features = encoder.features(images, decoder.spec.levels)
    return decoder([features[level] for level in decoder.spec.levels], (images.shape[2], images.shape[3]))


def build_decoder(
    encoder: Encoder, strides: Sequence[int], reduction: Sequence[int], widths: Sequence[int], seed: int
) -> Decoder:
    """A decoder with random weights from `seed`, on the encoder's last level of each stride, given deepest first.

    Raises UserError where the encoder has no level of a stride.
    """
    levels = tuple(_last_level(encoder, stride) for stride in strides)
    with torch.no_grad():
        features = encoder.features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), levels)
    channels = tuple(features[level].shape[1] for level in levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(DecoderSpec(levels, channels, tuple(strides), tuple(reduction), tuple(widths)))


def save_network(network: MapNetwork, folder: Path) -> None:
    """Write the encoder, `decoder.safetensors` and `decoder.json` into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(network.encoder, folder)
    weights = {name: value.contiguous().cpu() for name, value in network.decoder.state_dict().items()}
    write_bytes(folder / "decoder.safetensors", save(weights))
    write_json(folder / "decoder.json", asdict(network.decoder.spec))


def load_network(folder: Path) -> MapNetwork:
    """Read what `save_network` wrote, in evaluation mode."""
    fields = read_json(folder / "decoder.json")
    decoder = Decoder(DecoderSpec(**{name: tuple(value) for name, value in fields.items()}))
    decoder.load_state_dict(load_file(folder / "decoder.safetensors"))
    return MapNetwork(load_encoder(folder), decoder).eval()


def _to_size(logits: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Resample (N, 1, h, w) with cells of `stride` pixels to (N, 1, H, W); cells beyond the image's end are cut off."""
    if stride > 1:
        logits = functional.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
    return logits[..., : size[0], : size[1]]


def _last_level(encoder: Encoder, stride: int) -> str:
    found = [level for level, own in encoder.strides.items() if own == stride]
    if not found:
        raise UserError(
            f"{encoder.spec.name} has no level of stride {stride}, only of {sorted(set(encoder.strides.values()))}: "
            "correct network.strides in params.yaml."
        )
    return found[-1]


def _unit(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True))
