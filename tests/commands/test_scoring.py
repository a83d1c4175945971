"""What `flawline score` does with files as people have them: many, large, alike in name, odd in name, damaged."""

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.detection.capsule import load_capsule
from components.foundation.errors import UserError
from components.foundation.limits import ImageLimits
from components.registry.promotion import promote
from components.registry.versions import note_verdict, register
from flows.commands.scoring import Scored, category_of, picture_name, score_images
from tests.conftest import MakeCapsule
from tests.project import TINY, is_one_sentence, write_image
from tests.serving import sizes


@pytest.fixture
def scoring(workspace: Path, make_capsule: MakeCapsule, one_thread: None) -> Path:
    """A folder with a registered champion of "bottle" and the parameters to score with."""
    (workspace / "params.yaml").write_text(yaml.safe_dump(TINY))
    promote("bottle", register("bottle", make_capsule(Path("capsule")), "", {}, "pretrained").number, "test")
    return workspace


def written(paths: list[Path]) -> list[Path]:
    for path, image in zip(paths, sizes(len(paths)), strict=True):
        write_image(path, image)
    return paths


def test_each_image_has_a_picture_of_its_own(scoring: Path) -> None:
    names = ["camera1/test/x.png", "camera2/test/x.png", "camera2/test/x.bmp"]
    rows = score_images(written([scoring / name for name in names]), "bottle", "champion", scoring / "maps").rows
    assert len({row["map"] for row in rows}) == 3
    assert sorted(map(str, (scoring / "maps").iterdir())) == sorted(row["map"] for row in rows)
    again = score_images([scoring / names[1]], "bottle", "champion", scoring / "maps").rows
    assert again[0]["map"] == rows[1]["map"]


@pytest.mark.parametrize("stem", ["x" * 250, "ü" * 120, "a\nb\x1b[31m", "[red]x[/red]", "x\udcff", "-", "…"])
def test_pictures_of_odd_names_have_plain_ones(stem: str) -> None:
    name = picture_name(Path("folder") / f"{stem}.png")
    assert len(name.encode()) < 255
    assert name.isprintable()
    assert "/" not in name


def test_rows_say_which_version_scored(scoring: Path) -> None:
    from components.detection.card import read_card

    (row,) = score_images(written([scoring / "a.png"]), "bottle", "champion", None).rows
    assert (row["version"], row["capsule_digest"]) == (1, read_card(Path("capsule"))["digest"])


def test_where_no_version_serves_the_one_there_is_and_why_are_said(workspace: Path, make_capsule: MakeCapsule) -> None:
    (workspace / "params.yaml").write_text(yaml.safe_dump(TINY))
    (image,) = written([workspace / "a.png"])
    with pytest.raises(UserError, match=r"^bottle has no model yet: `flawline run bottle` makes one\.$"):
        score_images([image], "bottle", "champion", None)
    register("bottle", make_capsule(Path("capsule")), "", {}, "pretrained")
    note_verdict("bottle", 1, "challenger: 3 held-out good images, 10 are needed")
    with pytest.raises(UserError, match=r"but version 1 \(challenger: 3 held-out .*`--version challenger`\.$"):
        score_images([image], "bottle", "champion", None)
    assert score_images([image], "bottle", "challenger", None).rows[0]["version"] == 1


def test_values_beyond_the_bits_that_were_learned_are_said(scoring: Path, make_capsule: MakeCapsule) -> None:
    promote("nut", register("nut", make_capsule(Path("deep"), category="nut", bits=12), "", {}, "x").number, "test")
    for name, highest in {"within.tif": 4095, "beyond.tif": 4096}.items():
        values = np.full((48, 48), 7, np.uint16)
        values[0, 0] = highest
        Image.fromarray(values).save(scoring / name)
    scored = score_images([scoring / "within.tif", scoring / "beyond.tif"], "nut", "champion", None)
    assert (len(scored.rows), scored.refused) == (2, [])
    (said,) = scored.clipped
    assert said.startswith(f"{scoring / 'beyond.tif'} has grey values up to 4096")
    assert "all above 4095 are read as white" in said


def test_unreadable_images_cost_only_their_own_rows(scoring: Path) -> None:
    paths = written([scoring / f"{number:02}.png" for number in range(20)])
    expected = {row["image"]: row["score"] for row in score_images(paths, "bottle", "champion", None).rows}
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    paths[17].write_bytes(b"no image")
    scored = score_images(paths, "bottle", "champion", None)
    found = {row["image"]: row["score"] for row in scored.rows}
    assert list(found) == [str(path) for number, path in enumerate(paths) if number not in (3, 17)]
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)
    with pytest.raises(UserError, match=r"^2 of 20 images could not be scored: \S*03.png cannot.*17.png is not a PNG"):
        scored.check()


def test_one_unreadable_image_is_said_in_its_own_words() -> None:
    Scored([{}]).check()
    with pytest.raises(UserError, match=r"^x is bad\.$"):
        Scored([{}], ["x is bad."]).check()


def most_decoded(monkeypatch: pytest.MonkeyPatch, module: Any, reader: str) -> Callable[[], int]:
    """How many images that a module has read with this function were in memory at once, when asked later."""
    alive: list[Any] = []
    counts = [0]
    read = getattr(module, reader)

    def watched(path: Path, limits: Any) -> Any:
        found = read(path, limits)
        alive.append(weakref.ref(getattr(found, "pixels", found)))
        counts.append(sum(one() is not None for one in alive))
        return found

    monkeypatch.setattr(module, reader, watched)
    return lambda: max(counts)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(scoring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.commands.scoring

    most = most_decoded(monkeypatch, flows.commands.scoring, "read_with_header")
    paths = written([scoring / f"{number}.png" for number in range(22)])
    scored = score_images(paths, "bottle", "champion", scoring / "maps")
    assert len(scored.rows) == 22
    assert 1 <= most() <= 2


@pytest.mark.slow
def test_screening_needs_no_more_memory_for_more_images(scoring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.arrivals import screening
    from components.images import decode

    most = most_decoded(monkeypatch, decode, "read_image")
    paths = written([scoring / f"{number}.png" for number in range(22)])
    pictures = [scoring / "maps" / path.name for path in paths]
    capsule = load_capsule(Path("capsule"))
    found = screening.screen(capsule, paths, pictures, ImageLimits(), 0.01, [True] * len(paths))
    assert [one.score for one in found] == pytest.approx(
        [row["score"] for row in score_images(paths, "bottle", "champion", None).rows], rel=1e-4
    )
    assert all(picture.is_file() for picture in pictures)
    assert 1 <= most() <= 2


@pytest.mark.slow
def test_the_command_prints_odd_names_and_all_results_before_it_fails(scoring: Path) -> None:
    good = written([scoring / "line\nbreak.png", scoring / "[red]x[/red].png", scoring / "\x1b[31mred.png"])
    bad = scoring / "bad\x07.png"
    bad.write_bytes(b"no image")
    (scoring / "dvc.yaml").touch()
    command = [sys.executable, "-m", "flows.commands.cli", "score", *map(str, [good[0], bad, *good[1:]])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert sum("│ good" in line or "│ defect" in line for line in done.stdout.splitlines()) == 3
    assert "line\\nbreak.png" in done.stdout
    assert "[red]x[/red].png" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.startswith(f"flawline: {scoring}/bad\\x07.png is not a PNG")
    assert is_one_sentence(done.stderr)
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert [row["image"] for row in json.loads(as_json.stdout)] == list(map(str, good))


def test_the_category_is_found_without_mlflow(scoring: Path, make_capsule: MakeCapsule) -> None:
    assert category_of([Path("anywhere/x.png")]) == "bottle"
    register("screw", make_capsule(Path("screw"), category="screw"), "", {}, "pretrained")
    assert category_of([Path("data/screw/x.png")]) == "screw"
    with pytest.raises(UserError, match="one of bottle, screw"):
        category_of([Path("x.png")])


@pytest.mark.slow
def test_scoring_with_a_fetched_capsule_imports_only_what_scores(scoring: Path) -> None:
    paths = written([scoring / "a.png"])
    score_images(paths, "bottle", "champion", None)
    program = (
        "import sys; from pathlib import Path; from flows.commands.scoring import category_of, score_images\n"
        f"paths = [Path({str(paths[0])!r})]\n"
        "score_images(paths, category_of(paths), 'champion', None)\n"
        "heavy = {'mlflow', 'sqlalchemy', 'matplotlib', 'sklearn', 'scipy', 'pandas', 'prefect', 'dvc'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_large_maps_and_grey_images_are_drawn(scoring: Path) -> None:
    path = scoring / "grey.png"
    Image.fromarray(np.full((900, 700), 90, np.uint8)).save(path)
    (row,) = score_images([path], "bottle", "1", scoring / "maps").rows
    with Image.open(row["map"]) as picture:
        assert picture.width > 100
