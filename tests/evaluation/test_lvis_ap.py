"""LVIS's average precision against the `lvis` package, and against answers known beforehand."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

from grounding_dino.evaluation.lvis_ap import Detections, LVISTruth, TopPerCategory, lvis_metrics, lvis_precision, match
from grounding_dino.evaluation.precision import AREA_RANGES, RECALLS, interpolate

import numpy as np
import pycocotools.mask as mask_util
import pytest

SIZE = 320  # of the generated pictures
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def rows_of(truth: LVISTruth, outputs: dict[int, Any]) -> Detections:
    """Outputs by picture, as rows."""
    parts = []
    for image, image_id in enumerate(truth.image_ids.tolist()):
        instances = outputs[image_id]["instances"]
        boxes = instances.pred_boxes.tensor.numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        number = len(boxes)
        columns = [np.full(number, image), instances.pred_classes.numpy(), np.arange(number)]
        parts.append(Detections(*(c.astype(np.int32) for c in columns), instances.scores.numpy(), boxes))
    return Detections.joined(parts)


def as_results(truth: LVISTruth, rows: Detections) -> list[dict[str, Any]]:
    """Rows in COCO's results format."""
    columns = (truth.image_ids[rows.images], truth.category_ids[rows.categories], rows.boxes, rows.scores)
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, values)) for values in zip(*(column.tolist() for column in columns))]


def by_package(
    content: dict[str, Any],
    results: list[dict[str, Any]],
    limit: int,
    monkeypatch: pytest.MonkeyPatch,
    task: str = "bbox",
) -> tuple[np.ndarray, dict[str, float]]:
    """What the `lvis` package, made for an older numpy, says: precision (IoUs, recalls, categories, areas), metrics."""
    monkeypatch.setattr(np, "float", float, raising=False)
    from lvis import LVIS, LVISEval, LVISResults

    truth = LVIS.__new__(LVIS)
    truth.dataset = copy.deepcopy(content)
    truth.logger = logging.getLogger("lvis")
    truth._create_index()
    evaluation = LVISEval(truth, LVISResults(truth, copy.deepcopy(results), max_dets=limit), task)
    evaluation.run()
    return evaluation.eval["precision"], evaluation.get_results()


@pytest.mark.parametrize("seed", [0, 3])
def test_precision_is_that_of_the_lvis_package(generated: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = generated.content(seed)
    truth = LVISTruth(content)
    rows = rows_of(truth, generated.noisy(content, seed))
    expected, results = by_package(content, as_results(truth, rows), -1, monkeypatch)
    table = lvis_precision(truth, rows)
    np.testing.assert_allclose(table.values, expected, rtol=0, atol=1e-12)
    metrics = lvis_metrics(table, truth.groups)
    assert list(metrics) == list(METRICS)
    for name in METRICS:
        assert metrics[name] == pytest.approx(100 * results[name], abs=1e-9)
    assert 5 < metrics["AP"] < 95 and len(set(metrics.values())) == len(metrics)
    # the case is one that the rules show in: each of them changes the result
    for key, item in (("neg_category_ids", []), ("not_exhaustive_category_ids", [])):
        other = {**content, "images": [{**image, key: item} for image in content["images"]]}
        assert not np.array_equal(lvis_precision(LVISTruth(other), rows).values, table.values)
    other = {**content, "annotations": [{**item, "ignore": 0} for item in content["annotations"]]}
    assert not np.array_equal(lvis_precision(LVISTruth(other), rows).values, table.values)


def disc(box: Any) -> dict[str, Any]:
    """A mask of an ellipse in a box (XYWH), as RLE."""
    x, y, w, h = box
    rows, columns = np.ogrid[:SIZE, :SIZE]
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    encoded = mask_util.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [SIZE, SIZE], "counts": encoded["counts"].decode("ascii")}


def test_precision_of_masks_is_that_of_the_lvis_package(generated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = generated.content(3)
    for number, item in enumerate(content["annotations"]):
        x, y, w, h = item["bbox"]
        item["segmentation"] = disc(item["bbox"]) if number % 3 else [[x, y, x + w, y, x + w / 2, y + h]]
    truth = LVISTruth(content, masks=True)
    rows = rows_of(truth, generated.noisy(content, 3))
    rows = rows[rows.boxes[:, 2:].min(axis=1) > 1]
    masks = np.array([disc(box)["counts"] for box in rows.boxes], dtype=object)
    rows = replace(rows, masks=masks)
    results = [
        {**{k: v for k, v in result.items() if k != "bbox"}, "segmentation": {"size": [SIZE, SIZE], "counts": counts}}
        for result, counts in zip(as_results(truth, rows), masks)
    ]
    expected, metrics = by_package(content, results, -1, monkeypatch, "segm")
    table = lvis_precision(truth, rows, masks=True)
    np.testing.assert_allclose(table.values, expected, rtol=0, atol=1e-12)
    assert table.metrics()["APm"] == pytest.approx(100 * metrics["APm"]) and 5 < table.metrics()["AP"] < 95
    assert not np.array_equal(table.values, lvis_precision(truth, rows).values)


@pytest.mark.parametrize("seed", [0, 3])
def test_equal_scores_are_ordered_as_in_the_lvis_package(
    generated: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = generated.content(seed)
    truth = LVISTruth(content)
    rows = rows_of(truth, generated.noisy(content, seed))
    rows = replace(rows, scores=np.round(rows.scores * 3).astype(np.float32))
    assert len(set(rows.scores.tolist())) < 6
    expected, _ = by_package(content, as_results(truth, rows), -1, monkeypatch)
    np.testing.assert_allclose(lvis_precision(truth, rows).values, expected, rtol=0, atol=1e-12)
    # and within a picture's limit
    best = [np.flatnonzero(rows.images == image) for image in range(len(truth.image_ids))]
    best = [found[np.argsort(-rows.scores[found], kind="stable")[:5]] for found in best]
    expected, _ = by_package(content, as_results(truth, rows), 5, monkeypatch)
    limited = lvis_precision(truth, rows[np.concatenate(best)]).values
    np.testing.assert_allclose(limited, expected, rtol=0, atol=1e-12)
    assert not np.array_equal(limited, lvis_precision(truth, rows).values)


def test_fixed_precision_is_that_of_the_package_on_the_best_of_each_category(
    generated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = generated.content()
    truth = LVISTruth(content)
    rows = rows_of(truth, generated.noisy(content))
    results = as_results(truth, rows)
    limit = 20
    kept = []
    for number in truth.category_ids.tolist():
        own = [result for result in results if result["category_id"] == number]
        assert len(own) > limit
        kept += sorted(own, key=lambda result: -result["score"])[:limit]
    expected, _ = by_package(content, kept, -1, monkeypatch)
    top = TopPerCategory(len(truth.names), limit)
    top.add(rows)
    fixed = lvis_precision(truth, top.result())
    np.testing.assert_allclose(fixed.values, expected, rtol=0, atol=1e-12)
    assert not np.array_equal(fixed.values, lvis_precision(truth, rows).values)


def test_the_best_of_each_category_do_not_depend_on_the_order_or_the_buffer() -> None:
    rng = np.random.default_rng(0)
    number = 3000
    rows = Detections(
        images=np.sort(rng.integers(0, 50, number)).astype(np.int32),
        categories=rng.integers(0, 4, number).astype(np.int32),
        ranks=np.arange(number, dtype=np.int32),
        scores=rng.integers(0, 40, number).astype(np.float32),  # many are equal
        boxes=rng.random((number, 4)).astype(np.float32),
    )
    key = list(zip(rows.categories, -rows.scores, rows.images, rows.ranks))
    ranked = sorted(range(number), key=key.__getitem__)
    expected = [i for c in range(4) for i in [row for row in ranked if rows.categories[row] == c][:100]]
    for pictures, buffer in ((np.arange(50), 200), (rng.permutation(50), 200), (np.arange(50), 10**6)):
        top = TopPerCategory(4, limit=100, buffer=buffer)
        for picture in pictures:
            top.add(rows[rows.images == picture])
        assert top.result().ranks.tolist() == expected
        assert np.array_equal(top.result().boxes, rows.boxes[expected])


def test_the_memory_of_the_best_is_bounded() -> None:
    top = TopPerCategory(1, limit=10, buffer=100)
    for picture in range(200):
        column = np.full(20, picture, dtype=np.int32)
        scores = np.linspace(0, 1, 20, dtype=np.float32) + picture
        part = Detections(column, np.zeros_like(column), np.arange(20, dtype=np.int32), scores, np.zeros((20, 4)))
        top.add(part)
        assert top._num_new <= 100 and len(top._kept) <= 10
    assert top.result().images.tolist() == [199] * 10


# ------------------------------------------------------------------------------------------------- by hand


def one_category(objects: list[list[float]], images: int = 1, **facts: Any) -> LVISTruth:
    """Objects of one category in the first of some pictures; `facts` are of all pictures."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": [], **facts}
    annotations = [
        {"id": i, "image_id": 1, "category_id": 5, "bbox": box, "area": box[2] * box[3]}
        for i, box in enumerate(objects)
    ]
    categories = [{"id": 5, "name": "thing", "frequency": "c"}]
    return LVISTruth(
        {
            "images": [{"id": i + 1, **lists} for i in range(images)],
            "annotations": annotations,
            "categories": categories,
        }
    )


def detected(*items: tuple[int, float, list[float]]) -> Detections:
    """(picture, score, XYWH box) of the one category."""
    images, scores, boxes = zip(*items)
    zeros = np.zeros(len(items), dtype=np.int32)
    ranks = np.arange(len(items), dtype=np.int32)
    return Detections(np.int32(images), zeros, ranks, np.float32(scores), np.float32(boxes))


HERE, THERE, NOWHERE = [0.0, 0, 100, 100], [200.0, 0, 100, 100], [0.0, 200, 100, 100]


def test_right_then_wrong_then_right() -> None:
    truth = one_category([HERE, THERE])
    found = detected((0, 0.9, HERE), (0, 0.8, NOWHERE), (0, 0.7, THERE))
    # recall 0.5 at precision 1, recall 1 at precision 2/3: of 101 recalls 51 reach the first
    expected = 100 * (51 * 1 + 50 * 2 / 3) / 101
    metrics = lvis_metrics(lvis_precision(truth, found), truth.groups)
    assert metrics["AP"] == pytest.approx(expected) == metrics["APc"] == metrics["APl"]
    assert np.isnan([metrics["APs"], metrics["APr"], metrics["APf"]]).all()


@pytest.mark.parametrize(
    "facts,expected",
    [
        ({}, 100.0),  # nothing is known of the category in the second picture
        ({"neg_category_ids": [5]}, 50.0),  # it is not there: a false alarm before the hit
        ({"neg_category_ids": [5], "not_exhaustive_category_ids": [5]}, 100.0),  # false alarms are not counted
    ],
)
def test_what_is_known_of_a_picture_decides_about_false_alarms(facts: dict[str, Any], expected: float) -> None:
    truth = one_category([HERE], images=2, **facts)
    found = detected((1, 0.9, NOWHERE), (0, 0.8, HERE))
    assert lvis_precision(truth, found).average() == pytest.approx(expected)


def test_the_iou_of_a_detection_says_at_which_thresholds_it_is_right() -> None:
    truth = one_category([HERE])
    table = lvis_precision(truth, detected((0, 0.9, [0, 0, 100, 72])))  # IoU 0.72
    assert [table.average(iou=iou) for iou in (0.5, 0.7, 0.75)] == [pytest.approx(100), pytest.approx(100), 0]
    assert table.average() == pytest.approx(50)
    assert table.curve(0.5).tolist() == pytest.approx([1.0] * 101) and table.curve().mean() == pytest.approx(0.5)


def test_no_detection_is_0_percent_and_no_object_is_not_a_number() -> None:
    assert lvis_precision(one_category([HERE]), Detections.empty()).average() == 0
    empty = lvis_precision(one_category([]), detected((0, 0.9, HERE)))
    assert np.isnan(empty.average()) and np.isnan(empty.curve()).all() and np.isnan(empty.per_category()).all()


def test_matching_takes_the_largest_overlap_objects_that_count_first_and_each_once() -> None:
    overlaps = np.array([[0.6, 0.8, 0.9], [0.7, 0.8, 0.0], [0.7, 0.0, 0.0], [0.0, 0.0, 0.4]])
    ignored = np.array([[False, False, False], [False, False, True]])
    hit, uncounted = match(overlaps, ignored)
    assert hit.shape == (2, 10, 4)
    assert hit[0, 0].tolist() == [True, True, True, False] and not uncounted[0].any()
    # the ignored third object is left to nobody: the first takes the second, the second the first, the third nothing
    assert hit[1, 0].tolist() == [True, True, False, False] and not uncounted[1, 0].any()
    assert hit[1, 7].tolist() == [False, False, False, False] and uncounted[1, 7].tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_interpolated_precision() -> None:
    values = interpolate(np.array([True, False, True, False]), np.array([False, True, False, False]), 4)
    assert values[RECALLS <= 0.25].tolist() == pytest.approx([1.0] * 26)
    assert values[(RECALLS > 0.25) & (RECALLS <= 0.5)].tolist() == pytest.approx([2 / 3] * 25)
    assert not values[RECALLS > 0.5].any()
    assert not interpolate(np.zeros(0, bool), np.zeros(0, bool), 1).any()


def test_area_ranges_include_both_ends() -> None:
    truth = one_category([[0.0, 0, 32, 32]])
    table = lvis_precision(truth, detected((0, 0.9, [0.0, 0, 32, 32])))
    found = {name: table.average(area=name) for name in AREA_RANGES}
    assert found["small"] == found["medium"] == pytest.approx(100) and np.isnan(found["large"])


# ---------------------------------------------------------------------------------------------- bad files


def test_a_file_in_cocos_format_is_refused(generated: Any) -> None:
    content = generated.content()
    del content["images"][0]["neg_category_ids"]
    with pytest.raises(ValueError, match=r"one of the images \(id 10\) has no \['neg_category_ids'\]"):
        LVISTruth(content)


def test_unknown_ids_and_frequencies_are_refused(generated: Any) -> None:
    truth = LVISTruth(generated.content())
    with pytest.raises(ValueError, match=r"the ids \[9, 99\] are none of the file's 14 pictures"):
        truth.image_indices(np.array([10, 99, 9]))
    with pytest.raises(ValueError, match=r"the ids \[1\] are none of the file's 5 categories"):
        truth.category_indices(np.array([2, 1]))
    content = generated.content()
    content["categories"][1]["frequency"] = "x"
    with pytest.raises(ValueError, match=r"category 'thing3' has the frequency 'x'; LVIS knows \['r', 'c', 'f'\]"):
        LVISTruth(content)
    for category in content["categories"]:
        del category["frequency"]
    assert LVISTruth(content).groups == {}
