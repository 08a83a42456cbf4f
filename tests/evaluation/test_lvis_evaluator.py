"""The evaluators of detection on whole data sets: known answers, files, several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.evaluation.build import metric_names
from grounding_dino.evaluation.lvis_ap import Detections, LVISTruth, lvis_metrics, lvis_precision
from grounding_dino.evaluation.lvis_evaluator import LVISEvaluator
from grounding_dino.structures import RleMasks

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

Register = Callable[..., str]


def run(evaluator: Any, outputs: dict[int, Any]) -> Any:
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


def test_truth_gives_100_and_shuffled_truth_does_not(generated: Any, register: Register, tiny_cfg: CfgNode) -> None:
    content = generated.content()
    content["annotations"] = [{**item, "ignore": 0} for item in content["annotations"]]
    evaluator = LVISEvaluator(name := register(content))
    outputs = generated.perfect(content)
    results = run(evaluator, outputs)
    assert list(results) == ["bbox", "bbox_fixed"]
    given = [f"{task}/{metric}" for task, metrics in results.items() for metric in metrics if "-" not in metric]
    assert given == metric_names(tiny_cfg, name)
    for metrics in results.values():
        for name in ("AP", "AP50", "APr", "APc", "APf", "AP-thing7"):
            assert metrics[name] == pytest.approx(100)
    shuffled = dict(zip(outputs, [*list(outputs.values())[1:], outputs[min(outputs)]]))
    results = run(evaluator, shuffled)
    assert max(results["bbox"]["AP"], results["bbox_fixed"]["AP"]) < 20


@pytest.mark.parametrize("encoded", [False, True])
def test_true_masks_give_100(
    generated: Any, register: Register, tiny_cfg: CfgNode, tmp_path: Path, encoded: bool
) -> None:
    content = generated.content()
    outputs = generated.perfect(content)
    for image_id, output in outputs.items():
        instances = output["instances"]
        masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, instances.pred_boxes.tensor.round().int().tolist()):
            mask[y1 : y2 - (y2 - y1) // 3, x1:x2] = True  # not the boxes
        rles = RleMasks.encode(masks)
        own = [item for item in content["annotations"] if item["image_id"] == image_id]
        for item, rle in zip(own, rles):
            item.update(segmentation=rle, ignore=0)
        if encoded:
            instances.pred_masks_rle = rles
        else:
            instances.pred_masks = masks
    evaluator = LVISEvaluator(name := register(content), str(tmp_path), tasks=("bbox", "segm"))
    results = run(evaluator, outputs)
    assert list(results) == ["bbox", "bbox_fixed", "segm", "segm_fixed"]
    assert all(metrics["AP"] == pytest.approx(100) for metrics in results.values())
    assert "boxes and masks" in evaluator.protocol()["standard AP"]
    tiny_cfg.MODEL.MASK_ON = True
    assert {"segm/APr", "segm_fixed/AP"} <= set(metric_names(tiny_cfg, name) or ())
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert written[0]["segmentation"]["size"] == [320, 320]
    image_id, output = next((number, out) for number, out in outputs.items() if len(out["instances"]))
    output["instances"].remove("pred_masks_rle" if encoded else "pred_masks")
    output["instances"].pred_masks = torch.zeros(len(output["instances"]), 5, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"masks of the picture {image_id} have the size \[5, 6\]"):
        evaluator.process([{"image_id": image_id}], [output])


def test_no_detection_is_0(generated: Any, register: Register, tmp_path: Path) -> None:
    content = generated.content()
    evaluator = LVISEvaluator(register(content), str(tmp_path))
    results = run(evaluator, {image["id"]: generated.output([], [], []) for image in content["images"]})
    assert results["bbox"]["AP"] == results["bbox_fixed"]["AP"] == results["bbox"]["APr"] == 0
    assert json.loads((tmp_path / "lvis_instances_results.json").read_text()) == []
    assert evaluator.evaluate() is not None  # once more, as it is


def test_standard_ap_counts_300_of_a_picture_and_fixed_ap_all_candidates(generated: Any, register: Register) -> None:
    """The object is the 301st of its picture's candidates; of its own category it is the best."""
    content = generated.content()
    box = [10.0, 10.0, 50.0, 50.0]
    image = {"id": 10, "height": 320, "width": 320, "neg_category_ids": [3], "not_exhaustive_category_ids": []}
    thing = {"id": 1, "image_id": 10, "category_id": 2, "bbox": box, "area": 2500.0}
    evaluator = LVISEvaluator(register({**content, "images": [image], "annotations": [thing]}))
    corners = [10.0, 10.0, 60.0, 60.0]
    scores = [*np.linspace(0.9, 0.5, 300), 0.1]
    everything = generated.output([corners] * 301, scores, [1] * 300 + [0])
    assert [run(evaluator, {10: everything})[task]["AP"] for task in ("bbox", "bbox_fixed")] == [0, pytest.approx(100)]
    cut = {"instances": everything["instances"][:300], "candidates": everything["instances"]}
    assert [run(evaluator, {10: cut})[task]["AP"] for task in ("bbox", "bbox_fixed")] == [0, pytest.approx(100)]
    assert run(evaluator, {10: {"instances": cut["instances"]}})["bbox_fixed"]["AP"] == 0


def test_fixed_ap_keeps_so_many_of_a_category(generated: Any, register: Register) -> None:
    content = generated.content()
    content["annotations"] = [{**item, "ignore": 0} for item in content["annotations"]]
    outputs = generated.perfect(content)
    name = register(content)
    assert run(LVISEvaluator(name, fixed_detections=3), outputs)["bbox_fixed"]["AP"] < 50
    evaluator = LVISEvaluator(name, fixed_detections=3)
    assert run(evaluator, outputs)["bbox"]["AP"] == pytest.approx(100)
    assert evaluator.protocol()["fixed AP"].startswith("the 3 best detections of each category")


def test_the_detections_that_count_are_written_in_cocos_format(
    generated: Any, register: Register, tmp_path: Path
) -> None:
    content = generated.content()
    evaluator = LVISEvaluator(register(content), str(tmp_path), plots=True)
    outputs = generated.noisy(content)
    results = run(evaluator, outputs)
    written = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert len(written) == sum(len(output["instances"]) for output in outputs.values())
    ids = sorted(category["id"] for category in content["categories"])
    first, instances = written[0], outputs[10]["instances"]
    x1, y1, x2, y2 = instances.pred_boxes.tensor[instances.scores.argmax()].tolist()
    assert first["image_id"] == 10 and first["score"] == instances.scores.max()
    assert first["category_id"] == ids[int(instances.pred_classes[instances.scores.argmax()])]
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-4)
    assert {path.name for path in tmp_path.glob("bbox*.png")} == {
        *("bbox_precision_recall.png", "bbox_categories.png"),
        *("bbox_fixed_precision_recall.png", "bbox_fixed_categories.png"),
    }
    assert 5 < results["bbox"]["AP"] < 95


def test_classes_follow_the_metadata_and_unknown_ones_are_refused(generated: Any, register: Register) -> None:
    content = generated.content()
    content["annotations"] = [{**item, "ignore": 0} for item in content["annotations"]]
    name = register(content)
    outputs = generated.perfect(content)
    metadata = MetadataCatalog.get(name)
    reverse = {number: 4 - place for number, place in metadata.thing_dataset_id_to_contiguous_id.items()}
    del metadata.thing_dataset_id_to_contiguous_id
    assert run(LVISEvaluator(name), outputs)["bbox"]["AP"] == pytest.approx(100)  # in the order of the ids
    metadata.thing_dataset_id_to_contiguous_id = reverse
    assert run(LVISEvaluator(name), outputs)["bbox"]["AP"] < 50
    outputs[10]["instances"].pred_classes[:] = 80
    if len(outputs[10]["instances"]) == 0:
        outputs[10] = generated.output([[0, 0, 9, 9]], [0.5], [80])
    with pytest.raises(ValueError, match="found classes 80 to 80 in .*, which has 5"):
        run(LVISEvaluator(name), outputs)


def test_a_data_set_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="'nowhere_lvis' has no json_file"):
        LVISEvaluator("nowhere_lvis")
    MetadataCatalog.remove("nowhere_lvis")


def test_the_table_has_the_frequencies_of_the_file(generated: Any) -> None:
    truth = LVISTruth(generated.content())
    assert truth.groups == {"rare": [0, 1], "common": [2], "frequent": [3, 4]}
    table = lvis_precision(truth, Detections.empty())
    assert list(lvis_metrics(table, {}))[-1] == "APl" and list(lvis_metrics(table, truth.groups))[-1] == "APf"


# ---------------------------------------------------------------------------------------- several processes

WORKER = """
import grounding_dino
import json, torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from grounding_dino.evaluation.build import build_evaluator
from grounding_dino.model_zoo import load_cfg


def main(folder, images, outputs, metadata):
    cfg = load_cfg("swin_t_ogc", ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", f"{folder}/{comm.get_world_size()}"])
    for name, facts in metadata.items():
        MetadataCatalog.get(name).set(**facts)
        loader = build_detection_test_loader([{"image_id": image} for image in images], mapper=lambda record: record)
        model = lambda batch: [outputs[record["image_id"]] for record in batch]
        inference_on_dataset(model, loader, build_evaluator(cfg, name))
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    generated: Any, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from detectron2.engine import launch

    (tmp_path / "evaluation_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import evaluation_worker  # type: ignore[import-not-found]

    content = generated.content()
    for item in content["annotations"]:
        item["iscrowd"] = 0
    names = [register(content, kind) for kind in ("lvis", "coco")]
    metadata = {name: MetadataCatalog.get(name).as_dict() for name in names}
    for facts in metadata.values():
        facts.pop("name", None)
    images = [image["id"] for image in content["images"]][:13]  # an odd number is not shared evenly
    args = (str(tmp_path), images, generated.noisy(content), metadata)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch(evaluation_worker.main, 1, args=args)
    launch(evaluation_worker.main, 2, dist_url="auto", args=args)
    for name in names:
        one, two = (json.loads((tmp_path / n / "inference" / name / "metrics.json").read_text()) for n in "12")
        assert one["metrics"] == two["metrics"] and 5 < one["metrics"]["bbox"]["AP"] < 95
        assert one["protocol"]["pictures"] == "13, on 1 process"
        assert two["protocol"]["pictures"] == "13, on 2 processes"
        results = [sorted((tmp_path / n / "inference" / name).glob("*_instances_results.json")) for n in "12"]
        texts = [sorted(path.read_text() for path in paths) for paths in results]
        assert len(texts[0]) == 1 and sorted(json.loads(texts[0][0]), key=str) == sorted(
            json.loads(texts[1][0]), key=str
        )
