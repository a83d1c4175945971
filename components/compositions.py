"""The compositions that sit the exam: levels by their stride, so that every backbone has the same family."""

from dataclasses import replace

from components.backbone import HEAD, Encoder
from components.density import Covariance, Layout
from components.detector import Composition

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
KINDS: tuple[tuple[Layout, Covariance], ...] = (("location", "low-rank"), ("shared", "ridge"))


def candidates(name: str, encoder: Encoder, size: int, images: int) -> list[Composition]:
    """The family for one encoder, images of `size` pixels, and a number of good images to learn from.

    A Gaussian for each location and one shared over locations on several sets of levels (a location's own suits
    aligned objects, the shared one textures and objects at any place), one with turned copies where images are few,
    and one of the pooled features.
    """
    dense = [
        Composition(name, levels, layout, max(1, size // CELL), covariance, RIDGE, RANK, factors)
        for strides in LEVEL_SETS
        for levels, factors in [levels_at(encoder, strides)]
        for layout, covariance in KINDS
        if levels
    ]
    turned = [replace(dense[0], copies=COPIES)] if dense and images <= FEW else []
    return [*dense, *turned, pooled(name, (HEAD,))]


def for_maps(composition: Composition) -> Composition:
    """The composition as it serves for the anomaly map."""
    return replace(composition, rank=min(composition.rank, MAP_RANK))


def pooled(name: str, levels: tuple[str, ...]) -> Composition:
    """One Gaussian of globally pooled features with Ledoit–Wolf shrinkage: the paper's GDE (section 2.4)."""
    return Composition(name, levels, "image", covariance="ledoit-wolf")


def levels_at(encoder: Encoder, strides: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[float, ...]]:
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
