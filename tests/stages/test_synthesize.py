"""Stage synthesize: roles, sizes and the exam of a small generated category, the same bytes every time."""

import json
import resource
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.foundation.draws import SampleKeys
from components.foundation.errors import UserError
from components.foundation.files import digest_tree, sha256_file
from components.foundation.params import NsaSection, Params, parse_params
from components.images.decode import resize_image
from components.images.identity import Roles
from components.images.tensors import as_tensor
from components.stages.synthesize import choose_exam, main
from components.synthesis import cutpaste
from components.synthesis.exam_kinds import KINDS, STRENGTHS
from components.synthesis.exam_samples import EXAM_EPOCH, EXAM_KINDS
from components.synthesis.prepared import Prepared, load_prepared
from components.synthesis.tasks import patch_params, scar_params
from tests.identified import validated

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
    learned.write_text(json.dumps(validated(folder)))


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


@pytest.mark.slow
def test_every_good_image_is_there_at_the_networks_size(prepared: Prepared, made: Path) -> None:
    assert (prepared.category, prepared.data_digest) == ("bolt", "d" * 64)
    assert prepared.images.shape == (GOOD, SIZE, SIZE, 3)
    files = {sha256_file(path): path for path in (made / "data" / "bolt" / "train" / "good").iterdir()}
    assert prepared.roles.digests == tuple(sorted(files))
    for image, digest in zip(prepared.images, prepared.roles.digests, strict=True):
        np.testing.assert_array_equal(image, resize_image(np.asarray(Image.open(files[digest])), SIZE))


def test_roles_and_exam_follow_the_parameters(prepared: Prepared) -> None:
    assert prepared.roles == Roles.of(prepared.roles.digests, [], seed=0, held_out=0.3, calibrate=0.15)
    np.testing.assert_array_equal(prepared.exam_source, choose_exam(prepared.roles, 9))
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
def test_a_sample_depends_on_its_own_image_alone(prepared: Prepared, place: int) -> None:
    """A patch or scar made of one image by itself has the bytes of the one made in the stage."""
    image = as_tensor(np.asarray(prepared.images[prepared.exam_source[place]])[None].copy())
    keys = SampleKeys.of(0, "bolt", EXAM_EPOCH, prepared.keys[prepared.exam_source[[place]]])
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


@pytest.mark.slow
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


Sample = tuple[bytes, bytes]


def samples_by_digest(prepared: Prepared) -> dict[tuple[str, str], Sample]:
    """The exam's sample and mask of each kind and image."""
    digests = [prepared.roles.digests[row] for row in prepared.exam_source]
    return {
        (kind, digest): (samples[place].tobytes(), masks[place].tobytes())
        for kind, samples, masks in zip(prepared.exam_kinds, prepared.exam_images, prepared.exam_masks, strict=True)
        for place, digest in enumerate(digests)
    }


GIVEN = {"background": 128, "tolerance": 20, "mask": "background", "k": 0.2, "x0": 8}  # else derived from all images


BORROW = ("nsa", "part")  # kinds that take something from another image


def run_with(root: Path, validation: dict[str, Any], **synthesis: object) -> Prepared:
    (root / "artifacts/bolt/validation/learned.json").write_text(json.dumps(validation))
    main("bolt", params(**synthesis).model_copy(update={"nsa": NsaSection(**GIVEN)}))  # type: ignore[arg-type]
    return load_prepared(PREPARED)


@pytest.mark.slow
def test_other_images_and_names_change_no_role_and_no_sample_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_category(tmp_path)
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "data/bolt/train/good"
    first = run_with(tmp_path, validated(good), exam_images=40)
    before, roles = samples_by_digest(first), dict(zip(first.roles.digests, first.roles.roles, strict=True))
    whole = digest_tree(PREPARED)
    for number, path in enumerate(sorted(good.iterdir())):
        path.rename(good / f"x{GOOD - number:02}.png")
    shutil.copy(good / "x01.png", good / "again.png")  # the same bytes are the same image
    run_with(tmp_path, validated(good), exam_images=40)
    assert digest_tree(PREPARED) == whole
    gone = sha256_file(good / "x02.png")
    (good / "x02.png").unlink()
    coarse = Image.fromarray(np.random.default_rng(9).integers(0, 256, (9, 10, 3), dtype=np.uint8))
    coarse.resize((80, 72), Image.Resampling.BICUBIC).save(good / "a new one.png")
    second = run_with(tmp_path, validated(good), exam_images=40)
    now = dict(zip(second.roles.digests, second.roles.roles, strict=True))
    assert {digest: now[digest] for digest in roles if digest != gone} == {
        digest: role for digest, role in roles.items() if digest != gone
    }
    after = samples_by_digest(second)
    same = {key for key in before if before[key] == after.get(key)}
    kept = {(kind, digest) for kind, digest in before if digest != gone}
    assert {key for key in kept if key[0] not in BORROW} <= same
    assert all(sum(kind == key[0] for key in kept - same) <= 5 for kind in BORROW)  # what borrows of the two


def test_images_that_were_not_validated_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_category(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/bolt/train/good/00.png").unlink()
    with pytest.raises(UserError, match="not those that were validated"):
        main("bolt", params())


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


def roles(count: int, seed: int = 0) -> Roles:
    digests = [sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(count)]
    return Roles.of(digests, [], seed, held_out=0.2)


def test_everyone_sits_the_exam_where_there_is_room() -> None:
    assert choose_exam(roles(12), 12).tolist() == list(range(12))


def test_a_large_category_sends_a_sample_of_which_a_third_is_held_out() -> None:
    found = roles(300)
    source = choose_exam(found, 60)
    assert len(set(source.tolist())) == 60
    assert found.is_held_out[source].sum() == 20
    assert (np.diff(source) > 0).all()
    assert source.tolist() != choose_exam(roles(300, seed=1), 60).tolist()
