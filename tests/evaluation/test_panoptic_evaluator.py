"""The evaluator of panoptic segmentation on real files: its metrics, its errors, what several processes add up to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grounding_dino.data.segmentation_maps import read_panoptic_map, write_panoptic_map
from grounding_dino.evaluation.build import build_evaluator, check_evaluation, kinds_of_run, metric_names
from grounding_dino.evaluation.panoptic_evaluator import PREDICTIONS_FILE, PREDICTIONS_FOLDER, PanopticEvaluator

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

CATEGORIES = [
    {"id": 3, "name": "cell", "isthing": 1},
    {"id": 8, "name": "well-plate", "isthing": 0},
    {"id": 90, "name": "nut", "isthing": 1},
]
NAME = "test_evaluation_panoptic"


def truth_maps() -> dict[int, np.ndarray]:
    """Of the pictures 5 and 6: a cell (id 70000) on the plate (id 300), and a nut (id 9) beside it."""
    ids = np.full((6, 8), 300)
    ids[:3, :4] = 70000
    ids[5] = 0
    other = ids.copy()
    other[3:5, 4:] = 9
    return {5: ids, 6: other}


def truth_content() -> dict[str, Any]:
    cell, plate, nut = ({"id": 70000, "category_id": 3}, {"id": 300, "category_id": 8}, {"id": 9, "category_id": 90})
    content = {
        "images": [{"id": 5}, {"id": 6}],
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": 5, "file_name": "a.png", "segments_info": [cell, plate]},
            {"image_id": 6, "file_name": "b.png", "segments_info": [cell, plate, nut]},
        ],
    }
    return json.loads(json.dumps(content))  # without shared parts, so that tests may edit it


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Callable[..., PanopticEvaluator]]:
    """`register(content, **options)`: an evaluator of the two pictures."""

    def make(content: dict[str, Any] | None = None, **options: Any) -> PanopticEvaluator:
        (tmp_path / "maps").mkdir(exist_ok=True)
        for name, ids in zip("ab", truth_maps().values()):
            write_panoptic_map(tmp_path / "maps" / f"{name}.png", ids)
        (tmp_path / "panoptic.json").write_text(json.dumps(content or truth_content()))
        MetadataCatalog.get(NAME).set(
            panoptic_json=str(tmp_path / "panoptic.json"),
            panoptic_root=str(tmp_path / "maps"),
            evaluator_type=["coco", "coco_panoptic_seg"],
            thing_dataset_id_to_contiguous_id={3: 0, 90: 2},
            stuff_dataset_id_to_contiguous_id={3: 0, 8: 1, 90: 2},
        )
        return PanopticEvaluator(NAME, str(tmp_path / "out"), **options)

    DatasetCatalog.register(NAME, list)
    yield make
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def answered(ids: np.ndarray, classes: dict[int, int]) -> dict[str, Any]:
    """A model's output; `classes` by segment."""
    listed = [{"id": number, "category_id": index, "isthing": index != 1} for number, index in classes.items()]
    return {"panoptic_seg": (torch.from_numpy(ids.astype(np.int32)), listed)}


def perfect(image_id: int) -> dict[str, Any]:
    """The truth with other ids."""
    truth = truth_maps()[image_id]
    ids = np.select([truth == 70000, truth == 300, truth == 9], [1, 2, 3], 0)
    return answered(ids, {1: 0, 2: 1, **({3: 2} if image_id == 6 else {})})


def test_the_truth_itself_has_quality_100(register: Callable[..., PanopticEvaluator]) -> None:
    evaluator = register()
    evaluator.process([{"image_id": 5}, {"image_id": 6}], [perfect(5), perfect(6)])
    results = evaluator.evaluate()
    assert results is not None and set(results) == {"panoptic_seg"}
    metrics = results["panoptic_seg"]
    assert metrics["PQ"] == metrics["PQ_th"] == metrics["SQ_st"] == metrics["RQ-well-plate"] == 100.0


def test_metrics_of_a_miss_and_a_loose_segment(
    register: Callable[..., PanopticEvaluator], caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = register()
    ids = np.full((6, 8), 2)
    ids[:3, :3] = 1  # 9 of the cell's 12 pixels; the plate takes its other 3 and the void row
    evaluator.process([{"image_id": 6}], [answered(ids, {1: 0, 2: 1})])
    metrics = evaluator.evaluate()["panoptic_seg"]  # type: ignore[index]
    # the plate: 20 of 31 pixels outside void, in truth 20: IoU 20 / 31 (3 of the cell, 8 of the nut)
    assert metrics["PQ-cell"] == pytest.approx(75.0) and metrics["PQ-nut"] == 0.0
    assert metrics["PQ-well-plate"] == metrics["PQ_st"] == pytest.approx(100 * 20 / 31)
    assert metrics["PQ_th"] == pytest.approx(37.5) and metrics["RQ_th"] == 50.0
    assert "1 of the 2 pictures" in caplog.text


def test_predictions_are_written_where_asked(register: Callable[..., PanopticEvaluator], tmp_path: Path) -> None:
    register().process([{"image_id": 6}], [perfect(6)])
    assert not (tmp_path / "out").exists()
    evaluator = register(write_predictions=True)
    evaluator.process([{"image_id": 6}], [perfect(6)])
    evaluator.evaluate()
    written = json.loads((tmp_path / "out" / PREDICTIONS_FILE).read_text())["annotations"]
    assert [(entry["image_id"], entry["file_name"]) for entry in written] == [(6, "b.png")]
    assert written[0]["segments_info"][2] == {"id": 3, "category_id": 90}
    ids = read_panoptic_map(tmp_path / "out" / PREDICTIONS_FOLDER / "b.png", [1, 2, 3])
    assert (ids[3:5, 4:] == 3).all()


@pytest.mark.parametrize("output", ["unknown class", "unlisted", "no pixel", "size", "no list"])
def test_results_that_cannot_be_counted_are_errors(register: Callable[..., PanopticEvaluator], output: str) -> None:
    ids = np.ones((6, 8), dtype=np.int64)
    outputs = {
        "unknown class": (answered(ids, {1: 7}), "a.jpg has a segment of the thing class 7"),
        "unlisted": (answered(ids, {}), "'the panoptic result of a.jpg' has pixels of the segment 1"),
        "no pixel": (answered(ids, {1: 0, 4: 0}), "lists the segment 4, of which 'the panoptic result of a.jpg'"),
        "size": (answered(ids[:4], {1: 0}), "'a.jpg' has the size (4, 8) (height, width), its truth (6, 8)"),
        "no list": ({"panoptic_seg": (torch.from_numpy(ids), None)}, "has no list of segments"),
    }
    answer, message = outputs[output]
    with pytest.raises(ValueError, match=re.escape(message)):
        register().process([{"image_id": 5, "file_name": "a.jpg"}], [answer])


def test_a_map_that_its_json_does_not_fit_is_an_error(register: Callable[..., PanopticEvaluator]) -> None:
    content = truth_content()
    del content["annotations"][0]["segments_info"][1]
    with pytest.raises(ValueError, match=r"a\.png' has pixels of the segment 300, which its json does not list"):
        register(content).process([{"image_id": 5}], [perfect(5)])
    content["annotations"][0]["segments_info"] += truth_content()["annotations"][1]["segments_info"][1:]
    with pytest.raises(ValueError, match=r"its json lists the segment 9, of which '.*a\.png' has no pixel"):
        register(content).process([{"image_id": 5}], [perfect(5)])


def test_a_json_that_is_no_truth_is_an_error(register: Callable[..., PanopticEvaluator]) -> None:
    content = truth_content()
    content["annotations"][1]["segments_info"][0]["category_id"] = 4
    with pytest.raises(ValueError, match=r"segment 70000 of 'b\.png' in .* has the category 4"):
        register(content)
    content = truth_content()
    content["annotations"][1]["image_id"] = 5
    with pytest.raises(ValueError, match="two annotations of the picture 5"):
        register(content)
    with pytest.raises(ValueError, match="has no 'annotations'"):
        register({"categories": CATEGORIES})
    with pytest.raises(ValueError, match="no annotation of the picture 77"):
        register().process([{"image_id": 77}], [perfect(5)])


@pytest.mark.parametrize("kind", ["refexp", "grefexp", "flickr30k", "d3"])
def test_a_set_that_asks_with_words_is_not_for_a_model_without_text(
    build_tiny_mask: Callable[..., CfgNode], kind: str
) -> None:
    MetadataCatalog.get("asks_with_words").evaluator_type = kind
    try:
        with pytest.raises(ValueError, match=f"'asks_with_words' asks with words .{kind}., but the model finds fixed"):
            kinds_of_run(build_tiny_mask(), "asks_with_words")
    finally:
        MetadataCatalog.remove("asks_with_words")


def test_a_model_that_gives_no_panoptic_result_ends_at_the_start(
    register: Callable[..., PanopticEvaluator], tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    register()
    with pytest.raises(ValueError, match="needs 'panoptic_seg'.*MODEL.MASK_ON is False"):
        kinds_of_run(tiny_cfg, NAME)
    tiny_cfg.MODEL.MASK_ON = True
    with pytest.raises(ValueError, match="TEST.PANOPTIC_ON is False"):
        kinds_of_run(tiny_cfg, NAME)
    tiny_cfg.merge_from_list(["TEST.PANOPTIC_ON", True, "TEST.INSTANCE_ON", False, "OUTPUT_DIR", str(tmp_path)])
    assert kinds_of_run(tiny_cfg, NAME) == ["coco_panoptic_seg"]
    assert "panoptic_seg/PQ_th" in (metric_names(tiny_cfg, NAME) or [])
    evaluator = build_evaluator(tiny_cfg, NAME)
    assert "TEST.OBJECT_MASK_THRESHOLD" in evaluator.protocol(evaluator._seen)["segments"]
    check_evaluation(tiny_cfg, NAME, [])
    shutil.rmtree(tmp_path / "maps")
    with pytest.raises(FileNotFoundError, match="there is no '.*maps', the panoptic_root of"):
        check_evaluation(tiny_cfg, NAME, [])
    tiny_cfg.TEST.INSTANCE_ON = True
    assert kinds_of_run(tiny_cfg, NAME) == ["coco", "coco_panoptic_seg"]
