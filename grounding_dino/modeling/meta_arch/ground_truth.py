"""From `Instances` of a training picture to what the losses compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino.layers.box_ops import box_xyxy_to_cxcywh
from grounding_dino.modeling.fixed_classes import FixedClasses
from grounding_dino.structures import Prompt, Targets
from grounding_dino.text.batch import positive_map

import torch
from detectron2.structures import BitMasks, PolygonMasks
from torch import Tensor


def ground_truth(
    inputs: Mapping[str, Any],
    asked: Prompt | FixedClasses,
    frame: Sequence[int],
    num_tokens: int,
    mask_frame: tuple[int, int] | None = None,
) -> Targets:
    """The targets of a picture, on the CPU.

    Args:
        frame: (h, w) pixels that boxes are relative to.
        num_tokens: columns of the positive map; fixed classes have none.
        mask_frame: (h, w) pixels of the masks, the picture in their upper left; None leaves masks out.

    Raises:
        ValueError: the picture has no `instances`, one of a class that it is not asked for, or no masks.
    """
    if "instances" not in inputs:
        raise ValueError(f"{picture_name(inputs)} has no 'instances', which training needs (empty ones are fine)")
    instances = inputs["instances"]
    labels = instances.gt_classes.cpu()
    height, width = frame
    boxes = instances.gt_boxes.tensor.float().cpu()
    masks = None if mask_frame is None else _masks(inputs, mask_frame)
    boxes = box_xyxy_to_cxcywh(boxes / boxes.new_tensor([width, height, width, height]))
    _check_labels(inputs, labels, asked)
    if isinstance(asked, FixedClasses):
        return Targets(asked.columns_of(labels), boxes, masks, is_thing=asked.have_boxes(labels))
    return Targets(labels, boxes, masks, positive_map=positive_map(asked, num_tokens)[labels])


def _check_labels(inputs: Mapping[str, Any], labels: Tensor, asked: Prompt | FixedClasses) -> None:
    if isinstance(asked, FixedClasses):
        count, limit = len(asked), "classes (MODEL.CLASS_HEAD.NUM_CLASSES, CATEGORY_IDS), whose indices they are"
        who = "the model has"
    else:
        count, limit = (
            len(asked.token_spans),
            f"categories or phrases ({asked.caption[:80]!r}), whose indices they are",
        )
        who = "its prompt names"
    if not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < count:
        return
    raise ValueError(
        f"gt_classes of {picture_name(inputs)} run from {int(labels.min())} to {int(labels.max())}, but {who} {count} "
        f"{limit}"
    )


def _masks(inputs: Mapping[str, Any], frame: tuple[int, int]) -> Tensor:
    """(N, H, W) bool masks of a picture's instances, zero-padded right and below to `frame`."""
    instances = inputs["instances"]
    height, width = inputs["image"].shape[-2:]
    if not instances.has("gt_masks"):
        if len(instances):
            raise ValueError(
                f"{picture_name(inputs)} has objects without masks, which MODEL.MASK_ON needs; its data set has to "
                "have a 'segmentation' for every object, and INPUT.MAPPER to hand them on"
            )
        return torch.zeros(0, *frame, dtype=torch.bool)
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks.polygons, height, width)
    inside = masks.tensor if isinstance(masks, BitMasks) else torch.as_tensor(masks)
    if tuple(inside.shape[-2:]) != (height, width):
        raise ValueError(
            f"the masks of {picture_name(inputs)} are of {tuple(inside.shape[-2:])} pixels, but its image of "
            f"{(height, width)}"
        )
    padded = torch.zeros(len(inside), *frame, dtype=torch.bool)
    padded[:, :height, :width] = inside
    return padded


def picture_name(inputs: Mapping[str, Any]) -> str:
    """What an error calls a picture."""
    known = [f"{key} {inputs[key]!r}" for key in ("file_name", "image_id") if key in inputs]
    return f"the picture with {known[0]}" if known else "a picture"
