"""One square anchor for every place of a pyramid, and boxes relative to it.

Boxes are XYXY in pixels, with the right and lower border outside, as everywhere in Detectron2. The authors count the
last pixel as part of a box instead; both conventions give the same boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from grounding_dino.layers.box_ops import as_float32_at_least, box_cxcywh_to_xyxy

import torch
from torch import Tensor

_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_LARGEST_GROWTH = math.log(1000 / 16)


def place_anchors(sizes: Sequence[tuple[int, int]], strides: Sequence[int], scale: float, like: Tensor) -> list[Tensor]:
    """For each level (h * w, 4) anchors cxcywh in pixels: squares of `scale` strides around the centre of each cell."""
    anchors = []
    for (height, width), stride in zip(sizes, strides):
        y, x = torch.meshgrid(
            torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij"
        )
        centres = (torch.stack((x, y), dim=-1).flatten(0, 1) + 0.5) * stride
        anchors.append(torch.cat((centres, torch.full_like(centres, scale * stride)), dim=-1))
    return anchors


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) XYXY in pixels: centres move by shares of the anchor's side, sides grow exponentially.

    Girshick et al., "R-CNN", appendix C; the four numbers are divided by 10, 10, 5 and 5, and growth is limited.
    """
    deltas = as_float32_at_least(deltas) / deltas.new_tensor(_DELTA_WEIGHTS, dtype=torch.float32)
    centres = anchors[..., :2] + deltas[..., :2] * anchors[..., 2:]
    sides = anchors[..., 2:] * deltas[..., 2:].clamp(max=_LARGEST_GROWTH).exp()
    return box_cxcywh_to_xyxy(torch.cat((centres, sides), dim=-1))


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) inside a picture of `size` (h, w); of each a pixel is left at least, as published."""
    height, width = size
    limit = boxes.new_tensor([width, height])
    low = boxes[..., :2].clamp(min=0).minimum(limit - 1)
    high = boxes[..., 2:].clamp(min=1).minimum(limit)
    return torch.cat((low, high), dim=-1)
