"""Configuration: `params.yaml`, parsed once into typed, frozen objects; whatever is unknown or impossible is named.

A preset is a file in `components/presets/` with only the values in which it differs; `flawline run --preset NAME`
writes them into `params.yaml`, which stays the single place that says what is computed.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from components.foundation.errors import UserError, printable
from components.foundation.limits import ImageLimits
from components.foundation.names import check_category_name, check_category_names, check_data_root
from components.foundation.yaml_text import read_yaml

PARAMS = Path("params.yaml")
SETTLED = "FLAWLINE_PARAMS"  # names the file that a run's stages read instead, made when the run began
PRESETS = Path(__file__).parents[1] / "presets"
RENAMED = {"image.size": "image.side"}
UNSEEN_BY_DVC = ("size", "nfiles")  # keys of any depth that DVC's run cache leaves out when it compares parameters
MOST_STEPS = 100_000_000
MOST_IMAGES = 1_000_000
MOST_BYTES = 10**15
MOST_DEVIATIONS = 1e6
MOST_HOURS = 100_000.0
MOST_THREADS = 512
MOST_SAID = 3  # problems in one sentence
MOST_SEED = 2**53 - 1  # the largest that every reader of JSON holds exactly

_Value = TypeVar("_Value")
Auto = Annotated[
    _Value | None,
    BeforeValidator(lambda value: None if value == "auto" else value),
    PlainSerializer(lambda value: "auto" if value is None else value),
]
"""A value, or None where params.yaml says `auto`: found from the good images."""


def _checked(check: Callable[[Any], None]) -> AfterValidator:
    """A check that raises UserError as pydantic takes it."""

    def validate(value: Any) -> Any:
        try:
            check(value)
        except UserError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return value

    return AfterValidator(validate)


def check_printable(text: str) -> None:
    """Raise UserError for a text with characters that do not print, such as a line's end."""
    if not text.isprintable():
        raise UserError(f"{text!r} holds characters that do not print")


def check_inbox(source: str) -> None:
    """Raise UserError for an address that no images arrive at; whether there is anything is seen later."""
    if "://" in source and not re.fullmatch(r"s3://[^/]+/.*[^/].*", source):
        raise UserError(f"{source} is no inbox: give a folder or s3://BUCKET/PREFIX")


def check_some(values: Sequence[Any]) -> None:
    """Raise UserError for an empty list."""
    if not values:
        raise UserError("it must have one item at least")


def check_once(values: Sequence[str]) -> None:
    """Raise UserError for a value that is there twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is there twice")


_List = Field(strict=False)  # YAML's lists become tuples; what is in them is as strict as all else
Range = Annotated[tuple[_Value, _Value], _List]
Share = Annotated[float, Field(le=1)]
HalfSide = Annotated[float, Field(le=0.5)]  # of an image
Factor = Annotated[float, Field(le=100)]
Pixels = Annotated[float, Field(le=256)]  # of 256
Category = Annotated[str, _checked(check_category_name)]
Categories = Annotated[tuple[Category, ...], _List, _checked(check_category_names)]
Line = Annotated[str, Field(min_length=1, max_length=1000), _checked(check_printable)]
Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Interval = Annotated[int, Field(ge=1, le=MOST_STEPS)]  # of steps
Rate = Annotated[float, Field(gt=0, le=10)]
FinalRate = Annotated[float, Field(ge=0, le=10)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
Bytes = Annotated[int, Field(gt=0, le=MOST_BYTES)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(strict=False, max_length=32)]
Level = Annotated[str, Field(pattern=r"^(b(0|[1-9][0-9]?)|head)$")]

Method = Literal[
    "pretrained",
    "cutpaste-binary",
    "cutpaste-scar",
    "cutpaste-union",
    "cutpaste-3way",
    "rotation",
    "cutout",
    "confetti",
    "cutpaste-ensemble",
    "cutpaste-patch",
    "nsa-binary",
    "nsa-continuous",
    "nsa-logistic",
    "fpi",
    "pii",
    "nsa-gde",
    "nsa-cutpaste",
]


class _Section(BaseModel):
    """A frozen section of the file, which refuses keys that it does not know, true for a number, infinity and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataParams(_Section):
    """Where the images are: `root/CATEGORY/train/good/…`, in MVTec AD layout."""

    root: Annotated[str, _checked(check_data_root)]
    categories: Annotated[Categories, _checked(check_some)]


class LimitParams(_Section):
    """What an image file may be at most; see `components.images.decode.ImageLimits`.

    bits: how many bits 16-bit grey files use, such as 12; "auto" finds it from the good images
    (`components.images.depth`).
    """

    max_pixels: int = Field(100_000_000, gt=0, le=178_956_970)  # above, Pillow's own limit would be the lower one
    max_bytes: Bytes = 500_000_000
    bits: Auto[Annotated[int, Field(ge=8, le=16)]] = None

    def image_limits(self) -> ImageLimits:
        """The same limits as the reader of images takes them; 16 bits where these are to be found."""
        return ImageLimits(self.max_pixels, self.max_bytes, self.bits or 16)


class DemoParams(_Section):
    """The demo data set: tiles cut from photographs, with drawn defects."""

    seed: Seed = 0
    tile: int = Field(128, ge=64, le=240)
    train: int = Field(64, ge=8, le=10_000)
    test_good: int = Field(20, ge=1, le=10_000)
    per_kind: int = Field(6, ge=1, le=10_000)


class ImageParams(_Section):
    """Geometry: every image is resampled to `side` × `side` pixels."""

    side: int = Field(256, ge=32, le=1024)


class ValidationParams(_Section):
    """Limits of the data checks; the robust ones count in median absolute deviations of the training images.

    min_good: fewest good training images. min_side: shortest side in pixels.
    max_deviations: how far the brightness, sharpness … of one image may lie from the median.
    max_outlier_share: which share of the good images may lie further without a warning.
    max_shift: how far the median of the good test images may lie from that of the training images.
    near_distance: share of differing bits up to which a test image looks like a training image (perceptual hash).
    """

    min_good: int = Field(10, ge=2, le=MOST_IMAGES)
    min_side: int = Field(32, ge=1, le=65_536)
    max_deviations: float = Field(8.0, gt=0, le=MOST_DEVIATIONS)
    max_outlier_share: float = Field(0.05, ge=0, le=1)
    max_shift: float = Field(3.0, gt=0, le=MOST_DEVIATIONS)
    near_distance: float = Field(0.05, ge=0, lt=0.25)


class SynthesisParams(_Section):
    """CutPaste in the paper's terms (section 3, appendix A); pixel lengths are at 256 px and scale with the image."""

    area: Range[Share] = (0.02, 0.15)
    aspect: Range[Factor] = (0.3, 3.3)
    jitter: float = Field(0.1, ge=0, le=0.5)
    rotation: float = Field(0.0, ge=0, le=180)
    scar_width: Range[Pixels] = (2, 16)
    scar_length: Range[Pixels] = (10, 25)
    scar_rotation: float = Field(45.0, ge=0, le=180)
    image_jitter: float = Field(0.1, ge=0, le=0.5)
    translation: float = Field(0.03, ge=0, le=0.5)
    held_out: float = Field(0.2, gt=0, lt=0.9)
    exam_images: int = Field(120, ge=2, le=100_000)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("area", "aspect", "scar_width", "scar_length"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two positive numbers in ascending order, not {low}, {high}")
        return self


class NsaSection(_Section):
    """Natural Synthetic Anomalies (`components.synthesis.nsa`); what is "auto" (None) comes from `settings`.

    settings: "derived" from the category's good images, or "paper", the hand-made row of the paper's category.
    object: whether the category is an object or a texture; aligned: whether the object always lies the same way. Both
    decide how the others are derived.
    mask: whether patches must lie on the object, which is what differs from the background: "none" asks no rule.
    background, tolerance: mean grey level of the background, and how far the object's differs more.
    height, width: bounds of half a patch's side as shares of the image's; resize: of the resize factor.
    max_patches: most patches of a sample. gradients: of the Poisson blend; "mixed-opencv" chooses by OpenCV's rule, as
    the official code does, and not on each axis.
    min_object: least share of a patch on the object. min_overlap: least share of a patch's object on the target's.
    tries: places tried for either rule. k, x0: steepness and midpoint of the logistic label, in grey levels.
    faithful: overlapping patches overwrite each other's label as in the official code, instead of being joined.
    exact_mask: blend on the mask itself and not on its rectangle (slower).
    score: the image's score is the mean of its map, or of the map's highest hundredth ("top").
    """

    settings: Literal["derived", "paper"] = "derived"
    object: Literal["auto", "object", "texture"] = "auto"
    aligned: Auto[bool] = None
    mask: Literal["auto", "background", "none"] = "auto"
    background: Auto[Annotated[float, Field(ge=0, le=255)]] = None
    tolerance: Auto[Annotated[float, Field(gt=0, le=255)]] = None
    height: Auto[Range[HalfSide]] = None
    width: Auto[Range[HalfSide]] = None
    resize: Auto[Range[Annotated[float, Field(le=10)]]] = None
    max_patches: Auto[Annotated[int, Field(ge=1, le=16)]] = None
    gradients: Literal["auto", "source", "mixed", "mixed-opencv"] = "auto"
    min_object: Auto[Annotated[float, Field(ge=0, lt=1)]] = None
    min_overlap: Auto[Annotated[float, Field(ge=0, lt=1)]] = None
    tries: int = Field(200, ge=1, le=10_000)
    k: Auto[Annotated[float, Field(gt=0, le=1000)]] = None
    x0: Auto[Annotated[float, Field(gt=0, le=255)]] = None
    faithful: bool = False
    exact_mask: bool = False
    score: Literal["mean", "top"] = "mean"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, most in (("height", 0.5), ("width", 0.5), ("resize", 10.0)):
            bounds = getattr(self, name)
            if bounds and not 0 < bounds[0] <= bounds[1] <= most:
                raise ValueError(f"{name} must be two numbers in ascending order, above 0 and at most {most}")
        if self.mask == "none" and (self.background, self.tolerance) != (None, None):
            raise ValueError("background and tolerance find a mask, but mask is 'none'")
        if self.settings == "paper" and (self.object != "auto" or self.aligned is not None):
            raise ValueError("object and aligned decide what is derived, but settings is 'paper'")
        return self


class BackboneParams(_Section):
    """The network: a name of timm's, or `torchvision/NAME`; and where its weights come from.

    weights: "packaged" (EfficientNet-Lite0, no download), "library" (timm's or torchvision's own download),
    "none" (random), or the path of a .safetensors or .pth file.
    sha256: of that file, in hex, by which DVC sees that another one lies there; `--set backbone.weights=FILE` sets it.
    """

    name: Line = "tf_efficientnet_lite0"
    weights: Line = "packaged"
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")


class TrainingParams(_Section):
    """Self-supervised training: first the head alone, then all layers (section 4.3), one cosine cycle each.

    final_rate: what the learning rate of the second phase ends at.
    precision: "auto" is bf16 where the processor has instructions for it, else fp32: bytes then differ between such
        machines, as sums do anyhow.
    members: networks of the method cutpaste-ensemble, each from a seed of its own (section 4.1: five).
    workers: processes that make the batches ahead, the same bytes as none, so that a GPU need not wait for them.
    """

    head_steps: Steps = 0
    head_rate: Rate = 0.03
    steps: Steps = 0
    rate: Rate = 1e-4
    final_rate: FinalRate = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(3e-5, ge=0, le=1)
    batch: Batch = 24
    projection: Widths = (512,)
    freeze_batch_norm: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    members: int = Field(5, ge=2, le=100)
    workers: int = Field(0, ge=0, le=64)
    checkpoint_steps: Interval = 25
    exam_steps: Interval = 50


class PatchLevelParams(_Section):
    """The method cutpaste-patch: a network of its own, from scratch on random crops of good images (section 3.3).

    receptive_field: side of a crop, in pixels; a multiple of 2 · stride, at least 4 · stride.
    stride: pixels from one place that is scored to the next; a power of two.
    width: features of a place. task: what crops are told apart by.
    steps, rate, batch, exam_steps: as in `training`, whose other values apply too; the network has no head phase, its
    batch-norm learns, and its optimizer is SGD.
    """

    receptive_field: int = Field(32, ge=16, le=256)
    stride: int = Field(4, ge=2, le=32)
    width: int = Field(64, ge=8, le=512)
    task: Literal["cutpaste-binary", "cutpaste-scar", "cutpaste-union", "cutpaste-3way"] = "cutpaste-binary"
    steps: Steps = 1500
    rate: Rate = 0.03
    batch: int = Field(32, ge=2, le=4096)
    exam_steps: Interval = 500

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            check_patch_geometry(self.receptive_field, self.stride)
        except UserError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return self


def check_patch_geometry(receptive_field: int, stride: int) -> None:
    """Raises UserError, naming the parameter, for a receptive field and a stride that no patch network has."""
    if stride < 2 or stride & (stride - 1):
        raise UserError(f"patch.stride must be a power of two from 2, such as 4, not {stride}.")
    if receptive_field % (2 * stride) or receptive_field < 4 * stride:
        raise UserError(
            f"patch.receptive_field must be a multiple of {2 * stride} from {4 * stride} where patch.stride is "
            f"{stride}, not {receptive_field}."
        )


class ViewParams(_Section):
    """What the network of NSA sees of an image; lengths in pixels at 256 px, scaled with the image.

    resize: side that the whole image is brought to. rotation: largest turn about the middle, in degrees.
    centre: side of the middle square that is kept. crop: side of the square cut from it at any place.
    flip: how half of the views are mirrored: "left-right" or "upside-down"; false for not at all.
    test: side of the middle square that is scored; 0 for the whole image.
    """

    resize: int = Field(256, ge=32, le=1024)
    rotation: float = Field(0.0, ge=0, le=180)
    centre: int = Field(256, ge=32, le=1024)
    crop: int = Field(256, ge=32, le=1024)
    flip: Literal[False, "left-right", "upside-down"] = False
    test: int = Field(0, ge=0, le=256)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.crop <= self.centre <= self.resize:
            raise ValueError(
                f"crop {self.crop}, centre {self.centre} and resize {self.resize} must not decrease: each is cut from "
                "the next"
            )
        return self


class NetworkParams(_Section):
    """The network of nsa-binary, -continuous, -logistic, fpi and pii (`components.learning.decoder`), and how it is
    trained.

    strides: of the encoder's levels which the decoder reads, the deepest first. reduction: channels of the decoder's
    1×1 convolutions. widths: its channels after each doubling; linear interpolation goes the rest of the way.
    frozen: the encoder's first blocks that stay as they are (0: all learn, the stem too).
    head_steps, head_rate: a first phase in which only the decoder learns. steps: of the second, in which all does;
    epochs: passes over the images to learn from instead, where not 0; epochs_of: the same by category.
    rate, final_rate: Adam's at the beginning and the end of the second phase. batch, freeze_batch_norm, precision,
    exam_steps: as in `training`, which gives the rest.
    object_view, texture_view: what is seen of objects and of textures; `rotated`: the only categories that are turned,
    all where empty.
    keep: "exam" keeps the detector before training where the network's mark is worse by more than fit.margin;
    "always" serves the network anyhow. Either says so.
    """

    strides: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], _List] = Field((32,), min_length=1)
    reduction: Widths = (256, 128)
    widths: Widths = (64, 64, 32, 32, 16)
    frozen: int = Field(0, ge=0, le=1000)
    freeze_batch_norm: bool = False
    head_steps: Steps = 0
    head_rate: Rate = 1e-3
    steps: Steps = 0
    epochs: Steps = 0
    epochs_of: dict[Category, Steps] = {}
    rate: Rate = 1e-3
    final_rate: FinalRate = 1e-6
    batch: Batch = 64
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    exam_steps: Interval = 50
    object_view: ViewParams = ViewParams()
    texture_view: ViewParams = ViewParams()
    rotated: Categories = ()
    keep: Literal["exam", "always"] = "exam"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if any(low >= high for high, low in pairwise(self.strides)):
            raise ValueError(f"strides must begin with the deepest, not {list(self.strides)}")
        if self.frozen and not self.freeze_batch_norm:
            raise ValueError("frozen blocks keep their batch norm, but freeze_batch_norm is false")
        if unseen := [name for name in UNSEEN_BY_DVC if name in self.epochs_of]:
            raise ValueError(f"epochs_of cannot have the key {unseen[0]!r}, as DVC's run cache does not see its value")
        return self

    def steps_of(self, category: str, images: int) -> int:
        """Steps of the second phase on so many images to learn from."""
        epochs = self.epochs_of.get(category, self.epochs)
        return epochs * -(-images // self.batch) if epochs else self.steps

    def schedule(self, training: TrainingParams, category: str, images: int) -> TrainingParams:
        """The training as the learner takes it: the keys that both sections have come from this one."""
        own = {name: getattr(self, name) for name in TrainingParams.model_fields if hasattr(self, name)}
        own |= {"steps": self.steps_of(category, images), "optimizer": "adam", "weight_decay": 0.0}
        return training.model_copy(update=own)


class FitParams(_Section):
    """The density: which compositions sit the exam, and how many of the best are averaged.

    folds: of the exam and of cross-fitted scores. margin: by which a trained representation must be better.
    refit: where there are at most 1000 good images, the densities learn the held-out ones too in the end, and the
        threshold comes from their cross-fitted scores; without, it is a split-conformal one with its exact guarantee.

    What is "auto" (or empty) the exam chooses, among the family in `components.detection.compositions`; anything else
    holds for every composition that sits it.

    levels: of the backbone: its blocks b0, b1, … and "head", the pooled feature.
    layout: "image" (one vector an image), "shared", "location" or "pooled", see `GaussianDensity`.
    density: a Gaussian with this covariance, or a kernel density, which describes whole images only.
    combine: one density of all levels together, or one for each, the "sum" of whose distances counts.
    copies: what densities learn from besides the good images: "geometric" or "photometric" copies of them, or none.
    map: "dense" distances of locations; "gradcam" of the pooled feature's distance or "gradcam-logit" of the trained
        head's log-odds of a defect, at the block `gradcam_level` (empty: the deepest that counts). "auto" is dense
        where something dense is fitted, else gradcam.
    """

    folds: int = Field(4, ge=2, le=50)
    best: int = Field(1, ge=1, le=100)
    margin: float = Field(0.0, ge=0, lt=1)
    refit: bool = True
    levels: Annotated[tuple[Level, ...], _List, _checked(check_once)] = ()
    layout: Literal["auto", "image", "shared", "location", "pooled"] = "auto"
    density: Literal["auto", "gaussian", "kernel"] = "auto"
    covariance: Literal["auto", "ledoit-wolf", "oas", "empirical", "ridge", "low-rank"] = "auto"
    combine: Literal["concatenate", "sum"] = "concatenate"
    copies: Literal["auto", "none", "geometric", "photometric"] = "auto"
    map: Literal["auto", "dense", "gradcam", "gradcam-logit"] = "auto"
    gradcam_level: Literal[""] | Level = ""

    @property
    def image_only(self) -> str:
        """What is chosen here that only one vector an image goes with; empty where nothing is."""
        chosen = {
            "layout image": self.layout == "image",
            "density kernel": self.density == "kernel",
            f"map {self.map}": self.map.startswith("gradcam"),
            "the level head": "head" in self.levels,
        }
        return next((name for name, is_so in chosen.items() if is_so), "")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.density == "kernel" and self.covariance != "auto":
            raise ValueError(f"density kernel has no covariance, so covariance must be auto, not {self.covariance}")
        if self.image_only and self.layout not in ("auto", "image"):
            raise ValueError(f"{self.image_only} goes with layout image or auto only, not {self.layout}")
        if self.image_only and self.map == "dense":
            raise ValueError(f"{self.image_only} gives no dense map: choose map auto or gradcam")
        return self


class ThresholdParams(_Section):
    """The alarm threshold, from held-out good images alone: the share of good parts that may be called defective."""

    false_alarm_rate: float = Field(0.02, gt=0, lt=1)
    confidence: float = Field(0.95, gt=0, lt=1)


class EvaluationParams(_Section):
    """What is measured on the test images."""

    aupro_fpr_limit: float = Field(0.3, gt=0, le=1)
    bootstrap: int = Field(500, ge=0, le=1_000_000)
    gallery: int = Field(12, ge=1, le=1000)


class IngestParams(_Section):
    """New images that arrive: where from, what is let in, and when it is learned.

    source: the inbox, a folder or s3://BUCKET/PREFIX with one folder per category; accepted, held and quarantined
    images go to folders of these names beside it.
    settle_seconds: a file that changed within that time is still being copied, and is left alone.
    max_files, max_batch_bytes: of one batch; what is above waits for the next. max_bytes: of one file.
    near_distance: share of differing bits up to which an image is a near-duplicate; 0 for identical hashes only.
    max_deviations: how far brightness, sharpness … may lie from the category's median, in robust deviations.
    drift: whether a batch whose distribution differs from the training images is only reported or held as a whole.
    drift_level: family-wise error rate of that test. drift_min: fewest images to test.
    hold_below: share of good images that may be held for a person because the champion finds them suspicious: by their
    p-value, or where the held-out images are too few for it, by how far the score lies beyond theirs.
    retrain_images, retrain_hours: a category is retrained once it has so many images that its latest model does not
    know, or has had some for so many hours.
    """

    source: Annotated[Line, _checked(check_inbox)] = "arriving/inbox"
    settle_seconds: float = Field(5.0, ge=0, le=86_400)
    max_files: int = Field(10_000, ge=1, le=MOST_IMAGES)
    max_bytes: Bytes = 100_000_000
    max_batch_bytes: Bytes = 20_000_000_000
    near_distance: float = Field(0.05, ge=0, lt=0.25)
    max_deviations: float = Field(8.0, gt=0, le=MOST_DEVIATIONS)
    drift: Literal["warn", "stop"] = "warn"
    drift_level: float = Field(0.001, gt=0, lt=1)
    drift_min: int = Field(20, ge=2, le=MOST_IMAGES)
    hold_below: float = Field(0.01, gt=0, lt=1)
    retrain_images: int = Field(10, ge=1, le=MOST_IMAGES)
    retrain_hours: float = Field(24.0, ge=0, le=MOST_HOURS)


class FirstParams(_Section):
    """What the first version of a category must have to be its champion by itself; else it stays a challenger.

    held_out: held-out good images by which the threshold is set. mark: image mark of the synthetic exam, an AUROC: a
    little over chance, as its defects are often fainter than real ones.
    """

    held_out: int = Field(10, ge=1, le=MOST_IMAGES)
    mark: float = Field(0.55, ge=0, le=1)


class GateParams(_Section):
    """What a version must have to be promoted without a person."""

    first: FirstParams = FirstParams()


class ArchiveParams(_Section):
    """A published archive: its address, and the SHA-256 of its content in hex."""

    url: Annotated[Line, Field(pattern=r"^https?://\S+$")]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FetchLimits(_Section):
    """What a download may be at most, and how patient it is; `max_ratio` is unpacked bytes per byte of archive."""

    max_archive_bytes: Bytes = 20_000_000_000
    max_files: int = Field(200_000, gt=0, le=100 * MOST_IMAGES)
    max_file_bytes: Bytes = 500_000_000
    max_bytes: Bytes = 50_000_000_000
    max_ratio: float = Field(100.0, gt=0, le=1e6)
    attempts: int = Field(6, ge=1, le=100)
    backoff_seconds: float = Field(1.0, ge=0, le=60)
    timeout_seconds: float = Field(30.0, gt=0, le=3600)


class FetchParams(_Section):
    """The data sets that `flawline data fetch NAME` knows; publishers move their archives, so correct the address here.

    MVTec AD (5.3 GB) may be used for non-commercial purposes only (CC BY-NC-SA 4.0).
    """

    archives: dict[Category, ArchiveParams] = {
        "mvtec": ArchiveParams(
            url="https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
            "420938113-1629960298/mvtec_anomaly_detection.tar.xz",
            sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        )
    }
    limits: FetchLimits = FetchLimits()


class Params(_Section):
    """All of `params.yaml`."""

    method: Method = "cutpaste-3way"
    seed: Seed = 0
    threads: int = Field(2, ge=1, le=MOST_THREADS)
    data: DataParams
    limits: LimitParams = LimitParams()
    demo: DemoParams = DemoParams()
    fetch: FetchParams = FetchParams()
    ingest: IngestParams = IngestParams()
    gate: GateParams = GateParams()
    image: ImageParams = ImageParams()
    validation: ValidationParams = ValidationParams()
    synthesis: SynthesisParams = SynthesisParams()
    nsa: NsaSection = NsaSection()
    backbone: BackboneParams = BackboneParams()
    training: TrainingParams = TrainingParams()
    patch: PatchLevelParams = PatchLevelParams()
    network: NetworkParams = NetworkParams()
    fit: FitParams = FitParams()
    threshold: ThresholdParams = ThresholdParams()
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.method == "cutpaste-patch" and self.patch.receptive_field > self.image.side:
            raise ValueError(
                f"patch.receptive_field {self.patch.receptive_field} is larger than image.side {self.image.side}"
            )
        return self

    @property
    def thread_variables(self) -> dict[str, str]:
        """The environment that tells numerical libraries the number of threads; they read it when imported."""
        return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))


def load_params(path: Path | None = None) -> Params:
    """Read and check `params.yaml`; raises UserError that names the key which is unknown or impossible, or the line.

    path: of another file. Without it, that which a run has settled on, for the run's own processes.
    """
    path = path or Path(os.environ.get(SETTLED, PARAMS))
    return parse_params(read_yaml(path), str(path))


def parse_params(content: Any, where: str, remedy: str = "correct the file and run again") -> Params:
    """Check a parsed mapping; `where` names its origin in the error, which ends with the remedy."""
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold a mapping of sections, such as 'data' and 'image'.")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(_sentence(error, where, remedy)) from error


def data_params(root: str, categories: Sequence[str]) -> DataParams:
    """Where the data are; UserError for a name that neither a folder nor a category can have."""
    check_data_root(root)
    check_category_names(categories)
    return DataParams(root=root, categories=tuple(categories))


def preset_names() -> list[str]:
    """The presets that ship with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """The values in which a preset differs from the defaults, as a nested mapping; UserError for an unknown name."""
    path = PRESETS / f"{name}.yaml"
    if name not in preset_names():
        raise UserError(f"There is no preset {name!r}: choose one of {', '.join(preset_names())}.")
    return dict(read_yaml(path))


def _sentence(error: ValidationError, where: str, remedy: str) -> str:
    """The first few problems of a validation error in one sentence, each with its key."""
    problems = [_problem(detail["loc"], detail["type"], detail["msg"], detail["input"]) for detail in error.errors()]
    said = list(dict.fromkeys(problems))
    tail = f" (and {len(said) - MOST_SAID} more)" if len(said) > MOST_SAID else ""
    return f"{where}: {'; '.join(said[:MOST_SAID])}{tail}; {remedy}."


def _problem(location: tuple[int | str, ...], kind: str, message: str, value: Any) -> str:
    key = printable(".".join(map(str, location))) or "the file"
    match kind:
        case "extra_forbidden" if key in RENAMED:
            return f"the key '{key}' is called '{RENAMED[key]}' now, so rename it"
        case "extra_forbidden":
            return f"the key '{key}' is unknown"
        case "missing":
            return f"the key '{key}' is missing"
        case "string_type" if isinstance(value, bool | int | float | date):
            return f"'{key}' is impossible (without quotes {value} is no text: put it in quotes)"
        case _:
            words = message.removeprefix("Value error, ")
            return f"'{key}' is impossible ({words[0].lower()}{words[1:]})"
