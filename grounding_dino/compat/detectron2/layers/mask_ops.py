"""Pasting of box-sized masks into full pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BYTES_PER_CHUNK = 2**28  # bounds the memory of the sampled full-size masks


def paste_masks_in_image(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resample each mask from its box into the whole picture.

    `masks` (N, M, M) values in [0, 1] that cover `boxes` (N, 4) XYXY (tensor or `Boxes`) of a picture of `image_shape`
    (height, width). Returns (N, height, width): bool where at least `threshold`, or, for a negative threshold, uint8
    soft masks in 0..255.
    """
    if masks.dim() != 3 or masks.shape[-1] != masks.shape[-2]:
        raise ValueError(f"paste_masks_in_image takes square masks (N, M, M), got {tuple(masks.shape)}")
    box_tensor: Tensor = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if len(box_tensor) != len(masks):
        raise ValueError(f"paste_masks_in_image got {len(masks)} masks but {len(box_tensor)} boxes")
    height, width = image_shape
    dtype = torch.bool if threshold >= 0 else torch.uint8
    pasted = masks.new_zeros((len(masks), height, width), dtype=dtype)
    chunk = max(1, _BYTES_PER_CHUNK // max(1, height * width * 12))  # float mask and two coordinates a pixel
    for start in range(0, len(masks), chunk):
        part = slice(start, start + chunk)
        soft = _sample_masks(masks[part], box_tensor[part], height, width)
        pasted[part] = soft >= threshold if threshold >= 0 else (soft * 255).to(torch.uint8)
    return pasted


def _sample_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, M, M) in boxes (N, 4) -> (N, height, width), bilinear at pixel centres, zero outside the box."""
    x0, y0, x1, y1 = boxes.float()[:, :, None].unbind(1)  # (N, 1) each
    xs = torch.arange(width, device=masks.device, dtype=torch.float32) + 0.5
    ys = torch.arange(height, device=masks.device, dtype=torch.float32) + 0.5
    grid_x = (xs - x0) / (x1 - x0) * 2 - 1  # (N, width), in [-1, 1] inside the box
    grid_y = (ys - y0) / (y1 - y0) * 2 - 1
    # A box without extent divides by zero; a point far outside keeps its mask empty.
    outside = grid_x.new_full((), -10.0)
    grid_x = torch.where(torch.isfinite(grid_x), grid_x, outside)
    grid_y = torch.where(torch.isfinite(grid_y), grid_y, outside)
    shape = (len(masks), height, width)
    grid = torch.stack((grid_x[:, None, :].expand(shape), grid_y[:, :, None].expand(shape)), dim=3)
    return F.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0]
