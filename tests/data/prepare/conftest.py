"""The truth of a prepared set, scored as if a model had found it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.data.segmentation_maps import read_panoptic_map, read_semantic_map
from grounding_dino.evaluation.build import EVALUATORS, evaluator_kinds

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances


@pytest.fixture
def scores_of_truth(tiny_cfg: CfgNode, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """`scores_of_truth(name)`: the metrics of a panoptic set's own segments, maps and masks, by its own evaluators."""

    def score(name: str) -> dict[str, Any]:
        tiny_cfg.defrost()
        tiny_cfg.MODEL.MASK_ON = True
        records = DatasetCatalog.get(name)
        found: dict[str, Any] = {}
        for kind in evaluator_kinds(name):
            evaluator = EVALUATORS[kind](tiny_cfg, name, str(tmp_path / "scores"))
            evaluator.reset()
            evaluator.process(records, [_outputs(record, name) for record in records])
            found.update(evaluator.evaluate() or {})
        return found

    return score


def _outputs(record: dict[str, Any], name: str) -> dict[str, Any]:
    ids = torch.from_numpy(read_panoptic_map(record["pan_seg_file_name"]))
    segments = record["segments_info"]
    things = [segment for segment in segments if segment["isthing"] and not segment["iscrowd"]]
    classes = read_semantic_map(record["sem_seg_file_name"])
    count = len(MetadataCatalog.get(name).stuff_classes)
    masks = torch.stack([ids == segment["id"] for segment in things])
    instances = Instances(
        (record["height"], record["width"]),
        pred_boxes=BitMasks(masks).get_bounding_boxes(),
        pred_masks=masks,
        pred_classes=torch.tensor([segment["category_id"] for segment in things]),
        scores=torch.ones(len(things)),
    )
    return {
        "instances": instances,
        "panoptic_seg": (ids.to(torch.int32), segments),
        "sem_seg": torch.from_numpy(np.stack([classes == index for index in range(count)])).float(),
    }
