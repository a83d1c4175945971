"""The prepared category comes back as it was written, from files that are mapped and not loaded."""

import errno
import json
import resource
from pathlib import Path

import numpy as np
import pytest

from components.synthesis.prepared import batches, load_prepared, new_array, write_index
from tests.identified import digest_of_key, roles_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    arrays = {
        "images": generator.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8),
        "exam_images": generator.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8),
        "exam_masks": generator.random((2, 3, 8, 8)) < 0.5,
    }
    for name, values in arrays.items():
        new_array(tmp_path / f"{name}.npy", values.shape, str(values.dtype))[...] = values
    write_index(
        tmp_path,
        category="bolt",
        seed=3,
        data_digest="d" * 64,
        roles=roles_of(np.array([False, True, False, False, True])),
        exam_source=np.array([0, 1, 4]),
        exam_kinds=["patch", "scar"],
    )
    return tmp_path


def test_what_was_written_comes_back(folder: Path) -> None:
    found = load_prepared(folder)
    assert (found.category, found.seed, found.data_digest) == ("bolt", 3, "d" * 64)
    assert found.roles == roles_of(np.array([False, True, False, False, True]))
    assert found.keys.tolist() == [0, 1, 2, 3, 4]
    assert found.fit_rows.tolist() == [0, 2, 3]
    assert found.held_out_rows.tolist() == [1, 4]
    assert found.exam_source.tolist() == [0, 1, 4]
    assert found.exam_kinds == ("patch", "scar")
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(found.images, generator.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    np.testing.assert_array_equal(found.exam_images, generator.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8))
    np.testing.assert_array_equal(found.exam_masks, generator.random((2, 3, 8, 8)) < 0.5)


def test_the_arrays_stay_on_disk_and_cannot_be_changed(folder: Path) -> None:
    found = load_prepared(folder)
    for array in (found.images, found.exam_images, found.exam_masks):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_the_index_can_be_read_by_a_person(folder: Path) -> None:
    index = json.loads((folder / "roles.json").read_text())
    assert index["examine"] == [digest_of_key(1), digest_of_key(4)]
    assert index["learn"] == [digest_of_key(0), digest_of_key(2), digest_of_key(3)]


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    np.save(folder / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        load_prepared(folder)


def test_a_new_array_has_its_place_on_disk_from_the_beginning(tmp_path: Path) -> None:
    new_array(tmp_path / "a.npy", (1 << 20,), "uint8")
    found = (tmp_path / "a.npy").stat()
    assert found.st_blocks * 512 >= found.st_size > 1 << 20
    assert not np.load(tmp_path / "a.npy").any()


def test_a_new_array_that_does_not_fit_is_an_error_and_no_crash(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            new_array(tmp_path / "a.npy", (1 << 20,), "uint8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(("count", "size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 9, [2]), (0, 4, [])])
def test_batches_are_consecutive_and_lose_nothing(count: int, size: int, sizes: list[int]) -> None:
    rows = np.arange(count) * 2
    pieces = list(batches(rows, size))
    assert [len(piece) for piece in pieces] == sizes
    assert np.concatenate([*pieces, np.array([], int)]).tolist() == rows.tolist()
