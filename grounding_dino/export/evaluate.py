"""How good an exported file is: its detections in a data set, scored by the project's own evaluators."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from grounding_dino.data.build import build_test_loader
from grounding_dino.data.datasets import register_extra_datasets
from grounding_dino.evaluation.build import build_evaluator, evaluator_kinds
from grounding_dino.exported.description import ModelDescription
from grounding_dino.exported.detections import Detections
from grounding_dino.model_zoo import get_cfg, merge_options
from grounding_dino.onnx_predictor import OnnxPredictor

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from torch import nn


class ExportedDetector(nn.Module):
    """An exported file in the place of a model: Detectron2's list of dicts in, `Instances` out."""

    def __init__(self, predictor: OnnxPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """The best (query, category) pairs of each picture, without a threshold."""
        inputs = [{**inputs, "image": inputs["image"].numpy()} for inputs in batched_inputs]
        return [{"instances": as_instances(found)} for found in self.predictor.answers(inputs)]


def as_instances(found: Detections) -> Instances:
    """Detections with tensors in place of arrays."""
    instances = Instances(found.image_size)
    for name in ("scores", "pred_classes", "query_indices", "pred_masks"):
        if (part := getattr(found, name)) is not None:
            instances.set(name, torch.from_numpy(part))
    instances.pred_boxes = Boxes(torch.from_numpy(found.pred_boxes))
    return instances


def evaluate_file(
    path: str | os.PathLike[str],
    dataset_name: str,
    opts: Sequence[object] = (),
    runtime: str = "onnxruntime",
    **options: Any,
) -> dict[str, Any]:
    """The metrics of an exported file in a data set of boxes or masks, as the evaluator of `train_net.py` gives them.

    Args:
        opts: `KEY, VALUE, ...` of the configuration: how data are loaded, and OUTPUT_DIR.
        runtime, options: of :class:`OnnxPredictor`.

    Raises:
        ValueError: the data set asks for more than detections of its categories.
    """
    predictor = OnnxPredictor(path, runtime, **options)
    cfg = evaluation_cfg(predictor.description, opts)
    register_extra_datasets(cfg.DATASETS.EXTRA)
    loader = build_test_loader(cfg, dataset_name)
    kinds = evaluator_kinds(dataset_name)
    if kinds != ["coco"]:
        raise ValueError(
            f"the data set {dataset_name!r} is measured by {' and '.join(kinds)}, which an exported file cannot be; "
            "name one of boxes or masks of categories"
        )
    found: dict[str, Any] = inference_on_dataset(
        ExportedDetector(predictor), loader, build_evaluator(cfg, dataset_name)
    )
    return found


def evaluation_cfg(description: ModelDescription, opts: Sequence[object] = ()) -> CfgNode:
    """The configuration that data are loaded and scored by for a model."""
    cfg = get_cfg()
    cfg.INPUT.FORMAT = description.input_format
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = description.min_size, description.max_size
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = description.name
    cfg.MODEL.MASK_ON = description.masks is not None
    cfg.TEST.DETECTIONS_PER_IMAGE = description.detections_per_image
    if description.classes is not None:
        cfg.MODEL.TEXT_ENCODER.NAME = ""
        cfg.INPUT.MAPPER = "InstanceMapper"
        cfg.MODEL.CLASS_HEAD.NUM_CLASSES = cfg.MODEL.DENOISING.NUM_LABELS = len(description.classes.columns)
    merge_options(cfg, opts)
    return cfg
