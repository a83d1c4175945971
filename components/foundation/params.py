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
Margin = Annotated[float, Field(gt=0, le=1)]  # of figures in [0, 1]
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
    """Where the images are."""

    root: Annotated[str, _checked(check_data_root)] = Field(
        description="folder of the data set: ROOT/CATEGORY/train/good, test/KIND, ground_truth/KIND (MVTec AD layout)"
    )
    categories: Annotated[Categories, _checked(check_some)] = Field(description="those that are computed")


class LimitParams(_Section):
    """What an image file may be at most (`components.foundation.limits`)."""

    max_pixels: int = Field(
        100_000_000,
        gt=0,
        le=178_956_970,  # above, Pillow's own limit would be the lower one
        description="of one image; above it is not decoded",
    )
    max_bytes: Bytes = Field(500_000_000, description="of one image file")
    bits: Auto[Annotated[int, Field(ge=8, le=16)]] = Field(
        None, description="bits in use of 16-bit grey files, such as 12; auto: found from the good images"
    )

    def image_limits(self) -> ImageLimits:
        """The same limits as the reader of images takes them; 16 bits where these are to be found."""
        return ImageLimits(self.max_pixels, self.max_bytes, self.bits or 16)


class DemoParams(_Section):
    """The demo data set: tiles cut from photographs, with drawn defects."""

    seed: Seed = Field(0, description="of cuts, light and drawn defects")
    tile: int = Field(128, ge=64, le=240, description="side of a tile, in pixels of the photograph")
    train: int = Field(64, ge=8, le=10_000, description="good training images a category")
    test_good: int = Field(20, ge=1, le=10_000, description="good test images a category")
    per_kind: int = Field(6, ge=1, le=10_000, description="test images of each kind of defect")


class ImageParams(_Section):
    """Geometry of the images."""

    side: int = Field(256, ge=32, le=1024, description="every image is resampled to side × side pixels")


class ValidationParams(_Section):
    """Limits of the data checks.

    A robust deviation is a median absolute deviation of the training images, scaled to a standard deviation's size.
    """

    min_good: int = Field(10, ge=2, le=MOST_IMAGES, description="fewest good training images; below is an error")
    min_side: int = Field(32, ge=1, le=65_536, description="shortest side of an image, in pixels")
    max_deviations: float = Field(
        8.0,
        gt=0,
        le=MOST_DEVIATIONS,
        description="how far brightness, sharpness … of one image may lie from the median, in robust deviations",
    )
    max_outlier_share: float = Field(
        0.05, ge=0, le=1, description="share of the good images that may lie further without a warning"
    )
    max_shift: float = Field(
        0.5,
        gt=0,
        le=MOST_DEVIATIONS,
        description="how far the good test images' median may lie from the training images' at any rate, in robust "
        "deviations",
    )
    shift_level: float = Field(
        0.01, gt=0, lt=1, description="share of categories, at most, whose test images warn of a shift by chance alone"
    )
    near_distance: float = Field(
        0.05,
        ge=0,
        lt=0.25,
        description="share of differing bits up to which two images look alike: a leak, or one thing learned twice",
    )


class SynthesisParams(_Section):
    """CutPaste's samples, in the paper's terms (section 3, appendix A); and who is held out.

    Pixel lengths are at 256 px and scale with the image.
    """

    area: Range[Share] = Field((0.02, 0.15), description="of a pasted patch, as a share of the image")
    aspect: Range[Factor] = Field((0.3, 3.3), description="height / width of a patch")
    jitter: float = Field(
        0.1, ge=0, le=0.5, description="most change of a patch's brightness, contrast, saturation and hue"
    )
    rotation: float = Field(0.0, ge=0, le=180, description="largest turn of a patch, in degrees")
    scar_width: Range[Pixels] = Field((2, 16), description="in pixels at 256 px")
    scar_length: Range[Pixels] = Field((10, 25), description="in pixels at 256 px")
    scar_rotation: float = Field(45.0, ge=0, le=180, description="largest turn of a scar, in degrees")
    image_jitter: float = Field(
        0.1, ge=0, le=0.5, description="most change of a whole training image's colours, before anything is pasted"
    )
    translation: float = Field(
        0.03, ge=0, le=0.5, description="largest shift of a training image, as a share of its side"
    )
    held_out: float = Field(
        0.2,
        gt=0,
        lt=0.9,
        description="share of the good images, about, that no training sees: for the exam and the threshold",
    )
    calibrate: float = Field(
        0.5, ge=0, lt=1, description="share of these that sits no exam either, for the threshold of what was trained"
    )
    exam_images: int = Field(
        120,
        ge=2,
        le=100_000,
        description="most good images of the exam; where there are more, a third of these is held out",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("area", "aspect", "scar_width", "scar_length"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be two positive numbers in ascending order, not {low}, {high}")
        return self


class NsaSection(_Section):
    """Natural Synthetic Anomalies; auto: as `settings` says.

    The methods are in `components.synthesis.nsa`; "auto" is None here.
    """

    settings: Literal["derived", "paper"] = Field(
        "derived", description="from the category's good images, or the hand-made row of the paper's category"
    )
    object: Literal["auto", "object", "texture"] = Field(
        "auto", description="what the category is, which decides how the rest is derived"
    )
    aligned: Auto[bool] = Field(
        None, description="true where the object always lies the same way, which decides how the rest is derived"
    )
    mask: Literal["auto", "background", "none"] = Field(
        "auto", description="whether patches must lie on the object: on what differs from the background"
    )
    background: Auto[Annotated[float, Field(ge=0, le=255)]] = Field(
        None, description="mean grey level of the background, 0 to 255"
    )
    tolerance: Auto[Annotated[float, Field(gt=0, le=255)]] = Field(
        None, description="grey levels by which the object differs more than that from the background"
    )
    height: Auto[Range[HalfSide]] = Field(
        None, description="[least, most] of half a patch's height, as a share of the image's"
    )
    width: Auto[Range[HalfSide]] = Field(
        None, description="[least, most] of half a patch's width, as a share of the image's"
    )
    resize: Auto[Range[Annotated[float, Field(le=10)]]] = Field(
        None, description="[least, most] factor by which a patch is resized"
    )
    max_patches: Auto[Annotated[int, Field(ge=1, le=16)]] = Field(None, description="most patches of a sample")
    gradients: Literal["auto", "source", "mixed", "mixed-opencv"] = Field(
        "auto",
        description="of the Poisson blend; mixed-opencv mixes by OpenCV's rule, as the official code, not on each axis",
    )
    min_object: Auto[Annotated[float, Field(ge=0, lt=1)]] = Field(
        None, description="least share of a patch that lies on the object it is cut from"
    )
    min_overlap: Auto[Annotated[float, Field(ge=0, lt=1)]] = Field(
        None, description="least share of a patch's object that lands on the target's object"
    )
    tries: int = Field(200, ge=1, le=10_000, description="positions tried for either rule")
    k: Auto[Annotated[float, Field(gt=0, le=1000)]] = Field(
        None, description="steepness of the logistic label, per grey level"
    )
    x0: Auto[Annotated[float, Field(gt=0, le=255)]] = Field(
        None, description="midpoint of the logistic label, in grey levels"
    )
    faithful: bool = Field(
        False,
        description="true: overlapping patches overwrite each other's label as in the official code; false: joined",
    )
    exact_mask: bool = Field(False, description="true: blend on the mask itself and not on its rectangle (slower)")
    score: Literal["mean", "top"] = Field(
        "mean", description="score of an image: the mean of its map, or of the map's highest hundredth"
    )

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
    """The pretrained network, and where its weights come from."""

    name: Line = Field("tf_efficientnet_lite0", description="of timm's networks, or torchvision/NAME")
    weights: Line = Field(
        "packaged",
        description="packaged (EfficientNet-Lite0) | library (download) | none (random) | a .safetensors or .pth file",
    )
    sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="of that file, in hex, so that DVC sees another one; --set backbone.weights=FILE sets it",
    )


class TrainingParams(_Section):
    """Self-supervised training: first the head alone, then all layers (CutPaste, section 4.3)."""

    head_steps: Steps = Field(0, description="of the first phase, which trains the head alone")
    head_rate: Rate = Field(0.03, description="its learning rate at the beginning; it falls to 0 along a cosine")
    steps: Steps = Field(0, description="of the second phase, which trains all layers; 0 for none")
    rate: Rate = Field(1e-4, description="its learning rate at the beginning")
    final_rate: FinalRate = Field(0.0, description="its learning rate at the end of its cosine")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimizer of both phases")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(3e-5, ge=0, le=1, description="L2 penalty")
    batch: Batch = Field(
        24, description="good images a step; each is seen once as it is and once for every kind of synthetic defect"
    )
    projection: Widths = Field((512,), description="widths of the head's layers before its last")
    freeze_batch_norm: bool = Field(True, description="true: batch norm keeps the statistics it was pretrained with")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="auto is bf16 where the processor has instructions for it, so that bytes differ between machines",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="what trains; auto is cuda where there is one")
    members: int = Field(
        5,
        ge=2,
        le=100,
        description="networks of the method cutpaste-ensemble, each from a seed of its own (the paper has 5)",
    )
    workers: int = Field(
        0, ge=0, le=64, description="processes that make the batches ahead, the same bytes as 0; a GPU waits less"
    )
    checkpoint_steps: Interval = Field(
        25, description="steps between checkpoints, from which a killed training goes on"
    )
    exam_steps: Interval = Field(50, description="steps between exams; the weights with the best mark are kept")


class PatchLevelParams(_Section):
    """Method cutpaste-patch: a network of its own, from scratch on random crops (CutPaste, section 3.3).

    What is not said here `training` says; the network has no head phase, its batch norm learns, and its optimizer is
    SGD.
    """

    receptive_field: int = Field(
        32, ge=16, le=256, description="side of a crop, in pixels; a multiple of 2 · stride, at least 4 · stride"
    )
    stride: int = Field(4, ge=2, le=32, description="pixels from one scored position to the next; a power of two")
    width: int = Field(64, ge=8, le=512, description="features of a position")
    task: Literal["cutpaste-binary", "cutpaste-scar", "cutpaste-union", "cutpaste-3way"] = Field(
        "cutpaste-binary", description="what crops are told apart by"
    )
    steps: Steps = Field(1500, description="of the training; no phase for the head alone")
    rate: Rate = Field(0.03, description="learning rate at the beginning (SGD)")
    batch: int = Field(32, ge=2, le=4096, description="crops a step")
    exam_steps: Interval = Field(500, description="steps between exams")

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
    """What the network of NSA sees of an image; lengths in pixels at 256 px, scaled with the image."""

    resize: int = Field(256, ge=32, le=1024, description="side that the whole image is brought to")
    rotation: float = Field(0.0, ge=0, le=180, description="largest turn about the middle, in degrees")
    centre: int = Field(256, ge=32, le=1024, description="side of the middle square that is kept")
    crop: int = Field(256, ge=32, le=1024, description="side of the square cut from it at a random position")
    flip: Literal[False, "left-right", "upside-down"] = Field(False, description="how half of the views are mirrored")
    test: int = Field(0, ge=0, le=256, description="side of the middle square that is scored; 0 for the whole image")

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.crop <= self.centre <= self.resize:
            raise ValueError(
                f"crop {self.crop}, centre {self.centre} and resize {self.resize} must not decrease: each is cut from "
                "the next"
            )
        return self


class NetworkParams(_Section):
    """The network of nsa-binary, -continuous, -logistic, fpi and pii, and how it is trained.

    It is in `components.learning.decoder`; what is not said here `training` says, but for the optimizer, which is Adam
    without weight decay.
    """

    strides: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], _List] = Field(
        (32,), min_length=1, description="of the encoder's levels that the decoder reads, the deepest first, in pixels"
    )
    reduction: Widths = Field((256, 128), description="channels of the decoder's 1×1 convolutions")
    widths: Widths = Field(
        (64, 64, 32, 32, 16),
        description="the decoder's channels after each doubling; linear interpolation goes the rest of the way",
    )
    frozen: int = Field(
        0, ge=0, le=1000, description="first blocks of the encoder that stay as they are; 0: all learn, the stem too"
    )
    freeze_batch_norm: bool = Field(False, description="as in training")
    head_steps: Steps = Field(0, description="of a first phase, in which only the decoder learns")
    head_rate: Rate = Field(1e-3, description="its learning rate at the beginning (Adam)")
    steps: Steps = Field(0, description="of the second phase, in which all learns")
    epochs: Steps = Field(0, description="passes over the images to learn from, instead of steps; 0: steps count")
    epochs_of: dict[Category, Steps] = Field({}, description="the same by category, such as {screw: 320}")
    rate: Rate = Field(1e-3, description="learning rate of the second phase at the beginning")
    final_rate: FinalRate = Field(1e-6, description="and at its end")
    batch: Batch = Field(64, description="samples a step")
    precision: Literal["auto", "fp32", "bf16"] = Field("fp32", description="as in training")
    exam_steps: Interval = Field(50, description="steps between exams")
    object_view: ViewParams = Field(
        ViewParams(), description="what the network sees of an object; lengths in pixels at 256 px"
    )
    texture_view: ViewParams = Field(ViewParams(), description="what it sees of a texture")
    rotated: Categories = Field((), description="the only categories whose views are turned; empty: all")
    keep: Literal["exam", "always"] = Field(
        "exam",
        description="what serves: by the exam what was before training, if better by fit.margin; or always the network",
    )

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
    """The densities: which compositions sit the exam, and how many of the best are averaged.

    What is "auto" (or empty) the exam chooses, among the family in `components.detection.compositions`; anything else
    holds for every composition that sits it. For the layouts see `components.density.gaussian.GaussianDensity`.
    """

    folds: int = Field(4, ge=2, le=50, description="of the exam and of cross-fitted scores")
    best: int = Field(1, ge=1, le=100, description="compositions, the best of the exam, whose scores are averaged")
    margin: float = Field(
        0.0, ge=0, lt=1, description="by which what was trained must be better beyond chance, in AUROC"
    )
    refit: bool = Field(
        True,
        description="true: of up to 1000 good images densities learn the held-out ones too in the end, and the "
        "threshold comes from cross-fitted scores; false: never, and it is split-conformal with its exact guarantee",
    )
    levels: Annotated[tuple[Level, ...], _List, _checked(check_once)] = Field(
        (), description="of the backbone: blocks b0, b1 … and head, the pooled feature; empty: the exam chooses"
    )
    layout: Literal["auto", "image", "shared", "location", "pooled"] = Field(
        "auto", description="one vector an image; one Gaussian for all locations, or for each; or of pooled features"
    )
    density: Literal["auto", "gaussian", "kernel"] = Field(
        "auto", description="a kernel density goes with whole images only"
    )
    covariance: Literal["auto", "ledoit-wolf", "oas", "empirical", "ridge", "low-rank"] = Field(
        "auto", description="how a Gaussian's covariance is estimated"
    )
    combine: Literal["auto", "concatenate", "sum"] = Field(
        "auto", description="one density of all levels together, or the sum of the distances of one for each"
    )
    copies: Literal["auto", "none", "geometric", "photometric"] = Field(
        "auto", description="copies of the good images from which densities learn too"
    )
    map: Literal["auto", "dense", "gradcam", "gradcam-logit"] = Field(
        "auto",
        description="distances of locations, GradCAM of the pooled feature's distance, or GradCAM of the trained "
        "head's log-odds of a defect; auto: dense where something dense is fitted, else gradcam",
    )
    gradcam_level: Literal[""] | Level = Field(
        "", description="block of GradCAM, such as b4; empty: the deepest that counts"
    )

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
    """The alarm threshold, from good images alone."""

    false_alarm_rate: float = Field(0.02, gt=0, lt=1, description="share of good parts that may be called defective")
    promise: Literal["confident", "marginal"] = Field(
        "confident", description="whether that is promised of this very threshold or on average over such thresholds"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="of the confident promise")
    folds: int = Field(10, ge=2, le=50, description="parts of the good images that are scored as new ones in turn")


class EvaluationParams(_Section):
    """What is measured on the test images."""

    aupro_fpr_limit: float = Field(
        0.3, gt=0, le=1, description="false-positive rate of pixels up to which AUPRO integrates"
    )
    bootstrap: int = Field(500, ge=0, le=1_000_000, description="resamples of the figures' intervals; 0 for none")
    gallery: int = Field(12, ge=1, le=1000, description="most images in the gallery of anomaly maps")


class IngestParams(_Section):
    """New images that arrive: where from, what is let in, when it is learned."""

    source: Annotated[Line, _checked(check_inbox)] = Field(
        "arriving/inbox",
        description="folder or s3://BUCKET/PREFIX, in it a folder a category; accepted/, held/ … go beside it",
    )
    settle_seconds: float = Field(
        5.0,
        ge=0,
        le=86_400,
        description="a file that changed within this time is still being copied, and is left alone",
    )
    max_files: int = Field(10_000, ge=1, le=MOST_IMAGES, description="of one batch; the rest waits for the next")
    max_bytes: Bytes = Field(100_000_000, description="of one file")
    max_batch_bytes: Bytes = Field(20_000_000_000, description="of one batch; the rest waits for the next")
    near_distance: float = Field(
        0.05,
        ge=0,
        lt=0.25,
        description="share of differing bits up to which an image is a near-duplicate; 0: identical hashes only",
    )
    max_deviations: float = Field(
        8.0,
        gt=0,
        le=MOST_DEVIATIONS,
        description="how far brightness, sharpness … may lie from the category's median, in robust deviations",
    )
    drift: Literal["warn", "stop"] = Field(
        "warn", description="what happens to a batch that differs from the training images as a whole: said, or held"
    )
    drift_level: float = Field(0.001, gt=0, lt=1, description="family-wise error rate of that test")
    drift_min: int = Field(20, ge=2, le=MOST_IMAGES, description="fewest images for that test")
    hold_below: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="share of good images that may be held for a person because they look defective to the champion: "
        "by p-value or, where too few are held out for it, by how far the score lies beyond theirs",
    )
    retrain_images: int = Field(10, ge=1, le=MOST_IMAGES, description="new images of a category that retrain it")
    retrain_hours: float = Field(24.0, ge=0, le=MOST_HOURS, description="hours after which fewer do")


class FirstParams(_Section):
    """What the first version of a category must have to be its champion by itself; else it stays a challenger."""

    held_out: int = Field(
        10, ge=1, le=MOST_IMAGES, description="fewest held-out good images, by which the threshold is set"
    )
    mark: float = Field(
        0.55,
        ge=0,
        le=1,
        description="least image mark in the exam, an AUROC; its defects are often fainter than real ones",
    )
    max_deviations: float = Field(
        7.0,
        gt=0,
        le=MOST_DEVIATIONS,
        description="how far a good image may lie from all others before a person must look, in robust deviations",
    )


class MarginParams(_Section):
    """By how much a figure of the challenger may be lower than the champion's, as a difference."""

    image_auroc: Margin = Field(0.04, description="image AUROC, also that of the exam where no defect is known")
    pixel_auroc: Margin = Field(0.04, description="pixel AUROC")
    aupro: Margin = Field(0.04, description="AUPRO")
    kind: Margin = Field(0.1, description="image AUROC of each kind of defect")
    kinds: dict[Line, Margin] = Field({}, description="the same of kinds with a margin of their own, by name")


class GateParams(_Section):
    """What a version must have to be promoted without a person."""

    policy: Literal["auto", "person"] = Field(
        "auto", description="auto: who passes is promoted; person: who is not rejected waits for a person"
    )
    when_equal: Literal["newer", "champion"] = Field(
        "newer", description="where too few images tell challenger and champion apart: newer data win, or it stays"
    )
    margins: MarginParams = Field(
        MarginParams(), description="by how much a figure may be lower than the champion's, as a difference"
    )
    told_apart: float = Field(
        0.05,
        gt=0,
        le=1,
        description="loss of AUROC that test images must be able to tell from none, else they count as too few",
    )
    confidence: float = Field(0.95, ge=0.5, lt=1, description="with which figures and rates are bounded, on one side")
    resamples: int = Field(2000, ge=100, le=100_000, description="bootstrap samples of the images, for the bounds")
    false_alarms_per_1000: Auto[Annotated[float, Field(gt=0, le=1000)]] = Field(
        None, description="good parts called defective that the plant bears; auto: threshold.false_alarm_rate"
    )
    misses_per_1000: Auto[Annotated[float, Field(gt=0, le=1000)]] = Field(
        None, description="defective parts called good that the plant bears; auto: none is stated"
    )
    milliseconds: float = Field(2000.0, gt=0, le=3_600_000, description="most that one image may take, on this machine")
    megabytes: float = Field(8000.0, gt=0, le=10_000_000, description="most memory of a process that scores")
    test_images: int = Field(2000, ge=10, le=MOST_IMAGES, description="most test images that are scored")
    replay: int = Field(200, ge=0, le=MOST_IMAGES, description="latest production images that both models score")
    first: FirstParams = Field(
        FirstParams(),
        description="what a category's first version needs to become its champion; else it stays a challenger",
    )


class RetrainParams(_Section):
    """What a retraining that nobody typed learns anew; `flawline run` learns all, `flawline update` what is new."""

    kind: Literal["full", "update", "auto"] = Field(
        "full",
        description="full: all is learned; update: the champion's encoder and compositions are kept where that can be, "
        "and fitted to all images; auto: that, until the images differ by more than update_share",
    )
    update_share: float = Field(
        0.2, gt=0, le=1, description="of the good images of the last full training, by which they may be more or fewer"
    )


class CacheParams(_Section):
    """What is kept of what was computed, in .flawline/cache; no result depends on it, and it may be deleted."""

    max_bytes: int = Field(
        4_000_000_000,
        ge=0,
        le=MOST_BYTES,
        description="of what is known of images, half a MB each at 256 px; above it goes what was used longest ago; 0: "
        "nothing is kept",
    )


class ArchiveParams(_Section):
    """A published archive: its address, and the SHA-256 of its content in hex."""

    url: Annotated[Line, Field(pattern=r"^https?://\S+$")] = Field(description="of the archive")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the archive's content, in hex")


class FetchLimits(_Section):
    """What a download may be at most, and how patient it is; `max_ratio` is unpacked bytes per byte of archive."""

    max_archive_bytes: Bytes = Field(20_000_000_000, description="of the download")
    max_files: int = Field(200_000, gt=0, le=100 * MOST_IMAGES, description="in the archive")
    max_file_bytes: Bytes = Field(500_000_000, description="of one file in it")
    max_bytes: Bytes = Field(50_000_000_000, description="of all files in it")
    max_ratio: float = Field(100.0, gt=0, le=1e6, description="unpacked bytes per byte of archive")
    attempts: int = Field(6, ge=1, le=100, description="before a download is given up")
    backoff_seconds: float = Field(
        1.0, ge=0, le=60, description="before the second attempt; doubled before each further one"
    )
    timeout_seconds: float = Field(30.0, gt=0, le=3600, description="without a byte, after which an attempt has failed")


class FetchParams(_Section):
    """The data sets that `flawline data fetch NAME` knows; publishers move their archives, so correct the address here.

    MVTec AD (5.3 GB) may be used for non-commercial purposes only (CC BY-NC-SA 4.0).
    """

    archives: dict[Category, ArchiveParams] = Field(
        {
            "mvtec": ArchiveParams(
                url="https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/"
                "420938113-1629960298/mvtec_anomaly_detection.tar.xz",
                sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            )
        },
        description="published data sets by name; correct the address where a publisher moved one",
    )
    limits: FetchLimits = Field(FetchLimits(), description="what a download may be at most, and how patient it is")


class Params(_Section):
    """All of `params.yaml`."""

    method: Method = Field("cutpaste-3way", description="what is learned with, as docs/methods.md says of each")
    data: DataParams
    image: ImageParams = ImageParams()
    threshold: ThresholdParams = ThresholdParams()
    ingest: IngestParams = IngestParams()
    retrain: RetrainParams = RetrainParams()
    validation: ValidationParams = ValidationParams()
    synthesis: SynthesisParams = SynthesisParams()
    backbone: BackboneParams = BackboneParams()
    training: TrainingParams = TrainingParams()
    fit: FitParams = FitParams()
    evaluation: EvaluationParams = EvaluationParams()
    gate: GateParams = GateParams()
    seed: Seed = Field(0, description="of every random draw")
    threads: int = Field(
        2,
        ge=1,
        le=MOST_THREADS,
        description="of numerical libraries; sums depend on it: the same number gives the same bytes",
    )
    cache: CacheParams = CacheParams()
    limits: LimitParams = LimitParams()
    nsa: NsaSection = NsaSection()
    patch: PatchLevelParams = PatchLevelParams()
    network: NetworkParams = NetworkParams()
    demo: DemoParams = DemoParams()
    fetch: FetchParams = FetchParams()

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
    path = path or settled_file()
    return parse_params(read_yaml(path), str(path))


def settled_file() -> Path:
    """The file that a run has settled on, for the run's own processes; else params.yaml."""
    return Path(os.environ.get(SETTLED, PARAMS))


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
