"""Non-maximum suppression."""

from __future__ import annotations

from torch import Tensor


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group of boxes that share an entry of `idxs`.

    `boxes` (N, 4) XYXY, `scores` (N,), `idxs` (N,). Returns the indices kept, by falling score. Boxes are compared
    in float32, since offsets between groups do not fit half precision.
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"batched_nms takes boxes of shape (N, 4), got {tuple(boxes.shape)}")
    from torchvision.ops import batched_nms as grouped_nms  # on use: it takes seconds to import

    return grouped_nms(boxes.float(), scores, idxs, iou_threshold)
