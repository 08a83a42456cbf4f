"""What an exported file says about its model, from the configuration and the model that it was built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grounding_dino.exported.description import (
    ClassDescription,
    DenseDescription,
    MaskDescription,
    ModelDescription,
    TextDescription,
)

from detectron2.config import CfgNode


def describe_model(cfg: CfgNode, model: Any, name: str) -> ModelDescription:
    """The description of a model of the configuration `name`."""
    return ModelDescription(
        name=Path(name).stem,
        family=_family(cfg),
        input_format=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        size_divisibility=model.divisibility if model.padding_counts else 0,
        padding_counts=model.padding_counts,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        text=describe_text(cfg),
        classes=describe_classes(model),
        masks=_masks(model),
        dense=_dense(model),
    )


def describe_text(cfg: CfgNode) -> TextDescription | None:
    """How prompts are written; None for a model of fixed classes."""
    options = cfg.MODEL.TEXT_ENCODER
    if not options.NAME:
        return None
    return TextDescription(
        max_tokens=options.MAX_TOKENS,
        sub_sentence=options.SUB_SENTENCE_ON,
        names_per_prompt=cfg.TEST.CATEGORIES_PER_PROMPT,
        vocabulary=options.VOCABULARY,
    )


def describe_classes(model: Any) -> ClassDescription | None:
    """The fixed classes of a model; None for one with text."""
    classes = model.classes
    if classes is None:
        return None
    things = None if classes.things is None else tuple(sorted(classes.things))
    return ClassDescription(tuple(classes.names), tuple(classes.columns), classes.exclusive, things)


def _masks(model: Any) -> MaskDescription | None:
    masks = getattr(model, "masks", None)
    if masks is None:
        return None
    return MaskDescription(
        instance=masks.instance,
        panoptic=masks.panoptic,
        semantic=masks.semantic,
        object_mask_threshold=masks.object_mask_threshold,
        overlap_threshold=masks.overlap_threshold,
        temperature=masks.temperature,
        mask_scores=masks.mask_scores,
    )


def _dense(model: Any) -> DenseDescription | None:
    """How detections of a dense detector are chosen."""
    detections = getattr(model, "detections", None)
    if detections is None:
        return None
    return DenseDescription(
        strides=tuple(model.strides),
        score_threshold=detections.score_threshold,
        pre_nms_topk=detections.pre_nms_topk,
        nms_threshold=detections.nms_threshold,
        rank_by_centerness=detections.rank_by_centerness,
        nms_last_pixel=detections.nms_last_pixel,
    )


def _family(cfg: CfgNode) -> str:
    if cfg.MODEL.META_ARCHITECTURE == "GLIP":
        return "glip"
    if cfg.MODEL.TEXT_ENCODER.NAME:
        return "grounding_dino"
    return "mask_dino" if cfg.MODEL.MASK_ON else "dino"
