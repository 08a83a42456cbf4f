"""Annotations as `Instances` of the transformed picture."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from grounding_dino.data.mappers.own_text import flat
from grounding_dino.data.segmentations import transformed_mask

import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

Record = dict[str, Any]
Size = tuple[int, int]  # height, width


def annotated_instances(record: Record, transforms: T.TransformList, size: Size, masks_on: bool) -> Instances:
    """The objects of a record in its transformed picture: `gt_boxes`, `gt_classes`, `places` and with masks `gt_masks`.

    Left out are crowds, boxes without an area, and with masks what has no pixel left and objects that have no
    segmentation. `places` are the objects' indices in the record's `annotations`. After a crop, boxes are those around
    the masks.

    Args:
        record: with `height` and `width` where it has masks.
        transforms: what was applied to the picture.
        size: of the picture after them.

    Raises:
        ValueError: a segmentation is of no known form or does not fit the picture.
    """
    annotations = record.get("annotations", ())
    places = [
        place
        for place, annotation in enumerate(annotations)
        if not annotation.get("iscrowd", 0) and (not masks_on or annotation.get("segmentation") is not None)
    ]
    moved = [_moved_box(annotations[place], transforms, size) for place in places]
    instances = utils.annotations_to_instances(moved, size)
    instances.places = torch.tensor(places, dtype=torch.int64)
    if masks_on:
        instances.gt_masks = _masks(record, places, transforms, size)
        if any(isinstance(transform, T.CropTransform) for transform in flat(transforms)):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return utils.filter_empty_instances(instances)


def segment_instances(masks: Sequence[np.ndarray], classes: Sequence[int], size: Size) -> Instances:
    """Segments, of which each is an object or all of a class: `gt_masks`, `gt_classes` and the boxes around the masks.

    Args:
        masks: (H, W) bool each; empty ones are left out.
        classes: one a mask.
        size: H and W.
    """
    kept = [index for index, mask in enumerate(masks) if mask.any()]
    instances = Instances(size)
    instances.gt_masks = _bit_masks([masks[index] for index in kept], size)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor([int(classes[index]) for index in kept], dtype=torch.int64)
    return instances


def _moved_box(annotation: Record, transforms: T.TransformList, size: Size) -> Record:
    # A copy: transforms write into the annotation, and records serve again in the next epoch.
    box = {key: copy.copy(annotation[key]) for key in ("bbox", "bbox_mode", "category_id")}
    return utils.transform_instance_annotations(box, transforms, size)


def _masks(record: Record, places: Sequence[int], transforms: T.TransformList, size: Size) -> BitMasks:
    before = (record["height"], record["width"])
    masks = []
    for place in places:
        try:
            masks.append(transformed_mask(record["annotations"][place]["segmentation"], transforms, before, size))
        except ValueError as error:
            raise ValueError(f"annotation {place} of {record.get('file_name')}: {error}") from error
    return _bit_masks(masks, size)


def _bit_masks(masks: Sequence[np.ndarray], size: Size) -> BitMasks:
    stacked = torch.zeros((len(masks), *size), dtype=torch.bool)
    for target, mask in zip(stacked, masks):
        target.copy_(torch.from_numpy(mask.copy()))  # as in `image_tensor`
    return BitMasks(stacked)
