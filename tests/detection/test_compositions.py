"""Every backbone sends the same family of compositions to the exam, by the strides of its levels."""

import pytest

from components.density.gaussian import GaussianDensity
from components.detection.compositions import MOST_LOCATIONS, candidates, levels_at, pooled
from components.foundation.params import BackboneParams, FitParams, PatchLevelParams
from components.learning.backbone import Encoder, build_encoder, build_patch_encoder


@pytest.fixture(scope="module")
def lite0() -> Encoder:
    return build_encoder(BackboneParams(weights="none"), seed=0)


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    return build_encoder(BackboneParams(name="torchvision/resnet18", weights="none"), seed=0)


def test_levels_of_a_stride(lite0: Encoder) -> None:
    """Lite0's strides are 2, 4, 8, 16, 16, 32, 32."""
    assert levels_at(lite0, (8, 16, 32))[0] == ("b2", "b3", "b4", "b5")
    assert levels_at(lite0, (4, 8, 16))[0] == ("b1", "b2", "b3", "b4")
    assert levels_at(lite0, (64,)) == ((), ())


def test_levels_of_a_network_with_one_block_a_stride(resnet: Encoder) -> None:
    assert levels_at(resnet, (8, 16, 32))[0] == ("b1", "b2", "b3")
    assert levels_at(resnet, (4, 8, 16))[0] == ("b0", "b1", "b2")


def test_of_several_early_levels_the_last_is_taken() -> None:
    encoder = build_encoder(BackboneParams(name="torchvision/mobilenet_v2", weights="none"), seed=0)
    of_eight = [level for level, stride in encoder.strides.items() if stride == 8]
    assert len(of_eight) > 1
    levels, factors = levels_at(encoder, (8, 16))
    assert levels[:1] == (of_eight[-1],)
    assert len(factors) == len(levels) > 3


def test_earlier_levels_count_for_at_least_as_much(lite0: Encoder) -> None:
    _, factors = levels_at(lite0, (4, 8, 16, 32))
    assert len(factors) == 5
    assert list(factors) == sorted(factors, reverse=True)


@pytest.mark.parametrize(("size", "grid"), [(128, 8), (256, 16), (32, 2)])
def test_the_family_has_cells_of_sixteen_pixels(lite0: Encoder, size: int, grid: int) -> None:
    family = candidates("trained", lite0, size, images=300)
    assert {c.encoder for c in family} == {"trained"}
    assert [c.grid for c in family if c.is_dense] == [grid] * (len(family) - 1)
    assert len({c.name for c in family}) == len(family)
    assert {c.layout for c in family} == {"location", "shared", "image"}


def test_every_candidate_can_be_computed(resnet: Encoder) -> None:
    for composition in candidates("pretrained", resnet, 64, images=20):
        assert set(composition.levels) <= set(resnet.levels)
        assert len(composition.factors) in (0, len(composition.levels))


def test_turned_copies_are_a_candidate_where_images_are_few(lite0: Encoder) -> None:
    few, many = candidates("trained", lite0, 128, images=40), candidates("trained", lite0, 128, images=300)
    assert [c.copies for c in few if c.copies] == [6]
    assert not [c for c in many if c.copies]


def test_sums_over_levels_sit_too_the_one_for_locations_with_the_last_block(lite0: Encoder) -> None:
    sums = {c.layout: c for c in candidates("trained", lite0, 128, images=300) if c.widths}
    assert sums["location"].levels == ("b1", "b2", "b3", "b4", "b5", "b6")
    assert sums["shared"].levels == ("b1", "b2", "b3", "b4", "b5")
    for composition in sums.values():
        assert composition.widths == tuple(lite0.widths[level] for level in composition.levels)
    assert not [c for c in candidates("trained", lite0, 128, 300, FitParams(combine="concatenate")) if c.widths]


def test_the_pooled_one_is_the_papers_density() -> None:
    composition = pooled("trained", ("head",))
    assert not composition.is_dense
    density = composition.density()
    assert isinstance(density, GaussianDensity)
    assert density.settings()["covariance"] == "ledoit-wolf"


def test_a_patch_level_encoder_has_a_gaussian_per_location_and_a_shared_one_of_its_dense_map() -> None:
    encoder = build_patch_encoder(PatchLevelParams(width=8), seed=0)
    family = candidates("trained", encoder, 256, images=200)
    dense = [c for c in family if c.is_dense]
    assert [c.layout for c in dense] == ["location", "shared"]
    assert {(c.grid, c.receptive_field, c.stride, c.levels) for c in dense} == {(57, 32, 4, (encoder.levels[-2],))}
    assert [c.copies for c in candidates("trained", encoder, 256, images=40) if c.copies] == [6]


def test_too_many_locations_share_one_covariance() -> None:
    """A matrix for each of 249 × 249 locations would be gigabytes."""
    encoder = build_patch_encoder(PatchLevelParams(width=8), seed=0)
    dense = [c for c in candidates("trained", encoder, 1024, images=200) if c.is_dense]
    assert [(c.layout, c.grid) for c in dense] == [("pooled", 249), ("shared", 249)]
    assert MOST_LOCATIONS**2 * 64**2 * 8 < 200e6  # bytes of the statistics of the default width


def test_what_the_fit_asks_for_holds_for_patches_too_but_not_the_backbones_levels() -> None:
    encoder = build_patch_encoder(PatchLevelParams(width=8), seed=0)
    fit = FitParams(levels=("b1", "b9"), layout="pooled", covariance="oas", gradcam_level="")
    (only,) = candidates("trained", encoder, 128, 200, fit)
    assert (only.layout, only.covariance, only.levels, only.grid) == ("pooled", "oas", (encoder.levels[-2],), 25)
    (mapped,) = candidates("trained", encoder, 128, 200, FitParams(layout="image", gradcam_level="b9", map="gradcam"))
    assert (mapped.map, mapped.cam_level) == ("gradcam", encoder.levels[-2])
    assert (mapped.receptive_field, mapped.stride) == (32, 4)
