"""Features are those of the rows asked for, whether they were kept, made anew, averaged to a grid, or of copies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from components.detection import feature_bank
from components.detection.copies import copies_of
from components.detection.detector import Composition, arrange
from components.detection.feature_bank import FeatureBank
from components.foundation.byte_cache import ByteCache
from components.foundation.draws import SampleKeys
from components.foundation.params import BackboneParams
from components.images.tensors import as_tensor
from components.learning.backbone import Encoder, build_encoder
from components.synthesis.prepared import Prepared
from tests.identified import roles_of

SIDE, IMAGES = 64, 21
HEAD_ONLY = Composition("pretrained", ("head",), "image")
DENSE = Composition("pretrained", ("b1", "b3"), "shared", grid=4)
WHOLE = Composition("pretrained", ("b1",), "image")


class Counting(Encoder):
    """An encoder that counts the images it has seen, but for those that are blank."""

    seen = 0

    def features(self, images: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        self.seen += int(images.flatten(1).any(1).sum())
        return super().features(images, levels)


@pytest.fixture
def encoder() -> Counting:
    made = build_encoder(BackboneParams(name="lcnet_035", weights="none"), seed=0)
    made.__class__ = Counting
    return made  # type: ignore[return-value]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    generator = np.random.default_rng(0)
    shape = (IMAGES, SIDE, SIDE, 3)
    return Prepared(
        category="bolt",
        seed=0,
        data_digest="d",
        roles=roles_of(np.arange(IMAGES) % 3 == 0),
        images=generator.integers(0, 256, shape, dtype=np.uint8),
        exam_source=np.arange(IMAGES),
        exam_kinds=("patch",),
        exam_images=generator.integers(0, 256, (1, *shape), dtype=np.uint8),
        exam_masks=np.zeros((1, *shape[:3]), bool),
    )


@pytest.fixture(params=["kept", "not kept"])
def keeps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there are few enough images to keep their features."""
    if request.param == "not kept":
        monkeypatch.setattr(feature_bank, "HELD_MOST", IMAGES - 1)
    return request.param == "kept"


def expected(encoder: Encoder, images: np.ndarray, levels: tuple[str, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        return encoder.features(as_tensor(images), levels)


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for level, value in wanted.items():
        torch.testing.assert_close(found[level], value, rtol=1e-4, atol=1e-5)


def test_rows_in_any_order_and_twice(encoder: Encoder, prepared: Prepared, keeps: bool) -> None:
    bank = FeatureBank("pretrained", encoder, prepared, [WHOLE, HEAD_ONLY])
    for rows in (np.array([3, 1]), np.array([20, *range(17)]), np.array([2, 2])):
        close(bank.of(rows), expected(encoder, prepared.images[rows], ("b1", "head")))


def test_each_image_passes_the_network_once_where_features_are_kept(encoder: Counting, prepared: Prepared) -> None:
    bank = FeatureBank("pretrained", encoder, prepared, [DENSE])
    before = encoder.seen
    for rows in (np.arange(5), np.arange(3, 9), np.arange(9)):
        bank.of(rows)
        bank.of_copies(rows, 2, "geometric")
    assert encoder.seen - before == 9 * (1 + 2)


def test_a_level_finer_than_the_grid_is_arranged_as_it_would_be_itself(encoder: Encoder, prepared: Prepared) -> None:
    rows = np.arange(IMAGES)
    found = FeatureBank("pretrained", encoder, prepared, [DENSE, HEAD_ONLY]).of(rows)
    assert {level: value.shape[-1] for level, value in found.items()} == {"b1": 4, "b3": 4, "head": encoder.width}
    whole = expected(encoder, prepared.images, ("b1", "b3"))
    np.testing.assert_allclose(arrange(found, DENSE), arrange(whole, DENSE), rtol=1e-4, atol=1e-5)


def test_a_composition_of_whole_levels_gets_them_whole(encoder: Encoder, prepared: Prepared) -> None:
    found = FeatureBank("pretrained", encoder, prepared, [DENSE, WHOLE]).of(np.arange(2))
    assert found["b1"].shape[-1] == SIDE // encoder.strides["b1"]


def test_copies_come_first_copies_first(encoder: Encoder, prepared: Prepared, keeps: bool) -> None:
    bank = FeatureBank("pretrained", encoder, prepared, [WHOLE])
    bank.of_copies(np.arange(4), 3, "photometric")
    rows = np.array([7, 2])
    made = [
        copies_of(as_tensor(prepared.images[[row]]), SampleKeys.of(0, "bolt", 0, [row]), 3, "photometric")
        for row in rows
    ]  # each (3, 3, S, S)
    images = torch.stack(made, dim=1).flatten(0, 1).permute(0, 2, 3, 1).numpy()
    close(bank.of_copies(rows, 3, "photometric"), expected(encoder, images, ("b1",)))


def test_samples_are_those_of_their_kind(encoder: Encoder, prepared: Prepared) -> None:
    rows = np.array([4, 0])
    found = FeatureBank("pretrained", encoder, prepared, [HEAD_ONLY]).of_samples(0, rows)
    close(found, expected(encoder, prepared.exam_images[0][rows], ("head",)))


FAMILY = [DENSE, HEAD_ONLY]
ROOM = 100_000_000


def everything(bank: FeatureBank, rows: np.ndarray = np.arange(IMAGES)) -> list[bytes]:  # noqa: B008
    """The bytes of all that a bank gives for images `rows`."""
    made = [bank.of(rows), bank.of_copies(rows, 2, "geometric"), bank.of_samples(0, rows)]
    return [value.numpy().tobytes() for features in made for value in features.values()]


def alone(bank: FeatureBank, numbers: list[int]) -> list[bytes]:
    """The same, each image by itself."""
    rows = [np.array([row]) for row in numbers]
    whole = [
        {level: torch.cat([one[level] for one in single]) for level in single[0]}
        for single in ([bank.of(row) for row in rows], [bank.of_samples(0, row) for row in rows])
    ]
    copies = [{k: v.unflatten(0, (2, 1)) for k, v in bank.of_copies(row, 2, "geometric").items()} for row in rows]
    copied = {level: torch.cat([one[level] for one in copies], 1).flatten(0, 1) for level in copies[0]}
    return [value.numpy().tobytes() for features in (whole[0], copied, whole[1]) for value in features.values()]


def test_an_image_has_the_same_bytes_in_any_company(encoder: Encoder, prepared: Prepared) -> None:
    rows = [17, 0, 4]
    bank = FeatureBank("pretrained", encoder, prepared, FAMILY)
    everything(bank)
    assert everything(bank, np.array(rows)) == alone(FeatureBank("pretrained", encoder, prepared, FAMILY), rows)


@pytest.mark.parametrize("used", [FAMILY, [DENSE]])
def test_the_store_changes_no_byte_and_spares_the_network(
    encoder: Counting, prepared: Prepared, used: list[Composition], tmp_path: Path
) -> None:
    path = tmp_path / "features.db"
    without = everything(FeatureBank("pretrained", encoder, prepared, FAMILY, used=used))
    first = everything(FeatureBank("pretrained", encoder, prepared, FAMILY, ByteCache(path, ROOM)))
    before = encoder.seen
    again = everything(FeatureBank("pretrained", encoder, prepared, FAMILY, ByteCache(path, ROOM), used))
    assert encoder.seen == before
    assert again == without
    assert set(again) <= set(first)


def test_what_is_new_or_damaged_in_the_store_is_made_anew(
    encoder: Counting, prepared: Prepared, tmp_path: Path
) -> None:
    path = tmp_path / "features.db"
    without = everything(FeatureBank("pretrained", encoder, prepared, FAMILY))
    FeatureBank("pretrained", encoder, prepared, FAMILY, ByteCache(path, ROOM)).of(np.arange(0, IMAGES, 3))
    before = encoder.seen
    assert everything(FeatureBank("pretrained", encoder, prepared, FAMILY, ByteCache(path, ROOM))) == without
    assert encoder.seen - before == IMAGES * 4 - IMAGES // 3
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :: 997] = bytes(len(content[len(content) // 2 :: 997]))
    path.write_bytes(content)
    assert everything(FeatureBank("pretrained", encoder, prepared, FAMILY, ByteCache(path, ROOM))) == without


def test_features_are_those_of_these_weights(encoder: Encoder, prepared: Prepared, tmp_path: Path) -> None:
    store = ByteCache(tmp_path / "features.db", ROOM)
    rows = np.arange(3)
    before = FeatureBank("pretrained", encoder, prepared, [HEAD_ONLY], store).of(rows)["head"]
    with torch.no_grad():
        next(iter(encoder.body.parameters())).mul_(1.5)
    after = FeatureBank("pretrained", encoder, prepared, [HEAD_ONLY], store).of(rows)["head"]
    assert not torch.equal(before, after)
    assert torch.equal(after, FeatureBank("pretrained", encoder, prepared, [HEAD_ONLY]).of(rows)["head"])


def test_the_features_of_an_image_can_be_forgotten(encoder: Counting, prepared: Prepared, tmp_path: Path) -> None:
    store = ByteCache(tmp_path / "features.db", ROOM)
    everything(FeatureBank("pretrained", encoder, prepared, FAMILY, store))
    store.forget([prepared.roles.digests[5]])
    before = encoder.seen
    everything(FeatureBank("pretrained", encoder, prepared, FAMILY, store))
    assert encoder.seen - before == 4  # the image itself, its copies, its sample
