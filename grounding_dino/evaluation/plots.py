"""Pictures of results: precision over recall, bars of categories, confusions, reliability.

Importing this imports matplotlib.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence

from grounding_dino.evaluation.calibration import Reliability
from grounding_dino.evaluation.confusion import Confusion
from grounding_dino.evaluation.precision import RECALLS, PrecisionTable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MOST_CATEGORIES = 40  # shown in one picture
_DOTS_PER_INCH = 100


def save_precision_plots(folder: str, task: str, table: PrecisionTable) -> list[str]:
    """`{task}_precision_recall.png` and `{task}_categories.png` in `folder`; returns their paths."""
    by_category = dict(zip(table.names, table.per_category())) if _unique(table.names) else _numbered(table)
    return [
        _save(draw_curves(precision_curves(table), task), folder, f"{task}_precision_recall.png"),
        _save(draw_bars(chosen_bars(by_category), len(by_category), task), folder, f"{task}_categories.png"),
    ]


def save_confusion_plot(folder: str, confusion: Confusion) -> list[str]:
    """`confusion.png`, and all pairs in `confusion.json`, in `folder`; returns the paths."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "confusion.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(confusion.as_json(), file, indent=1)
    return [_save(draw_confusion(confusion), folder, "confusion.png"), path]


# --------------------------------------------------------------------------------------------------- what is drawn


def precision_curves(table: PrecisionTable) -> dict[str, NDArray[np.float64]]:
    """Label -> precision at each recall, in percent, of IoU 0.50, 0.75, and the mean over all IoUs."""
    curves = {}
    for label, iou in (("IoU 0.50", 0.5), ("IoU 0.75", 0.75), ("mean of IoU 0.50 to 0.95", None)):
        curves[label] = 100 * table.curve(iou)
    return curves


def chosen_bars(by_category: Mapping[str, float], limit: int = MOST_CATEGORIES) -> list[tuple[str, float]]:
    """Categories with an AP, best first; of more than `limit` its half of the best and its half of the worst."""
    measured = [(name, value) for name, value in by_category.items() if not math.isnan(value)]
    ranked = sorted(measured, key=lambda item: -item[1])
    if len(ranked) <= limit:
        return ranked
    return [*ranked[: limit - limit // 2], *ranked[len(ranked) - limit // 2 :]]


def shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row as shares of its sum; 0 where a row is empty."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _unique(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _numbered(table: PrecisionTable) -> dict[str, float]:
    return {f"{name} ({number})": ap for number, (name, ap) in enumerate(zip(table.names, table.per_category()))}


# --------------------------------------------------------------------------------------------------------- drawing


def draw_curves(curves: Mapping[str, NDArray[np.float64]], task: str) -> Figure:
    """Precision over recall, a line for each of `curves` with its mean."""
    figure = Figure(figsize=(6, 5))
    axes = figure.add_subplot()
    for label, values in curves.items():
        axes.plot(100 * RECALLS, values, label=f"{label}: {values.mean():.1f}")
    axes.set(xlim=(0, 100), ylim=(0, 105), xlabel="recall (%)", ylabel="precision (%)")
    axes.set_title(f"{task}: mean over the categories with objects")
    axes.grid(alpha=0.3)
    axes.legend(title="AP")
    return figure


def draw_bars(bars: Sequence[tuple[str, float]], num_categories: int, task: str) -> Figure:
    """A horizontal bar for each category, the best on top."""
    figure = Figure(figsize=(7, 1.2 + 0.22 * max(len(bars), 4)))
    axes = figure.add_subplot()
    places = np.arange(len(bars))
    axes.barh(places, [value for _, value in bars])
    for place, (_, value) in enumerate(bars):
        axes.text(value + 0.5, place, f"{value:.1f}", va="center", fontsize=7)
    axes.set_yticks(places, [_short(name) for name, _ in bars], fontsize=8)
    axes.set(xlim=(0, 108), xlabel="AP (%)")
    axes.invert_yaxis()
    parts = "" if len(bars) == num_categories else f", the best and the worst {len(bars) // 2} of {num_categories}"
    axes.set_title(f"{task}: AP by category{parts}", fontsize=10)
    return figure


def draw_confusion(confusion: Confusion, limit: int = MOST_CATEGORIES) -> Figure:
    """The matrix of the (most confused) categories and the background, each row in shares of its objects."""
    categories = confusion.most_confused(limit)
    matrix = confusion.matrix(categories)
    side = 3.5 + 0.28 * len(matrix)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.add_subplot()
    share = shares(matrix)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [*(_short(confusion.names[category]) for category in categories), "(background)"]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for row, column in zip(*np.nonzero(matrix)):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=6, color=colour)
    axes.set(xlabel="detected", ylabel="true")
    chosen = "" if len(categories) == len(confusion.names) else f", {limit} of {len(confusion.names)} categories"
    axes.set_title(
        f"scores from {confusion.score_threshold:g}, IoU from {confusion.iou_threshold:g}{chosen}", fontsize=10
    )
    figure.colorbar(image, label="share of the row", fraction=0.04, pad=0.02)
    return figure


def draw_reliability(parts: Sequence[Reliability], thresholds: Sequence[float]) -> Figure:
    """For each of `parts` the share of right detections over the score, beside the diagonal of perfect scores.

    The numbers on the bars are of detections.

    Args:
        thresholds: of each part, drawn as a line.
    """
    columns = min(4, len(parts))
    rows = math.ceil(len(parts) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows), layout="constrained")
    for place, (part, threshold) in enumerate(zip(parts, thresholds), 1):
        axes = figure.add_subplot(rows, columns, place)
        edges = np.linspace(0, 1, len(part.counts) + 1)
        seen = part.counts > 0
        bars = axes.bar(edges[:-1][seen], part.share_right[seen], width=edges[1], align="edge", edgecolor="white")
        axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as the score says")
        axes.axvline(threshold, color="tab:orange", linewidth=1.5, label="threshold")
        axes.bar_label(bars, [str(number) for number in part.counts[seen]], padding=1, fontsize=6, color="dimgrey")
        axes.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="score", ylabel="share that is right")
        if place == 1:
            axes.legend(fontsize=7, loc="upper left")
        axes.set_title(f"{_short(part.name)}: calibration error {part.expected_error:.3f}", fontsize=9)
    return figure


def save_reliability_plot(path: str, parts: Sequence[Reliability], thresholds: Sequence[float]) -> str:
    """Write :func:`draw_reliability` to a file; returns its path."""
    return _save(draw_reliability(parts, thresholds), os.path.dirname(path) or ".", os.path.basename(path))


def _short(name: str, length: int = 28) -> str:
    text = name if len(name) <= length else name[: length - 3] + "..."
    return text.replace("$", r"\$")  # which would begin a formula


def _save(figure: Figure, folder: str, name: str) -> str:
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    FigureCanvasAgg(figure)  # a canvas without a display, whatever matplotlib is set to
    figure.savefig(path, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    logger.info("drawn: %s", path)
    return path
