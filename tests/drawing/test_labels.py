"""Labels find places: inside the picture, apart from each other, near their objects, the best first."""

from __future__ import annotations

from typing import Any

from grounding_dino.drawing.labels import MOST_COVERED, MOST_WITHOUT, LabelLayout, Place, PlacedLabel, lay_out_labels
from grounding_dino.drawing.text import MIN_TEXT_SIZE, text_size

import numpy as np
import pytest


def overlap(a, b) -> int:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def check(placed: list[PlacedLabel], boxes: np.ndarray, width: int, height: int) -> None:
    """All are inside the picture, none overlaps another, none is far from its object or without a line to it."""
    rectangles = [label.rectangle for label in placed]
    for x0, y0, x1, y1 in rectangles:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert all(overlap(a, b) == 0 for i, a in enumerate(rectangles) for b in rectangles[:i])
    for label in placed:
        x0, y0, x1, y1 = label.rectangle
        box = boxes[label.index]
        away = max(box[0] - x1, x0 - box[2], box[1] - y1, y0 - box[3])
        assert away <= 3 * (y1 - y0)
        if abs(away - 0.6 * (y1 - y0)) > 2:  # rounding
            assert (label.leader is not None) == (away > 0.6 * (y1 - y0))
        if label.leader:
            (x, y), (end_x, end_y) = label.leader
            assert x0 <= x <= x1 and y0 <= y <= y1 and 0 <= end_x < width and 0 <= end_y < height
            assert box[0] - 1 <= end_x <= box[2] + 1 and box[1] - 1 <= end_y <= box[3] + 1


@pytest.mark.parametrize("seed", range(12))
def test_crowds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers((60, 60), (1600, 1200)))
    if seed % 4 == 0:
        width, height = 4000, 3000
    count = int(rng.integers(1, 150))
    corners = rng.uniform(-0.05, 1.0, (count, 2)) * (width, height)
    sizes = rng.uniform(0.001, (1.0, 0.3, 0.05)[seed % 3], (count, 2)) * (width, height)
    boxes = np.concatenate([corners, corners + sizes], axis=1).clip(0, (width, height, width, height))
    texts = [("cat", "traffic light", "a very long name of something", "")[n % 4] + " 87%" for n in range(count)]
    scores = rng.uniform(0, 1, count).tolist() if seed % 2 else None
    size = text_size(width, height)
    placed = lay_out_labels(texts, boxes, (width, height), size, scores)
    check(placed, boxes, width, height)
    assert len({label.font.size for label in placed}) <= 1
    assert all(MIN_TEXT_SIZE <= label.font.size <= size for label in placed)
    again = lay_out_labels(texts, boxes, (width, height), size, scores)
    assert [label.rectangle for label in placed] == [label.rectangle for label in again]


def test_few_objects_have_all_their_labels_above_and_touching() -> None:
    boxes = np.asarray([(100.0, 100, 200, 200), (300.0, 100, 400, 200)])
    placed = lay_out_labels(["cat 90%", "dog 80%"], boxes, (640, 480), 13, [0.9, 0.8])
    assert [label.rectangle[::3] for label in placed] == [(100, 100), (300, 100)]
    assert not any(label.leader for label in placed)


def test_one_pile_of_boxes_is_told_apart() -> None:
    boxes = np.asarray([(200.0 + 3 * n, 150 + 2 * n, 330 + 3 * n, 260 + 2 * n) for n in range(12)])
    placed = lay_out_labels(["cat 90%"] * 12, boxes, (640, 480), 13, np.linspace(0.9, 0.4, 12).tolist())
    assert len(placed) >= 10 and placed[0].index == 0
    check(placed, boxes, 640, 480)


def test_the_worst_are_left_out_where_there_is_no_room() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 600, (400, 2)) * (1, 0.75)
    boxes = np.concatenate([corners, corners + 25], axis=1)
    scores = rng.permutation(np.linspace(0.3, 1.0, 400)).tolist()
    placed = lay_out_labels(["nucleus 50%"] * 400, boxes, (640, 480), 13, scores)
    check(placed, boxes, 640, 480)
    assert 20 < len(placed) < 400 and placed[0].font.size == 10
    covered = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (label.rectangle for label in placed))
    assert covered <= MOST_COVERED * 640 * 480
    shown = [scores[label.index] for label in placed]
    assert shown == sorted(shown, reverse=True) and max(scores) == shown[0]
    assert np.mean(shown) > np.mean(scores)


def test_no_more_are_tried_after_many_in_a_row_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """900 objects on one spot: sizes that do not do for all end at the first label without a place."""
    tried: dict[int, list[bool]] = {}
    place = LabelLayout.place

    def counted(layout: LabelLayout, size: tuple[int, int], *arguments: Any) -> Place | None:
        found = place(layout, size, *arguments)
        tried.setdefault(size[1], []).append(found is not None)
        return found

    monkeypatch.setattr(LabelLayout, "place", counted)
    boxes = np.repeat([(900.0, 700, 1000, 800)], 900, axis=0)
    placed = lay_out_labels(["cat 90%"] * 900, boxes, (2000, 1500), 30)
    check(placed, boxes, 2000, 1500)
    *larger, smallest = [tried[height] for height in sorted(tried, reverse=True)]
    assert len(larger) == 2 and all(found.count(False) == 1 for found in larger)
    assert smallest == [True] * len(placed) + [False] * MOST_WITHOUT


def test_labels_leave_other_objects_visible() -> None:
    """A small object stands where the label of a large one would go first."""
    boxes = np.asarray([(100.0, 100, 400, 400), (105.0, 84, 125, 98)])
    (large,) = [label for label in lay_out_labels(["person 90%", ""], boxes, (640, 480), 13) if label.index == 0]
    assert overlap(large.rectangle, boxes[1]) == 0


def test_labels_of_areas_are_in_their_middle() -> None:
    point = np.asarray([(300.0, 200, 300, 200)])
    (label,) = lay_out_labels(["sky"], point, (640, 480), 13, centred=True)
    x0, y0, x1, y1 = label.rectangle
    assert (x0 + x1) / 2 == pytest.approx(300, abs=1) and (y0 + y1) / 2 == pytest.approx(200, abs=1)
    both = lay_out_labels(["sky", "sea"], np.repeat(point, 2, axis=0), (640, 480), 13, centred=True)
    assert len(both) == 2 and overlap(both[0].rectangle, both[1].rectangle) == 0


@pytest.mark.parametrize("picture", [(1, 1), (5, 5), (40, 9), (9, 400)])
def test_pictures_smaller_than_a_label(picture: tuple[int, int]) -> None:
    boxes = np.asarray([(0.0, 0, *picture)])
    assert all(label.rectangle[3] <= picture[1] for label in lay_out_labels(["cat 90%"], boxes, picture, 10))


def test_a_layout_can_be_made_to_place_everything() -> None:
    layout = LabelLayout(50, 20)
    places = [layout.place((40, 14), (0, 0, 50, 20), forced=True) for _ in range(30)]
    assert all(place and 0 <= place.corner[0] <= 10 and 0 <= place.corner[1] <= 6 for place in places)
    assert LabelLayout(50, 20).place((60, 14), (0, 0, 50, 20)) is None
