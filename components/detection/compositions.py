"""The compositions that sit the exam: levels by their stride, so that every backbone has the same family.

`fit` in params.yaml narrows or replaces it: what is given there holds for every composition.
"""

from collections.abc import Sequence
from dataclasses import replace

from components.density.gaussian import Covariance, Layout
from components.detection.detector import Composition, MapKind
from components.foundation.errors import UserError
from components.foundation.params import FitParams
from components.learning.backbone import HEAD, Encoder
from components.learning.patches import PatchNet

# Strides whose levels go together on one grid of cells of 16 pixels: deeper ones tell parts, earlier ones surfaces.
LEVEL_SETS = ((4, 8, 16, 32), (8, 16, 32))
CELL = 16
# Earlier levels vary less than deeper ones; these factors, by stride and depth within it, let them count.
FACTORS: dict[int, tuple[float, ...]] = {4: (2.0,), 8: (2.0,), 16: (1.5, 1.0), 32: (1.0,)}
RIDGE, RANK = 0.01, 64
# An image score needs the directions in which whole parts vary; a map is sharper with fewer.
MAP_RANK = 32
# Up to so many images, a part that lies at any angle is seen at too few of them.
FEW, COPIES = 100, 6
# Of more images, so many: their features must be held while the exam is on.
COPIES_OF_MANY = 2
# Locations a side that have a matrix each: 57 are those of 32 × 32 patches with stride 4 at 256 pixels. Of more, each
# has its own mean, and all have one matrix, so that memory stays bounded.
MOST_LOCATIONS = 64
KINDS: tuple[tuple[Layout, Covariance], ...] = (("location", "low-rank"), ("shared", "ridge"))
COVARIANCES: dict[str, Covariance] = {**dict(KINDS), "pooled": "ridge"}
EVERYTHING = FitParams()
LevelSet = tuple[tuple[str, ...], tuple[float, ...]]


def candidates(name: str, encoder: Encoder, size: int, images: int, fit: FitParams = EVERYTHING) -> list[Composition]:
    """The family for one encoder, images of `size` pixels, and a number of good images to learn from.

    A Gaussian for each location and one shared over locations on several sets of levels (a location's own suits
    aligned objects, the shared one textures and objects at any place), one with turned copies where images are few,
    one of the pooled features, and sums over levels; of these, or instead of them, what `fit` asks for. Raises
    UserError for a level that the encoder does not have. Of a patch-level encoder it is always the last level, its
    dense map.
    """
    if isinstance(encoder.body, PatchNet):
        family = candidates_of(name, encoder, size, images, fit.model_copy(update={"levels": (), "gradcam_level": ""}))
        field, stride = encoder.body.receptive_field, encoder.body.stride
        return [replace(composition, receptive_field=field, stride=stride) for composition in family]
    check_levels(encoder, fit)
    return candidates_of(name, encoder, size, images, fit)


def candidates_of(name: str, encoder: Encoder, size: int, images: int, fit: FitParams) -> list[Composition]:
    """The family, where the levels that `fit` names are the encoder's."""
    dense = [] if fit.image_only else dense_ones(name, encoder, size, fit)
    turned = [replace(dense[0], copies=COPIES)] if dense and images <= FEW and fit.copies == "auto" else []
    whole = [image_one(name, encoder, fit)] if fit.layout in ("auto", "image") else []
    sums = sums_of_levels(dense, encoder) if fit.combine == "auto" and not fit.levels else []
    family = [*dense, *turned, *whole, *sums]
    if fit.combine == "sum":
        family = [summed(composition, encoder) for composition in family]
    if fit.copies in ("geometric", "photometric"):
        count = COPIES if images <= FEW else COPIES_OF_MANY
        family = [replace(composition, copies=count, copy_kind=fit.copies) for composition in family]
    return family


def check_levels(encoder: Encoder, fit: FitParams) -> None:
    """Raise UserError where `fit` names levels that the encoder does not have."""
    blocks = encoder.levels[:-1]
    for key, wanted, known in (
        ("levels", fit.levels, encoder.levels),
        ("gradcam_level", [fit.gradcam_level] * bool(fit.gradcam_level), blocks),
    ):
        unknown = [level for level in wanted if level not in known]
        if unknown:
            raise UserError(
                f"fit.{key} in params.yaml names {', '.join(unknown)}, which {encoder.spec.name} does not have: "
                f"choose from {', '.join(known)}."
            )


def dense_ones(name: str, encoder: Encoder, size: int, fit: FitParams) -> list[Composition]:
    """Those with an anomaly map: all sets of levels with all layouts, as far as `fit` leaves them open."""
    levels = tuple(level for level in encoder.levels if level in fit.levels)
    sets = [given_levels(encoder, levels)] if levels else [levels_at(encoder, strides) for strides in LEVEL_SETS]
    grid = max(1, size // CELL)
    if isinstance(encoder.body, PatchNet):
        sets, grid = [(encoder.levels[-2:-1], ())], encoder.body.grid(size)
    own: Layout = "location" if grid <= MOST_LOCATIONS else "pooled"
    layouts: list[Layout] = [own, "shared"] if fit.layout == "auto" else [fit.layout]
    return [
        Composition(name, levels, layout, grid, covariance, RIDGE, RANK, factors)
        for levels, factors in sets
        for layout in layouts
        for covariance in [COVARIANCES[layout] if fit.covariance == "auto" else fit.covariance]
        if levels
    ]


def sums_of_levels(dense: Sequence[Composition], encoder: Encoder) -> list[Composition]:
    """Of the dense ones on all strides: the sum over their levels, and for locations over the last block's too.

    A density of its own for each level is not drowned by the widest; the last block tells whole parts.
    """
    found = []
    for composition in (c for c in dense if c.levels == dense[0].levels and len(c.levels) > 1):
        last = encoder.levels[-2:-1] if composition.layout == "location" else ()
        levels = (*composition.levels, *(level for level in last if level not in composition.levels))
        factors = given_levels(encoder, levels)[1]
        found.append(summed(replace(composition, levels=levels, factors=factors), encoder))
    return found


def image_one(name: str, encoder: Encoder, fit: FitParams) -> Composition:
    """The density of one vector an image, pooled from the levels in `fit` or else the head's; with GradCAM if asked."""
    levels = tuple(level for level in encoder.levels if level in fit.levels) or (HEAD,)
    made = pooled(name, levels)
    if fit.covariance != "auto":
        made = replace(made, covariance=fit.covariance, ridge=RIDGE, rank=RANK)
    if fit.density == "kernel":
        made = replace(made, estimator="kernel")
    return with_gradcam(made, encoder, fit) if fit.image_only else made


def with_gradcam(composition: Composition, encoder: Encoder, fit: FitParams) -> Composition:
    """The same with a GradCAM map, at the deepest block that its features, or the head's logit, depend on.

    Raises UserError where `fit.gradcam_level` lies deeper than that.
    """
    kind: MapKind = "gradcam-logit" if fit.map == "gradcam-logit" else "gradcam"
    of = (HEAD,) if kind == "gradcam-logit" else composition.levels
    blocks = encoder.levels[:-1]
    deepest = min(max(encoder.levels.index(level) for level in of), len(blocks) - 1)
    level = fit.gradcam_level or blocks[deepest]
    if blocks.index(level) > deepest:
        raise UserError(
            f"fit.gradcam_level {level} in params.yaml lies deeper than fit.levels {', '.join(of)}: choose "
            f"{blocks[deepest]} or an earlier one."
        )
    return replace(composition, map=kind, cam_level=level)


def summed(composition: Composition, encoder: Encoder) -> Composition:
    """The same with a density for each level, whose distances are summed; as it is where it has one level only."""
    if len(composition.levels) == 1:
        return composition
    return replace(composition, widths=tuple(encoder.widths[level] for level in composition.levels))


def for_maps(composition: Composition) -> Composition:
    """The composition as it serves for the anomaly map."""
    narrows = composition.is_dense and composition.covariance == "low-rank"
    return replace(composition, rank=min(composition.rank, MAP_RANK)) if narrows else composition


def pooled(name: str, levels: tuple[str, ...]) -> Composition:
    """One Gaussian of globally pooled features with Ledoit–Wolf shrinkage: the paper's GDE (section 2.4)."""
    return Composition(name, levels, "image", covariance="ledoit-wolf")


def given_levels(encoder: Encoder, levels: tuple[str, ...]) -> LevelSet:
    """These levels, in order of depth, and the factor of each, as in `levels_at`."""
    strides = [max((s for s in FACTORS if s <= encoder.strides[level]), default=min(FACTORS)) for level in levels]
    depths = [strides[:place].count(stride) for place, stride in enumerate(strides)]
    found = [
        FACTORS[stride][min(depth, len(FACTORS[stride]) - 1)] for stride, depth in zip(strides, depths, strict=True)
    ]
    return levels, tuple(found)


def levels_at(encoder: Encoder, strides: tuple[int, ...]) -> LevelSet:
    """The encoder's levels with these strides, and the factor of each.

    Of stride 32 only the first level, as the last blocks are the classifier's own; of stride 4 and 8 only the last,
    which has seen most; all of stride 16, where a backbone has most of its blocks.
    """
    levels: list[str] = []
    factors: list[float] = []
    for stride in strides:
        found = [level for level, own in encoder.strides.items() if own == stride]
        chosen = found[:1] if stride == 32 else found if stride == 16 else found[-1:]
        levels += chosen
        factors += [FACTORS[stride][min(depth, len(FACTORS[stride]) - 1)] for depth in range(len(chosen))]
    return tuple(levels), tuple(factors)
