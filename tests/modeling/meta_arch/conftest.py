"""Pictures for the tests of whole models."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import grounding_dino  # noqa: F401

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances


@pytest.fixture
def picture(fill: ModuleType) -> Callable[..., dict[str, Any]]:
    """`picture(height, width, seed=0, **rest)`: one input of a model."""

    def make(height: int, width: int, /, seed: int = 0, **rest: Any) -> dict[str, Any]:
        return {"image": torch.from_numpy(fill.fill_image(height, width, seed=seed)).permute(2, 0, 1), **rest}

    return make


@pytest.fixture
def annotated(picture: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`annotated(height, width, boxes, classes, seed=0, **rest)`: one input with ground truth (XYXY pixels)."""

    def make(height: int, width: int, boxes: list[list[float]], classes: list[int], /, **rest: Any) -> dict[str, Any]:
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        return picture(height, width, instances=instances, **rest)

    return make


@pytest.fixture
def tiny_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """Wide enough for maps of one cell: a group of one value has no deviation that GroupNorm could divide by."""
    tiny_cfg.MODEL.EMBED_DIM = 64
    return tiny_cfg
