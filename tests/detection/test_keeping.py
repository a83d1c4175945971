"""What an update keeps of a version gives, on other images, the very capsule that fitting its compositions gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from components.detection.calibration import Plan, learns_held_out
from components.detection.capsule import Capsule, load_capsule, save_capsule
from components.detection.choice import choose, make_banks
from components.detection.keeping import Kept, check_updatable, keep, load_kept
from components.foundation.errors import UserError
from components.foundation.files import read_json
from components.foundation.params import Params, parse_params
from components.foundation.pin import Pin
from components.foundation.places import KNOWN
from components.images.identity import Roles
from components.learning.backbone import build_encoder
from components.stages.fit import fit_detector, golden_images, make_capsule
from components.synthesis.methods import PRETRAINED
from components.synthesis.prepared import Prepared
from tests.project import TINY, surface

SIDE, FIRST, ALL = 48, 14, 18


def params_with(cache: int = 0, **values: object) -> Params:
    content = {**TINY, "method": "pretrained", "image": {"side": SIDE}, "cache": {"max_bytes": cache}, **values}
    return parse_params(content, "my.yaml")


def prepared_of(count: int) -> Prepared:
    """The first `count` of some surfaces, with a bright square as the sample of each."""
    generator = np.random.default_rng(0)
    images = np.stack([surface(generator) for _ in range(ALL)])[:count]
    samples, masks = images.copy(), np.zeros((1, count, SIDE, SIDE), bool)
    samples[:, 10:22, 10:22], masks[:, :, 10:22, 10:22] = 235, True
    digests = [f"{number:x}".rjust(4, "0").ljust(64, "a") for number in range(count)]
    roles = Roles.of(digests, [], 0, 0.3)
    return Prepared("bolt", 0, "d", roles, images, np.arange(count), ("patch",), samples[None], masks)


def capsule_of(choice: object, banks: object, prepared: Prepared, params: Params, folder: Path) -> Capsule:
    plan = Plan.of(prepared, params, taught=False, refit=learns_held_out(prepared, params))
    served = fit_detector(choice, banks, prepared, params, {}, plan)  # type: ignore[arg-type]
    save_capsule(make_capsule(served, choice, prepared, params), golden_images(prepared), folder)  # type: ignore[arg-type]
    return load_capsule(folder)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pin:
    """A version of the first images, where updates look for it; the current folder is its project's."""
    monkeypatch.chdir(tmp_path)
    params, prepared = params_with(10**8), prepared_of(FIRST)
    banks = make_banks({PRETRAINED: build_encoder(params.backbone, 0)}, prepared, params)
    made = capsule_of(choose(banks, params), banks, prepared, params, tmp_path / "made")
    pin = Pin(3, made.digest)
    pin.folder.parent.mkdir(parents=True)
    (tmp_path / "made").rename(pin.folder)
    return pin


def kept_of(pin: Pin, folder: Path, params: Params) -> Kept:
    folder.mkdir()
    keep(pin, "bolt", params, folder)
    kept = load_kept(folder)
    assert kept is not None
    return kept


@pytest.mark.slow
def test_an_update_is_a_fit_from_scratch_of_the_same_compositions(first: Pin, tmp_path: Path) -> None:
    prepared, params = prepared_of(ALL), params_with(10**8)
    kept = kept_of(first, tmp_path / "encoder", params)
    assert KNOWN.is_file()
    updated = capsule_of(kept, make_banks(kept.encoders, prepared, params, kept.all), prepared, params, Path("new"))
    encoders = {PRETRAINED: build_encoder(params.backbone, 0)}
    whole = make_banks(encoders, prepared, params_with(0))
    scratch = capsule_of(kept, whole, prepared, params_with(0), Path("scratch"))
    arrays, wanted = (load_file(Path(name) / "density.safetensors") for name in ("new", "scratch"))
    assert arrays.keys() == wanted.keys()
    assert all(np.array_equal(arrays[name], wanted[name]) for name in wanted)
    assert updated.threshold == scratch.threshold
    said = updated.provenance["updated"]
    assert said["in_words"] == f"updated from version 3 with {ALL - FIRST} images"
    assert said["added"] == sorted(set(prepared.roles.digests) - set(prepared_of(FIRST).roles.digests))
    assert (said["of_capsule"], said["full_images"], said["removed"]) == (first.capsule, FIRST, [])


def test_an_update_of_an_update_says_how_many_images_the_last_full_training_had(first: Pin, tmp_path: Path) -> None:
    params = params_with(10**8)
    kept = kept_of(first, tmp_path / "encoder", params)
    prepared = prepared_of(ALL)
    made = capsule_of(kept, make_banks(kept.encoders, prepared, params, kept.all), prepared, params, Path("new"))
    second = Pin(4, made.digest)
    Path("new").rename(second.folder)
    again = kept_of(second, tmp_path / "second", params)
    assert (again.full_images, again.all) == (FIRST, kept.all)
    said = again.provenance(prepared_of(FIRST).roles.digests)
    assert said["in_words"] == f"updated from version 4 with 0 images, without {ALL - FIRST} that it knew"


def test_what_cannot_be_updated_is_refused_with_the_reason(first: Pin, tmp_path: Path) -> None:
    card = read_json(first.folder / "capsule.json")
    for values, reason in (({"image": {"side": 64}}, "image.side: 48 then, 64 now"), ({"method": "cutout"}, "method")):
        with pytest.raises(UserError, match=reason):
            check_updatable(card, params_with(**values))
    with pytest.raises(UserError, match="network"):
        check_updatable({**card, "networks": [{}]}, params_with())
    with pytest.raises(UserError, match="is not here: fetch it with"):
        keep(replace(first, capsule="b" * 64), "bolt", params_with(), tmp_path)
    (first.folder / "density.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        keep(first, "bolt", params_with(), tmp_path)
