"""Pictures of results: the arrays they show, and that the files are pictures of them."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.evaluation.confusion import Confusion
from grounding_dino.evaluation.plots import (
    chosen_bars,
    draw_bars,
    precision_curves,
    save_confusion_plot,
    save_precision_plots,
    shares,
)
from grounding_dino.evaluation.precision import PrecisionTable

import numpy as np
import pytest
from PIL import Image


def table(names: list[str]) -> PrecisionTable:
    """At IoU 0.50 precision 1, 0.75 half of it, elsewhere 0; the first category only up to recall 0.5; last: none."""
    values = np.zeros((10, 101, len(names), 4))
    values[0], values[5] = 1, 0.5
    values[:, 51:, 0] = 0
    values[:, :, -1] = -1
    return PrecisionTable(values, names)


def assert_drawn(path: str) -> None:
    """A picture of some size that is not of one colour, nor white almost everywhere."""
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 200
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert (pixels < 250).any(axis=2).mean() > 0.01


def test_curves_are_means_over_categories_with_objects() -> None:
    curves = precision_curves(table(["a", "b", "none"]))
    assert list(curves) == ["IoU 0.50", "IoU 0.75", "mean of IoU 0.50 to 0.95"]
    first, second = [100.0] * 51 + [50.0] * 50, [50.0] * 51 + [25.0] * 50
    assert curves["IoU 0.50"].tolist() == first and curves["IoU 0.75"].tolist() == second
    assert curves["mean of IoU 0.50 to 0.95"].tolist() == pytest.approx([(a + b) / 10 for a, b in zip(first, second)])


def test_of_many_categories_the_best_and_the_worst_have_bars() -> None:
    by_category = {f"c{i}": float(i) for i in range(10)} | {"none": float("nan")}
    assert chosen_bars(by_category, limit=10) == [(f"c{i}", float(i)) for i in range(9, -1, -1)]
    assert chosen_bars(by_category, limit=5) == [("c9", 9), ("c8", 8), ("c7", 7), ("c1", 1), ("c0", 0)]
    figure = draw_bars(chosen_bars(by_category, limit=4), 11, "bbox")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [9, 8, 1, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c9", "c8", "c1", "c0"]
    assert axes.get_title() == "bbox: AP by category, the best and the worst 2 of 11"


def test_shares_of_rows() -> None:
    assert shares(np.array([[3, 1], [0, 0]])).tolist() == [[0.75, 0.25], [0, 0]]


MANY = pytest.param([f"thing {i}" for i in range(60)], marks=pytest.mark.slow)


@pytest.mark.parametrize("names", [["a", "b", "none"], ["same", "same", "$x$"], MANY])
def test_precision_plots_are_pictures(tmp_path: Path, names: list[str]) -> None:
    paths = save_precision_plots(str(tmp_path / "new"), "bbox", table(names))
    assert [Path(path).name for path in paths] == ["bbox_precision_recall.png", "bbox_categories.png"]
    for path in paths:
        assert_drawn(path)


def test_plots_of_a_data_set_without_objects(tmp_path: Path) -> None:
    for path in save_precision_plots(str(tmp_path), "bbox", table(["none"])):
        assert_drawn(path)


@pytest.mark.parametrize("number", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_the_confusion_plot_is_a_picture(tmp_path: Path, number: int) -> None:
    confusion = Confusion({(0, 0): 5, (0, 1): 2, (number, 1): 3}, [f"thing {i}" for i in range(number)])
    picture, pairs = save_confusion_plot(str(tmp_path), confusion)
    assert_drawn(picture)
    assert json.loads(Path(pairs).read_text())["pairs"][1] == {"true": None, "detected": "thing 1", "count": 3}
