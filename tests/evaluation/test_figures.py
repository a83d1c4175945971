"""Figures: what the pixels show, that the same input gives the same bytes, and that files are small and bare."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from components.evaluation import figures, sheets

CYAN = np.array(sheets.TRUTH_COLOUR) & 0xFC | np.array(sheets.TRUTH_COLOUR) >> 6


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)  # (H, W, 3)


def holds_colour(path: Path, colour: str | np.ndarray, tolerance: int = 6) -> bool:
    wanted = np.array(ImageColor.getrgb(colour)) if isinstance(colour, str) else colour
    return bool((np.abs(pixels(path) - wanted).max(axis=-1) <= tolerance).any())


def chunks(path: Path) -> set[bytes]:
    """Names of a PNG file's chunks."""
    data, at, names = path.read_bytes(), 8, set()
    while at < len(data):
        names.add(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return names


def noise(count: int, side: int = 256) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def grey(level: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def draw_sheet(path: Path) -> None:
    sheets.contact_sheet(noise(3, 32), ["one", "two\nlines", "a caption far too long for its tile, cut"], path)


def draw_gallery(path: Path) -> None:
    maps = [np.eye(8), np.zeros((8, 8))]
    sheets.map_gallery(noise(2, 32), maps, [np.eye(32, dtype=bool), None], [1.0, 0.5], ["bad", "good"], path)


def draw_roc(path: Path) -> None:
    figures.roc_figure([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], path)


def draw_histogram(path: Path) -> None:
    figures.score_histogram([1.0, 2.0, 3.0], {"crack": [2.5, 9.0], "stain": [7.0]}, 3.0, path)


def draw_history(path: Path) -> None:
    figures.history_figure([{"step": "1", "loss": "0.9", "note": "x"}, {"step": "2", "loss": "0.2", "note": ""}], path)


def draw_exam(path: Path) -> None:
    figures.exam_figure(["one", "two", "three"], [0.9, None, 0.7], {"three"}, path)


ALL = [draw_sheet, draw_gallery, draw_roc, draw_histogram, draw_history, draw_exam]


@pytest.mark.parametrize("draw", ALL)
def test_same_input_same_bytes_and_no_metadata(draw: Callable[[Path], None], tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert chunks(tmp_path / "a.png") == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize("draw", ALL)
def test_a_picture_that_cannot_be_written_leaves_nothing(draw: Callable[[Path], None], tmp_path: Path) -> None:
    taken = tmp_path / "taken.png"
    taken.mkdir()
    with pytest.raises(OSError, match="taken"):
        draw(taken)
    assert list(tmp_path.iterdir()) == [taken]
    assert not list(taken.iterdir())


def test_sheet_shows_every_image_where_it_belongs(tmp_path: Path) -> None:
    levels = [0, 60, 120, 180, 240]
    sheets.contact_sheet([grey(level) for level in levels], ["x"] * 5, tmp_path / "sheet.png", columns=3)
    sheet = pixels(tmp_path / "sheet.png")
    height, width, _ = sheet.shape
    middles = [(height // 4, round(width * (1 + 2 * i) / 6)) for i in range(3)]
    middles += [(round(height * 0.7), x) for _, x in middles[:2]]
    shown = [sheet[y, x, 0] for y, x in middles]
    np.testing.assert_allclose(shown, levels, atol=3)
    assert (sheet[round(height * 0.7), middles[2][1]] == 255).all()  # the sixth place is empty


def test_the_sheet_outlines_what_was_changed_in_tiles_as_large_as_asked(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    sheets.contact_sheet([grey(99)] * 2, ["a", "b"], tmp_path / "plain.png", tile=96)
    sheets.contact_sheet([grey(99)] * 2, ["a", "b"], tmp_path / "marked.png", tile=96, masks=[mask, None])
    plain, marked = pixels(tmp_path / "plain.png"), pixels(tmp_path / "marked.png")
    assert plain.shape == marked.shape
    assert plain.shape[1] < 2 * 96 + 3 * sheets.MARGIN
    assert not holds_colour(tmp_path / "plain.png", CYAN)
    columns = np.flatnonzero((np.abs(marked - CYAN).max(axis=-1) <= 6).any(axis=0))
    assert np.ptp(columns) == pytest.approx(48, abs=4)  # half of one tile


def test_images_of_any_shape_keep_their_proportions(tmp_path: Path) -> None:
    wide = np.zeros((50, 200, 3), np.uint8)
    sheets.contact_sheet([wide], ["wide"], tmp_path / "wide.png")
    picture = pixels(tmp_path / "wide.png")
    rows, columns = np.nonzero((picture[:280] == 0).all(axis=-1))  # above the caption
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (64, 256)


def test_noisy_sheets_shrink_until_they_are_small_files(tmp_path: Path) -> None:
    sheets.contact_sheet(noise(8), ["noise"] * 8, tmp_path / "sheet.png")
    sheets.map_gallery(noise(2), [np.eye(8)] * 2, None, [1, 1], ["a", "b"], tmp_path / "gallery.png")
    for name in ("sheet.png", "gallery.png"):
        assert (tmp_path / name).stat().st_size <= sheets.MAX_BYTES


def test_maps_share_one_scale_and_leave_unremarkable_places_alone(tmp_path: Path) -> None:
    """A map under the range shows the grey image; the same value has the same colour in every map."""
    maps = [np.zeros((4, 4)), np.full((4, 4), 5.0), np.full((4, 4), 5.0), np.full((4, 4), 99.0)]
    sheets.map_gallery(
        [grey(100)] * 4, maps, None, [0, 5, 5, 99], ["a", "b", "c", "d"], tmp_path / "maps.png", (1.0, 10.0)
    )
    picture = pixels(tmp_path / "maps.png")
    height, width, _ = picture.shape
    y, columns = round(height * 0.7), [round(width * (0.5 + i) / 4) for i in range(4)]
    calm, middling, again, hot = (picture[y, x] for x in columns)
    np.testing.assert_allclose(calm, 100, atol=3)
    assert (middling == again).all()
    assert np.abs(middling - calm).max() > 30
    assert hot.sum() > middling.sum()  # inferno rises in brightness
    assert hot.min() > 100


def test_true_defect_is_outlined_and_a_good_image_is_not(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    cases: dict[str, np.ndarray | None] = {"defect": mask, "good": ~mask & mask, "unknown": None}
    for name, truth in cases.items():
        sheets.map_gallery([grey(100)], [np.zeros((4, 4))], [truth], [0.0], [name], tmp_path / f"{name}.png")
    line = (np.abs(pixels(tmp_path / "defect.png") - CYAN).max(axis=-1) <= 3).nonzero()
    assert np.ptp(line[0]) == pytest.approx(96, abs=4)  # 32 of 64 pixels, shown three times as large
    assert np.ptp(line[1]) == pytest.approx(96, abs=4)
    assert not holds_colour(tmp_path / "good.png", CYAN)
    assert not holds_colour(tmp_path / "unknown.png", CYAN)


def test_a_tile_says_alarm_or_pass_in_its_colour(tmp_path: Path) -> None:
    for name, score in (("alarm", 5.1), ("pass", 5.0)):
        path = tmp_path / f"{name}.png"
        sheets.map_gallery([grey(100)], [np.zeros((4, 4))], None, [score], ["x"], path, (0, 1), threshold=5.0)
    assert holds_colour(tmp_path / "alarm.png", figures.VERMILION, 12)
    assert not holds_colour(tmp_path / "alarm.png", sheets.GREEN, 12)
    assert holds_colour(tmp_path / "pass.png", sheets.GREEN, 12)
    assert not holds_colour(tmp_path / "pass.png", figures.VERMILION, 12)


def test_without_a_mask_no_row_repeats_the_image(tmp_path: Path) -> None:
    mask = np.eye(64, dtype=bool)

    def drawn(masks: list[np.ndarray | None]) -> np.ndarray:
        sheets.map_gallery(
            [grey(100)] * 2, [np.ones((4, 4))] * 2, masks, [1, 1], ["a", "b"], tmp_path / "g.png", (0, 1)
        )
        return pixels(tmp_path / "g.png")

    assert drawn([None, ~mask & mask]).shape == drawn([None, None]).shape  # no row for what is in no image
    three_rows = drawn([mask, None])
    assert three_rows.shape[0] > drawn([None, None]).shape[0] + 150
    grey_tiles = (np.abs(three_rows - 100).max(axis=-1) <= 3).sum() / 192**2
    assert grey_tiles < 3  # two images and one outlined; the second image's place for a defect is empty


def test_the_exam_marks_what_serves_and_its_title_is_whole(tmp_path: Path) -> None:
    names = ["one", "two, whose name is long enough to leave the axes little room beside it"]
    figures.exam_figure(names, [0.9, 0.7], {names[1]}, tmp_path / "exam.png", "A title " * 8)
    vermilion = np.array(ImageColor.getrgb(figures.VERMILION))
    red = np.asarray(np.abs(pixels(tmp_path / "exam.png") - vermilion).max(axis=-1) <= 6)  # (H, W)
    dots = np.flatnonzero(red[:, -red.shape[1] // 2 :].any(axis=1))
    assert dots.min() > red.shape[0] / 2  # in the lower of the two rows alone
    assert (pixels(tmp_path / "exam.png")[:40, -5:] > 200).all()


def test_charts_without_defective_images_still_say_what_can_be_said(tmp_path: Path) -> None:
    figures.roc_figure([0, 0], [0.1, 0.2], tmp_path / "roc.png")
    assert not holds_colour(tmp_path / "roc.png", figures.BLUE)
    draw_roc(tmp_path / "roc.png")
    assert holds_colour(tmp_path / "roc.png", figures.BLUE)
    figures.score_histogram([1.0, 2.0], {}, None, tmp_path / "histogram.png")
    both = tmp_path / "both.png"
    draw_histogram(both)
    assert pixels(both).shape[0] > pixels(tmp_path / "histogram.png").shape[0]  # one row per kind
    figures.history_figure([], tmp_path / "history.png")
    figures.exam_figure([], [], set(), tmp_path / "exam.png")
    sheets.contact_sheet([], [], tmp_path / "sheet.png")
    sheets.map_gallery([], [], [], [], [], tmp_path / "gallery.png")


@pytest.mark.slow
def test_histogram_of_equal_scores_and_of_wide_ones(tmp_path: Path) -> None:
    figures.score_histogram([2.0, 2.0], {"same": [2.0]}, 2.0, tmp_path / "equal.png")
    figures.score_histogram([1e-3, 1.0], {"far": [1e5], "none": []}, 10.0, tmp_path / "wide.png")
    figures.score_histogram([-3.0, 0.0], {"far": [1e5]}, 0.0, tmp_path / "negative.png")


def test_history_has_one_chart_per_column_of_numbers(tmp_path: Path) -> None:
    rows = [{"epoch": i, "loss": 1 / (i + 1), "accuracy": None if i % 2 else 0.5, "word": "x"} for i in range(4)]
    figures.history_figure(rows, tmp_path / "two.png")
    figures.history_figure([{"epoch": 0, "loss": 1.0, "accuracy": float("nan")}], tmp_path / "one.png")
    assert pixels(tmp_path / "two.png").shape[0] > 1.4 * pixels(tmp_path / "one.png").shape[0]


def test_counts_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captions"):
        sheets.contact_sheet([grey(1)], [], tmp_path / "x.png")
    with pytest.raises(ValueError, match="as many"):
        sheets.map_gallery([grey(1)], [np.zeros((2, 2))], None, [1.0, 2.0], ["a"], tmp_path / "x.png")


def test_a_picture_for_comparison_shows_image_defect_and_map_side_by_side() -> None:
    image, mask, heat = np.full((32, 32, 3), 90, np.uint8), np.zeros((32, 32), bool), np.zeros((32, 32), np.float32)
    mask[8:20, 8:20], heat[8:20, 8:20] = True, 9
    picture = np.asarray(sheets.map_picture(image, heat, mask, "hole 001.png, 3.2", (0.0, 9.0)))  # (H, W, 3)
    left, right = picture[:256, :256].astype(int), picture[:256, -256:].astype(int)
    assert (left == sheets.TRUTH_COLOUR).all(-1).any()
    assert np.abs(right[110, 110] - 90).max() > 50
    assert np.abs(right[230, 230] - 90).max() <= 1
    assert (picture[256:] < 100).any(), "the words under it"
