"""Settings of NSA: derived, the paper's or given, and what the stage synthesize says where no sample can be made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.detection.detector import Composition
from components.detection.exam import mark
from components.foundation.errors import UserError
from components.foundation.params import NsaSection, Params, parse_params, read_preset
from components.stages.synthesize import main
from components.synthesis.nsa import CHANGE_RULE, OBJECT_RULE, OVERLAP_RULE, SIZE_RULE, NoPatchError, prepare
from components.synthesis.nsa_derive import derive_params
from components.synthesis.nsa_params import PAPER_SETTINGS, UNALIGNED
from components.synthesis.nsa_settings import load_nsa_params, nsa_params_of, spread
from components.synthesis.prepared import load_prepared
from components.synthesis.views import view_of
from tests.identified import validated
from tests.synthesis.test_nsa import disc, texture

PREPARED = Path("artifacts/bolt/prepared")
DISCS = [disc(seed, 96, 96) for seed in range(8)]
WEAVES = [texture(seed, 96, 96) for seed in range(8)]


def given(**values: Any) -> NsaSection:
    return NsaSection.model_validate(values)


def test_without_anything_given_all_is_derived_and_said_to_be() -> None:
    params, report = nsa_params_of(NsaSection(), DISCS, "discs")
    wanted, measured = derive_params(DISCS, "discs")
    assert params == wanted
    assert (report["kind"], report["aligned"]) == ("object", True)
    assert report["measured"]["background"] == measured.background == 250
    origins = {name: entry["from"] for name, entry in report["values"].items()}
    assert origins == dict.fromkeys(origins, "derived") | {"min_overlap": "paper"}
    assert origins.keys() <= NsaSection.model_fields.keys()
    json.dumps(report)


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"height": [0.05, 0.1]}, "height_bounds", (0.05, 0.1)),
        ({"width": [0.05, 0.1]}, "width_bounds", (0.05, 0.1)),
        ({"resize": [0.9, 1.1]}, "resize_bounds", (0.9, 1.1)),
        ({"max_patches": 1}, "patches", 1),
        ({"gradients": "mixed"}, "gradients", "mixed"),
        ({"min_object": 0.2}, "min_object", 0.2),
        ({"min_overlap": 0.6}, "min_overlap", 0.6),
        ({"background": 240.0}, "background", 240.0),
        ({"tolerance": 33.0}, "tolerance", 33.0),
        ({"mask": "none"}, "background", None),
        ({"k": 0.5}, "k", 0.5),
        ({"x0": 9.0}, "x0", 9.0),
        ({"tries": 7}, "tries", 7),
        ({"faithful": True}, "faithful", True),
        ({"exact_mask": True}, "exact_mask", True),
    ],
)
@pytest.mark.parametrize("settings", ["derived", "paper"])
def test_each_value_can_be_given(values: dict[str, Any], field: str, expected: object, settings: str) -> None:
    params, report = nsa_params_of(given(settings=settings, **values), DISCS, "bottle")
    assert getattr(params, field) == expected
    for name in values.keys() & report["values"].keys():
        assert report["values"][name]["from"] == "override"


def test_the_rest_is_derived_in_keeping_with_what_is_given() -> None:
    params, report = nsa_params_of(given(object="texture"), DISCS, "discs")
    assert (params.gradients, params.patches, params.resize_bounds) == ("mixed", 4, (0.5, 2.0))
    assert report["values"]["object"] == {"value": "texture", "from": "override"}
    assert nsa_params_of(given(x0=8), DISCS, "discs")[0].k == pytest.approx(2.4 / 8)
    aligned, loose = (nsa_params_of(given(aligned=flag), DISCS, "discs")[0] for flag in (True, False))
    assert aligned.x0 != loose.x0
    masked, _ = nsa_params_of(given(background=30), [255 - image for image in DISCS], "discs")
    assert masked.background == 30
    assert 20 < masked.tolerance < 220


def test_the_papers_row_is_taken_as_it_stands() -> None:
    params, report = nsa_params_of(given(settings="paper"), WEAVES, "screw", label="continuous")
    assert params == replace(PAPER_SETTINGS["screw"], label="continuous")
    assert (report["kind"], report["aligned"], report["measured"]) == ("object", False, None)
    assert {entry["from"] for entry in report["values"].values()} == {"paper"}
    assert nsa_params_of(given(settings="paper"), WEAVES, "carpet")[1]["kind"] == "texture"
    assert nsa_params_of(given(settings="paper"), WEAVES, "bottle")[1]["aligned"]


def test_the_baselines_have_the_same_settings() -> None:
    params, _ = nsa_params_of(given(settings="paper"), WEAVES, "tile", method="pii", label="factor")
    assert (params.method, params.label, params.patches) == ("pii", "factor", 4)
    for settings in ("paper", "derived"):
        found = {
            (method, asked): nsa_params_of(
                given(settings=settings, gradients=asked), DISCS, "bottle", method=method, label="factor"
            )[0].gradients
            for method in ("fpi", "pii")
            for asked in ("auto", "source", "mixed-opencv")
        }
        assert (found["fpi", "auto"], found["pii", "auto"]) == ("source", "mixed")
        assert {found[method, "source"] for method in ("fpi", "pii")} == {"source"}
        assert found["pii", "mixed-opencv"] == "mixed-opencv"


def test_a_texture_of_the_paper_stays_one_with_other_gradients() -> None:
    """Its kind decides what the network sees of it."""
    params, report = nsa_params_of(given(settings="paper", gradients="source"), WEAVES, "carpet")
    assert (params.gradients, report["kind"]) == ("source", "texture")
    assert nsa_params_of(given(settings="paper", gradients="mixed"), WEAVES, "bottle")[1]["kind"] == "object"


def test_what_cannot_be_is_said_in_words() -> None:
    with pytest.raises(UserError, match="no NSA settings for discs"):
        nsa_params_of(given(settings="paper"), DISCS, "discs")
    with pytest.raises(UserError, match=r"both nsa\.background and nsa\.tolerance"):
        nsa_params_of(given(settings="paper", mask="background"), DISCS, "cable")
    with pytest.raises(NoPatchError, match=SIZE_RULE):
        nsa_params_of(given(height=[0.01, 0.04], width=[0.01, 0.04]), DISCS, "discs")


def test_bounds_of_a_thin_object_leave_room_for_the_smallest_patch() -> None:
    """Nothing but a thin bar, seen at 64 pixels: .8 of its thickness alone would make no patch at all."""
    bar = np.full((64, 64, 3), 240, np.uint8)
    bar[8:56, 28:36] = 20
    bars = [np.roll(bar, shift, axis=1) for shift in (-20, -9, 0, 9, 20)]
    params, _ = nsa_params_of(given(background=240, object="object", aligned=False), bars, "bars")
    low, high = params.width_bounds
    assert round(2 * low * 64) >= 10
    assert round(high * 64) >= 10
    assert prepare(bars[0], params).object_mask is not None  # and does not refuse


def test_rows_are_spread_evenly() -> None:
    assert spread(np.arange(10)).tolist() == list(range(10))
    chosen = spread(np.arange(1000, 2000))
    assert len(chosen) == 64
    assert (chosen[0], chosen[-1]) == (1000, 1999)
    assert set(np.diff(chosen)) <= {15, 16}


# Through the stage ----------------------------------------------------------------------------------------------------

Stage = Callable[..., dict[str, Any]]


def make_params(size: int, **nsa: Any) -> Params:
    return parse_params(
        {
            "data": {"root": "data", "categories": ["bolt"]},
            "image": {"side": size},
            "synthesis": {"exam_images": 6},
            "nsa": nsa,
        },
        "test",
    )


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Run the stage on these images; returns the nsa.json that it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(images: list[np.ndarray], size: int = 64, **nsa: Any) -> dict[str, Any]:
        folder = Path("data/bolt/train/good")
        folder.mkdir(parents=True)
        for number, image in enumerate(images):
            path = folder / f"{number:02}.png"
            Image.fromarray(image).save(path)
            path.write_bytes(path.read_bytes() + bytes([number]))  # else images that look the same were one
        learned = Path("artifacts/bolt/validation/learned.json")
        learned.parent.mkdir(parents=True)
        learned.write_text(json.dumps(validated(folder)))
        main("bolt", make_params(size, **nsa))
        return dict(json.loads((PREPARED / "nsa.json").read_text()))

    return run


def exam_of_nsa() -> tuple[np.ndarray, np.ndarray]:
    """The exam's natural synthetic anomalies: change of each pixel (M, S, S) bool, and their masks."""
    prepared = load_prepared(PREPARED)
    row = prepared.exam_kinds.index("nsa")
    good = np.asarray(prepared.images[prepared.exam_source])
    return (prepared.exam_images[row] != good).any(axis=-1), np.asarray(prepared.exam_masks[row])


@pytest.mark.slow
def test_settings_statistics_and_a_sheet_are_written(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    report = stage(DISCS, size=128, k=0.25)
    assert report["kind"] == "object"
    assert report["values"]["k"] == {"value": 0.25, "from": "override"}
    assert 0.005 < report["samples"]["changed_pixels"] < 0.5
    assert len(report["samples"]["label_histogram"]) == 10
    assert 0 <= report["samples"]["refused_tries"] < 1
    assert report["warnings"] == []
    assert capsys.readouterr().err == ""
    with Image.open(PREPARED / "nsa_sheet.png") as sheet:
        assert min(sheet.size) >= 8 * 80
    assert load_nsa_params(PREPARED, "pii", "factor")[0].gradients == "mixed"
    params, _ = load_nsa_params(PREPARED, label="binary")
    prepared = load_prepared(PREPARED)
    good = np.asarray(prepared.images[prepared.fit_rows])
    assert params == nsa_params_of(given(k=0.25), good, "bolt", label="binary")[0]
    change, masks = exam_of_nsa()
    assert masks.any(axis=(1, 2)).mean() > 0.5
    assert change[masks].mean() > 0.9


def test_nothing_but_background_is_warned_of_and_the_exam_goes_on_without(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    report = stage([np.full((64, 64, 3), level, np.uint8) for level in range(200, 208)], background=200, tolerance=60)
    (warning,) = report["warnings"]
    assert f"the rule '{OBJECT_RULE}' refused" in warning
    assert "100% of bolt's synthetic samples stay unchanged" in warning
    assert capsys.readouterr().err == warning + "\n"
    assert report["samples"]["refused_tries"] == 1
    change, masks = exam_of_nsa()
    assert not change.any()
    assert not masks.any()
    assert (PREPARED / "nsa_sheet.png").is_file()
    with pytest.raises(UserError, match=OBJECT_RULE):  # to a training there is nothing to learn
        load_nsa_params(PREPARED)


def test_targets_without_an_object_refuse_every_place(stage: Stage) -> None:
    """One image in three shows the object: its patches find no object to lie on in the others."""
    empty = np.full((96, 96, 3), 250, np.uint8)
    report = stage([DISCS[0], empty, empty] * 4, background=250, tolerance=60)
    (warning,) = report["warnings"]
    assert f"the rule '{OVERLAP_RULE}' refused" in warning
    assert f"the rule '{OBJECT_RULE}' refused" in warning


def test_images_of_one_colour_can_show_no_change(stage: Stage) -> None:
    report = stage([np.full((64, 64, 3), 128, np.uint8)] * 5, size=128)
    (warning,) = report["warnings"]
    assert f"the patches of 64 do not meet the rule '{CHANGE_RULE}'" in warning
    assert report["values"]["x0"]["from"] == "paper"


@pytest.mark.slow
def test_images_smaller_than_the_smallest_patch_leave_the_exam_to_the_other_kinds(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    report = stage(WEAVES, size=32, height=[0.03, 0.1], width=[0.03, 0.1])
    assert report["params"] is None
    assert SIZE_RULE in report["warnings"][0]
    assert SIZE_RULE in capsys.readouterr().err
    assert not exam_of_nsa()[1].any()
    with pytest.raises(UserError, match=SIZE_RULE):
        load_nsa_params(PREPARED)
    prepared = load_prepared(PREPARED)
    masks = dict(zip(prepared.exam_kinds, np.asarray(prepared.exam_masks), strict=True))
    random = np.random.default_rng(0)
    composition = Composition("trained", ("head",), "image")
    kinds = mark(composition, random.random(6), {kind: random.random(6) for kind in masks}, masks).by_kind
    assert kinds.keys() == masks.keys() - {"nsa"}


def test_one_good_image_is_refused_with_the_rule(stage: Stage) -> None:
    with pytest.raises(UserError, match="at least 3 are needed"):
        stage(DISCS[:1])
    assert not PREPARED.exists()


def test_a_category_unknown_to_the_paper_is_refused(stage: Stage) -> None:
    with pytest.raises(UserError, match="The paper has no NSA settings for bolt"):
        stage(DISCS, settings="paper")
    assert not PREPARED.exists()


# Presets --------------------------------------------------------------------------------------------------------------


def preset(name: str) -> Params:
    return parse_params({"data": {"root": "data", "categories": ["any"]}, **read_preset(name)}, name)


def test_the_papers_preset_is_its_table_and_its_schedule() -> None:
    params = preset("paper-nsa")
    for category, row in PAPER_SETTINGS.items():
        assert nsa_params_of(params.nsa, [], category)[0] == row
    steps = {category: params.network.steps_of(category, 320) for category in ("bottle", "screw", "tile")}
    assert steps == {"bottle": 1600, "screw": 2800, "tile": 1600}  # 5 batches of 64 an epoch
    network = params.network
    assert (network.rate, network.final_rate, network.batch, network.keep) == (1e-3, 1e-6, 64, "always")
    bottle, pill = (view_of(network, "object", name) for name in ("bottle", "pill"))
    assert (bottle.resize, bottle.centre, bottle.crop, bottle.test, bottle.rotation) == (256, 230, 224, 224, 5)
    assert pill == bottle.model_copy(update={"rotation": 0.0})
    assert {name for name in PAPER_SETTINGS if view_of(network, "object", name).rotation} == UNALIGNED | {"bottle"}
    tile = view_of(network, "texture", "tile")
    assert (tile.resize, tile.centre, tile.crop, tile.flip, tile.rotation) == (264, 264, 256, "upside-down", 0)
    assert params.nsa.score == "mean"


def test_the_preset_for_x_rays_derives_nothing() -> None:
    """Lungs on a dark ground: every value is the preset's, with both the mask and mixed gradients."""
    params, report = nsa_params_of(preset("paper-nsa-medical").nsa, [255 - image for image in DISCS], "MaleAdultPA")
    assert {entry["from"] for entry in report["values"].values()} == {"override"}
    assert (report["kind"], params.background, params.tolerance) == ("object", 0, 20)
    assert (params.gradients, params.min_overlap, params.k, params.x0) == ("mixed", 0.7, 0.5, 4)
