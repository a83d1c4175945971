"""The compositions that sit the exam: levels by their stride, so that every backbone has the same family."""

from components.backbone import HEAD, Encoder
from components.density import Covariance, Layout
from components.detector import Composition

# Strides whose levels go together on one grid of cells of 16 pixels: deeper ones tell parts, earlier ones surfaces.
LEVEL_SETS = ((8, 16, 32), (4, 8, 16))
CELL = 16
RIDGE, RANK = 0.01, 64
KINDS: tuple[tuple[Layout, Covariance], ...] = (("location", "low-rank"), ("shared", "ridge"))


def candidates(name: str, encoder: Encoder, size: int) -> list[Composition]:
    """The family for one encoder and images of `size` pixels.

    A Gaussian for each location and one shared over locations on several sets of levels (a location's own suits
    aligned objects, the shared one textures and objects at any place), and one of the pooled features.
    """
    dense = [
        Composition(name, levels, layout, max(1, size // CELL), covariance, RIDGE, RANK)
        for strides in LEVEL_SETS
        if (levels := levels_at(encoder, strides))
        for layout, covariance in KINDS
    ]
    return [*dense, pooled(name, (HEAD,))]


def pooled(name: str, levels: tuple[str, ...]) -> Composition:
    """One Gaussian of globally pooled features with Ledoit–Wolf shrinkage: the paper's GDE (section 2.4)."""
    return Composition(name, levels, "image", covariance="ledoit-wolf")


def levels_at(encoder: Encoder, strides: tuple[int, ...]) -> tuple[str, ...]:
    """The encoder's levels with these strides; of 32 only the first, as the last blocks are the classifier's own.

    Of stride 4 and 8 only the last, which has seen most; all of stride 16, where a backbone has most of its blocks.
    """
    chosen: list[str] = []
    for stride in strides:
        of_stride = [level for level, found in encoder.strides.items() if found == stride]
        if stride == 32:
            of_stride = of_stride[:1]
        elif stride < 16:
            of_stride = of_stride[-1:]
        chosen += of_stride
    return tuple(chosen)
