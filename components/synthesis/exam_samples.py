"""The synthetic exam's samples: of which kinds they are, who they are, and what makes them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from torch import Tensor

from components.foundation.draws import SampleKeys
from components.foundation.params import Params
from components.images.tensors import as_tensor
from components.synthesis import cutpaste
from components.synthesis.exam_kinds import KINDS, contrast_unit, kind_makers, others_of
from components.synthesis.nsa import NsaImage, nsa_batch, prepare, sources_of
from components.synthesis.nsa_params import NsaParams
from components.synthesis.tasks import patch_params, scar_params

Samples = tuple[np.ndarray, np.ndarray]  # uint8 (B, S, S, 3), bool (B, S, S)
SampleMaker = Callable[[np.ndarray], Samples]  # of numbers, int64 (B,)
EXAM_KINDS = ("cutpaste", "scar", "nsa", "cutout", *KINDS)
EXAM_EPOCH = 1 << 40  # no epoch of any training: the exam's samples are never trained on
UNIT_IMAGES = 48  # are enough to tell by how much good images differ
CUTOUT_AREA = (0.003, 0.03)


def exam_keys(image_keys: np.ndarray, category: str, params: Params) -> SampleKeys:
    """Who the exam's samples from the images with these keys (B,) are."""
    return SampleKeys.of(params.seed, category, EXAM_EPOCH, image_keys)


@dataclass(frozen=True)
class ExamImages:
    """Good images with what is found in them before any sample is made of them.

    Attributes:
        good: uint8 (M, S, S, 3).
        keys: int64 (M,) who they are: a sample depends on its image, and on that which a patch or part comes from.
        nsa: how natural synthetic anomalies are made; None where no patch fits.
        pictures: the images as these see them, (M,); none without settings.
        unit: see `exam_kinds.contrast_unit`.
    """

    good: np.ndarray
    keys: np.ndarray
    nsa: NsaParams | None
    pictures: Sequence[NsaImage]
    unit: float

    @classmethod
    def of(cls, good: np.ndarray, keys: np.ndarray, nsa: NsaParams | None) -> "ExamImages":
        """Find it."""
        pictures = [prepare(image, nsa) for image in good] if nsa else []
        return cls(good, keys, nsa, pictures, contrast_unit(good[:UNIT_IMAGES]))

    @property
    def objects(self) -> list[np.ndarray | None]:
        """Where in each image a defect may have its middle, bool (S, S); None for anywhere."""
        return [picture.object_mask for picture in self.pictures] or [None] * len(self.good)


def exam_makers(images: ExamImages, category: str, params: Params) -> dict[str, SampleMaker]:
    """For each kind of sample, what makes it from the images of these numbers.

    Without settings of NSA its samples are the good images themselves, with empty masks.
    """
    good, nsa = images.good, images.nsa
    patch, scar = patch_params(params.synthesis), scar_params(params.synthesis)
    # small boxes of the image's mean colour are seen on a texture too, where a pasted piece of itself is not
    cutout = cutpaste.CutoutParams(area=CUTOUT_AREA)

    def sample_keys(numbers: np.ndarray) -> SampleKeys:
        return exam_keys(images.keys[numbers], category, params)

    def images_of(numbers: np.ndarray) -> Tensor:
        return as_tensor(good[numbers])

    def natural(numbers: np.ndarray) -> Samples:
        if nsa is None:
            return good[numbers], np.zeros((len(numbers), *good.shape[1:3]), bool)
        made = nsa_batch(images.pictures, images.keys, sample_keys(numbers), nsa)
        return np.stack([sample.image for sample in made]), np.stack([sample.mask for sample in made])

    return {
        "cutpaste": lambda numbers: _as_arrays(cutpaste.cutpaste(images_of(numbers), sample_keys(numbers), patch)),
        "scar": lambda numbers: _as_arrays(cutpaste.scar(images_of(numbers), sample_keys(numbers), scar)),
        "nsa": natural,
        "cutout": lambda numbers: _as_arrays(cutpaste.cutout(images_of(numbers), sample_keys(numbers), cutout)),
        **kind_makers(good, images.objects, sample_keys, images.unit),
    }


def exam_settings(images: ExamImages, params: Params) -> dict[str, list[Any]]:
    """For each kind, what its samples from the images depend on besides images and keys.

    Each is a list (M,) of what JSON has, so that only those are made again for which something has changed.
    """
    count = len(images.good)
    natural = [asdict(images.nsa) if images.nsa else None] * count
    placed = [[images.unit, "" if mask is None else sha256(mask.tobytes()).hexdigest()] for mask in images.objects]
    pasted = [params.synthesis.model_dump(mode="json")] * count
    return dict.fromkeys(EXAM_KINDS, pasted) | {"nsa": natural} | dict.fromkeys(KINDS, placed)


def exam_others(keys: SampleKeys, own_keys: np.ndarray) -> np.ndarray:
    """For each kind and image, (K, M): which of the exam's M images its sample is made with; itself where with none.

    keys: (M,) of the samples. own_keys: int64 (M,) who the images are.
    """
    alone = np.arange(len(own_keys))
    chosen = {"nsa": sources_of(keys, own_keys)} | {kind: others_of(kind, keys, own_keys) for kind in KINDS}
    return np.stack([chosen.get(kind, alone) for kind in EXAM_KINDS])


def _as_arrays(made: cutpaste.Synthetic) -> Samples:
    return made.images.permute(0, 2, 3, 1).numpy(), made.masks.numpy()
