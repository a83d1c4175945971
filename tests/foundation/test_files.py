"""Writing files and folders: whole or not at all, whatever happens meanwhile."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.foundation.files import (
    digest_of,
    digest_tree,
    new_directory,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)


def test_writing_makes_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"one")
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"two")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"two"
    assert os.listdir(tmp_path / "a" / "b") == ["c.bin"]


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Maß × 3\n")
    assert (tmp_path / "a.txt").read_bytes() == "Maß × 3\n".encode()


def test_json_is_the_same_for_any_order_of_keys_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, None, "ß"]})
    write_json(tmp_path / "b.json", {"a": [0.1, None, "ß"], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": [0.1, None, "ß"], "b": 1}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"x": value})
    assert read_json(tmp_path / "a.json") == {"a": [0.1, None, "ß"], "b": 1}


def test_a_full_disk_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"old")
    run_limited(
        "from components.foundation.files import write_bytes; write_bytes(Path('a.bin'), bytes(100_000))", tmp_path
    )
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_leaves_the_old_folder_and_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    code = (
        "from components.foundation.files import new_directory\n"
        "with new_directory(Path('d')) as new:\n"
        "    (new / 'small').write_bytes(b'x')\n"
        "    (new / 'large').write_bytes(bytes(100_000))\n"
    )
    run_limited(code, tmp_path)
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == ["old"]


def run_limited(code: str, folder: Path) -> None:
    """Run `code` in a process that cannot write more than 10,000 bytes to a file; it must fail for that reason."""
    result = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\n{code}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr


def test_an_unwritable_target_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"x")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with new_directory(tmp_path / "deep" / "d") as new:
            (new / "sub").mkdir()
            (new / "sub" / content).write_text(content)
            assert not (tmp_path / "deep" / "d" / "sub" / content).exists()
        assert os.listdir(tmp_path / "deep" / "d" / "sub") == [content]
    assert os.listdir(tmp_path / "deep") == ["d"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_the_body_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    with new_directory(tmp_path / "d") as new:
        (new / "old").touch()
    with pytest.raises(error):
        _fail_within(tmp_path / "d", error)
    assert os.listdir(tmp_path) == ["d"]
    assert os.listdir(tmp_path / "d") == ["old"]


def _fail_within(folder: Path, error: type[BaseException]) -> None:
    with new_directory(folder) as new:
        (new / "new").touch()
        raise error


def test_a_failure_without_an_old_folder_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "d"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_directory(tmp_path / "d") as new:
        (new / "old").touch()
    code = (
        "import os, signal; from pathlib import Path; from components.foundation.files import new_directory\n"
        "with new_directory(Path('d')) as new:\n"
        "    (new / 'new').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "d") == ["old"]
    with new_directory(tmp_path / "d") as new:
        (new / "new").touch()
    assert os.listdir(tmp_path / "d") == ["new"]


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(3_000_000) + b"x")
    assert sha256_file(tmp_path / "a.bin") == hashlib.sha256(bytes(3_000_000) + b"x").hexdigest()
    assert digest_of({"b": [1, 2], "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,2]}').hexdigest()


def test_a_trees_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x").write_bytes(b"1")
        (tmp_path / name / "y").write_bytes(b"2")
    os.utime(tmp_path / "two" / "y", (0, 0))
    files = [["sub/x", hashlib.sha256(b"1").hexdigest()], ["y", hashlib.sha256(b"2").hexdigest()]]
    expected = hashlib.sha256(json.dumps(files, separators=(",", ":")).encode()).hexdigest()
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "two") == expected
    (tmp_path / "two" / "y").rename(tmp_path / "two" / "z")
    assert digest_tree(tmp_path / "two") != expected
