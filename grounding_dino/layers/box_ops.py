"""Boxes: formats, areas, overlaps, and the inverse sigmoid in which they are refined.

Every function computes in float32 when given half-precision input (autocast), and in the given precision otherwise.
Overlaps do not change when an axis is scaled, so boxes in [0, 1] and boxes in pixels give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MIN_AREA = 1e-12  # keeps the overlap of two boxes without area finite (0); far below any real box in [0, 1]


def as_float32_at_least(x: Tensor) -> Tensor:
    """`x` in float32 if it is half precision or integer, else unchanged (float64 stays float64)."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    centre, half_size = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half_size, centre + half_size], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) XYXY -> (...) areas; a box with a negative side has area 0."""
    boxes = as_float32_at_least(boxes)
    return _product_of_sides(boxes[..., 2:] - boxes[..., :2])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise intersection over union: (..., N, 4) and (..., M, 4) XYXY -> (..., N, M)."""
    return _overlap(boxes1[..., :, None, :], boxes2[..., None, :, :])[0]


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise generalised IoU in (-1, 1]: (..., N, 4) and (..., M, 4) XYXY -> (..., N, M).

    Rezatofighi et al., "Generalized intersection over union", CVPR 2019.
    """
    return _generalized_iou(boxes1[..., :, None, :], boxes2[..., None, :, :])


def paired_generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of each box with its partner: (..., 4) and (..., 4) XYXY -> (...)."""
    return _generalized_iou(boxes1, boxes2)


def boxes_of_masks(masks: Tensor, last_pixel: int = 1, empty: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> Tensor:
    """Boxes around masks (..., H, W) bool: (..., 4) cxcywh as a share of their width and height.

    Args:
        last_pixel: 1 counts the extent of the last column and row, 0 does not.
        empty: the box of a mask without a pixel.
    """
    height, width = masks.shape[-2:]
    corners: list[Tensor] = []
    for inside, size in ((masks.any(-2), width), (masks.any(-1), height)):
        place = torch.arange(size, device=masks.device)
        first = torch.where(inside, place, size).amin(-1)
        last = torch.where(inside, place, -1).amax(-1)
        corners += [first / size, (last + last_pixel) / size]
    boxes = box_xyxy_to_cxcywh(torch.stack([corners[i] for i in (0, 2, 1, 3)], dim=-1))
    return torch.where(masks.any(-1).any(-1)[..., None], boxes, boxes.new_tensor(list(empty)))


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) of `x` in [0, 1], its numerator and denominator each kept at `eps` or more.

    `eps` is part of a model (1e-3 in DINO and Grounding DINO, 1e-5 in others), so it has no default.
    """
    x = as_float32_at_least(x).clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def _product_of_sides(size: Tensor) -> Tensor:
    size = size.clamp(min=0)
    return size[..., 0] * size[..., 1]


def _overlap(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and area of the union of boxes that broadcast against each other."""
    boxes1, boxes2 = as_float32_at_least(boxes1), as_float32_at_least(boxes2)
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _product_of_sides(high - low)
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return intersection / union.clamp(min=_MIN_AREA), union


def _generalized_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    boxes1, boxes2 = as_float32_at_least(boxes1), as_float32_at_least(boxes2)
    iou, union = _overlap(boxes1, boxes2)
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = _product_of_sides(high - low)
    return iou - (hull - union) / hull.clamp(min=_MIN_AREA)
