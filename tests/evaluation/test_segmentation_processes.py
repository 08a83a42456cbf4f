"""Panoptic and semantic evaluation of one round of inference that two processes share."""

from __future__ import annotations

import json
from pathlib import Path

from grounding_dino.data.segmentation_maps import write_panoptic_map

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import launch
from PIL import Image

WORKER = """
import grounding_dino
import numpy as np, torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from grounding_dino.data.segmentation_maps import read_semantic_map
from grounding_dino.evaluation.build import build_evaluator
from grounding_dino.model_zoo import load_cfg

NAME = "test_evaluation_processes"


def found(record):
    # the true classes moved by two rows; segments are their parts
    labels = np.roll(read_semantic_map(record["sem_seg_file_name"]), 2, axis=0)
    listed = [{"id": int(k) + 1, "category_id": int(k), "isthing": k == 0} for k in np.unique(labels)]
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).permute(2, 0, 1).float()
    return {"panoptic_seg": (torch.from_numpy(labels + 1).int(), listed), "sem_seg": scores}


def main(folder, records, metadata):
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(**metadata)
    options = ["MODEL.MASK_ON", True, "TEST.INSTANCE_ON", False, "TEST.PANOPTIC_ON", True, "TEST.SEMANTIC_ON", True]
    out = f"{folder}/{comm.get_world_size()}"
    cfg = load_cfg("swin_t_ogc", [*options, "MODEL.DEVICE", "cpu", "TEST.PANOPTIC_FILES_ON", True, "OUTPUT_DIR", out])
    loader = build_detection_test_loader(records, mapper=lambda record: record)
    inference_on_dataset(lambda batch: [found(record) for record in batch], loader, build_evaluator(cfg, NAME))
"""
NUM_PICTURES = 5  # an odd number is not shared evenly


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "segmentation_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import segmentation_worker  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    ids = [4, 7, 9]
    records, annotations = [], []
    for number in range(NUM_PICTURES):
        labels = np.kron(rng.integers(0, 3, (3, 4)), np.ones((12, 10), dtype=np.int64))
        record = {"file_name": f"{number}.jpg", "image_id": number}
        records.append({**record, "sem_seg_file_name": str(tmp_path / f"{number}_classes.png")})
        Image.fromarray(labels.astype(np.uint8)).save(records[-1]["sem_seg_file_name"])
        write_panoptic_map(tmp_path / f"{number}.png", labels + 50000)
        listed = [{"id": int(k) + 50000, "category_id": ids[k], "iscrowd": 0} for k in np.unique(labels)]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": listed})
    categories = [{"id": number, "name": f"class{number}", "isthing": int(number == 4)} for number in ids]
    (tmp_path / "panoptic.json").write_text(json.dumps({"categories": categories, "annotations": annotations}))
    metadata = {
        **{"panoptic_json": str(tmp_path / "panoptic.json"), "panoptic_root": str(tmp_path), "ignore_label": 255},
        **{"stuff_classes": ["a", "b", "c"], "stuff_dataset_id_to_contiguous_id": {4: 0, 7: 1, 9: 2}},
        **{"thing_dataset_id_to_contiguous_id": {4: 0}, "evaluator_type": ["coco", "coco_panoptic_seg", "sem_seg"]},
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = (str(tmp_path), records, metadata)
    for processes in (2, 1):  # the first starts two of its own, the second registers the set in this one
        launch(segmentation_worker.main, processes, dist_url="auto", args=args)
    DatasetCatalog.remove(segmentation_worker.NAME)
    MetadataCatalog.remove(segmentation_worker.NAME)
    folders = [tmp_path / number / "inference" / segmentation_worker.NAME for number in "12"]
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert one["metrics"] == two["metrics"] and set(one["metrics"]) == {"panoptic_seg", "sem_seg"}
    assert 20 < one["metrics"]["panoptic_seg"]["PQ"] < 95 and 20 < one["metrics"]["sem_seg"]["mIoU"] < 95
    assert two["protocol"]["pictures"] == f"{NUM_PICTURES}, on 2 processes"
    written = [json.loads((folder / "panoptic_predictions.json").read_text())["annotations"] for folder in folders]
    assert sorted(map(str, written[0])) == sorted(map(str, written[1])) and len(written[0]) == NUM_PICTURES
