"""Which detections are right, and which thresholds follow, on detections made by hand and drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from grounding_dino.evaluation.calibration import (
    Calibrator,
    JudgedCategory,
    Measures,
    compared,
    gain_over_default,
    judge,
    mean_f1,
    reliability_of,
    total,
)
from grounding_dino.thresholds import CategoryThresholds

import numpy as np
import pytest
from pycocotools.coco import COCO

Box = dict[str, Any]


def truth_of(objects: Sequence[Box], num_images: int = 1, names: Sequence[str] = ("cup",)) -> COCO:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": n, "height": 100, "width": 100} for n in range(1, num_images + 1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [
            {"image_id": 1, "category_id": 1, "iscrowd": 0, **item, "id": n, "area": item["bbox"][2] * item["bbox"][3]}
            for n, item in enumerate(objects, 1)
        ],
        "info": {},
    }
    truth.createIndex()
    return truth


def category(name: str, right: Sequence[float], wrong: Sequence[float], num_objects: int) -> JudgedCategory:
    """From the scores of right and wrong detections."""
    pairs = sorted([(score, True) for score in right] + [(score, False) for score in wrong], reverse=True)
    scores, correct = zip(*pairs) if pairs else ((), ())
    return JudgedCategory(name, np.array(scores, np.float32), np.array(correct, bool), num_objects)


def drawn(name: str, num_objects: int, cut: float, rng: np.random.Generator) -> JudgedCategory:
    """Right above `cut` and wrong below it, with some noise."""
    right, wrong = rng.normal(cut + 0.1, 0.08, num_objects), rng.normal(cut - 0.1, 0.08, num_objects)
    return category(name, right.clip(0.02, 0.98).tolist(), wrong.clip(0.02, 0.98).tolist(), num_objects)


# Matching


def plainly_judged(truth: COCO, results: Sequence[Box], number: int, iou: float) -> list[tuple[float, bool]]:
    """Detection by detection, in order of the scores, as COCO's rule is written; those in crowds alone are left out."""
    judged = []
    taken: set[int] = set()
    for found in sorted((each for each in results if each["category_id"] == number), key=lambda each: -each["score"]):
        own = [a for a in truth.imgToAnns[found["image_id"]] if a["category_id"] == number]
        best, best_overlap = None, iou
        for item in own:
            if not item["iscrowd"] and item["id"] not in taken and overlap(found["bbox"], item["bbox"]) >= best_overlap:
                best, best_overlap = item, overlap(found["bbox"], item["bbox"])
        if best is not None:
            taken.add(best["id"])
        elif any(item["iscrowd"] and overlap(found["bbox"], item["bbox"], True) >= iou for item in own):
            continue
        judged.append((found["score"], best is not None))
    return judged


def overlap(a: Sequence[float], b: Sequence[float], b_is_crowd: bool = False) -> float:
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    union = a[2] * a[3] if b_is_crowd else a[2] * a[3] + b[2] * b[3] - shared
    return shared / union


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_right_is_what_a_plain_loop_finds_right(iou: float) -> None:
    rng = np.random.default_rng(0)
    boxes = [[*rng.integers(0, 40, 2).tolist(), *rng.integers(10, 30, 2).tolist()] for _ in range(90)]
    facts = [{"image_id": int(rng.integers(1, 7)), "category_id": int(rng.integers(1, 3))} for _ in boxes]
    truth = truth_of(
        [{**fact, "bbox": box, "iscrowd": int(rng.random() < 0.15)} for fact, box in zip(facts, boxes)], 6, "ab"
    )
    results = []
    for fact, box, score in zip(facts * 3, boxes * 3, (rng.permutation(270) / 270).tolist()):
        moved = (np.array(box) + rng.integers(-4, 5, 4)).tolist()
        results.append({**fact, "bbox": moved, "score": score})
    categories = judge(truth, results, iou)
    for number, each in enumerate(categories, 1):
        expected = plainly_judged(truth, results, number, iou)
        assert each.scores.tolist() == pytest.approx([score for score, _ in expected])
        assert each.right.tolist() == [right for _, right in expected] and 10 < each.right.sum() < len(expected)
        objects = [a for a in truth.dataset["annotations"] if a["category_id"] == number and not a["iscrowd"]]
        assert each.num_objects == len(objects)
    assert [each.name for each in categories] == ["a", "b"]


def test_detections_in_crowds_count_for_nothing() -> None:
    objects = [{"bbox": [0, 0, 50, 50], "iscrowd": 1}, {"bbox": [60, 60, 10, 10]}]
    inside = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 10, 10], "score": 0.9}
    (found,) = judge(truth_of(objects), [inside, {**inside, "bbox": [60, 60, 10, 10], "score": 0.5}])
    assert found.scores.tolist() == [0.5] and found.right.tolist() == [True] and found.num_objects == 1


def test_a_set_without_detections() -> None:
    (found,) = judge(truth_of([{"bbox": [0, 0, 50, 50]}]), [])
    assert len(found.scores) == 0 and found.measures(0.5) == Measures(1, 0, 0)


# Measures


def test_measures_at_a_threshold() -> None:
    found = category("cup", right=[0.9, 0.6], wrong=[0.6, 0.3], num_objects=4)
    at = found.measures(0.5)
    assert (at.num_detections, at.num_right) == (3, 2)
    assert (at.precision, at.recall, at.f1) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert found.measures(0.6).num_detections == 1, "scores have to exceed it, as those of the predictor"
    assert math.isnan(found.measures(0.95).precision) and found.measures(0.95).f1 == 0
    nothing = category("none", [], [0.8], 0).measures(0.5)
    assert math.isnan(nothing.recall) and math.isnan(nothing.f1) and nothing.precision == 0
    assert total([at, nothing]) == Measures(4, 4, 2) and mean_f1([at, nothing]) == at.f1
    assert math.isnan(mean_f1([nothing]))


# Thresholds


@pytest.mark.parametrize("pool_weight", [0, 3, 10])
def test_each_category_gets_its_own_best_cut(pool_weight: int) -> None:
    rng = np.random.default_rng(0)
    cuts = {"low": 0.2, "middle": 0.45, "high": 0.7}
    categories = [drawn(name, 300, cut, rng) for name, cut in cuts.items()]
    found = Calibrator(pool_weight=pool_weight)(categories)
    for each in categories:
        threshold = found.thresholds.of(each.name)
        assert threshold == pytest.approx(cuts[each.name], abs=0.06)
        counts, rights = each.kept(np.linspace(0.01, 0.99, 981))
        assert each.measures(threshold).f1 > (2 * rights / (counts + 300)).max() - 0.01
    assert not found.unreachable and not found.without_objects


def test_a_threshold_lies_between_right_and_wrong_and_is_what_the_file_says() -> None:
    found = Calibrator()([category("cup", [0.8] * 50, [0.4] * 50, 50)])
    assert 0.45 < found.thresholds.of("cup") < 0.75 and 0.4 < found.thresholds.default < 0.8
    for threshold in (found.thresholds.of("cup"), found.thresholds.default):
        assert threshold == round(threshold, 4), "measured and written thresholds are one"


def test_unknown_names_and_those_without_objects_have_the_threshold_of_all() -> None:
    rng = np.random.default_rng(1)
    many = [drawn(f"many {n}", 200, 0.5, rng) for n in range(4)]
    found = Calibrator()([*many, category("none", [], [0.9, 0.8], 0)])
    assert found.without_objects == ["none"] and found.thresholds.default == pytest.approx(0.5, abs=0.05)
    assert found.thresholds.of("none") == found.thresholds.default and "none" not in found.thresholds.categories


@pytest.mark.parametrize("num_objects", [3, 20, 100])
def test_less_is_lost_than_with_the_best_cut_through_plain_scores(num_objects: int) -> None:
    """F1 on fresh detections, over draws of a category beside others whose cuts are spread around its own."""
    rng = np.random.default_rng(2)
    lost: dict[str, list[float]] = {"plain": [], "steadied": []}
    for _ in range(25):
        others = [drawn(f"other {n}", 100, cut, rng) for n, cut in enumerate(rng.normal(0.45, 0.08, 2))]
        few, fresh = drawn("few", num_objects, 0.45, rng), drawn("few", 2000, 0.45, rng)
        grid = np.concatenate([[0.01], few.scores.astype(float), [0.99]])
        grid = np.sort((grid[:, None] + grid).flatten() / 2)
        counts, rights = few.kept(grid)
        plain = float(grid[np.argmax(rights / (counts + num_objects))])
        counts, rights = fresh.kept(np.linspace(0.3, 0.6, 61))
        best = (2 * rights / (counts + 2000)).max()
        lost["plain"].append(best - fresh.measures(plain).f1)
        lost["steadied"].append(best - fresh.measures(Calibrator()([*others, few]).thresholds.of("few")).f1)
    assert np.mean(lost["steadied"]) < 0.8 * np.mean(lost["plain"])


def test_every_category_weighs_alike_in_the_pool() -> None:
    rng = np.random.default_rng(3)
    frequent, others = drawn("frequent", 5000, 0.8, rng), [drawn(f"other {n}", 50, 0.4, rng) for n in range(4)]
    assert Calibrator()([frequent, *others]).thresholds.default < 0.55


def test_a_single_object() -> None:
    found = Calibrator()([category("one", [0.8], [], 1), category("missed", [], [0.3], 1)])
    assert 0.01 <= found.thresholds.of("one") < 0.8 and 0.3 < found.thresholds.of("missed") < 0.8


def test_nothing_to_calibrate_with_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="no picture has an object"):
        Calibrator()([category("cup", [], [0.4], 0)])


def test_a_wanted_precision_with_as_much_found_as_can_be() -> None:
    rng = np.random.default_rng(4)
    categories = [drawn("a", 400, 0.3, rng), drawn("b", 400, 0.6, rng)]
    found = Calibrator(precision=0.9)(categories)
    for each in categories:
        threshold = found.thresholds.of(each.name)
        assert 0.9 <= each.measures(threshold).precision < 0.93
        counts, rights = each.kept(np.arange(0.01, threshold - 0.01, 0.001))
        assert (rights < 0.905 * counts).all()
    assert not found.unreachable


def test_categories_that_cannot_reach_a_precision_are_said_and_give_nothing() -> None:
    good, bad = category("good", [0.7] * 40, [0.2] * 40, 40), category("bad", [0.6, 0.5], [0.9, 0.8] * 10, 40)
    empty = category("empty", [], [], 40)
    found = Calibrator(precision=0.95)([good, bad, empty])
    assert found.unreachable == ["bad", "empty"] and found.thresholds.of("bad") == 1.0
    assert bad.measures(1.0).num_detections == 0 and found.thresholds.of("good") < 0.7
    lost = Calibrator(precision=0.95)([bad])
    assert lost.thresholds.default == 1.0 and lost.unreachable == ["bad"]


def test_the_default_stands_beside_the_thresholds() -> None:
    each = category("cup", [0.5, 0.2], [0.4], 2)
    ((_, mine, default),) = compared([each], CategoryThresholds(0.9, {"cup": 0.1}))
    assert (mine.num_detections, default.num_detections) == (3, 2)


def test_the_gain_over_the_default_and_its_error() -> None:
    """Of 100 pictures with an object each, in which the model scores 0.3 where it is right and 0.2 where it is not."""
    rng = np.random.default_rng(6)
    pictures = np.arange(100)
    found = rng.random(100) < 0.8
    scores = np.concatenate([np.full(found.sum(), 0.3), np.full(100, 0.2)]).astype(np.float32)
    right = np.arange(len(scores)) < found.sum()
    each = JudgedCategory("cup", scores, right, 100, np.concatenate([pictures[found], pictures]), np.ones(100, int))
    gain, error = gain_over_default([each], CategoryThresholds(0.25))
    assert gain == each.measures(0.25).f1 - each.measures(0.35).f1 > 0.8
    shares = [rng.choice(found, 100).mean() for _ in range(4000)]
    assert error == pytest.approx(np.std([2 * share / (share + 1) for share in shares]), rel=0.1)
    assert gain_over_default([each], CategoryThresholds(0.35)) == (0.0, 0.0)
    assert all(map(math.isnan, gain_over_default([category("none", [], [0.4], 0)], CategoryThresholds(0.25))))


def test_draws_without_an_object_do_not_count() -> None:
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.3}]
    found = judge(truth_of([{"bbox": [0, 0, 5, 5]}], num_images=2), results)
    assert gain_over_default(found, CategoryThresholds(0.25)) == (1.0, 0.0)


# Reliability


def test_reliability_of_scores_that_are_probabilities_and_of_others() -> None:
    rng = np.random.default_rng(5)
    scores = np.sort(rng.uniform(0.06, 1, 20_000))[::-1].astype(np.float32)
    honest = JudgedCategory("honest", scores, rng.random(20_000) < scores, 1)
    bold = JudgedCategory("bold", scores, rng.random(20_000) < scores / 2, 1)
    assert reliability_of([honest], "honest").expected_error < 0.02
    assert reliability_of([bold], "bold").expected_error == pytest.approx(scores.mean() / 2, abs=0.02)


def test_reliability_of_a_few_detections() -> None:
    part = reliability_of([category("cup", [0.95, 1.0, 0.62], [0.68, 0.02], 3)], "cup")
    assert part.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 2], "none below 0.05"
    assert part.confidence[[6, 9]] == pytest.approx([0.65, 0.975]) and part.share_right[[6, 9]].tolist() == [0.5, 1.0]
    assert part.expected_error == pytest.approx((0.15 + 0.025) / 2)
    assert math.isnan(reliability_of([category("none", [], [], 0)], "none").expected_error)
