"""From the network's input size to the size the user asked for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Resize detections from ``results.image_size`` to the output size; boxes are clipped, empty ones dropped.

    `results` needs ``pred_boxes`` or ``proposal_boxes``; ``pred_masks`` of shape (N, 1, M, M), relative to their boxes,
    become full-size masks.
    """
    height, width = results.image_size
    scale_x, scale_y = float(output_width) / width, float(output_height) / height
    results = Instances((int(output_height), int(output_width)), **results.get_fields())
    name = next((name for name in ("pred_boxes", "proposal_boxes") if results.has(name)), None)
    if name is None:
        raise ValueError("detector_postprocess needs a field pred_boxes or proposal_boxes")
    boxes = results.get(name).clone()  # the caller's boxes keep their size
    boxes.scale(scale_x, scale_y)
    boxes.clip(results.image_size)
    results.set(name, boxes)
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        masks = results.pred_masks[:, 0, :, :]  # (N, M, M)
        results.pred_masks = paste_masks_in_image(
            masks, results.get(name).tensor, results.image_size, threshold=mask_threshold
        )
    return results


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Cut the padding off per-class scores `result` (C, H, W) and resize them to (C, output_height, output_width)."""
    height, width = img_size
    cropped = result[:, :height, :width][None]
    return F.interpolate(cropped, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
