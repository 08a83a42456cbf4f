"""COCO's average precision and confusions, against pycocotools and counts by hand."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.evaluation.coco_ap import CocoEvaluator, coco_precision
from grounding_dino.evaluation.confusion import Confusion, confusion_of, confusions_of_picture
from grounding_dino.structures import RleMasks

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Register = Callable[..., str]


def coco_content(generated: Any) -> dict[str, Any]:
    """The generated data set as COCO: the ignored objects are crowds."""
    content = generated.content()
    annotations = [{**item, "iscrowd": item["ignore"], "ignore": 0} for item in content["annotations"]]
    return {**content, "annotations": annotations}


def run(evaluator: Any, outputs: dict[int, Any]) -> Any:
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def load(content: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco


@pytest.mark.parametrize("limit", [100, 3])
def test_the_numbers_are_pycocotools(generated: Any, register: Register, tmp_path: Path, limit: int) -> None:
    content = coco_content(generated)
    evaluator = CocoEvaluator(register(content, "coco"), str(tmp_path / "out"), max_detections=limit)
    results = run(evaluator, generated.noisy(content))["bbox"]
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    truth = load(content)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCOeval(truth, truth.loadRes(written), "bbox")
        expected.params.maxDets = [1, 2, limit]
        expected.evaluate()
        expected.accumulate()
        if limit == 100:  # the only one that the summary knows
            expected.summarize()
            np.testing.assert_allclose([results[name] for name in METRICS], 100 * expected.stats[:6], atol=1e-9)
    precision = expected.eval["precision"][..., 0, 2]
    assert results["AP"] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-9)
    assert 5 < results["AP"] < 95
    table = coco_precision(truth, written, max_detections=limit)
    assert {name: results[name] for name in METRICS} == pytest.approx(table.metrics(), abs=1e-9)
    assert [results[f"AP-{name}"] for name in table.names] == pytest.approx(table.per_category(), abs=1e-9)


def test_truth_gives_100_and_shuffled_truth_does_not(generated: Any, register: Register, tmp_path: Path) -> None:
    content = {**generated.content(), "images": generated.content()["images"]}
    content["annotations"] = [{**item, "iscrowd": 0, "ignore": 0} for item in content["annotations"]]
    evaluator = CocoEvaluator(register(content, "coco"), str(tmp_path))
    outputs = generated.perfect(content)
    assert run(evaluator, outputs)["bbox"]["AP"] == pytest.approx(100)
    shuffled = dict(zip(outputs, [*list(outputs.values())[1:], outputs[min(outputs)]]))
    assert run(evaluator, shuffled)["bbox"]["AP"] < 20


def test_no_detection_is_0_where_there_are_objects(generated: Any, register: Register, tmp_path: Path) -> None:
    content = coco_content(generated)
    small = [item for item in content["annotations"] if item["area"] < 32**2]
    evaluator = CocoEvaluator(register({**content, "annotations": small}, "coco"), str(tmp_path))
    nothing = {image["id"]: generated.output([], [], []) for image in content["images"]}
    results = run(evaluator, nothing)["bbox"]
    assert results["AP"] == results["APs"] == results["AP-thing2"] == 0 and np.isnan(results["APl"])


def test_a_split_without_annotations_gives_detections_only(generated: Any, register: Register, tmp_path: Path) -> None:
    content = {key: value for key, value in generated.content().items() if key != "annotations"}
    evaluator = CocoEvaluator(register(content, "coco"), str(tmp_path), plots=True)
    assert run(evaluator, generated.noisy(generated.content())) == {}
    assert (tmp_path / "coco_instances_results.json").is_file()


def with_masks(content: dict[str, Any]) -> dict[str, Any]:
    """Objects whose masks fill their boxes."""
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item.update(segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]], iscrowd=0, ignore=0)
    return content


def perfect_masks(generated: Any, content: dict[str, Any]) -> dict[int, Any]:
    outputs = generated.perfect(content)
    for output in outputs.values():
        instances = output["instances"]
        masks = torch.zeros((len(instances), *instances.image_size), dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, instances.pred_boxes.tensor.round().int().tolist()):
            mask[y1:y2, x1:x2] = True
        instances.pred_masks = masks
    return outputs


def test_masks_are_evaluated_where_they_are_asked_for(generated: Any, register: Register, tmp_path: Path) -> None:
    content = with_masks(generated.content())
    name = register(content, "coco")
    outputs = perfect_masks(generated, content)
    results = run(CocoEvaluator(name, str(tmp_path), tasks=("bbox", "segm"), plots=True), outputs)
    assert list(results) == ["bbox", "segm"]
    truth = load(content)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert results["segm"]["AP50"] == pytest.approx(coco_precision(truth, written, "segm").average(iou=0.5))
    assert results["segm"]["AP50"] > 90
    assert (tmp_path / "segm_precision_recall.png").is_file()
    assert MetadataCatalog.get(name).evaluator_type == "coco"


def test_encoded_masks_score_as_the_masks_do(generated: Any, register: Register, tmp_path: Path) -> None:
    content = with_masks(generated.content())
    evaluator = CocoEvaluator(register(content, "coco"), str(tmp_path), tasks=("bbox", "segm"))
    outputs = perfect_masks(generated, content)
    dense = run(evaluator, outputs)
    for output in outputs.values():
        output["instances"].pred_masks_rle = RleMasks.encode(output["instances"].pred_masks)
        output["instances"].remove("pred_masks")
    assert run(evaluator, outputs) == dense
    assert all(output["instances"].has("pred_masks_rle") for output in outputs.values())


def test_objects_without_a_mask_are_missed_and_a_truth_without_any_has_boxes_alone(
    generated: Any, register: Register, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = with_masks(generated.content())
    outputs = perfect_masks(generated, content)
    kept = run(CocoEvaluator(register(content, "coco"), str(tmp_path), tasks=("bbox", "segm")), outputs)
    del content["annotations"][0]["segmentation"]
    content["annotations"][1]["segmentation"] = []
    fewer = run(CocoEvaluator(register(content, "coco"), str(tmp_path), tasks=("bbox", "segm")), outputs)
    assert "have no mask" in caplog.text and "first: annotation 1" in caplog.text
    assert fewer["bbox"] == kept["bbox"] and fewer["segm"]["AP"] < kept["segm"]["AP"]
    nothing = {image["id"]: generated.output([], [], []) for image in content["images"]}
    evaluator = CocoEvaluator(register(content, "coco"), str(tmp_path), tasks=("bbox", "segm"))
    assert run(evaluator, nothing)["segm"]["AP"] == 0
    bare = coco_content(generated)
    evaluator = CocoEvaluator(register(bare, "coco"), str(tmp_path), tasks=("bbox", "segm"))
    assert list(run(evaluator, outputs)) == ["bbox"] and "has no masks: boxes alone" in caplog.text


def test_things_may_be_some_of_the_classes_of_a_model(generated: Any, register: Register, tmp_path: Path) -> None:
    content = with_masks(generated.content())
    name = register(content, "coco")
    expected = run(CocoEvaluator(name, str(tmp_path), tasks=("bbox", "segm")), perfect_masks(generated, content))
    ids = sorted(category["id"] for category in content["categories"])
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(  # a stuff class before, between and behind them
        json_file=str(tmp_path / f"{name}.json"),
        thing_classes=[
            "sky",
            *(f"thing{number}" for number in ids[:2]),
            "sea",
            *(f"thing{n}" for n in ids[2:]),
            "sand",
        ],
        thing_dataset_id_to_contiguous_id=dict(zip(ids, (1, 2, 4, 5, 6))),
    )
    outputs = perfect_masks(generated, content)
    for output in outputs.values():
        instances = output["instances"]
        instances.pred_classes = torch.tensor([1, 2, 4, 5, 6])[instances.pred_classes]
        stuff = instances[:1]
        stuff.pred_classes = torch.full((len(stuff),), 3)
        output["instances"] = Instances.cat([stuff, instances])
    assert run(CocoEvaluator(name, str(tmp_path), tasks=("bbox", "segm")), outputs) == expected
    assert expected["segm"]["AP-thing2"] > 80


# ------------------------------------------------------------------------------------------------ confusions

ONE, TWO, FAR = [0.0, 0, 10, 10], [50.0, 0, 10, 10], [0.0, 50, 10, 10]
BACKGROUND = 3


def confusions(found: list[tuple[list[float], float, int]], objects: list[tuple[list[float], int, bool]]) -> Any:
    boxes, scores, classes = zip(*found) if found else ((), (), ())
    true_boxes, true_classes, crowds = zip(*objects) if objects else ((), (), ())
    return confusions_of_picture(
        *(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores, dtype=float), classes),
        *(np.array(true_boxes, dtype=float).reshape(-1, 4), true_classes, crowds, BACKGROUND),
    )


@pytest.mark.parametrize(
    "found,objects,expected",
    [
        ([(ONE, 0.9, 0)], [(ONE, 0, False)], {(0, 0): 1}),
        ([(ONE, 0.9, 1)], [(ONE, 0, False)], {(0, 1): 1}),
        ([], [(ONE, 0, False)], {(0, BACKGROUND): 1}),
        ([(FAR, 0.9, 2)], [(ONE, 0, False)], {(BACKGROUND, 2): 1, (0, BACKGROUND): 1}),
        ([(FAR, 0.9, 2)], [], {(BACKGROUND, 2): 1}),
        # two names for one box: the better-scored one has it, the other is a false alarm
        ([(ONE, 0.5, 0), (ONE, 0.9, 1)], [(ONE, 0, False)], {(0, 1): 1, (BACKGROUND, 0): 1}),
        # the closer box has the object, whatever the scores
        ([([1.0, 0, 10, 10], 0.9, 1), (ONE, 0.5, 0)], [(ONE, 0, False)], {(0, 0): 1, (BACKGROUND, 1): 1}),
        ([(ONE, 0.9, 0), (TWO, 0.8, 1)], [(TWO, 2, False), (ONE, 0, False)], {(0, 0): 1, (2, 1): 1}),
        # in a crowd nothing is wrong, and a crowd is not missed
        ([([2.0, 2, 4, 4], 0.9, 1)], [(ONE, 0, True)], {}),
    ],
)
def test_confusions_of_a_picture(found: Any, objects: Any, expected: dict[tuple[int, int], int]) -> None:
    assert confusions(found, objects) == expected


def test_detections_below_the_score_threshold_do_not_count() -> None:
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": ONE, "area": 100, "iscrowd": 0}],
    }
    results = [
        {"image_id": 1, "category_id": 3, "bbox": ONE, "score": 0.34},
        {"image_id": 1, "category_id": 7, "bbox": ONE, "score": 0.33},
        {"image_id": 2, "category_id": 3, "bbox": ONE, "score": 0.9},
    ]
    truth = load(content)
    assert confusion_of(truth, results).counts == {(1, 2): 1, (2, 0): 1}  # dog is 0, cat 1, background 2
    low = confusion_of(truth, results, score_threshold=0.3)
    assert low.counts == {(1, 0): 1, (2, 1): 1, (2, 0): 1}
    assert low.matrix([0, 1]).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert low.as_json() == {
        "score_threshold": 0.3,
        "iou_threshold": 0.5,
        "pairs": [
            {"true": "cat", "detected": "dog", "count": 1},
            {"true": None, "detected": "dog", "count": 1},
            {"true": None, "detected": "cat", "count": 1},
        ],
    }


def test_the_most_confused_categories_are_chosen_from_many() -> None:
    counts = {(0, 0): 90, (1, 2): 3, (4, 1): 2, (3, 5): 50, (5, 0): 7}  # 5 is the background
    confusion = Confusion(counts, ["a", "b", "c", "d", "e"])
    assert confusion.most_confused(5) == [0, 1, 2, 3, 4]
    assert confusion.most_confused(3) == [1, 2, 4]
    assert confusion.most_confused(4) == [1, 2, 3, 4]
    assert confusion.matrix([1, 3]).tolist() == [[0, 0, 0], [0, 0, 50], [0, 0, 0]]
