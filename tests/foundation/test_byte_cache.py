"""A cache gives back what was stored or nothing: bounded, among several processes, after a kill, whatever its state."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from components.foundation.byte_cache import PAGE, ByteCache

LARGE = 50_000_000


def value(number: int, size: int = 1000) -> bytes:
    return bytes([number % 256]) * size


def numbered(numbers: range, size: int = 1000, owner: str = "me") -> dict[str, tuple[str, bytes]]:
    return {str(n): (owner, value(n, size)) for n in numbers}


def keys(numbers: range) -> list[str]:
    return [str(n) for n in numbers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "values.db"


def test_what_was_stored_is_there_in_another_run(path: Path) -> None:
    ByteCache(path, LARGE).write(numbered(range(700)))
    assert ByteCache(path, LARGE).read(keys(range(-5, 800))) == {str(n): value(n) for n in range(700)}


def test_nothing_is_written_without_room_or_need(path: Path) -> None:
    ByteCache(path, 0).write(numbered(range(3)))
    ByteCache(path, LARGE).read(["a"])
    assert not path.exists()


@pytest.mark.parametrize("size", [10, 5_000, 120_000])
def test_the_file_stays_below_its_bound_and_the_longest_unused_go(path: Path, size: int) -> None:
    bound = 400 * PAGE
    room = 200 * PAGE // (size + 2 * PAGE)  # surely fits twice
    first, second = range(room), range(1000, 1000 + room)
    ByteCache(path, bound).write(numbered(first, size))
    ByteCache(path, bound).write(numbered(second, size))
    assert len(ByteCache(path, bound).read(keys(first))) == room  # used last, so the second go first
    last = ByteCache(path, bound)
    for n in range(2000, 2000 + room):
        last.write(numbered(range(n, n + 1), size))
        assert path.stat().st_size <= bound
    assert len(last.read(keys(range(2000, 2000 + room)))) == room
    assert len(last.read(keys(first))) >= len(last.read(keys(second)))


def test_a_pass_over_more_than_there_is_room_for_keeps_its_first(path: Path) -> None:
    cache, size = ByteCache(path, 200 * PAGE), 10 * PAGE
    for n in range(50):
        cache.write(numbered(range(n, n + 1), size))
    found = cache.read(keys(range(50)))
    assert set(found) == set(keys(range(len(found))))
    assert 10 <= len(found) < 20
    later = ByteCache(path, 200 * PAGE)
    later.write(numbered(range(90, 92), size))
    assert set(keys(range(90, 92))) == set(later.read(keys(range(90, 92))))


def test_a_lower_bound_holds_for_a_file_that_was_larger(path: Path) -> None:
    ByteCache(path, LARGE).write(numbered(range(100), 10 * PAGE))
    lower = ByteCache(path, 100 * PAGE)
    lower.write(numbered(range(200, 203), 10 * PAGE))
    assert path.stat().st_size <= 100 * PAGE
    assert set(lower.read(keys(range(200, 203)))) == set(keys(range(200, 203)))


def test_what_is_forgotten_is_not_beside_a_damaged_file_either(path: Path) -> None:
    ByteCache(path, LARGE).write({"a": ("me", b"what was seen" * 100)})
    path.with_name(f"{path.name}-journal").write_bytes(path.read_bytes())  # as of one who was killed
    path.write_bytes(b"no database" * PAGE)
    ByteCache(path, LARGE).forget(["me"])
    assert list(path.parent.iterdir()) == []


def test_a_changed_value_is_not_there_any_more(path: Path) -> None:
    ByteCache(path, LARGE).write({"a": ("me", b"A" * 100_000), "b": ("me", b"B" * 100_000)})
    content = bytearray(path.read_bytes())
    content[content.index(b"A" * 2000) + 1000] ^= 1
    path.write_bytes(content)
    cache = ByteCache(path, LARGE)
    assert cache.read(["a", "b"]) == {"b": b"B" * 100_000}
    cache.write({"a": ("me", b"new")})
    assert cache.read(["a"]) == {"a": b"new"}


@pytest.mark.parametrize("damage", ["garbage", "half", "empty", "other tables", "folder"])
def test_a_damaged_file_is_as_none_and_begun_anew(path: Path, damage: str) -> None:
    ByteCache(path, LARGE).write(numbered(range(50), 20_000))
    match damage:
        case "garbage":
            path.write_bytes(os.urandom(100_000))
        case "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "empty":
            path.write_bytes(b"")
        case "other tables":
            content = path.read_bytes()
            path.write_bytes(content[:PAGE] + bytes(PAGE * 3) + content[4 * PAGE :])
        case "folder":
            path.unlink()
            path.mkdir()
    cache = ByteCache(path, LARGE)
    found = cache.read(keys(range(50)))
    assert all(content == value(int(key), 20_000) for key, content in found.items())
    if damage != "folder":
        for _ in range(2):  # the first may only notice the damage
            cache.write(numbered(range(60, 62)))
        assert ByteCache(path, LARGE).read(["60"]) == {"60": value(60)}


def test_what_is_forgotten_is_not_in_the_file(path: Path) -> None:
    secret = b"secret" * 5000
    ByteCache(path, LARGE).write({"a": ("gone", secret), "b": ("stays", b"other" * 5000)})
    cache = ByteCache(path, LARGE)
    cache.forget(["gone", "unknown"])
    assert cache.read(["a", "b"]) == {"b": b"other" * 5000}
    assert b"secret" not in path.read_bytes()
    ByteCache(path, 0).forget(["b"])  # nothing is kept any more, but the file of earlier runs is there
    assert not path.exists()


def _fill(path: Path, start: int) -> None:
    cache = ByteCache(path, LARGE)
    for n in range(start, start + 60):
        cache.write(numbered(range(n, n + 5), 20_000))


def test_several_processes_fill_it_and_one_may_be_killed(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(path, start)) for start in (0, 30, 100)]
    for worker in workers:
        worker.start()
    assert workers[2].pid is not None
    os.kill(workers[2].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    found = ByteCache(path, LARGE).read(keys(range(200)))
    assert all(content == value(int(key), 20_000) for key, content in found.items())
    assert set(keys(range(94))) <= set(found)
