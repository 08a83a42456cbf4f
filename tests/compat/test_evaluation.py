"""The inference loop and COCO's average precision, against pycocotools itself and against answers known beforehand."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAME = "compat_test_evaluation"
HEIGHT, WIDTH = 200, 300
CATEGORY_IDS = [3, 7, 20]
NUM_IMAGES = 8


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYWH, from small to large."""
    sizes = np.exp(rng.uniform(np.log(8), np.log(150), (count, 2)))
    places = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
    return np.round(np.concatenate([places, sizes], axis=1), 1)


def _mask(box: np.ndarray) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    x, y, w, h = np.round(box).astype(int)
    mask[y : y + h, x : x + w] = 1
    return mask


def _rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask))
    return {**encoded, "counts": encoded["counts"].decode("ascii")}


@pytest.fixture
def ground_truth(tmp_path: Path) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(5)
    annotations = []
    for image_id in range(1, NUM_IMAGES + 1):
        for box in _random_boxes(rng, 6):
            mask = _mask(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(CATEGORY_IDS)),
                    "bbox": box.tolist(),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": _rle(mask),
                }
            )
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(NUM_IMAGES)],
        "categories": [{"id": i, "name": f"class{i}"} for i in CATEGORY_IDS],
        "annotations": annotations,
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(path), str(tmp_path))
    DatasetCatalog.get(NAME)  # sets the class names
    yield content
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _detections(content: dict[str, Any], noise: float, extra: int, seed: int = 0) -> dict[int, Instances]:
    """Ground truth moved at random, some of it left out or misnamed, and false alarms: by picture."""
    rng = np.random.default_rng(seed)
    detections = {}
    for image in content["images"]:
        truth = [ann for ann in content["annotations"] if ann["image_id"] == image["id"]]
        boxes = (
            np.array([ann["bbox"] for ann in truth]) + rng.normal(0, noise, (len(truth), 4))
            if noise
            else np.array([ann["bbox"] for ann in truth])
        )
        classes = np.array([CATEGORY_IDS.index(ann["category_id"]) for ann in truth])
        if noise:
            wrong = rng.random(len(truth)) < 0.2
            classes[wrong] = rng.integers(0, 3, wrong.sum())
        boxes = np.concatenate([boxes, _random_boxes(rng, extra)])
        classes = np.concatenate([classes, rng.integers(0, 3, extra)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], 2)
        instances = Instances((HEIGHT, WIDTH))
        xyxy = BoxMode.convert(torch.tensor(boxes), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        instances.pred_boxes = Boxes(xyxy)
        instances.scores = torch.tensor(rng.random(len(boxes)))
        instances.pred_classes = torch.tensor(classes)
        instances.pred_masks = torch.tensor(np.stack([_mask(np.clip(box, 0, None)) for box in boxes])).bool()
        detections[image["id"]] = instances
    return detections


def _run(evaluator: DatasetEvaluator, detections: dict[int, Instances]) -> Any:
    loader = [[{"image_id": image_id}] for image_id in detections]
    return inference_on_dataset(
        lambda batch: [{"instances": detections[record["image_id"]]} for record in batch], loader, evaluator
    )


def _by_pycocotools(content: dict[str, Any], results: list[dict[str, Any]], task: str) -> np.ndarray:
    if task == "segm":
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_average_precision_is_pycocotools(ground_truth: dict[str, Any], tmp_path: Path) -> None:
    detections = _detections(ground_truth, noise=3.0, extra=5)
    results = _run(COCOEvaluator(NAME, output_dir=str(tmp_path / "out")), detections)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in written} <= set(CATEGORY_IDS)
    assert list(results) == ["bbox", "segm"]
    for task in ("bbox", "segm"):
        expected = _by_pycocotools(ground_truth, written, task)
        actual = [results[task][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        np.testing.assert_allclose(actual, expected[:6] * 100, atol=1e-9)
        assert 1 < results[task]["AP"] < 99
        per_class = [results[task][f"AP-class{i}"] for i in CATEGORY_IDS]
        assert np.mean(per_class) == pytest.approx(results[task]["AP"])


def test_perfect_detections_are_100_percent(ground_truth: dict[str, Any]) -> None:
    results = _run(COCOEvaluator(NAME, tasks=("bbox",)), _detections(ground_truth, noise=0, extra=0))
    assert list(results) == ["bbox"]
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_some_pictures_only(ground_truth: dict[str, Any]) -> None:
    evaluator = COCOEvaluator(NAME, tasks=("bbox",))
    detections = _detections(ground_truth, noise=0, extra=0)
    _run(evaluator, {1: detections[1]})
    assert evaluator.evaluate()["bbox"]["AP"] < 50
    assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100)


def test_limit_of_detections(ground_truth: dict[str, Any]) -> None:
    detections = _detections(ground_truth, noise=0, extra=0)
    few = _run(COCOEvaluator(NAME, tasks=("bbox",), max_dets_per_image=1), detections)["bbox"]
    many = _run(COCOEvaluator(NAME, tasks=("bbox",), max_dets_per_image=300), detections)["bbox"]
    assert few["AP"] < many["AP"] == pytest.approx(100)


def test_without_predictions(ground_truth: dict[str, Any]) -> None:
    empty = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    empty.pred_classes = torch.zeros(0, dtype=torch.int64)
    results = _run(COCOEvaluator(NAME), dict.fromkeys(range(1, NUM_IMAGES + 1), empty))
    assert np.isnan(results["bbox"]["AP"])
    assert COCOEvaluator(NAME).evaluate() == {}


def test_a_class_the_data_set_does_not_have(ground_truth: dict[str, Any]) -> None:
    detections = _detections(ground_truth, noise=0, extra=0)
    detections[1].pred_classes[:] = 80
    with pytest.raises((ValueError, AssertionError), match="80"):
        _run(COCOEvaluator(NAME), detections)


def test_a_data_set_without_json_is_written_first(ground_truth: dict[str, Any], tmp_path: Path) -> None:
    name = "compat_test_evaluation_dicts"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(NAME))
    MetadataCatalog.get(name).thing_classes = MetadataCatalog.get(NAME).thing_classes
    try:
        results = _run(
            COCOEvaluator(name, tasks=("bbox",), output_dir=str(tmp_path / "out")),
            _detections(ground_truth, noise=0, extra=0),
        )
        assert results["bbox"]["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_hidden_annotations_give_predictions_only(ground_truth: dict[str, Any], tmp_path: Path) -> None:
    name = "compat_test_evaluation_hidden"
    hidden = {key: value for key, value in ground_truth.items() if key != "annotations"}
    (tmp_path / "hidden.json").write_text(json.dumps(hidden))
    MetadataCatalog.get(name).json_file = str(tmp_path / "hidden.json")
    try:
        results = _run(COCOEvaluator(name, output_dir=str(tmp_path)), _detections(ground_truth, noise=0, extra=0))
    finally:
        MetadataCatalog.remove(name)
    assert results == {}
    assert (tmp_path / "coco_instances_results.json").exists()


def test_keypoints_are_refused(ground_truth: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="eypoints"):
        COCOEvaluator(NAME, tasks=("keypoints",))


class _Counter(DatasetEvaluator):
    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[Any] = []

    def reset(self) -> None:
        self.seen = []

    def process(self, inputs: Any, outputs: Any) -> None:
        self.seen.append((inputs, outputs))

    def evaluate(self) -> Any:
        return {self.name: {"count": len(self.seen)}}


def test_inference_runs_without_gradients_in_eval_mode_and_restores_it() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            assert not self.training and not torch.is_grad_enabled()
            return x

    model = Model()
    calls: list[str] = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    loader = [[1], [2]]
    results = inference_on_dataset(model, loader, [_Counter("a"), _Counter("b")], callbacks=callbacks)
    assert results == {"a": {"count": 2}, "b": {"count": 2}}
    assert model.training
    assert calls == ["on_start", *names[1:3], *names[1:3], "on_end"]
    assert inference_on_dataset(model, loader, None) == {}


def test_inference_context_restores_also_after_an_error() -> None:
    model = torch.nn.Linear(1, 1)
    with pytest.raises(KeyError), inference_context(model):
        assert not model.training
        raise KeyError
    assert model.training
    model.eval()
    with inference_context(model):
        pass
    assert not model.training


def test_evaluators_must_not_share_a_task() -> None:
    with pytest.raises((ValueError, AssertionError), match="a"):
        DatasetEvaluators([_Counter("a"), _Counter("a")]).evaluate()


def test_csv_lines(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("detectron2")
    propagates, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.INFO, logger="detectron2"):
            print_csv_format({"bbox": {"AP": 12.34567, "AP50": 50.0, "AP-cat": 3.0}})
    finally:
        logger.propagate = propagates
    assert "copypaste: AP,AP50" in caplog.text and "copypaste: 12.3457,50.0000" in caplog.text


def test_verify_results(small_cfg: Any) -> None:
    small_cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 40.0, 0.5]]
    assert verify_results(small_cfg, {"bbox": {"AP": 40.4}})
    with pytest.raises(SystemExit):
        verify_results(small_cfg, {"bbox": {"AP": 39.0}})
