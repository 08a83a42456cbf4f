"""Which pairs of queries and names become detections, on pairs made by hand."""

from __future__ import annotations

import itertools

from grounding_dino.detection_choice import SAME_OBJECT_IOU, DetectionChoice, pairwise_iou
from grounding_dino.thresholds import CategoryThresholds

import numpy as np
import pytest

NAMES = ["cup", "plate", "bowl", "vase"]
HERE, THERE, NEARLY_HERE = (0, 0, 10, 10), (50, 50, 60, 60), (0, 0, 10, 9)


def rows(choice, *pairs, not_wanted=()):
    """The chosen rows of pairs (score, name, query, box), which are sorted first as models give them."""
    pairs = sorted(pairs, key=lambda pair: -pair[0])
    scores, names, queries, boxes = zip(*pairs)
    classes = np.array([NAMES.index(name) for name in names])
    kept = choice.rows(
        np.array(scores, np.float32),
        classes,
        np.array(queries),
        np.array(boxes, np.float32),
        NAMES,
        [NAMES.index(name) for name in not_wanted],
    )
    return [(pairs[row][1], pairs[row][2]) for row in kept]


def test_one_threshold_and_the_best_name_of_each_query():
    pairs = [(0.5, "cup", 0, HERE), (0.4, "plate", 0, HERE), (0.45, "plate", 1, HERE), (0.2, "cup", 2, THERE)]
    assert rows(DetectionChoice(0.3), *pairs) == [("cup", 0), ("plate", 1)]
    assert rows(DetectionChoice(0.3, best_label_only=False), *pairs) == [("cup", 0), ("plate", 1), ("plate", 0)]
    assert rows(DetectionChoice(0.5), *pairs) == []  # has to be exceeded


def test_a_category_has_its_own_threshold_behind_the_competition():
    thresholds = CategoryThresholds(0.3, {"Cup": 0.6, "plate": 0.1})
    pairs = [(0.5, "cup", 0, HERE), (0.4, "plate", 0, HERE), (0.2, "plate", 1, THERE), (0.25, "bowl", 2, HERE)]
    assert rows(DetectionChoice(thresholds), *pairs) == [("plate", 1)]  # query 0 is a cup, if a bad one
    assert rows(DetectionChoice(thresholds, False), *pairs) == [("plate", 0), ("plate", 1)]
    assert DetectionChoice(thresholds).least(NAMES) == 0.1


@pytest.mark.parametrize("best_label_only", [True, False])
def test_a_query_whose_best_name_is_not_wanted_gives_nothing(best_label_only):
    choice = DetectionChoice(0.3, best_label_only)
    pairs = [(0.6, "vase", 0, HERE), (0.5, "cup", 0, HERE), (0.5, "cup", 1, THERE), (0.4, "vase", 1, THERE)]
    assert rows(choice, *pairs, not_wanted=["vase"]) == [("cup", 1)]


def test_names_below_one_that_is_not_wanted_are_dropped():
    pairs = [(0.6, "cup", 0, HERE), (0.5, "vase", 0, HERE), (0.4, "plate", 0, HERE)]
    assert rows(DetectionChoice(0.3, False), *pairs, not_wanted=["vase"]) == [("cup", 0)]
    assert rows(DetectionChoice(0.3, False), *pairs) == [("cup", 0), ("vase", 0), ("plate", 0)]


def test_what_is_not_wanted_drops_worse_detections_of_its_box():
    """As names of different prompts do, which share no query."""
    vase = (0.6, "vase", 0, HERE)
    choice = DetectionChoice(0.3)
    assert rows(choice, vase, (0.5, "cup", 1, NEARLY_HERE), not_wanted=["vase"]) == []
    assert rows(choice, vase, (0.7, "cup", 1, NEARLY_HERE), not_wanted=["vase"]) == [("cup", 1)]
    assert rows(choice, vase, (0.5, "cup", 1, THERE), not_wanted=["vase"]) == [("cup", 1)]
    assert rows(choice, vase, (0.6, "cup", 1, HERE), not_wanted=["vase"]) == [("cup", 1)]  # of equal ones it stays


def test_a_second_best_name_drops_nothing_elsewhere():
    pairs = [(0.7, "cup", 0, HERE), (0.6, "vase", 0, HERE), (0.5, "cup", 1, HERE)]
    assert rows(DetectionChoice(0.3), *pairs, not_wanted=["vase"]) == [("cup", 0), ("cup", 1)]


def test_what_is_not_wanted_needs_no_threshold():
    thresholds = CategoryThresholds(0.3, {"vase": 0.9})
    pairs = [(0.6, "vase", 0, HERE), (0.5, "cup", 0, HERE)]
    assert rows(DetectionChoice(thresholds), *pairs, not_wanted=["vase"]) == []


@pytest.mark.parametrize("best_label_only", [True, False])
@pytest.mark.parametrize("not_wanted", [(), ("bowl", "vase")])
def test_as_written_down_pair_by_pair(best_label_only, not_wanted):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 6, (40, 2))
    boxes = np.hstack([corners, corners + rng.integers(5, 9, (40, 2))])
    pairs = [
        (float(score), name, query, tuple(boxes[query]))
        for (query, name), score in zip(itertools.product(range(40), NAMES), rng.permutation(160) / 160)
    ]
    thresholds = CategoryThresholds(0.4, {"plate": 0.7})
    expected = []
    for score, name, query, box in sorted(pairs, reverse=True):
        own = [pair for pair in pairs if pair[2] == query]
        if name in not_wanted or any(other[1] in not_wanted and other[0] > score for other in own):
            continue
        winners = [max(pair for pair in pairs if pair[2] == other) for other in range(40)]
        beaten = any(
            winner[1] in not_wanted and winner[0] > score and slow_iou(winner[3], box) >= SAME_OBJECT_IOU
            for winner in winners
        )
        best = max(own) == (score, name, query, box)
        if not beaten and score > thresholds.of(name) and (best or not best_label_only):
            expected.append((name, query))
    assert rows(DetectionChoice(thresholds, best_label_only), *pairs, not_wanted=not_wanted) == expected
    assert 5 < len(expected) < 100


def test_nothing_comes_of_nothing():
    none = np.zeros(0, np.int64)
    for not_wanted in ((), (3,)):
        kept = DetectionChoice().rows(np.zeros(0, np.float32), none, none, np.zeros((0, 4)), NAMES, not_wanted)
        assert kept.tolist() == []


def test_overlaps():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], np.float32)
    expected = [[slow_iou(a, b) for b in boxes] for a in boxes]
    assert np.allclose(pairwise_iou(boxes, boxes), expected) and expected[0][1] == pytest.approx(1 / 3)
    assert pairwise_iou(boxes, boxes[:0]).shape == (4, 0)


def slow_iou(a, b):
    width, height = (max(0.0, float(min(a[i + 2], b[i + 2]) - max(a[i], b[i]))) for i in (0, 1))
    areas = [float((c[2] - c[0]) * (c[3] - c[1])) for c in (a, b)]
    return width * height / (sum(areas) - width * height) if sum(areas) else 0.0
