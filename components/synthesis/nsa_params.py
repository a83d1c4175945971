"""Settings of the generators of NSA, FPI and PII, and the paper's table of them.

Source: Schlüter, Tan, Hou, Kainz, "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and
Localization", ECCV 2022 (arXiv 2109.15222), section 3 and supplement.
"""

from dataclasses import dataclass
from typing import Literal

from components.foundation.errors import UserError
from components.synthesis.poisson import OPENCV_EROSION, Gradients

Method = Literal["nsa", "fpi", "pii"]
Label = Literal["binary", "continuous", "logistic", "factor"]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class NsaParams:
    """All that decides how a sample is made; lengths are fractions of the image's side unless they say pixels.

    method: "nsa"; "fpi" (linear) or "pii" (Poisson) interpolation with a patch from the same place of another image.
    label: "binary" (changed or not), "continuous" (median difference in grey levels), "logistic" (of that difference,
    with steepness k and midpoint x0) or "factor" (the interpolation factor of FPI and PII).
    height_bounds, width_bounds: of half a patch's side, and of the whole side once it is resized.
    gamma_offset, gamma_shape, gamma_scale: of half the side before it is bounded; the shape must be 2.
    resize_bounds, resize_deviation: the resize factor is normal with mean 1, bounded.
    patches: most patches; each after the first comes with probability 1/2.
    background, tolerance: mean grey level of the background and how far an object's differs more; None for no object
    mask. min_object: least share of the source patch on the object. min_overlap: least share of the patch's object on
    the target's object. tries: places tried for either rule, before a patch is given up.
    gradients, erosion: of the Poisson blend, see `components.synthesis.poisson`. exact_mask: solve on the mask itself
    (slower). faithful: where patches overlap, the later patch's mask overwrites the earlier in the label as in the
    official code, instead of being joined with it.
    """

    method: Method = "nsa"
    label: Label = "logistic"
    height_bounds: Bounds = (0.03, 0.4)
    width_bounds: Bounds = (0.03, 0.4)
    gamma_offset: float = 0.03
    gamma_shape: int = 2
    gamma_scale: float = 0.05
    resize_bounds: Bounds = (0.7, 1.3)
    resize_deviation: float = 0.5
    patches: int = 3
    background: float | None = None
    tolerance: float = 0.0
    min_object: float = 0.7
    min_overlap: float = 0.25
    tries: int = 200
    gradients: Gradients = "source"
    erosion: int = OPENCV_EROSION
    exact_mask: bool = False
    change_tolerance: float = 1.0
    k: float = 1 / 6
    x0: float = 15.0
    factor_bounds: Bounds = (0.05, 0.95)
    faithful: bool = False

    def __post_init__(self) -> None:
        if self.gamma_shape != 2:
            raise UserError(
                f"The patch size's gamma shape is {self.gamma_shape}, but only the paper's 2 is drawn: set 2."
            )
        for name in ("height_bounds", "width_bounds", "resize_bounds", "factor_bounds"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"{name} must be two positive numbers in ascending order, not {low}, {high}.")
        if (self.label == "factor") != (self.method != "nsa"):
            raise UserError(f"Label {self.label!r} does not go with {self.method!r}: only fpi and pii take 'factor'.")

    @property
    def bounds(self) -> tuple[Bounds, Bounds]:
        """Of height and width."""
        return self.height_bounds, self.width_bounds


def _object(background: Bounds | None = None, **settings: object) -> NsaParams:
    level, tolerance = background or (None, 0.0)
    return NsaParams(background=level, tolerance=tolerance, **settings)  # type: ignore[arg-type]


def _texture(k: float, x0: float) -> NsaParams:
    return NsaParams(resize_bounds=(0.5, 2.0), patches=4, gradients="mixed", k=k, x0=x0)


_BRIGHT, _DARK = (200.0, 60.0), (20.0, 20.0)

PAPER_SETTINGS: dict[str, NsaParams] = {
    "carpet": _texture(1 / 3, 7),
    "grid": _texture(1 / 3, 7),
    "leather": _texture(1 / 3, 7),
    "tile": _texture(1 / 3, 7),
    "wood": _texture(1 / 6, 15),
    "bottle": _object(_BRIGHT, k=1 / 12, x0=24),
    "cable": _object(height_bounds=(0.05, 0.4), width_bounds=(0.05, 0.4), k=1 / 12, x0=24),
    "capsule": _object(_BRIGHT, height_bounds=(0.03, 0.15), k=1 / 2, x0=4),
    "hazelnut": _object(_DARK, height_bounds=(0.03, 0.35), width_bounds=(0.03, 0.35), k=1 / 12, x0=24),
    "metal_nut": _object(_DARK, min_object=0.5, k=1 / 3, x0=7),
    "pill": _object(_DARK, height_bounds=(0.03, 0.2), k=1 / 3, x0=7),
    "screw": _object(
        _BRIGHT, height_bounds=(0.03, 0.12), width_bounds=(0.03, 0.12), min_object=0.5, patches=4, k=1, x0=3
    ),
    "toothbrush": _object(_DARK, width_bounds=(0.03, 0.2), min_object=0.25, k=1 / 6, x0=15),
    "transistor": _object(k=1 / 6, x0=15),
    "zipper": _object(_BRIGHT, width_bounds=(0.03, 0.2), patches=4, k=1 / 6, x0=15),
}
"""The paper's hand-made settings of the 15 MVTec AD categories (its table in the supplement), with logistic labels."""

UNALIGNED = frozenset({"hazelnut", "metal_nut", "screw"})
"""Those of its objects that lie any way round; it trains them longer."""
