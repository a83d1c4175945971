"""What users and the world do wrong: one clear sentence, a non-zero exit, and nothing half-made."""

import json
import os
import resource
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from components.foundation.files import digest_tree
from tests.project import SIDE, Project, is_one_sentence, surface, write_category, write_image


def truncated(root: Path) -> Path:
    path = root / "train" / "good" / "003.png"
    path.write_bytes(path.read_bytes()[:700])
    return path


def decompression_bomb(root: Path) -> Path:
    """20,000 × 20,000 grey pixels, all zero: 0.4 MB on disk, 400 MB in memory, 1.2 GB as RGB."""
    path = root / "train" / "good" / "bomb.png"
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(20_001 * 100)) for _ in range(200)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""))
    return path


def text_named_png(root: Path) -> Path:
    path = root / "train" / "good" / "notes.png"
    path.write_text("These are no pixels.\n")
    return path


def mask_of_another_size(root: Path) -> Path:
    path = root / "ground_truth" / "blob" / "002_mask.png"
    write_image(path, np.full((SIDE, SIDE + 2), 255, np.uint8))
    return path


def two_images_only(root: Path) -> Path:
    for path in sorted((root / "train" / "good").iterdir())[2:]:
        path.unlink()
    return root


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "003.png cannot be decoded"),
    "bomb": (decompression_bomb, "bomb.png holds more pixels than the limit"),
    "text": (text_named_png, "notes.png is not a PNG, JPEG, BMP or TIFF image"),
    "mask": (mask_of_another_size, "002_mask.png is 50×48, but its image is 48×48"),
    "few": (two_images_only, "2 good training images can be decoded, 10 are needed"),
}


@pytest.fixture(scope="module")
def workspace_copy(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the fresh project for this file's own categories."""
    return project.copy(tmp_path_factory.mktemp("errors") / "project")


@pytest.fixture(scope="module")
def refusals(workspace_copy: Project) -> dict[str, subprocess.CompletedProcess[str]]:
    """What validation says of a category with each fault, two at a time."""
    for fault, (spoil, _) in FAULTS.items():
        root = workspace_copy.folder / "data" / "tiny" / fault
        write_category(root, seed=2, defects=4)
        spoil(root)
    limits = {"bomb": _two_gigabytes_at_most}  # of memory, in an interpreter of its own
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda fault: workspace_copy.stage("validate", fault, before=limits.get(fault)), FAULTS)
        return dict(zip(FAULTS, done, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_category_is_refused_in_one_sentence(
    workspace_copy: Project, refusals: dict[str, subprocess.CompletedProcess[str]], fault: str
) -> None:
    done = refusals[fault]
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert FAULTS[fault][1] in done.stderr
    assert f"Validation of {fault} failed" in done.stderr
    assert workspace_copy.parts() == []
    assert [path.name for path in (workspace_copy.folder / "artifacts" / fault).iterdir()] == ["validation"]


@pytest.mark.slow
def test_one_faulty_category_stops_no_other(ran: Project, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path / "project")
    shutil.copytree(copy.folder / "data" / "tiny" / "widget", copy.folder / "data" / "tiny" / "broken")
    truncated(copy.folder / "data" / "tiny" / "broken")
    copy.set_params({"data": {"categories": ["broken", "widget"]}})
    done = copy.flawline("run")
    said = [line for line in done.stderr.splitlines() if line.startswith("flawline: ")]
    assert done.returncode == 1
    assert len(said) == 2
    assert "003.png cannot be decoded" in said[0]
    assert said[1] == "flawline: broken did not get a model: see the messages above."
    assert "Traceback" not in done.stderr
    assert "widget: version 1 is the champion" in done.stderr
    assert "widget" in done.stdout
    assert copy.parts() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.stepz=3"], "'training.stepz' is unknown"),
        (["--set", "image.side=nine"], "'image.side' is impossible"),
        (["--method", "guessing"], "'method' is impossible"),
        (["--preset", "fastest"], "There is no preset 'fastest': choose one of cpu, demo, paper-cutpaste"),
        (["sprocket"], "sprocket is not in data.categories of params.yaml (widget, gadget)"),
        (["--data", "nowhere"], "There is no data folder at nowhere"),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_nothing_written(
    workspace_copy: Project, arguments: list[str], words: str
) -> None:
    before = (workspace_copy.folder / "params.yaml").read_bytes()
    done = workspace_copy.flawline("run", *arguments)
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert words in done.stderr
    assert (workspace_copy.folder / "params.yaml").read_bytes() == before
    assert not (workspace_copy.folder / "dvc.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["flows.commands.cli", "components.stages.fit"])
def test_an_unknown_key_in_the_parameters_is_named(workspace_copy: Project, tmp_path: Path, start: str) -> None:
    copy = workspace_copy.copy(tmp_path / "project")
    copy.set_params({"training": {"stepz": 3}})
    done = copy.run("-m", start, "run" if start == "flows.commands.cli" else "widget")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert "the key 'training.stepz' is unknown" in done.stderr
    assert not (copy.folder / "artifacts" / "widget").exists()


@pytest.mark.slow
def test_an_unreadable_image_is_not_scored(ran: Project, tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    write_image(path, surface(np.random.default_rng(0)))
    path.write_bytes(path.read_bytes()[:500])
    done = ran.flawline("score", path, "--category", "widget")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert "part.png cannot be decoded" in done.stderr
    assert done.stdout == ""


@pytest.fixture
def small_disk(ran: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of the project after its run whose folder of widget's outputs has 300 kB of free space left."""
    copy = ran.copy(tmp_path / "project")
    outputs = copy.folder / "artifacts" / "widget"
    kept = outputs.rename(tmp_path / "kept")
    outputs.mkdir()
    used = sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in kept.rglob("*"))
    mounted = _mount(outputs, used + 300_000)
    if not mounted:
        pytest.skip("a file system of limited size can only be mounted by root on Linux")
    shutil.copytree(kept, outputs, dirs_exist_ok=True)
    yield copy
    subprocess.run(["umount", "-l", str(outputs)], check=True)


@pytest.mark.slow
def test_a_full_disk_during_the_capsules_write(small_disk: Project) -> None:
    before = digest_tree(small_disk.folder / "artifacts" / "widget")
    done = small_disk.stage("fit", "widget")
    assert done.returncode == 1
    assert is_one_sentence(last_line(done.stderr)), done.stderr
    assert "The disk is full" in done.stderr
    assert small_disk.parts() == []
    assert digest_tree(small_disk.folder / "artifacts" / "widget") == before


@pytest.mark.slow
def test_a_file_that_may_not_grow_further_during_the_capsules_write(ran: Project, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path / "project")
    before = digest_tree(copy.folder / "artifacts" / "widget")
    done = copy.stage("fit", "widget", before=_no_file_above_64_kb)
    assert done.returncode == 1
    assert is_one_sentence(last_line(done.stderr)), done.stderr
    assert copy.parts() == []
    assert digest_tree(copy.folder / "artifacts" / "widget") == before


REPRODUCE = """
from flows.retraining.stages import StageFailedError, reproduce
try:
    print(reproduce("validate@widget"))
except StageFailedError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_stage_whose_outputs_the_cache_did_not_take_is_not_done(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    cache = copy.folder / ".dvc" / "cache"
    cache.mkdir(exist_ok=True)
    if not _mount(cache, 4096):
        pytest.skip("a file system of limited size can only be mounted by root on Linux")
    try:
        done = copy.run("-c", REPRODUCE)
        assert "validate@widget: artifacts/widget/validation is not in DVC's cache" in done.stdout
        assert f"as the disk is full at {cache}" in done.stdout
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(cache)], check=True)
        assert copy.run("-c", REPRODUCE).stdout == "True\n"
        assert copy.run("-c", REPRODUCE).stdout == "False\n"
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)


def test_a_run_whose_own_state_has_no_room_is_refused_before_anything_is_computed(
    project: Project, tmp_path: Path
) -> None:
    copy = project.copy(tmp_path / "project")
    state = copy.folder / ".flawline"
    state.mkdir(exist_ok=True)
    if not _mount(state, 2_000_000):
        pytest.skip("a file system of limited size can only be mounted by root on Linux")
    try:
        done = copy.flawline("run")
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)
    assert done.returncode == 1
    assert is_one_sentence(done.stderr), done.stderr
    assert f"The disk is full at {state}" in done.stderr


def last_line(stderr: str) -> str:
    """What was said last: before it the stage may say what serves."""
    return stderr.strip().splitlines()[-1]


def _no_file_above_64_kb() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))


def _two_gigabytes_at_most() -> None:
    """So that a bomb which is decoded ends its own process and not the machine."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))


def _mount(folder: Path, size: int) -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_a_lock_that_is_held_for_long_ends_its_category_alone(ran: Project, tmp_path: Path) -> None:
    copy = ran.copy(tmp_path / "project")
    place = str(copy.folder / "data" / "tiny" / "widget")
    holder = {"pid": os.getpid(), "cmd": "dvc add data/tiny/widget"}  # what DVC writes while it writes that folder
    (copy.folder / ".dvc" / "tmp").mkdir(exist_ok=True)
    (copy.folder / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": {place: holder}}))
    done = copy.flawline("run")
    assert done.returncode == 1
    assert f"widget: stopped, as another DVC command holds the lock of {copy.folder}: " in done.stderr
    assert "gadget: version 1 " in done.stderr
    assert "Traceback" not in done.stderr
