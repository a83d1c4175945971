"""Stage synthesize: roles, sizes and the exam of a small generated category, the same bytes every time."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.foundation.draws import SampleKeys
from components.foundation.errors import UserError
from components.foundation.files import digest_tree
from components.foundation.params import Params, parse_params
from components.images.decode import resize_image
from components.images.tensors import as_tensor
from components.stages.synthesize import EXAM_EPOCH, EXAM_KINDS, choose_exam, choose_held_out, main
from components.synthesis import cutpaste
from components.synthesis.exam_kinds import KINDS, STRENGTHS
from components.synthesis.prepared import Prepared, load_prepared
from components.synthesis.tasks import patch_params, scar_params

GOOD, SIZE = 15, 48
PREPARED = Path("artifacts/bolt/prepared")


def params(**synthesis: object) -> Params:
    return parse_params(
        {
            "data": {"root": "data", "categories": ["bolt"]},
            "image": {"side": SIZE},
            "synthesis": {"held_out": 0.3, "exam_images": 9, **synthesis},
        },
        "test",
    )


def make_category(root: Path) -> None:
    """Soft coloured blobs, 80 × 72 px, and the report that validation would have written."""
    generator = np.random.default_rng(0)
    folder = root / "data" / "bolt" / "train" / "good"
    folder.mkdir(parents=True)
    for number in range(GOOD):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 10, 3), dtype=np.uint8))
        coarse.resize((80, 72), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    learned = root / "artifacts" / "bolt" / "validation" / "learned.json"
    learned.parent.mkdir(parents=True)
    learned.write_text(json.dumps({"data_digest": "d" * 64, "bits": 16}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the stage has run once."""
    root = tmp_path_factory.mktemp("workspace")
    make_category(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        main("bolt", params())
    return root


@pytest.fixture
def prepared(made: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.chdir(made)
    return load_prepared(PREPARED)


def test_every_good_image_is_there_at_the_networks_size(prepared: Prepared, made: Path) -> None:
    assert (prepared.category, prepared.data_digest) == ("bolt", "d" * 64)
    assert prepared.names == tuple(f"train/good/{number:02}.png" for number in range(GOOD))
    assert prepared.images.shape == (GOOD, SIZE, SIZE, 3)
    for row in (0, GOOD - 1):
        original = np.asarray(Image.open(made / "data" / "bolt" / prepared.names[row]))
        np.testing.assert_array_equal(prepared.images[row], resize_image(original, SIZE))


def test_roles_and_exam_follow_the_parameters(prepared: Prepared) -> None:
    assert prepared.held_out.sum() == 4  # 0.3 of 15
    np.testing.assert_array_equal(prepared.held_out, choose_held_out(GOOD, 0.3, seed=0))
    np.testing.assert_array_equal(prepared.exam_source, choose_exam(prepared.held_out, 9, seed=0))
    assert prepared.exam_kinds == tuple(EXAM_KINDS)
    assert prepared.exam_images.shape == (len(EXAM_KINDS), 9, SIZE, SIZE, 3)
    assert prepared.exam_masks.shape == (len(EXAM_KINDS), 9, SIZE, SIZE)


def test_each_sample_is_its_source_outside_its_mask(prepared: Prepared) -> None:
    sources = np.asarray(prepared.images[prepared.exam_source])
    for row, kind in enumerate(prepared.exam_kinds):
        masks = np.asarray(prepared.exam_masks[row])  # (M, S, S)
        change = np.abs(prepared.exam_images[row].astype(int) - sources).max(axis=-1)
        assert (change[masks] > (0 if kind in KINDS else 2)).mean() > 0.5
        assert (change[~masks] > 2).mean() < 0.01  # NSA's mask leaves out what is hardly seen
        if kind != "nsa":  # which finds no place for its patches in some images
            assert not change[~masks].any()
            assert masks.any(axis=(1, 2)).all() or kind in KINDS  # there may be nothing to blur


def test_each_strength_is_there(prepared: Prepared) -> None:
    assert prepared.exam_strengths.shape == (9,)
    assert set(prepared.exam_strengths) <= set(STRENGTHS)
    assert len(set(prepared.exam_strengths)) > 1


@pytest.mark.parametrize("place", [0, 5])
def test_a_sample_depends_on_its_own_source_and_place_alone(prepared: Prepared, place: int) -> None:
    """A patch or scar made of one image by itself has the bytes of the one made in the stage."""
    image = as_tensor(np.asarray(prepared.images[prepared.exam_source[place]])[None].copy())
    keys = SampleKeys.of(0, "bolt", EXAM_EPOCH, [place])
    alone = {
        "cutpaste": cutpaste.cutpaste(image, keys, patch_params(params().synthesis)),
        "scar": cutpaste.scar(image, keys, scar_params(params().synthesis)),
    }
    for kind, one in alone.items():
        row = prepared.exam_kinds.index(kind)
        np.testing.assert_array_equal(prepared.exam_images[row, place], one.images[0].permute(1, 2, 0))
        np.testing.assert_array_equal(prepared.exam_masks[row, place], one.masks[0])


def test_the_contact_sheet_is_a_picture(prepared: Prepared) -> None:
    with Image.open(PREPARED / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.width >= 8 * SIZE
        assert sheet.height >= 4 * SIZE  # good, and three kinds


def test_elsewhere_gives_the_same_bytes_and_another_seed_others(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digest_tree(made / PREPARED)
    make_category(tmp_path)
    monkeypatch.chdir(tmp_path)
    main("bolt", params())
    assert digest_tree(PREPARED) == expected
    main("bolt", params().model_copy(update={"seed": 1}))
    assert (load_prepared(PREPARED).held_out != load_prepared(made / PREPARED).held_out).any()


def test_a_full_disk_leaves_what_was_there(made: Path, prepared: Prepared) -> None:
    before = digest_tree(PREPARED)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (10_000, GOOD * SIZE * SIZE * 3 + 1000):  # the images do not fit; the exam does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                main("bolt", params())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert digest_tree(PREPARED) == before
    assert sorted(path.name for path in PREPARED.parent.iterdir()) == ["prepared", "validation"]


# Who is held out, and who sits the exam -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "number"), [(100, 0.2, 20), (10, 0.25, 2), (3, 0.01, 1), (3, 0.89, 1), (5, 0.89, 3)]
)
def test_a_share_is_held_out_and_two_are_left(count: int, share: float, number: int) -> None:
    held_out = choose_held_out(count, share, seed=0)
    assert held_out.shape == (count,)
    assert held_out.sum() == number
    np.testing.assert_array_equal(held_out, choose_held_out(count, share, seed=0))


def test_the_held_out_images_are_spread_and_differ_with_the_seed() -> None:
    times = np.sum([choose_held_out(20, 0.25, seed) for seed in range(200)], axis=0)
    assert times.min() > 20  # 50 expected, standard deviation 6
    assert times.max() < 80


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_refused(count: int) -> None:
    with pytest.raises(UserError, match="too few"):
        choose_held_out(count, 0.2, seed=0)


def test_everyone_sits_the_exam_where_there_is_room() -> None:
    assert choose_exam(choose_held_out(12, 0.25, seed=0), 12, seed=0).tolist() == list(range(12))


def test_a_large_category_sends_a_sample_of_which_a_third_is_held_out() -> None:
    held_out = choose_held_out(300, 0.2, seed=0)
    source = choose_exam(held_out, 60, seed=0)
    assert len(set(source.tolist())) == 60
    assert held_out[source].sum() == 20
    assert (np.diff(source) > 0).all()
    assert source.tolist() != choose_exam(held_out, 60, seed=1).tolist()
