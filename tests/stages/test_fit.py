"""What `fit` in params.yaml asks for is what is fitted, scores, and comes back from the capsule."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from components.density.gaussian import Covariance, GaussianDensity, GaussianScorer, Layout
from components.density.kernel import KernelScorer
from components.density.levelwise import LevelwiseScorer
from components.detection.calibration import Plan, fit_and_score, learns_held_out
from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.choice import choose, make_banks
from components.detection.compositions import candidates, pooled
from components.detection.detector import Composition, MapKind, arrange
from components.detection.feature_bank import FeatureBank
from components.foundation.errors import UserError
from components.foundation.params import BackboneParams, FitParams, Params, parse_params
from components.learning.backbone import Encoder, build_encoder
from components.learning.head import projection_head, save_head
from components.stages.fit import fit_detector, golden_images, load_heads, make_capsule
from components.synthesis.methods import PRETRAINED
from components.synthesis.prepared import Prepared
from tests.identified import roles_of
from tests.project import TINY, Project, surface

SIZE, IMAGES = 64, 24
BACKBONE = BackboneParams(name="lcnet_035", weights="none")


def params_of(**fit: Any) -> Params:
    content = {
        "method": "pretrained",
        "data": TINY["data"],
        "image": {"side": SIZE},
        "backbone": BACKBONE.model_dump(),
        "cache": {"max_bytes": 0},
    }
    return parse_params({**content, "fit": {"folds": 2, **fit}}, "my.yaml")


def refusal(**fit: Any) -> str:
    with pytest.raises(UserError) as caught:
        params_of(**fit)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder(BACKBONE, seed=0)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Waved surfaces, and samples with a bright square in each."""
    generator = np.random.default_rng(0)
    images = np.stack([np.pad(surface(generator), ((8, 8), (8, 8), (0, 0)), mode="edge") for _ in range(IMAGES)])
    samples, masks = np.stack([images[::2]] * 2), np.zeros((2, IMAGES // 2, SIZE, SIZE), bool)
    for kind, row in np.ndindex(2, IMAGES // 2):
        top, left = generator.integers(8, SIZE - 24, 2)
        masks[kind, row, top : top + 16, left : left + 16] = True
        samples[kind, row][masks[kind, row]] = (235, 60, 60) if kind else 235
    return Prepared(
        category="bolt",
        seed=0,
        data_digest="d",
        roles=roles_of(np.arange(IMAGES) % 4 == 2, calibrate=(2, 10, 18)),
        images=images,
        exam_source=np.arange(0, IMAGES, 2),
        exam_kinds=("patch", "scar"),
        exam_images=samples,
        exam_masks=masks,
    )


def fitted(encoder: Encoder, prepared: Prepared, params: Params, folder: Path) -> Capsule:
    """A capsule as stage fit makes it, through its files and back."""
    heads = load_heads(folder, "bolt", params)
    banks = make_banks({PRETRAINED: encoder}, prepared, params)
    choice = choose(banks, params)
    plan = Plan.of(prepared, params, taught=choice.is_taught, refit=learns_held_out(prepared, params))
    served = fit_detector(choice, banks, prepared, params, heads, plan)
    capsule = make_capsule(served, choice, prepared, params)
    save_capsule(capsule, golden_images(prepared), folder / "capsule")
    return load_capsule(folder / "capsule")


OPTIONS: dict[str, dict[str, Any]] = {
    "kernel": {"density": "kernel"},
    "kernel of levels": {"density": "kernel", "levels": ["b2", "b3"], "combine": "sum"},
    "location": {"layout": "location", "covariance": "ridge", "levels": ["b3", "b1"]},
    "shared sum": {"layout": "shared", "combine": "sum", "covariance": "oas"},
    "pooled": {"layout": "pooled"},
    "image": {"layout": "image", "levels": ["b3"], "gradcam_level": "b2"},
    "photometric": {"copies": "photometric", "layout": "shared"},
    "gradcam": {"map": "gradcam"},
    "gradcam-logit": {"map": "gradcam-logit", "covariance": "empirical"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_capsule_is_made_as_asked_scores_and_finds_the_defect(
    encoder: Encoder, prepared: Prepared, tmp_path: Path, name: str
) -> None:
    save_head(projection_head(encoder.width, (8,), 3, seed=0).eval(), tmp_path)
    capsule = fitted(encoder, prepared, params_of(**OPTIONS[name]), tmp_path)
    asked = FitParams(**OPTIONS[name])
    for part in capsule.detector.parts:
        made = part.composition
        assert asked.layout in ("auto", made.layout)
        assert asked.covariance in ("auto", made.covariance)
        assert (made.estimator == "kernel") == (asked.density == "kernel")
        assert not asked.levels or set(made.levels) == set(asked.levels)
        assert bool(made.widths) == (asked.combine == "sum")
        assert (made.copy_kind == "photometric") == (asked.copies == "photometric")
    good, bad = np.asarray(prepared.images), np.asarray(prepared.exam_images[0])
    scores, maps = capsule.score(np.concatenate([good, bad]))
    assert np.median(scores[IMAGES:]) > np.median(scores[:IMAGES])
    assert np.ptp(maps[IMAGES:], axis=(1, 2)).min() > 0
    if "kernel" not in name and "logit" not in name:  # a random network's few images and a random head point nowhere
        inside = maps[IMAGES:][prepared.exam_masks[0]].mean()
        assert inside > maps[IMAGES:][~prepared.exam_masks[0]].mean()


@pytest.mark.slow
def test_the_parts_hold_what_was_asked_for(encoder: Encoder, prepared: Prepared, tmp_path: Path) -> None:
    kinds = {"kernel": KernelScorer, "kernel of levels": LevelwiseScorer, "image": GaussianScorer}
    for name, kind in kinds.items():
        capsule = fitted(encoder, prepared, params_of(**OPTIONS[name]), tmp_path)
        assert [type(part.scorer) for part in capsule.detector.parts] == [kind]
        assert [(part.for_image, part.for_map) for part in capsule.detector.parts] == [(True, True)]
        assert not capsule.detector.heads


@pytest.mark.slow
def test_a_capsule_carries_the_head_whose_logit_it_shows(encoder: Encoder, prepared: Prepared, tmp_path: Path) -> None:
    head = projection_head(encoder.width, (8,), 3, seed=0).eval()
    save_head(head, tmp_path)
    capsule = fitted(encoder, prepared, params_of(map="gradcam-logit"), tmp_path)
    assert (tmp_path / "capsule" / "encoders" / PRETRAINED / "head.safetensors").is_file()
    assert capsule.detector.heads.keys() == {PRETRAINED}
    for name, value in head.state_dict().items():
        np.testing.assert_array_equal(capsule.detector.heads[PRETRAINED].state_dict()[name], value)


def test_the_logit_of_no_head_is_refused(encoder: Encoder, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none fits what was kept for bolt"):
        fitted(encoder, prepared, params_of(map="gradcam-logit"), tmp_path)


# The family ----------------------------------------------------------------------------------------------------------


def family(encoder: Encoder, images: int = 300, **fit: Any) -> list[Any]:
    return candidates("e", encoder, 128, images, params_of(**fit).fit)


def test_nothing_chosen_is_the_whole_family(encoder: Encoder) -> None:
    assert family(encoder) == candidates("e", encoder, 128, 300)
    assert {(c.layout, c.covariance) for c in family(encoder)} == {
        ("location", "low-rank"), ("shared", "ridge"), ("image", "ledoit-wolf"),
    }  # fmt: skip
    assert {(c.estimator, c.map, c.widths, c.copies) for c in family(encoder, combine="concatenate")} == {
        ("gaussian", "dense", (), 0)
    }


def test_given_levels_replace_the_sets_of_levels(encoder: Encoder) -> None:
    found = family(encoder, levels=["b3", "b2"])
    assert {c.levels for c in found} == {("b2", "b3")}
    assert [c.layout for c in found] == ["location", "shared", "image"]
    whole = {c.levels: c.factors for c in family(encoder) if c.is_dense}
    levels = next(levels for levels in whole if set(levels) < set(encoder.levels))
    assert {c.factors for c in family(encoder, levels=list(levels)) if c.is_dense} == {whole[levels]}


def test_the_pooled_feature_among_the_levels_goes_with_images_only(encoder: Encoder) -> None:
    (found,) = family(encoder, levels=["head", "b3"])
    assert (found.levels, found.layout, found.map) == (("b3", "head"), "image", "gradcam")
    assert found.cam_level == list(encoder.blocks)[-1]


def test_gradcam_looks_at_the_deepest_block_that_counts(encoder: Encoder) -> None:
    last = list(encoder.blocks)[-1]
    assert [c.cam_level for c in family(encoder, map="gradcam")] == [last]
    assert [c.cam_level for c in family(encoder, map="gradcam", levels=["b1", "b2"])] == ["b2"]
    assert [c.cam_level for c in family(encoder, map="gradcam-logit", levels=["b1"])] == [last]
    assert [c.cam_level for c in family(encoder, map="gradcam", gradcam_level="b1")] == ["b1"]


def test_every_name_tells_its_composition_from_all_others(encoder: Encoder) -> None:
    everything = {c for fit in OPTIONS.values() for c in family(encoder, **fit)} | set(family(encoder, 50))
    assert len({c.name for c in everything}) == len(everything)


@pytest.mark.parametrize("copies", ["none", "geometric", "photometric"])
def test_copies_hold_for_all(encoder: Encoder, copies: str) -> None:
    for images in (50, 300):
        found = family(encoder, images, copies=copies)
        assert len(found) == len(family(encoder))
        assert {bool(c.copies) for c in found} == {copies != "none"}
        assert copies == "none" or {c.copy_kind for c in found} == {copies}


def test_unknown_levels_are_named_with_the_known_ones(encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"fit\.levels .* names b9, b12, which lcnet_035 does not have: .*b0, b1"):
        family(encoder, levels=["b1", "b9", "b12"])
    with pytest.raises(UserError, match=r"fit\.gradcam_level .* names head, which"):
        family(encoder, map="gradcam", gradcam_level="head")
    with pytest.raises(UserError, match=r"gradcam_level b3 .* lies deeper than fit\.levels b1, b2: choose b2"):
        family(encoder, map="gradcam", levels=["b1", "b2"], gradcam_level="b3")


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (
            {"density": "kernel", "layout": "location"},
            "density kernel goes with layout image or auto only, not location",
        ),
        ({"density": "kernel", "covariance": "oas"}, "density kernel has no covariance"),
        ({"map": "gradcam", "layout": "shared"}, "map gradcam goes with layout image or auto only, not shared"),
        ({"levels": ["head"], "layout": "pooled"}, "the level head goes with layout image or auto only, not pooled"),
        ({"layout": "image", "map": "dense"}, "layout image gives no dense map"),
        ({"density": "kernel", "map": "dense"}, "density kernel gives no dense map"),
    ],
)
def test_what_does_not_go_together_is_said(fit: dict[str, Any], said: str) -> None:
    assert said in refusal(**fit)


def test_the_parameters_know_the_same_names_as_the_code() -> None:
    def known(field: str) -> set[str]:
        return set(get_args(FitParams.model_fields[field].annotation)) - {"auto"}

    assert known("covariance") == set(get_args(Covariance))
    assert known("layout") == set(get_args(Layout))
    assert known("map") == set(get_args(MapKind))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as the stages compute: a GradCAM is not the same with more, to 1e-4
def test_the_stages_themselves_make_a_capsule_with_the_trained_heads_map(project: Project, tmp_path: Path) -> None:
    """train writes the head, fit takes it, evaluate measures its map; then all again with a kernel density."""
    copy = project.copy(tmp_path / "copy")
    copy.set_params({"fit": {"map": "gradcam-logit"}})
    for stage in ("validate", "synthesize", "train", "fit", "evaluate"):
        done = copy.stage(stage, "widget")
        assert done.returncode == 0, done.stderr
    artifacts = copy.folder / "artifacts" / "widget"
    assert (artifacts / "encoder" / "head.safetensors").is_file()
    (part,) = load_capsule(artifacts / "capsule").detector.parts
    assert part.composition.map == "gradcam-logit"
    copy.set_params({"fit": {"map": "auto", "density": "kernel"}})
    assert copy.stage("fit", "widget").returncode == 0
    (part,) = load_capsule(artifacts / "capsule").detector.parts
    assert (part.composition.estimator, part.composition.map) == ("kernel", "gradcam")


def test_an_image_is_scored_by_a_density_of_all_images_but_its_fold(encoder: Encoder, prepared: Prepared) -> None:
    composition = replace(pooled(PRETRAINED, ("b3",)), covariance="ridge")
    bank = FeatureBank(PRETRAINED, encoder, prepared, [composition])
    features = arrange(bank.of(np.arange(IMAGES)), composition)
    for taught in (False, True):
        plan = Plan.of(prepared, params_of(), taught=taught, refit=True)
        assert plan.rows.tolist() == (prepared.held_out_rows.tolist() if taught else list(range(IMAGES)))
        made = fit_and_score([composition], [composition], {PRETRAINED: bank}, prepared, plan)
        assert plan.folds is not None
        for row, fold, distance in zip(plan.rows, plan.folds, made.distances[composition], strict=True):
            others = np.delete(features, plan.rows[plan.folds == fold], axis=0)
            density = GaussianDensity("image", "ridge", composition.ridge).fit(others)
            np.testing.assert_allclose(distance, density.score(features[row][None])[0], rtol=1e-3)
            for place in np.flatnonzero(prepared.exam_source == row):
                sample = arrange(bank.of_samples(1, np.array([place])), composition)
                found = made.samples[composition][1, place]
                np.testing.assert_allclose(found, density.score(sample)[0], rtol=1e-3)
        everything = GaussianDensity("image", "ridge", composition.ridge).fit(features)
        np.testing.assert_allclose(made.scorers[composition].score(features), everything.score(features), rtol=1e-3)


def test_near_duplicates_are_never_scored_by_a_density_of_each_other(encoder: Encoder, prepared: Prepared) -> None:
    digests = prepared.roles.digests
    groups = tuple(digests[row // 4 * 4] for row in range(IMAGES))  # each image four times
    alike = replace(prepared, roles=replace(prepared.roles, groups=groups))
    for taught in (False, True):
        plan = Plan.of(alike, params_of(), taught=taught, refit=True)
        assert plan.folds is not None
        for group in set(groups):
            assert len(set(plan.folds[alike.groups[plan.rows] == group])) == 1


@pytest.mark.slow
def test_without_refit_the_density_never_sees_a_held_out_image(
    encoder: Encoder, prepared: Prepared, tmp_path: Path
) -> None:
    changed = np.array(prepared.images)
    changed[prepared.held_out_rows] = 0
    params = params_of(layout="shared", refit=False)
    one, other = (
        fitted(encoder, replace(prepared, images=images), params, tmp_path / name)
        for name, images in (("one", np.asarray(prepared.images)), ("other", changed))
    )
    for mine, theirs in zip(one.detector.parts, other.detector.parts, strict=True):
        for name, value in mine.scorer.arrays().items():
            np.testing.assert_array_equal(value, theirs.scorer.arrays()[name])
    assert one.promise.construction == "split"


def test_compositions_that_differ_in_rank_alone_are_fitted_once_to_the_same_scores(
    encoder: Encoder, prepared: Prepared
) -> None:
    wide = Composition(PRETRAINED, ("b3",), "location", grid=2, covariance="low-rank", rank=5)
    narrow = replace(wide, rank=3)
    bank = FeatureBank(PRETRAINED, encoder, prepared, [wide])
    banks, plan = {PRETRAINED: bank}, Plan.of(prepared, params_of(), taught=False, refit=True)
    together = fit_and_score([narrow, wide], [wide], banks, prepared, plan)
    assert list(together.scorers) == list(together.distances) == [narrow, wide]
    features = arrange(bank.of(np.arange(IMAGES)), wide)
    for composition in (narrow, wide):
        alone = fit_and_score([composition], [], banks, prepared, plan)
        found, expected = (made.scorers[composition].score(features) for made in (together, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        np.testing.assert_allclose(together.distances[composition], alone.distances[composition], rtol=1e-4)


@pytest.mark.parametrize("kinds", [1, 3, 9])
def test_golden_inputs_hold_a_sample_of_every_kind_and_good_images(prepared: Prepared, kinds: int) -> None:
    """Each kind's samples have a grey level of their own here, by which they are known again."""
    levels = [10 + 20 * kind for kind in range(kinds)]
    samples = np.stack([np.full((3, SIZE, SIZE, 3), level, np.uint8) for level in levels])
    names = tuple(f"kind {level}" for level in levels)
    golden = golden_images(replace(prepared, exam_kinds=names, exam_images=samples))
    assert (golden.dtype, golden.shape) == (np.uint8, (4 + max(4, kinds), SIZE, SIZE, 3))
    np.testing.assert_array_equal(golden[:4], prepared.images[prepared.held_out_rows[:4]])
    assert {int(image[0, 0, 0]) for image in golden[4:]} == set(levels)
