"""Charts for people: curves and histograms, as small PNG files.

Everything is drawn in memory by matplotlib's Agg canvas (no pyplot, no display, no global state) and written whole or
not at all. The same input gives the same bytes; a file holds no date and no software name. Colours are from Okabe and
Ito's set, legible with any colour vision.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from components.evaluation import metrics
from components.evaluation.sheets import FAINT, INK, MUTED, VERMILION, png
from components.foundation.errors import printable
from components.foundation.files import write_bytes

BLUE = "#0072B2"
DPI = 110


def roc_figure(labels: ArrayLike, scores: ArrayLike, path: Path) -> None:
    """Write the image-level ROC curve of scores (N,) against labels (N,), 1 = defective, with its area.

    Without both classes there is no curve, and the picture says so.
    """
    kinds = np.asarray(labels).astype(bool)
    figure, ax = _chart(4.6, 4.6)
    curve, area = metrics.roc_curve(kinds, scores), metrics.auroc(kinds, scores)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    if curve is None:
        ax.text(0.5, 0.9, "needs good and defective images", ha="center", color=MUTED)
        _title(ax, "ROC")
    else:
        ax.fill_between(curve[0], curve[1], color=BLUE, alpha=0.12, linewidth=0)
        ax.plot(curve[0], curve[1], color=BLUE, linewidth=2, clip_on=False)
        _title(ax, f"ROC, area {area:.3f}", f"{kinds.sum()} defective, {(~kinds).sum()} good")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="false alarms on good images", ylabel="defective images found")
    ax.set_aspect("equal")
    _write_chart(figure, path)


def score_histogram(
    good_scores: ArrayLike,
    defect_scores_by_kind: Mapping[str, ArrayLike],
    threshold: float | None,
    path: Path,
) -> None:
    """Write one histogram per kind, good first, over one axis of scores, with the threshold through all.

    good_scores: (n,); defect_scores_by_kind: kind -> (m,). Beside each: how many of its images are above the
    threshold. The axis is logarithmic where positive scores span more than a factor of fifty.
    """
    rows = {"good": np.asarray(good_scores, float)}
    rows |= {kind: np.asarray(scores, float) for kind, scores in defect_scores_by_kind.items()}
    everything = np.concatenate(list(rows.values()))
    figure, axes = _charts(len(rows), 7.2, 0.9 + 0.62 * len(rows))
    bins, log_scale = _bins(everything if threshold is None else np.append(everything, threshold))
    for ax, (kind, scores) in zip(axes, rows.items(), strict=True):
        ax.hist(scores, bins=bins.tolist(), color=BLUE if kind == "good" else VERMILION, alpha=0.85)
        ax.set(xscale="log" if log_scale else "linear", xlim=(bins[0], bins[-1]), yticks=[])
        ax.minorticks_off()
        ax.spines["left"].set_visible(False)
        label = ax.text(-0.012, 0.25, "", transform=ax.transAxes, ha="right", va="center", color=INK, fontsize=9)
        label.set_parse_math(False)  # $ is a sign like any other
        label.set_text(printable(kind))
        count = f"{len(scores)}"
        if threshold is not None:
            ax.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
            count = f"{np.count_nonzero(scores > threshold)} of {len(scores)}"
        ax.text(1.012, 0.25, count, transform=ax.transAxes, ha="left", va="center", color=MUTED, fontsize=9)
        ax.tick_params(labelbottom=ax is axes[-1])
    note = "images per score" if threshold is None else f"right: images above the threshold {threshold:.4g} (dashed)"
    _title(axes[0], "Scores", note)
    axes[-1].set_xlabel("anomaly score")
    _write_chart(figure, path)


def history_figure(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write the course of training: one small chart per numeric column, over `step` or `epoch` or the row number.

    rows: one mapping per recorded step, as `csv.DictReader` or a list of dicts gives them; what is empty or not a
    number is left out. Without rows the picture says that there was no training.
    """
    axis = next((name for name in ("step", "epoch") if rows and name in rows[0]), "row")
    columns = {name: _column(rows, name, axis) for name in dict.fromkeys(key for row in rows for key in row)}
    columns = {name: points for name, points in columns.items() if name not in ("step", "epoch") and len(points)}
    if not columns:
        figure, ax = _chart(5.0, 1.6)
        ax.text(0.5, 0.5, "no training took place", ha="center", va="center", color=MUTED)
        ax.set_axis_off()
        return _write_chart(figure, path)
    figure, axes = _charts(len(columns), 7.2, 0.8 + 1.35 * len(columns))
    for ax, (name, points) in zip(axes, columns.items(), strict=True):
        ax.plot(points[:, 0], points[:, 1], color=BLUE, linewidth=1.6, marker="o" if len(points) == 1 else "")
        ax.set_yscale("log" if _spans_decades(points[:, 1]) else "linear")
        ax.minorticks_off()
        ax.grid(axis="y", color=FAINT, linewidth=0.8)
        ax.set_title(f"{name}, last {points[-1, 1]:.4g}", loc="left", fontsize=9, color=INK)
        ax.margins(x=0)
    axes[-1].set_xlabel(axis)
    return _write_chart(figure, path)


def exam_figure(
    names: Sequence[str], values: Sequence[float | None], serving: Collection[str], path: Path, title: str = "Exam"
) -> None:
    """Write one dot per named value (an AUROC, say) with its number, those that serve marked; None is shown as n/a."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = max(high - low, 0.02)
    figure, ax = _chart(8.4, 1.1 + 0.3 * len(names))
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        colour = VERMILION if name in serving else BLUE
        words = "n/a" if value is None else f"{value:.3f}"
        if value is not None:
            ax.plot([low - 0.15 * room, value], [row, row], color=FAINT, linewidth=2, zorder=1)
            ax.scatter([value], [row], color=colour, s=42, zorder=2)
        at = (low - 0.15 * room, MUTED) if value is None else (value, INK)
        ax.annotate(words, (at[0], row), (8, 0), textcoords="offset points", va="center", fontsize=9, color=at[1])
    ax.set(xlim=(low - 0.15 * room, high + 0.2 * room), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set(color=VERMILION if name in serving else INK)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    served = any(name in serving for name in names)
    words = f"{title} (red: what serves)" if served else title
    # Of the whole figure: beside long names the axes are narrower than the title.
    figure.suptitle(words, x=0.02, ha="left", fontsize=11, fontweight="bold", color=INK)
    _write_chart(figure, path)


def _column(rows: Sequence[Mapping[str, object]], name: str, axis: str) -> NDArray[np.float64]:
    """The (x, y) points (T, 2) of a column where it holds finite numbers."""
    points = []
    for number, row in enumerate(rows):
        x, y = _number(row.get(axis, number)), _number(row.get(name))
        if x is not None and y is not None:
            points.append((x, y))
    return np.array(points)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _spans_decades(values: NDArray[np.float64]) -> bool:
    return bool(values.size and values.min() > 0 and values.max() > 50 * values.min())


def _bins(values: NDArray[np.float64], count: int = 60) -> tuple[NDArray[np.float64], bool]:
    """Edges (count + 1,) of equal bins around the values with a little room, and whether they are logarithmic."""
    log_scale = _spans_decades(values)
    spread = np.log10(values) if log_scale else values
    low, high = (spread.min(), spread.max()) if spread.size else (0.0, 1.0)
    room = 0.03 * (high - low) or 0.5
    edges = np.linspace(low - room, high + room, count + 1)
    return (10**edges if log_scale else edges), log_scale


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = _charts(1, width, height)
    return figure, axes[0]


def _charts(rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A white figure (inches) with `rows` plain axes above each other, sharing the horizontal one."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        ax.xaxis.label.set(color=INK, fontsize=9)
        ax.yaxis.label.set(color=INK, fontsize=9)
    return figure, axes


def _title(ax: Axes, title: str, note: str = "") -> None:
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_title(note, loc="right", fontsize=9, color=MUTED)


def _write_chart(figure: Figure, path: Path) -> None:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
    write_bytes(path, png(Image.fromarray(np.ascontiguousarray(pixels))))
