"""The pretext tasks: what an encoder is trained to tell apart (CutPaste, sections 2.3 and 3.2, and its baselines)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.foundation.draws import SampleKeys, pick
from components.foundation.params import PatchLevelParams, SynthesisParams
from components.synthesis import cutpaste
from components.synthesis.methods import PATCH

BatchMaker = Callable[[Tensor, SampleKeys, SynthesisParams], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A classification of synthetic images.

    Attributes:
        name: the kind of samples, as the method of that name makes them.
        classes: how many.
        params: of the synthesis.
        crop: side in pixels of the random crop that stands for each image; 0 for the whole image.
    """

    name: str
    classes: int
    params: SynthesisParams
    crop: int = 0

    def batch(self, images: Tensor, keys: SampleKeys) -> tuple[Tensor, Tensor]:
        """Make uint8 images (B·k, 3, S, S) and labels (B·k,) int64 from normal images (B, 3, S, S) uint8.

        Every image is first shifted and jittered as a whole; each of the k versions of it is a different draw. With
        `crop` they are made of one crop of each image, (B·k, 3, crop, crop), with parameters as of `crop_params`.
        """
        params = self.params
        if self.crop:
            params = crop_params(params, min(images.shape[2:]), self.crop)
            images = random_crops(images, keys, self.crop)
        normal = cutpaste.augment(images, keys, augment_params(params))
        return _BATCHES[self.name](normal, keys, params)


def task_of(method: str, params: SynthesisParams, patch: PatchLevelParams | None = None) -> Task | None:
    """The task that a method trains with; None where it does not train. `patch` counts for cutpaste-patch alone."""
    if method == PATCH:
        patch = patch or PatchLevelParams()
        return Task(patch.task, _CLASSES[patch.task], params, patch.receptive_field)
    classes = _CLASSES.get(method)
    return Task(method, classes, params) if classes else None


def crop_params(params: SynthesisParams, size: int, crop: int) -> SynthesisParams:
    """The synthesis on crops of images of `size` pixels a side.

    A patch's area is relative to the crop; a scar keeps its size in the image, but is not longer than half a crop:
    measured by the crop it would be a pixel or nothing. A crop's place is its translation.
    """
    larger = min(size / crop, cutpaste.SCAR_SIDE / 2 / max(*params.scar_width, *params.scar_length))
    width, length = ((low * larger, high * larger) for low, high in (params.scar_width, params.scar_length))
    return params.model_copy(update={"scar_width": width, "scar_length": length, "translation": 0.0})


def random_crops(images: Tensor, keys: SampleKeys, side: int) -> Tensor:
    """One crop (N, 3, side, side) of each of the images (N, 3, H, W), uniform over all its places."""
    height, width = images.shape[2:]
    draws = keys.uniform("crop", 2)
    tops, lefts = pick(draws[:, 0], 0, height - side), pick(draws[:, 1], 0, width - side)
    return torch.stack(
        [image[:, top : top + side, left : left + side] for image, top, left in zip(images, tops, lefts, strict=True)]
    )


def patch_params(params: SynthesisParams) -> cutpaste.PatchParams:
    """The patch of CutPaste, from the parameters of the project."""
    low, high = params.aspect
    aspects = ((low, 1.0), (1.0, high)) if low < 1 < high else ((low, high),)
    return cutpaste.PatchParams(params.area, aspects, params.jitter, (-params.rotation, params.rotation))


def scar_params(params: SynthesisParams) -> cutpaste.ScarParams:
    """The scar, from the parameters of the project."""
    rotation = (-params.scar_rotation, params.scar_rotation)
    return cutpaste.ScarParams(params.scar_width, params.scar_length, rotation, params.jitter)


def augment_params(params: SynthesisParams) -> cutpaste.AugmentParams:
    """The change of the whole image, from the parameters of the project."""
    return cutpaste.AugmentParams(translation=params.translation, jitter=params.image_jitter)


def _binary(images: Tensor, keys: SampleKeys, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    return _against(images, cutpaste.cutpaste(images, keys, patch_params(params)).images)


def _scar(images: Tensor, keys: SampleKeys, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    return _against(images, cutpaste.scar(images, keys, scar_params(params)).images)


def _union(images: Tensor, keys: SampleKeys, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    patches = cutpaste.cutpaste(images, keys, patch_params(params)).images
    scars = cutpaste.scar(images, keys, scar_params(params)).images
    takes_scar = torch.from_numpy(keys.uniform("union", 1)[:, 0] < 0.5).view(-1, 1, 1, 1)
    return _against(images, torch.where(takes_scar, scars, patches))


def _three_way(images: Tensor, keys: SampleKeys, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    made = cutpaste.three_way(images, keys, patch_params(params), scar_params(params))
    return made.images, made.labels


def _cutout(images: Tensor, keys: SampleKeys, params: SynthesisParams) -> tuple[Tensor, Tensor]:
    patch = patch_params(params)
    return _against(images, cutpaste.cutout(images, keys, cutpaste.CutoutParams(patch.area, patch.aspect)).images)


def _confetti(images: Tensor, keys: SampleKeys, _params: SynthesisParams) -> tuple[Tensor, Tensor]:
    return _against(images, cutpaste.confetti(images, keys).images)


def _rotation(images: Tensor, keys: SampleKeys, _params: SynthesisParams) -> tuple[Tensor, Tensor]:
    made = cutpaste.rotation(images, keys)
    return made.images, made.labels


def _against(normal: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """Normal images with label 0 before synthetic ones with label 1."""
    labels = torch.arange(2).repeat_interleave(len(normal))
    return torch.cat([normal, synthetic]), labels


_BATCHES: dict[str, BatchMaker] = {
    "cutpaste-binary": _binary,
    "cutpaste-scar": _scar,
    "cutpaste-union": _union,
    "cutpaste-3way": _three_way,
    "cutout": _cutout,
    "confetti": _confetti,
    "rotation": _rotation,
}
_CLASSES = dict.fromkeys(_BATCHES, 2) | {"cutpaste-3way": 3, "rotation": 4}
