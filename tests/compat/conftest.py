"""A tiny data set in COCO format, shared by the tests of data, evaluation and engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

NAME = "compat_test_boxes"
SIZES = {1: (40, 60), 2: (60, 40), 3: (40, 60), 4: (30, 30)}  # h, w; the fourth has no annotations
RLE_MASK = np.zeros((40, 60), dtype=np.uint8)
RLE_MASK[10:20, 20:40] = 1


def _annotations() -> list[dict[str, Any]]:
    polygon = [[10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]]
    rle = {"size": [40, 60], "counts": mask_util.encode(np.asfortranarray(RLE_MASK))["counts"].decode("ascii")}
    return [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 15], "area": 300, "segmentation": polygon},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [5, 5, 10, 10], "area": 100, "segmentation": polygon},
        {"id": 3, "image_id": 3, "category_id": 7, "bbox": [20, 10, 20, 10], "area": 200, "segmentation": rle},
        {"id": 4, "image_id": 3, "category_id": 3, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1, "segmentation": rle},
    ]


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for image_id, (h, w) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(tmp_path / f"{image_id}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"iscrowd": 0, **annotation} for annotation in _annotations()],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def registered(coco_folder: Path) -> Iterator[str]:
    register_coco_instances(NAME, {}, str(coco_folder / "boxes.json"), str(coco_folder))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def small_cfg() -> Any:
    """A config of the tiny data set, with small pictures."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (20,)
    cfg.INPUT.MIN_SIZE_TEST = 20
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.MODEL.DEVICE = "cpu"
    return cfg
